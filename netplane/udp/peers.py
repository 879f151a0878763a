"""Who has which addresses of the overlay, and where packets for them go: pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network


class PeersError(Exception):
    """What was told as peers are none; the text says which."""


@dataclass(frozen=True, slots=True, eq=False)
class Peer:
    """One subnet. Compared by being the same object, as packets in a row are."""

    subnet: IPv4Network
    host: str
    """What its packets come from, and go to."""
    port: int
    address: tuple[str, int]
    """The two as sockets have them."""
    key: str = ""
    """Of its process, in hexadecimal, where packets are sealed; else empty."""

    @classmethod
    def parse(cls, told: object) -> Peer:
        """Read `[subnet, host, port, key]`. Raises PeersError."""
        match told:
            case [str(subnet), str(host), int(port), str(key)] if 0 < port < 65536:
                try:
                    text = str(IPv4Address(host))
                    return cls(IPv4Network(subnet), text, port, (text, port), key)
                except ValueError as error:
                    raise PeersError(str(error)) from error
        raise PeersError(f"{told!r} is no [subnet, host, port, key]")

    def told(self) -> list[object]:
        """Return what `parse` reads."""
        return [str(self.subnet), self.host, self.port, self.key]


class Peers:
    """Finds the peer that has an address.

    By the masked address, in one dict for each length that there is, the longest first: usually
    there is one, and a look at it.
    """

    def __init__(self, peers: Iterable[Peer] = ()) -> None:
        tables: dict[int, dict[int, Peer]] = {}
        self.all: Sequence[Peer] = tuple({peer.subnet: peer for peer in peers}.values())
        """Of several with one subnet only the last."""
        for peer in self.all:
            table = tables.setdefault(int(peer.subnet.netmask), {})
            table[int(peer.subnet.network_address)] = peer
        self._tables = sorted(tables.items(), reverse=True)
        self.hosts = frozenset(peer.host for peer in self.all)
        """Who may send to us at all."""

    def find(self, address: int) -> Peer | None:
        """Return the peer of the longest subnet with this address."""
        for mask, table in self._tables:
            peer = table.get(address & mask)
            if peer is not None:
                return peer
        return None
