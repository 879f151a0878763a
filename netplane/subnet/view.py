"""From what is registered to the peers that may be programmed: pure.

What cannot be used is quarantined: named with its reason, never applied, and never taken for the
absence of a peer. While the newest value of a peer's key cannot be read or used, its last good
one stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address

from netplane.subnet.config import NetworkConfig, read_config
from netplane.subnet.family import Address, Pair, Subnet
from netplane.subnet.lease import Lease, Peers, View, public
from netplane.subnet.peers import Taken, settle
from netplane.subnet.records import Registered
from netplane.subnet.usable import NO_DATA, lasting_problem


@dataclass(slots=True)
class Local:
    """What is ours, so that nobody else's lease may claim it."""

    public_ip: Address
    public_ip6: IPv6Address | None = None
    """Beside an IPv4 one."""
    pair: Pair | None = None
    mac: str = ""
    """Lower case; "" for backends without."""
    mac6: str = ""
    coming: tuple[Address, IPv6Address | None] | None = None
    """Addresses that a write under way gives our lease."""


class ViewBuilder:
    """Makes views, and remembers each peer's last good state."""

    def __init__(self, config: NetworkConfig, local: Local, known: Iterable[Lease] = ()) -> None:
        """Begin.

        Args:
            config: As it was at the start; a later change is reported and not applied.
            local: What is ours; may change from view to view.
            known: Peers of a saved view, whose values were good before a restart.
        """
        self.config = config
        self.local = local
        self.config_value: bytes | None = None
        """The configuration's bytes that `config` was read from; None: it has not been read."""
        self._good = {lease.key: lease for lease in known}
        self._checked: dict[bytes, tuple[Lease, str]] = {}
        self._own: Lease | None = None
        self._peers: dict[Subnet, Lease] = {}
        self._told = Peers({})
        """The peers of the last view."""
        self._came: dict[int, Lease] = {}
        """What has become another since, by id."""
        self._gone: dict[int, Lease] = {}
        self._quarantined: dict[bytes, str] = {}
        self._is_dual = config.second is not None
        self._taken = Taken(both=self._is_dual)
        self._built_for: tuple[object, ...] | None = None
        """What else the last view hangs on; None: the next one cannot go on from it."""
        self._built_pair: Pair | None = None
        """What was ours in the last view."""
        self._all_are_peers = False
        """In the last view, made of all: nobody waits for anything, and nothing is of no use."""

    def build(self, registered: Registered) -> View:
        """Return the view of what is registered now.

        Among a thousand hosts usually one has changed: then only that one is looked at. Whatever
        is out of the ordinary, and every conflict, is left to a look at all of them.
        """
        changed = registered.take_changed()
        local = self.local
        built_for = (
            local.public_ip, local.public_ip6, local.coming, local.mac, local.mac6,
            self.config_value,
        )  # fmt: skip
        goes_on = built_for == self._built_for and self._goes_on_with(local.pair)
        self._built_pair = local.pair
        if changed is None or not goes_on or not self._update(registered, changed):
            is_plain = self._rebuild(registered)
            self._built_for = built_for if is_plain else None
        return View(
            registered.head.cluster_id,
            registered.head.revision,
            self._own,
            # Copies, as nobody changes a view. Plain ones: their keys are not hashed again.
            self._tell_peers(),
            self._quarantined.copy(),
            self.config,
        )

    def _goes_on_with(self, pair: Pair | None) -> bool:
        """Tell whether what the last view says of the others holds with these subnets as ours."""
        if pair == self._built_pair:
            return True
        # Just claimed, and of nobody before: all were looked at while the registry wrote it down.
        return (
            self._built_pair is None
            and pair is not None
            and self._all_are_peers
            and not self._taken.overlaps(pair)
        )

    def _tell_peers(self) -> Peers:
        if self._came or self._gone:
            came, gone = tuple(self._came.values()), tuple(self._gone.values())
            self._told = Peers(self._peers, self._told, came, gone)
            self._came.clear()
            self._gone.clear()
        return self._told

    def _update(self, registered: Registered, changed: set[bytes]) -> bool:
        """Take over the changed keys; False: not all, so everything is to be looked at."""
        layout = registered.layout
        if layout.config in changed:
            return False
        self._all_are_peers = False
        for key in changed:
            self._checked.pop(key, None)
            self._quarantined.pop(key, None)
            if key in registered.junk:
                self._quarantined[key] = registered.junk[key]
            if self._own is not None and self._own.key == key:
                self._own = None
            good = self._good.pop(key, None)
            if good is not None:
                del self._peers[good.subnet]
                if self._came.pop(id(good), None) is None:
                    self._gone[id(good)] = good
                self._taken.remove(good)
            if key not in registered.subnets:
                continue
            lease = registered.leases.get(key)
            if lease is not None:
                if self._is_own(lease):
                    self._own = lease
                    continue
                reason = self._problem(lease)
                if good is None and _waits_for_its_host(lease, reason):
                    continue
                if reason:
                    self._quarantined[key] = reason
                    lease = None
                elif not self._is_dual:
                    lease = lease.without_second()
            lease = lease or good
            if lease is None:
                continue
            self._good[key] = lease
            if self._taken.touches(lease):
                return False
            self._peers[lease.subnet] = lease
            if self._gone.pop(id(lease), None) is None:
                self._came[id(lease)] = lease
            self._taken.add(lease)
        return True

    def _rebuild(self, registered: Registered) -> bool:
        """Look at everything; True: no two leases contradict each other."""
        quarantined = dict(self._unreadable(registered))
        own: Lease | None = None
        candidates: list[Lease] = []
        for key in registered.subnets:
            lease = registered.leases.get(key)
            reason = "" if lease is not None else registered.junk[key]
            if lease is not None:
                if self._is_own(lease):
                    own = lease
                    continue
                reason = self._problem(lease)
                if key not in self._good and _waits_for_its_host(lease, reason):
                    continue
            if reason:
                quarantined[key] = reason
                lease = self._good.get(key)
                # What was good once may be so no more: our own subnet or address has moved.
                if lease is None or self._problem(lease):
                    continue
            assert lease is not None
            candidates.append(lease if self._is_dual else lease.without_second())
        peers, self._taken = settle(candidates, quarantined, both=self._is_dual)
        # Of keys that are gone nothing is remembered.
        self._good = {lease.key: lease for lease in peers.values()}
        self._checked = {key: self._checked[key] for key in self._good if key in self._checked}
        self._own, self._peers, self._quarantined = own, peers, quarantined
        came, gone = Peers.changed(self._told, peers)
        self._came, self._gone = ({id(one): one for one in some} for some in (came, gone))
        self._all_are_peers = len(peers) == len(registered.subnets) and not quarantined
        return len(peers) == len(candidates)

    def _unreadable(self, registered: Registered) -> Mapping[bytes, str]:
        found = dict(registered.junk)
        key = registered.layout.config
        config = registered.kvs.get(key)
        if self.config_value is not None:
            if config is None:
                found[key] = (
                    "the network's configuration is gone; the one read at the start stays in use"
                )
            elif key in found:
                found[key] = (
                    "the network's configuration has changed, and the new one cannot be used "
                    f"({found[key]}): correct it with `netplane ctl init --force`; do not restart "
                    "agents before"
                )
            elif config.value != self.config_value and read_config(config.value) != self.config:
                found[key] = (
                    "the network's configuration has changed; the one read at the start stays in "
                    "use until the agent is started again"
                )
        return found

    def _is_own(self, lease: Lease) -> bool:
        local = self.local
        return (
            self._says(lease, local.public_ip, local.public_ip6)
            or (local.coming is not None and self._says(lease, *local.coming))
        ) and lease.pair == local.pair

    def _says(self, lease: Lease, public_ip: Address, public_ip6: IPv6Address | None) -> bool:
        return lease.public_ip == public_ip and (
            lease.public_ip6 == public_ip6 or not self._is_dual
        )

    def _problem(self, lease: Lease) -> str:
        """Say what forbids to use a lease, whatever the others are; "" for nothing."""
        local = self.local
        if local.pair is not None and lease.pair.overlaps(local.pair):
            return f"it overlaps our own subnet {local.pair}; {public(lease.public_ip)}"
        if lease.public_ip == local.public_ip:
            return f"{public(lease.public_ip)} is our own"
        if local.public_ip6 is not None and local.public_ip6 == lease.public_ip6:
            return f"{public(local.public_ip6)} is our own"
        known = self._checked.get(lease.key)
        if known is not None and known[0] == lease:
            return known[1]
        reason = lasting_problem(lease, self.config, (local.mac, local.mac6))
        self._checked[lease.key] = (lease, reason)
        return reason


def _waits_for_its_host(lease: Lease, reason: str) -> bool:
    """Tell whether a subnet is kept for a host that has not come yet: that is no junk.

    It will say where it can be reached. One that has said it already, and lost it, is junk.
    """
    return reason == NO_DATA and not lease.expires
