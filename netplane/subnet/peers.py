"""What no two peers may have: overlapping subnets and one MAC, in each family by itself. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from netplane.subnet.family import Pair, Subnet
from netplane.subnet.lease import Lease
from netplane.subnet.spans import Spans


class _Family:
    """What leases have of one family."""

    def __init__(self, halves: Iterable[tuple[Subnet, str, Lease]] = ()) -> None:
        halves = list(halves)
        self._spans = Spans(subnet for subnet, _, _ in halves)
        self._by_subnet = {subnet: lease for subnet, _, lease in halves}
        self._by_mac = {mac: (subnet, lease) for subnet, mac, lease in halves}
        self._is_sound = len(self._by_mac) == len(halves) and self._spans.are_apart()

    def is_sound(self) -> bool:
        """Tell whether those that it began with agree with each other."""
        return self._is_sound

    def touches(self, subnet: Subnet, mac: str) -> bool:
        return mac in self._by_mac or self.overlaps(subnet)

    def overlaps(self, subnet: Subnet) -> bool:
        return bool(self._spans.touched_by(subnet))

    def conflict(self, subnet: Subnet, mac: str) -> str:
        """Name what somebody has already; "" for nothing."""
        for other in self._spans.touched_by(subnet):
            older = self._by_subnet[other]
            return f"subnet {subnet} overlaps {other} of {older.public_ip}, which is older"
        if mac in self._by_mac:
            other, older = self._by_mac[mac]
            return f"VtepMAC {mac} is that of {other} of {older.public_ip}, which is older"
        return ""

    def add(self, subnet: Subnet, mac: str, lease: Lease) -> None:
        self._spans.add(subnet)
        self._by_subnet[subnet] = lease
        self._by_mac[mac] = subnet, lease

    def remove(self, subnet: Subnet, mac: str) -> None:
        self._spans.remove(subnet)
        del self._by_subnet[subnet], self._by_mac[mac]


class Taken:
    """What some leases have, which do not contradict each other."""

    def __init__(self, leases: Iterable[Lease] = (), *, both: bool) -> None:
        """Begin with these; `both`: of each the IPv6 half, too, which all of them have."""
        leases = list(leases)
        self._first = _Family((lease.subnet, _mac(lease), lease) for lease in leases)
        self._second: _Family | None = None
        if both:
            self._second = _Family((*_half(lease), lease) for lease in leases)

    def is_sound(self) -> bool:
        """Tell whether those that it began with agree with each other; else it is of no use."""
        return self._first.is_sound() and (self._second is None or self._second.is_sound())

    def touches(self, lease: Lease) -> bool:
        """Tell whether somebody has anything of a lease already."""
        if self._first.touches(lease.subnet, _mac(lease)):
            return True
        return self._second is not None and self._second.touches(*_half(lease))

    def overlaps(self, pair: Pair) -> bool:
        """Tell whether somebody has anything of these subnets."""
        if self._first.overlaps(pair.first):
            return True
        if self._second is None or pair.second is None:
            return False
        return self._second.overlaps(pair.second)

    def conflict(self, lease: Lease) -> str:
        """Name what somebody has of a lease already; "" for nothing."""
        reason = self._first.conflict(lease.subnet, _mac(lease))
        if reason or self._second is None:
            return reason
        return self._second.conflict(*_half(lease))

    def add(self, lease: Lease) -> None:
        """Take one more, which touches none of them."""
        self._first.add(lease.subnet, _mac(lease), lease)
        if self._second is not None:
            self._second.add(*_half(lease), lease)

    def remove(self, lease: Lease) -> None:
        """Take out one that is there."""
        self._first.remove(lease.subnet, _mac(lease))
        if self._second is not None:
            self._second.remove(*_half(lease))


def settle(
    candidates: list[Lease], quarantined: dict[bytes, str], *, both: bool
) -> tuple[dict[Subnet, Lease], Taken]:
    """Return the leases that agree with each other; of two that do not, the older stays."""
    taken = Taken(candidates, both=both)
    if taken.is_sound():  # as it should be
        return {lease.subnet: lease for lease in candidates}, taken
    peers: dict[Subnet, Lease] = {}
    taken = Taken(both=both)
    for lease in sorted(candidates, key=lambda lease: (lease.create_revision, lease.key)):
        reason = taken.conflict(lease)
        if reason:
            quarantined[lease.key] = reason
        else:
            peers[lease.subnet] = lease
            taken.add(lease)
    return peers, taken


def _half(lease: Lease) -> tuple[Subnet, str]:
    assert lease.subnet6 is not None, lease  # or it is quarantined
    return lease.subnet6, _mac_in(lease.backend_data6, lease)


def _mac(lease: Lease) -> str:
    return _mac_in(lease.backend_data, lease)


def _mac_in(data: object, lease: Lease) -> str:
    """Return the peer's MAC; where there is none, something that no other lease has."""
    mac = data.get("VtepMAC") if isinstance(data, dict) else None
    return mac.lower() if isinstance(mac, str) else lease.key.decode(errors="replace")
