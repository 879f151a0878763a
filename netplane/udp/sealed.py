"""The way of packets that are sealed between hosts; see `path` for the plain one."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from netplane.udp.path import BATCH, DATAGRAM_BYTES_MAX, SEGMENTS_MAX, DataPath
from netplane.udp.peers import Peers
from netplane.udp.seal import OVERHEAD_BYTES, VERSION, Identity, SealError, Session


@dataclass(slots=True, eq=False)
class Link:
    """What there is with one other process."""

    session: Session
    told: tuple[str, int]
    """Where it is as the agent has it."""
    address: tuple[str, int]
    """Where it is: moved by what is authentic and newer than all before."""


class SealedPath(DataPath):
    """As `DataPath`, with another key for each peer and direction. What has no key does not go.

    Args:
        identity: our key pair.
    """

    def __init__(
        self,
        device: int,
        udp: socket.socket,
        icmp: socket.socket,
        own: tuple[int, int],
        identity: Identity,
    ) -> None:
        super().__init__(device, udp, icmp, own)
        self.identity = identity
        self.moved = 0
        """How often a peer was found at another address."""
        self._links: dict[str, Link] = {}
        """By the other's key, for ever: a session that is made again would repeat nonces."""
        self._incoming: dict[bytes, tuple[str, Link]] = {}
        """Key and link by the key id of what comes, of the peers of now."""

    def counters(self) -> dict[str, Any]:
        """Return what was done so far."""
        return {**super().counters(), "moved": self.moved}

    def set_peers(self, peers: Peers) -> None:
        """Go on with these peers; one whose key is none gets and sends nothing."""
        incoming: dict[bytes, tuple[str, Link]] = {}
        for peer in peers.all:
            link = self._links.get(peer.key)
            if link is None:
                try:
                    session = Session(self.identity, bytes.fromhex(peer.key))
                except ValueError:
                    continue
                link = self._links[peer.key] = Link(session, peer.address, peer.address)
            if link.told != peer.address:
                link.told = link.address = peer.address
            incoming[link.session.incoming_id] = peer.key, link
        self.peers = peers
        self._incoming = incoming

    def sessions(self) -> list[dict[str, Any]]:
        """Return what a successor needs to know of all that ever were."""
        return [
            {**link.session.told(), "told": link.told, "address": link.address}
            for link in self._links.values()
        ]

    def restore(self, sessions: Iterable[dict[str, Any]]) -> None:
        """Go on with the sessions of an older process, before any peer is set."""
        for told in sessions:
            session = Session.restored(self.identity, told)
            places = [(str(told[name][0]), int(told[name][1])) for name in ("told", "address")]
            self._links[told["public"]] = Link(session, *places)

    def from_device(self) -> None:
        """Send what containers have sent. Raises DeviceGoneError."""
        view = self._view
        pieces: list[bytes] = []
        run: Link | None = None
        size = 0
        for _ in range(BATCH):
            try:
                length = self._read(0)
            except BlockingIOError:
                break
            peer = self._way_out(0, length)
            if peer is None:
                continue
            link = self._links.get(peer.key)
            if link is None:
                self.drops["no-key"] += 1
                continue
            sealed = link.session.seal(view[:length])
            if link is not run or len(sealed) > size or len(pieces) == SEGMENTS_MAX or (
                (len(pieces) + 1) * size > DATAGRAM_BYTES_MAX
            ):  # fmt: skip
                self._send_sealed(run, pieces, size)
                run, pieces, size = link, [], len(sealed)
            pieces.append(sealed)
            if len(sealed) < size:
                self._send_sealed(run, pieces, size)
                run, pieces = None, []
        self._send_sealed(run, pieces, size)

    def _send_sealed(self, link: Link | None, pieces: list[bytes], size: int) -> None:
        if link is not None and pieces:
            self._send(link.address, memoryview(b"".join(pieces)), size)

    def _take(self, start: int, end: int, host: str, port: int) -> memoryview | bytes | None:
        data = self._view[start:end]
        if end - start < OVERHEAD_BYTES or data[0] != VERSION:
            self.drops["malformed"] += 1
            return None
        key, link = self._incoming.get(bytes(data[4:12]), ("", None))
        if link is None:
            self.drops["unknown-key"] += 1
            return None
        try:
            packet, is_newest = link.session.open(data)
        except SealError as error:
            self.drops[str(error)] += 1
            return None
        # Whatever is inside, it is from there.
        if is_newest and (host, port) != link.address:
            link.address = host, port
            self.moved += 1
        return packet if self._is_for_us(packet, 0, len(packet), "key", key) else None
