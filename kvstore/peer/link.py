"""Connections between members: framing, handshake, reconnect; knows bytes, not Raft messages.

Every member dials every other member, once per channel, and sends on the connections it dialled;
what it accepts it only reads. Heartbeats and answers have a channel of their own, so that they
never queue behind a large append. A frame is a 4-byte big-endian length and the payload. The first
frame of a connection is the hello: magic, protocol version, then msgpack
`[cluster_id, sender, target, channel]`; it is answered by one frame, empty or the refusal's text.
Later on a control connection an empty frame asks for an empty frame, which tells the round trip.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import msgpack

from kvstore.ports import Random

log = logging.getLogger("kvstore.peer")

MAGIC = b"KVP"
PROTOCOL_VERSION = 1
FRAME_SIZE_MAX = 64 << 20
"""Larger than any entry batch; a length above it is not ours and ends the connection."""

UNSENT_MAX = 64 << 20
"""Bytes waiting for one peer before further messages to it are dropped, which Raft tolerates."""

BACKOFF_MIN_S = 0.02
BACKOFF_MAX_S = 0.25
HELLO_TIMEOUT_S = 5.0
PROBE_S = 1.0
"""Between an answered probe of the round trip and the next."""

QUIET_S = 3.0
"""A peer may be away this long before it is worth a line in the log."""


class Channel(enum.IntEnum):
    """What a connection carries."""

    CONTROL = 0
    """Heartbeats, votes, answers, read rounds: small and urgent."""

    BULK = 1
    """Entries and forwarded proposals."""

    SNAPSHOT = 2
    """One snapshot, then the connection ends."""

    DESCRIBE = 3
    """Who is a member? Asked by who knows neither ids nor cluster yet (`kvstore.peer.describe`)."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a peer listens."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Hello:
    """The identity a dialling member shows."""

    cluster_id: int
    sender: int
    target: int
    channel: Channel


class HelloError(Exception):
    """The other side is not a member we may talk to; the text says why and what to do."""


def removal_text(member: int) -> str:
    """Return the refusal by which a removed member learns of its removal."""
    return f"member {member:x} was removed from the cluster and cannot come back"


def encode_hello(hello: Hello) -> bytes:
    """Return the payload of the first frame."""
    body: bytes = msgpack.packb([hello.cluster_id, hello.sender, hello.target, int(hello.channel)])
    return MAGIC + bytes([PROTOCOL_VERSION]) + body


def decode_hello(payload: bytes) -> Hello:
    """Return what the payload of a first frame says.

    Raises:
        HelloError: Not our protocol, a newer version of it, or malformed.
    """
    if payload[:3] != MAGIC or len(payload) < 4:
        raise HelloError("this is the peer port of a kvstore member; clients use the client port")
    if payload[3] != PROTOCOL_VERSION:
        raise HelloError(
            f"peer protocol version {payload[3]} is not supported here "
            f"(this member speaks {PROTOCOL_VERSION}); upgrade the older member"
        )
    try:
        cluster, sender, target, channel = msgpack.unpackb(payload[4:])
        hello = Hello(int(cluster), int(sender), int(target), Channel(channel))
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise HelloError(f"malformed hello: {error}") from error
    return hello


def frame(payload: bytes) -> bytes:
    """Return the payload behind its length."""
    return len(payload).to_bytes(4) + payload


class FrameReader:
    """Cuts a byte stream into payloads."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Take received bytes, return the payloads that are complete now.

        Raises:
            HelloError: A length above `FRAME_SIZE_MAX`.
        """
        if self._buffer:
            data = self._buffer + data
        payloads = []
        position = 0
        end = len(data)
        while end - position >= 4:
            size = int.from_bytes(data[position : position + 4])
            if size > FRAME_SIZE_MAX:
                raise HelloError(f"a frame of {size} bytes is not ours")
            if end - position - 4 < size:
                break
            position += 4
            payloads.append(data[position : position + size])
            position += size
        self._buffer = data[position:]
        return payloads


class Receiver(Protocol):
    """What a member does with what its peers send. Methods run on the loop and must not raise."""

    def receive(self, sender: int, payloads: list[bytes]) -> None:
        """Take the messages of one read from a control or bulk connection."""

    def snapshot_opened(
        self, sender: int, pause: Callable[[bool], None], answer: Callable[[str], None]
    ) -> SnapshotSink:
        """Begin to receive a snapshot.

        `pause` stops or continues reading; `answer` tells the sender the end, empty for success.
        """

    def describe(self, answer: Callable[[bytes], None]) -> None:
        """Answer who is a member, now or later, in the form of `kvstore.peer.describe`."""


