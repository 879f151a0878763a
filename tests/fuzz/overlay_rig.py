"""Datagrams, packets and questions at the process of the userspace overlay, without its sockets."""

from __future__ import annotations

import contextlib
import socket
from typing import cast

from netplane.udp.control import ControlError, Hello, answer, decode, encode
from netplane.udp.path import DataPath
from netplane.udp.peers import Peer, Peers, PeersError
from netplane.udp.seal import Identity, Session
from netplane.udp.sealed import SealedPath
from tests.fuzz.mutate import pieces
from tests.netplane.udp.ends import OWN
from tests.netplane.udp.packets import SOURCE, TARGET, packet

HOST, PORT = "192.0.2.2", 8285
INNER = tuple(packet(TARGET, SOURCE, bytes([number]) * number) for number in (0, 1, 30))


class Nowhere:
    """What stands for both sockets: takes what is sent."""

    def sendto(self, *_: object) -> None:
        """Take it."""


NOWHERE = cast("socket.socket", Nowhere())


def fill(path: DataPath, data: bytes) -> None:
    """Have it in the buffer, as read."""
    path._buffer[: len(data)] = data


def packets(data: bytes) -> None:
    """Packets from the network and from the device: what passes may, all else is counted once."""
    path = DataPath(-1, NOWHERE, NOWHERE, OWN)
    path.set_peers(Peers([Peer.parse(["10.5.2.0/24", HOST, PORT, ""])]))
    for number, part in enumerate(pieces(data)):
        fill(path, part)
        dropped = path.drops.total()
        if number % 2:
            found = path._take(0, len(part), HOST, PORT)
            passed = found is not None
            if found is not None:
                assert bytes(found) == part
                assert (part[12:15], part[16:19]) == (TARGET[:3], SOURCE[:3])
        else:
            passed = path._way_out(0, len(part)) is not None
            if passed:
                assert part[16:19] == TARGET[:3]
                assert path._buffer[8] == part[8] - 1
        if passed:
            assert part[0] >> 4 == 4
            assert len(part) == int.from_bytes(part[2:4]) >= 20
        assert path.drops.total() == dropped + (not passed)


def ends() -> tuple[SealedPath, Session]:
    """Return a path with fixed keys, and the session of the peer that seals for it."""
    ours, theirs = Identity(bytes(range(32))), Identity(bytes(range(1, 33)))
    path = SealedPath(-1, NOWHERE, NOWHERE, OWN, ours)
    path.set_peers(Peers([Peer.parse(["10.5.2.0/24", HOST, PORT, theirs.public.hex()])]))
    return path, Session(theirs, ours.public)


def sealed(data: bytes) -> None:
    """Sealed packets, changed and made up: each that the peer has sealed passes once, no other."""
    path, _ = ends()
    good = set(sealed_ones())
    for part in pieces(data):
        fill(path, part)
        dropped = path.drops.total()
        found = path._take(0, len(part), HOST, PORT)
        if found is None:
            assert path.drops.total() == dropped + 1
        else:
            assert found in INNER
            good.remove(part)
    [link] = path._links.values()
    assert all(epoch.number == 0 for epoch in link.session._received)


def sealed_ones() -> list[bytes]:
    """Return what the peer has sealed."""
    _, peer = ends()
    return [peer.seal(inner) for inner in INNER]


def control(data: bytes) -> None:
    """Messages of either end: read, or refused by the proper error."""
    with contextlib.suppress(ControlError, RecursionError):  # what is read is never written again
        assert decode(encode(decode(data))) == decode(data) or b"NaN" in data
    with contextlib.suppress(ControlError):
        Hello.parse(answer(data))
    with contextlib.suppress(ControlError, PeersError, RecursionError):
        told = decode(data).get("peers")
        if isinstance(told, list):
            for peer in map(Peer.parse, told):
                assert Peer.parse(peer.told()).told() == peer.told()
