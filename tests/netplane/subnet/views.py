"""What host 100 makes of the registry of a test, and what several tests say of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from netplane.subnet.config import parse_config
from netplane.subnet.family import Pair, Subnet
from netplane.subnet.lease import Lease, Peers, View
from netplane.subnet.records import Registered
from netplane.subnet.registry import Change
from netplane.subnet.view import Local, ViewBuilder
from tests.netplane.subnet.stores import Store, address6, mac, mac6, pair, six

OURS = IPv4Network("10.5.100.0/24")


def builder(store: Store, **others: Any) -> ViewBuilder:
    """Return the builder of host 100."""
    value = store.kvs[store.layout.config].value
    local = Local(IPv4Address("192.0.2.100"), pair=Pair(OURS), mac=mac(100))
    config = parse_config(value)
    if config.second is not None:
        local = Local(local.public_ip, address6(100), pair(100), mac(100), mac6(100))
    elif config.network.version == 6:
        local = Local(address6(100), pair=Pair(six(100)), mac=mac6(100))
    made = ViewBuilder(config, local, **others)
    made.config_value = value
    return made


def viewed(store: Store) -> View:
    return builder(store).build(store.registered())


def peers(view: View) -> list[str]:
    return sorted(str(subnet) for subnet in view.peers)


def assert_changes_are_told(before: Mapping[Subnet, Lease], after: Mapping[Subnet, Lease]) -> None:
    """Check it against a look at all of them, as it is made where nothing is told."""
    told, found = Peers.changed(before, after), Peers.changed(dict(before), dict(after))
    assert [set(map(id, leases)) for leases in told] == [set(map(id, leases)) for leases in found]
    same = before.keys() & after.keys()
    for subnet in {lease.subnet for lease in found[0]} & same:
        assert before[subnet] is not after[subnet]


def assert_only_second_peer(store: Store, change: Change, words: str) -> None:
    """Check that of two peers the second is there, and what was said of the first is named."""
    view = viewed(store)
    assert peers(view) == ["10.5.2.0/24"]
    [(key, reason)] = view.quarantined.items()
    assert key == change.key
    assert words in reason


def applied(registered: Registered, store: Store, change: Change) -> Registered:
    """Apply a change, and return what there is now as one who is not told what changed has it."""
    registered.apply(store.revision, [change])
    changed = registered.take_changed()
    untold = copy.copy(registered)
    untold._changed = None
    registered._changed = changed
    return untold