class SnapshotSink(Protocol):
    """Takes one incoming snapshot."""

    def frame(self, payload: bytes) -> None:
        """Take the next frame. Must not raise."""

    def closed(self) -> None:
        """The connection has ended, complete or not."""


class Inbound(asyncio.Protocol):
    """A connection that a peer dialled."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self._reader = FrameReader()
        self._hello: Hello | None = None
        self._sink: SnapshotSink | None = None
        self._transport: asyncio.Transport | None = None
        self._timeout: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the hello, but not for ever."""
        self._transport = cast("asyncio.Transport", transport)
        self._links.inbound.add(self)
        self._timeout = asyncio.get_running_loop().call_later(HELLO_TIMEOUT_S, self.close)

    def data_received(self, data: bytes) -> None:
        """Check the hello, then hand the frames on."""
        try:
            payloads = self._reader.feed(data)
            if self._hello is None and payloads:
                self._accept(decode_hello(payloads.pop(0)))
        except HelloError as error:
            self._refuse(str(error))
            return
        hello = self._hello
        if hello is None or not payloads:
            return
        received = self._links.received_bytes
        received[hello.sender] = received.get(hello.sender, 0) + len(data)
        if self._sink is None:
            if b"" in payloads:
                payloads = self._answer_probes(payloads)
            self._links.receiver.receive(hello.sender, payloads)
            return
        for payload in payloads:
            self._sink.frame(payload)

    def _answer_probes(self, payloads: list[bytes]) -> list[bytes]:
        assert self._transport is not None
        rest = [payload for payload in payloads if payload]
        self._transport.write(frame(b"") * (len(payloads) - len(rest)))
        return rest

    @property
    def sender(self) -> int:
        """The member at the other end; 0 before it has said so."""
        return self._hello.sender if self._hello is not None else 0

    def _accept(self, hello: Hello) -> None:
        if hello.channel is Channel.DESCRIBE:
            # The asker is nobody yet: no check, and the connection ends with the answer or the
            # hello's timeout.
            self._links.receiver.describe(self._end_with)
            return
        problem = self._links.check(hello)
        if problem:
            raise HelloError(problem)
        assert self._transport is not None
        assert self._timeout is not None
        self._timeout.cancel()
        self._hello = hello
        if hello.channel is Channel.SNAPSHOT:
            self._sink = self._links.receiver.snapshot_opened(
                hello.sender, self._pause, self._refuse
            )
        self._transport.write(frame(b""))

    def _pause(self, paused: bool) -> None:
        if self._transport is not None and not self._transport.is_closing():
            if paused:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _refuse(self, text: str) -> None:
        self._end_with(text.encode())

    def _end_with(self, payload: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame(payload))
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection; the peer dials again."""
        if self._timeout is not None:
            self._timeout.cancel()
        self._links.inbound.discard(self)
        if self._sink is not None:
            self._sink.closed()
            self._sink = None

    def close(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()


class Outbound(asyncio.Protocol):
    """A connection that we dialled.

    `opened` is the future of the answered hello, `accepted` that of the answer to a snapshot,
    `lost` that of the end.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.accepted: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()
        self.transport: asyncio.Transport | None = None
        self.probed: asyncio.Future[float] | None = None
        """The probe under way: its result is the round trip in seconds."""

        self.writable = asyncio.Event()
        self.writable.set()
        self._probe_sent_s = 0.0
        self._reader = FrameReader()

    def probe(self) -> asyncio.Future[float]:
        """Ask for an empty frame; return the future of the seconds until it comes."""
        assert self.transport is not None
        self.probed = asyncio.get_running_loop().create_future()
        # Not the loop's clock: uvloop's counts milliseconds.
        self._probe_sent_s = time.perf_counter()
        self.transport.write(frame(b""))
        return self.probed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # uvloop's transports are no subclass.
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Take the answer to the hello, or the text of a refusal."""
        for payload in self._reader.feed(data):
            if payload:
                self._fail(HelloError(payload.decode(errors="replace")))
                if self.transport is not None:
                    self.transport.close()
            elif not self.opened.done():
                self.opened.set_result(None)
            elif self.probed is not None:
                self.probed.set_result(time.perf_counter() - self._probe_sent_s)
                self.probed = None
            elif not self.accepted.done():
                self.accepted.set_result(None)

    def pause_writing(self) -> None:
        """Tell the snapshot sender to wait."""
        self.writable.clear()

    def resume_writing(self) -> None:
        """Tell the snapshot sender to go on."""
        self.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake whoever waits for this connection."""
        self._fail(exc or ConnectionResetError("the peer closed the connection"))
        if not self.lost.done():
            self.lost.set_result(None)
        self.writable.set()

    def _fail(self, error: Exception) -> None:
        for future in (self.opened, self.accepted):
            if not future.done():
                future.set_exception(error)
                future.exception()  # nobody waits for an answer on the other channels


