"""From what is registered to the peers that may be programmed: pure.

What cannot be used is quarantined: named with its reason, never applied, and never taken for the
absence of a peer. While the newest value of a peer's key cannot be read or used, its last good
one stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from itertools import pairwise

from netplane.subnet.config import NetworkConfig, parse_config
from netplane.subnet.errors import ConfigError
from netplane.subnet.fields import VNI_MAX
from netplane.subnet.lease import MAC, Lease, View, address_problem, packed_mac
from netplane.subnet.records import Registered
from netplane.subnet.spans import Spans

_NO_DATA = "BackendData is missing"


@dataclass(slots=True)
class Local:
    """What is ours, so that nobody else's lease may claim it."""

    public_ip: IPv4Address
    subnet: IPv4Network | None = None
    mac: str = ""
    """Lower case; "" for backends without."""


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
        self._peers: dict[IPv4Network, Lease] = {}
        self._quarantined: dict[bytes, str] = {}
        self._spans = Spans()
        self._macs: set[str] = set()
        self._built_for: tuple[object, ...] | None = None
        """What else the last view hangs on; None: the next one cannot go on from it."""

    def build(self, registered: Registered) -> View:
        """Return the view of what is registered now.

        Among a thousand hosts usually one has changed: then only that one is looked at. Whatever
        is out of the ordinary, and every conflict, is left to a look at all of them.
        """
        changed = registered.take_changed()
        built_for = (self.local.public_ip, self.local.subnet, self.local.mac, self.config_value)
        goes_on = changed is not None and built_for == self._built_for
        if changed is None or not goes_on or not self._update(registered, changed):
            is_plain = self._rebuild(registered)
            self._built_for = built_for if is_plain else None
        return View(
            registered.head.cluster_id,
            registered.head.revision,
            self._own,
            # Copies, as nobody changes a view. Plain ones: their keys are not hashed again.
            self._peers.copy(),
            self._quarantined.copy(),
            self.config,
        )

    def _update(self, registered: Registered, changed: set[bytes]) -> bool:
        """Take over the changed keys; False: not all, so everything is to be looked at."""
        layout = registered.layout
        if layout.config in changed:
            return False
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
                self._spans.remove(good.subnet)
                self._macs.discard(_mac(good))
            if key not in registered.subnets:
                continue
            lease = registered.leases.get(key)
            if lease is not None:
                if self._is_own(lease):
                    self._own = lease
                    continue
                reason = self._problem(lease)
                if reason:
                    self._quarantined[key] = reason
                    lease = None
            lease = lease or good
            if lease is None:
                continue
            self._good[key] = lease
            if _mac(lease) in self._macs or self._spans.touched_by(lease.subnet):
                return False
            self._peers[lease.subnet] = lease
            self._spans.add(lease.subnet)
            self._macs.add(_mac(lease))
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
                if reason == _NO_DATA and not lease.expires and key not in self._good:
                    # Kept for a host that has not come yet: it will say where it can be reached.
                    continue
            if reason:
                quarantined[key] = reason
                lease = self._good.get(key)
                # What was good once may be so no more: our own subnet or address has moved.
                if lease is None or self._problem(lease):
                    continue
            assert lease is not None
            candidates.append(lease)
        peers = self._without_conflicts(candidates, quarantined)
        # Of keys that are gone nothing is remembered.
        self._good = {lease.key: lease for lease in peers.values()}
        self._checked = {key: self._checked[key] for key in self._good if key in self._checked}
        self._own, self._peers, self._quarantined = own, peers, quarantined
        self._spans = Spans(peers)
        self._macs = set(map(_mac, peers.values()))
        return len(peers) == len(candidates)

    def _unreadable(self, registered: Registered) -> Mapping[bytes, str]:
        found = dict(registered.junk)
        config = registered.kvs.get(registered.layout.config)
        if self.config_value is not None:
            if config is None:
                found[registered.layout.config] = (
                    "the network's configuration is gone; the one read at the start stays in use"
                )
            elif config.value != self.config_value and not self._means_the_same(config.value):
                found[registered.layout.config] = (
                    "the network's configuration has changed; the one read at the start stays in "
                    "use until the agent is started again"
                )
        return found

    def _means_the_same(self, value: bytes) -> bool:
        try:
            return parse_config(value) == self.config
        except ConfigError:
            return False

    def _is_own(self, lease: Lease) -> bool:
        local = self.local
        return lease.subnet == local.subnet and lease.public_ip == local.public_ip

    def _problem(self, lease: Lease) -> str:
        """Say what forbids to use a lease, whatever the others are; "" for nothing."""
        local = self.local
        if local.subnet is not None and lease.subnet.overlaps(local.subnet):
            return f"it overlaps our own subnet {local.subnet}; PublicIP {lease.public_ip}"
        if lease.public_ip == local.public_ip:
            return f"PublicIP {lease.public_ip} is our own"
        known = self._checked.get(lease.key)
        if known is not None and known[0] == lease:
            return known[1]
        reason = self._lasting_problem(lease)
        self._checked[lease.key] = (lease, reason)
        return reason

    def _lasting_problem(self, lease: Lease) -> str:
        """As `_problem`, of what does not change with what is ours."""
        config = self.config
        if not lease.subnet.subnet_of(config.network):
            return f"subnet {lease.subnet} is outside of Network {config.network}"
        reason = address_problem(lease.public_ip, config.network)
        if reason:
            return reason
        # Flannel leaves the type of udp and alloc out.
        wanted = "" if config.backend_type in ("udp", "alloc") else config.backend_type
        if lease.backend_type != wanted:
            return f"its backend is {lease.backend_type or 'udp'!r}, ours {config.backend_type!r}"
        return self._vxlan_problem(lease) if config.backend_type == "vxlan" else ""

    def _vxlan_problem(self, lease: Lease) -> str:
        data = lease.backend_data
        if not isinstance(data, dict):
            return _NO_DATA
        vni, mac = data.get("VNI"), data.get("VtepMAC")
        if not isinstance(vni, int) or isinstance(vni, bool) or not 1 <= vni <= VNI_MAX:
            return f"VNI {vni!r} is no number from 1 to {VNI_MAX}"
        if vni != self.config.vni:
            return f"its VNI is {vni}, ours {self.config.vni}"
        if not isinstance(mac, str) or not MAC.fullmatch(mac):
            return f"VtepMAC {mac!r} is no MAC address"
        if packed_mac(mac) is None:
            return f"VtepMAC {mac} is no address of one interface"
        if mac.lower() == self.local.mac:
            return f"VtepMAC {mac} is our own"
        return ""

    def _without_conflicts(
        self, candidates: list[Lease], quarantined: dict[bytes, str]
    ) -> dict[IPv4Network, Lease]:
        """Return the leases that agree with each other; of two that do not, the older stays."""
        spans = sorted(
            (int(lease.subnet.network_address), int(lease.subnet.broadcast_address))
            for lease in candidates
        )
        macs = [_mac(lease) for lease in candidates]
        if len(set(macs)) == len(macs) and all(
            before[1] < after[0] for before, after in pairwise(spans)
        ):
            return {lease.subnet: lease for lease in candidates}  # as it should be
        peers: dict[IPv4Network, Lease] = {}
        taken = Spans()
        by_mac: dict[str, Lease] = {}
        for lease in sorted(candidates, key=lambda lease: (lease.create_revision, lease.key)):
            older = next((peers[one] for one in taken.touched_by(lease.subnet)), None)
            twin = by_mac.get(_mac(lease))
            if older is not None:
                quarantined[lease.key] = (
                    f"subnet {lease.subnet} overlaps {older.subnet} of {older.public_ip}, which "
                    "is older"
                )
            elif twin is not None:
                quarantined[lease.key] = (
                    f"VtepMAC {_mac(lease)} is that of {twin.subnet} of {twin.public_ip}, which "
                    "is older"
                )
            else:
                peers[lease.subnet] = by_mac[_mac(lease)] = lease
                taken.add(lease.subnet)
        return peers


def _mac(lease: Lease) -> str:
    """Return the peer's MAC; where there is none, something that no other lease has."""
    data = lease.backend_data
    mac = data.get("VtepMAC") if isinstance(data, dict) else None
    return mac.lower() if isinstance(mac, str) else lease.key.decode(errors="replace")
