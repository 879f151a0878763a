"""The way of packets that are sealed between hosts; see `path` for the plain one."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any

from netplane.udp.path import BATCH, DATAGRAM_BYTES_MAX, SEGMENTS_MAX, DataPath
from netplane.udp.peers import Peer, Peers
from netplane.udp.seal import OVERHEAD_BYTES, VERSION, Identity, SealError, Session

FORMER_MAX = 8
"""Keys that a subnet has had before, whose sessions are remembered. Each takes a tenth of the place
of a session, and who has them comes back only with a registry that goes back by as many."""


@dataclass(slots=True, eq=False)
class Link:
    """What there is with one other process."""

    session: Session
    subnet: IPv4Network
    """That its host has."""
    told: tuple[str, int]
    """Where it is as the agent has it."""
    address: tuple[str, int]
    """Where it is: moved by what is authentic and newer than all before."""

    def remembered(self) -> dict[str, Any]:
        """Return all that is needed to go on with it later, here or in a successor."""
        places = {"subnet": str(self.subnet), "told": self.told, "address": self.address}
        return {**self.session.told(), **places}


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
        """By the other's key, of the peers of now."""
        self._former: dict[str, dict[str, Any]] = {}
        """The same of those that were, the newest last: what is remembered of them. A session that
        is made again without it would repeat nonces."""
        self.first_epoch = 0
        """Of a session with a key that is not remembered: after all that were forgotten."""
        self._incoming: dict[bytes, tuple[str, Link]] = {}
        """Key and link by the key id of what comes, of the peers of now."""

    def counters(self) -> dict[str, Any]:
        """Return what was done so far."""
        return {**super().counters(), "moved": self.moved}

    def set_peers(self, peers: Peers) -> None:
        """Go on with these peers; one whose key is none gets and sends nothing."""
        links: dict[str, Link] = {}
        incoming: dict[bytes, tuple[str, Link]] = {}
        for peer in peers.all:
            link = links.get(peer.key) or self._links.get(peer.key) or self._link_to(peer)
            if link is None:
                continue
            link.subnet = peer.subnet
            if link.told != peer.address:
                link.told = link.address = peer.address
            links[peer.key] = link
            incoming[link.session.incoming_id] = peer.key, link
        gone = [key for key in self._links if key not in links]
        for key in gone:
            self._former[key] = self._links[key].remembered()
        if gone:
            self._forget_oldest()
        self.peers = peers
        self._links = links
        self._incoming = incoming

    def _link_to(self, peer: Peer) -> Link | None:
        """Return what is new, or goes on; None: the key is none."""
        told = self._former.pop(peer.key, None)
        if told is not None:
            session = Session.restored(self.identity, told)
            places = [(str(told[name][0]), int(told[name][1])) for name in ("told", "address")]
            return Link(session, peer.subnet, *places)
        try:
            session = Session(
                self.identity, bytes.fromhex(peer.key), first_epoch=self.first_epoch
            )  # fmt: skip
        except ValueError:
            return None
        return Link(session, peer.subnet, peer.address, peer.address)

    def _forget_oldest(self) -> None:
        """Keep a bounded number of former sessions for each subnet."""
        kept: Counter[str] = Counter()
        for key, told in reversed(list(self._former.items())):
            kept[told["subnet"]] += 1
            if kept[told["subnet"]] > FORMER_MAX:
                del self._former[key]
                self.first_epoch = max(self.first_epoch, told["epoch"] + 1)

    def sessions(self) -> list[dict[str, Any]]:
        """Return what a successor needs to know, with `first_epoch`: the newest last."""
        return [*self._former.values(), *(link.remembered() for link in self._links.values())]

    def restore(self, sessions: Iterable[dict[str, Any]], first_epoch: int) -> None:
        """Go on with the sessions of an older process, before any peer is set."""
        self._former = {told["public"]: {"subnet": "", **told} for told in sessions}
        self.first_epoch = first_epoch

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