class Link:
    """One outgoing channel to one peer: dials, dials again, drops what it cannot send."""

    def __init__(self, links: Links, peer: int, endpoint: Endpoint, channel: Channel) -> None:
        self.peer = peer
        self.endpoint = endpoint
        self.channel = channel
        self.up = False
        self.up_since_s = 0.0
        """Loop time of the last hello that was accepted."""

        self.losses = 0
        """Connections that were open and ended."""

        self.dropped = 0
        self.sent_bytes = 0
        self._links = links
        self._transport: asyncio.Transport | None = None
        self._task = asyncio.get_running_loop().create_task(self._run())

    def send(self, payload: bytes) -> bool:
        """Queue one message; False if it was dropped because the peer is down or too slow."""
        transport = self._transport
        if (
            transport is None
            or transport.is_closing()
            or transport.get_write_buffer_size() > UNSENT_MAX
        ):
            self.dropped += 1
            return False
        transport.write(len(payload).to_bytes(4) + payload)
        self.sent_bytes += len(payload) + 4
        return True

    @staticmethod
    def _loop_time() -> float:
        return asyncio.get_running_loop().time()

    async def _run(self) -> None:
        backoff_s = BACKOFF_MIN_S
        complaint = ""
        down_since = self._loop_time()
        while True:
            protocol: Outbound | None = None
            try:
                protocol = await self._links.dial(self.peer, self.endpoint, self.channel)
                backoff_s = BACKOFF_MIN_S
                complaint = ""
                down_since = 0.0
                self._transport = protocol.transport
                self.up_since_s = self._loop_time()
                self.up = True
                if self.channel is Channel.CONTROL:
                    await self._probe(protocol)
                await protocol.lost
            except (OSError, HelloError, TimeoutError) as error:
                if str(error) == removal_text(self._links.own_id):
                    self._links.on_removed(self.peer)
                down_since = down_since or self._loop_time()
                # Members that start or restart together miss each other for a moment.
                late = self._loop_time() - down_since > QUIET_S
                if str(error) != complaint and (late or isinstance(error, HelloError)):
                    complaint = str(error)
                    log.warning(
                        "cannot reach member %x at %s:%d (%s): %s; trying again",
                        self.peer, self.endpoint.host, self.endpoint.port,
                        self.channel.name.lower(), error,
                    )  # fmt: skip
            finally:
                was_up, self.up, self._transport = self.up, False, None
                if protocol is not None and protocol.transport is not None:
                    protocol.transport.abort()
            if was_up:
                self.losses += 1
                self._links.lost(self.peer, self.channel)
            # Jitter keeps members that restart together from dialling in step.
            spread = self._links.random.randrange(500, 1000) / 1000
            await asyncio.sleep(backoff_s * spread)
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)

    async def _probe(self, protocol: Outbound) -> None:
        """Measure the round trip every now and then until the connection ends."""
        while not protocol.lost.done():
            answer = protocol.probe()
            await asyncio.wait((answer, protocol.lost), return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                self._links.on_round_trip(self.peer, answer.result())
                await asyncio.wait((protocol.lost,), timeout=PROBE_S)

    async def close(self) -> None:
        """Stop dialling and end the connection."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


@dataclass(frozen=True, slots=True)
class Traffic:
    """What passed between us and a peer, and what did not."""

    sent: int
    received: int
    dropped: int
    losses: int
    """Control connections that ended."""


class Links:
    """All connections of one member to its peers."""

    def __init__(
        self,
        cluster_id: int,
        own_id: int,
        receiver: Receiver,
        random: Random,
        *,
        on_lost: Callable[[int, Channel], None],
        on_removed: Callable[[int], None],
        server_tls: ssl.SSLContext | None = None,
        client_tls: ssl.SSLContext | None = None,
    ) -> None:
        """Prepare; nothing connects before `listen` and `set_peers`.

        Args:
            cluster_id: Peers of another cluster are refused.
            own_id: This member.
            receiver: Takes what arrives.
            random: For the jitter of reconnects.
            on_lost: Called with peer and channel when an open connection ended.
            on_removed: Called, perhaps often, with a peer that says that we were removed.
            server_tls: For accepted connections; None is plain TCP.
            client_tls: For dialled connections.
        """
        self.receiver = receiver
        self.random = random
        self.inbound: set[Inbound] = set()
        self.received_bytes: dict[int, int] = {}
        """By peer."""
        self.lost = on_lost
        self.on_removed = on_removed
        self.on_round_trip: Callable[[int, float], None] = _no_matter
        """Called with peer and seconds about once a second for each peer."""

        self.removed: set[int] = set()
        """Members that were removed; they are refused for ever."""

        self._cluster_id = cluster_id
        self.own_id = own_id
        self._server_tls = server_tls
        self._client_tls = client_tls
        self._links: dict[tuple[int, Channel], Link] = {}
        self._servers: list[asyncio.Server] = []
        self._closing: set[asyncio.Task[None]] = set()

    def check(self, hello: Hello) -> str:
        """Return why a dialling member is refused, or an empty text."""
        if hello.cluster_id != self._cluster_id:
            return (
                f"cluster ID mismatch: this member belongs to cluster {self._cluster_id:x}, the "
                f"caller to {hello.cluster_id:x}; compare --initial-cluster and "
                "--initial-cluster-token, or remove the stale data directory"
            )
        # Before the target: its address may belong to the member that took our caller's place.
        if hello.sender in self.removed:
            return removal_text(hello.sender)
        if hello.target != self.own_id:
            return f"this is member {self.own_id:x}, not {hello.target:x}; check the peer URLs"
        return ""

    async def listen(self, host: str, port: int) -> int:
        """Accept peers; return the port (useful with port 0). Raises OSError."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: Inbound(self), host, port, ssl=self._server_tls, reuse_address=True
        )
        self._servers.append(server)
        address: tuple[str, int] = server.sockets[0].getsockname()[:2]
        return address[1]

    def set_peers(self, peers: dict[int, Endpoint]) -> None:
        """Dial exactly these members from now on."""
        for key, link in list(self._links.items()):
            if peers.get(key[0]) != link.endpoint:
                del self._links[key]
                task = asyncio.get_running_loop().create_task(link.close())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
        for peer, endpoint in peers.items():
            for channel in (Channel.CONTROL, Channel.BULK):
                if (peer, channel) not in self._links:
                    self._links[peer, channel] = Link(self, peer, endpoint, channel)

    def send(self, peer: int, channel: Channel, payload: bytes) -> bool:
        """Send one message; False if it was certainly not sent."""
        link = self._links.get((peer, channel))
        return link is not None and link.send(payload)

    def traffic(self, peer: int) -> Traffic:
        """Return what went to and from a peer so far; snapshots are not counted."""
        links = [link for (member, _), link in self._links.items() if member == peer]
        return Traffic(
            sum(link.sent_bytes for link in links),
            self.received_bytes.get(peer, 0),
            sum(link.dropped for link in links),
            sum(link.losses for link in links if link.channel is Channel.CONTROL),
        )

    def is_up(self, peer: int, *, since_s: float | None = None) -> bool:
        """Tell whether both channels to a peer are open, and have been since that loop time."""
        return all(
            (link := self._links.get((peer, channel))) is not None
            and link.up
            and (since_s is None or link.up_since_s <= since_s)
            for channel in (Channel.CONTROL, Channel.BULK)
        )

    def drop_inbound(self, member: int) -> None:
        """End the connections that this member dialled. It dials again and is checked anew."""
        for connection in [each for each in self.inbound if each.sender == member]:
            connection.close()

    def endpoint(self, peer: int) -> Endpoint | None:
        """Return where a peer listens, if it is one of ours."""
        link = self._links.get((peer, Channel.CONTROL))
        return link.endpoint if link else None

    async def dial(self, peer: int, endpoint: Endpoint, channel: Channel) -> Outbound:
        """Open a connection and exchange hellos.

        Raises:
            OSError: Nobody listens there, or TLS failed.
            HelloError: The member there refuses us.
            TimeoutError: No answer within `HELLO_TIMEOUT_S`.
        """
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            loop = asyncio.get_running_loop()
            transport, protocol = await loop.create_connection(
                Outbound, endpoint.host, endpoint.port, ssl=self._client_tls
            )
            hello = Hello(self._cluster_id, self.own_id, peer, channel)
            transport.write(frame(encode_hello(hello)))
            try:
                await protocol.opened
            except BaseException:
                transport.abort()
                raise
        return protocol

    async def close(self) -> None:
        """End every connection and stop accepting."""
        for server in self._servers:
            server.close()
        for link in self._links.values():
            await link.close()
        self._links.clear()
        for inbound in list(self.inbound):
            inbound.close()
        for task in list(self._closing):
            await task


def _no_matter(_peer: int, _seconds: float) -> None:
    """Nobody asked for round trips."""
