"""Connections between members over real sockets: handshake, channels, loss, reconnect."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable

import pytest

from kvstore.peer.describe import (
    Described,
    Description,
    ask,
    decode_description,
    encode_description,
)
from kvstore.peer.link import (
    FRAME_SIZE_MAX,
    PROTOCOL_VERSION,
    Channel,
    Endpoint,
    FrameReader,
    Hello,
    HelloError,
    Links,
    decode_hello,
    encode_hello,
    frame,
)

CLUSTER = 77


class Sink:
    """Collects a snapshot's frames and accepts it at the empty one."""

    def __init__(self, answer: Callable[[str], None]) -> None:
        self.frames: list[bytes] = []
        self.ended = False
        self._answer = answer

    def frame(self, payload: bytes) -> None:
        self.frames.append(payload)
        if not payload:
            self._answer("")

    def closed(self) -> None:
        self.ended = True


class Receiver:
    def __init__(self) -> None:
        self.messages: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
        self.sinks: list[Sink] = []
        self.description = b""

    def receive(self, sender: int, payloads: list[bytes]) -> None:
        for payload in payloads:
            self.messages.put_nowait((sender, payload))

    def snapshot_opened(
        self, sender: int, pause: Callable[[bool], None], answer: Callable[[str], None]
    ) -> Sink:
        self.sinks.append(Sink(answer))
        return self.sinks[-1]

    def describe(self, answer: Callable[[bytes], None]) -> None:
        answer(self.description)


class Member:
    """One end: links, what it received, and what it lost."""

    def __init__(self, member_id: int, cluster_id: int = CLUSTER) -> None:
        self.id = member_id
        self.receiver = Receiver()
        self.lost: asyncio.Queue[tuple[int, Channel]] = asyncio.Queue()
        self.removed = asyncio.Event()
        self.links = Links(
            cluster_id,
            member_id,
            self.receiver,
            random.Random(member_id),
            on_lost=lambda peer, channel: self.lost.put_nowait((peer, channel)),
            on_removed=lambda _peer: self.removed.set(),
        )
        self.port = 0

    async def listen(self, port: int = 0) -> None:
        self.port = await self.links.listen("127.0.0.1", port)

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint("127.0.0.1", self.port)

    async def connected(self, peer: int) -> None:
        async with asyncio.timeout(10):
            while True:
                if self.links.is_up(peer):
                    return
                await asyncio.sleep(0.001)  # nothing to await: the handshake is the kernel's


@pytest.fixture
async def members() -> AsyncIterator[list[Member]]:
    both = [Member(1), Member(2)]
    for member in both:
        await member.listen()
    yield both
    for member in both:
        await member.links.close()


async def join(members: list[Member]) -> None:
    first, second = members
    first.links.set_peers({2: second.endpoint})
    second.links.set_peers({1: first.endpoint})
    await first.connected(2)
    await second.connected(1)


async def test_messages_arrive_whole_and_in_order(members: list[Member]) -> None:
    # Frames of every size, so that reads end inside lengths and inside payloads.
    first, second = members
    await join(members)
    sent = [bytes([size % 251]) * size for size in (1, 3, 70_000, 4, 300_000, 2)]
    for payload in sent:
        assert first.links.send(2, Channel.BULK, payload)
    received = [await second.receiver.messages.get() for _ in sent]
    assert received == [(1, payload) for payload in sent]


async def test_round_trips_are_measured_and_are_no_messages(members: list[Member]) -> None:
    first, second = members
    seen: asyncio.Queue[tuple[int, float]] = asyncio.Queue()
    first.links.on_round_trip = lambda peer, seconds: seen.put_nowait((peer, seconds))
    await join(members)
    async with asyncio.timeout(10):
        for _ in range(2):  # the next one comes by itself
            peer, seconds = await seen.get()
            assert peer == 2
            assert 0 < seconds < 5
    first.links.send(2, Channel.CONTROL, b"message")
    assert await second.receiver.messages.get() == (1, b"message")


async def test_probes_among_messages_are_answered_each(members: list[Member]) -> None:
    # They arrive with heartbeats in one read.
    _, second = members
    reader, writer = await asyncio.open_connection("127.0.0.1", second.port)
    writer.write(frame(encode_hello(Hello(CLUSTER, 1, 2, Channel.CONTROL))))
    assert await reader.readexactly(4) == frame(b"")
    writer.write(frame(b"a") + frame(b"") + frame(b"b") + frame(b""))
    async with asyncio.timeout(10):
        assert await reader.readexactly(8) == frame(b"") * 2
        assert await second.receiver.messages.get() == (1, b"a")
        assert await second.receiver.messages.get() == (1, b"b")
    writer.close()


async def test_a_message_to_an_absent_peer_is_known_to_be_unsent(members: list[Member]) -> None:
    # A forwarded proposal that was certainly not sent may be sent again; else it may not.
    first, _ = members
    assert not first.links.send(2, Channel.BULK, b"x")
    first.links.set_peers({2: Endpoint("127.0.0.1", 1)})
    assert not first.links.send(2, Channel.BULK, b"x")


async def test_control_messages_pass_a_stuffed_bulk_channel(members: list[Member]) -> None:
    # Heartbeats behind megabytes of entries would look like a dead leader.
    first, second = members
    await join(members)
    bulk = [
        inbound
        for inbound in second.links.inbound
        if inbound._hello is not None and inbound._hello.channel is Channel.BULK
    ]
    bulk[0]._transport.pause_reading()  # type: ignore[union-attr]
    for _ in range(20):
        first.links.send(2, Channel.BULK, bytes(1 << 20))
    first.links.send(2, Channel.CONTROL, b"heartbeat")
    async with asyncio.timeout(5):
        assert await second.receiver.messages.get() == (1, b"heartbeat")


async def test_a_broken_connection_is_reported_and_dialled_again(members: list[Member]) -> None:
    first, second = members
    await join(members)
    for inbound in list(second.links.inbound):
        inbound.close()
    lost = {await first.lost.get(), await first.lost.get()}
    assert lost == {(2, Channel.CONTROL), (2, Channel.BULK)}
    await first.connected(2)
    first.links.send(2, Channel.CONTROL, b"again")
    assert await second.receiver.messages.get() == (1, b"again")


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (Hello(CLUSTER + 1, 1, 2, Channel.CONTROL), "cluster ID mismatch"),
        (Hello(CLUSTER, 1, 3, Channel.CONTROL), "this is member 2, not 3"),
        (Hello(CLUSTER, 9, 2, Channel.CONTROL), "was removed from the cluster"),
    ],
)
async def test_strangers_are_refused_with_the_reason(
    members: list[Member], hello: Hello, reason: str
) -> None:
    # A member of another cluster that dials in by an old address must not be counted in a vote.
    _, second = members
    second.links.removed.add(9)
    reader, writer = await asyncio.open_connection("127.0.0.1", second.port)
    writer.write(frame(encode_hello(hello)) + frame(b"vote for me"))
    answer = await reader.read()
    writer.close()
    assert reason.encode() in answer
    assert second.receiver.messages.empty()


@pytest.mark.parametrize(
    "first_bytes",
    [
        frame(b"GET / HTTP/1.1\r\n\r\n"),
        frame(b"KVP" + bytes([PROTOCOL_VERSION + 1]) + b"\x90"),
        frame(b"KVP" + bytes([PROTOCOL_VERSION]) + b"\xc1"),
        frame(b"KVP" + bytes([PROTOCOL_VERSION]) + b"\x94\x01\x02\x03\x09"),
        (FRAME_SIZE_MAX + 1).to_bytes(4) + b"x",
    ],
)
async def test_whatever_is_no_hello_ends_the_connection(
    members: list[Member], first_bytes: bytes
) -> None:
    _, second = members
    reader, writer = await asyncio.open_connection("127.0.0.1", second.port)
    writer.write(first_bytes)
    async with asyncio.timeout(5):
        assert await reader.read()
    writer.close()
    assert second.receiver.messages.empty()


async def test_a_snapshot_travels_on_a_connection_of_its_own(members: list[Member]) -> None:
    first, second = members
    connection = await first.links.dial(2, second.endpoint, Channel.SNAPSHOT)
    assert connection.transport is not None
    for payload in (b"meta", bytes(100_000), b""):
        connection.transport.write(frame(payload))
    async with asyncio.timeout(5):
        await connection.accepted
    [sink] = second.receiver.sinks
    assert sink.frames == [b"meta", bytes(100_000), b""]
    connection.transport.abort()


async def test_dialling_the_wrong_member_says_so(members: list[Member]) -> None:
    first, second = members
    with pytest.raises(HelloError, match="this is member 2, not 5"):
        await first.links.dial(5, second.endpoint, Channel.CONTROL)


def test_frames_come_out_whole_whatever_the_cuts() -> None:
    payloads = [b"", b"a", b"b" * 300]
    stream = b"".join(frame(payload) for payload in payloads)
    for cut in range(len(stream) + 1):
        reader = FrameReader()
        assert reader.feed(stream[:cut]) + reader.feed(stream[cut:]) == payloads


def test_a_hello_says_what_it_was_made_of() -> None:
    hello = Hello(2**64 - 1, 2**63, 1, Channel.SNAPSHOT)
    assert decode_hello(encode_hello(hello)) == hello


async def test_a_removed_member_is_told_so(members: list[Member]) -> None:
    # It may have been down when it was removed, and would try to be elected for ever.
    first, second = members
    second.links.removed.add(1)
    first.links.set_peers({2: second.endpoint})
    async with asyncio.timeout(10):
        await first.removed.wait()
    assert not second.removed.is_set()


async def test_dropped_connections_are_dialled_and_checked_again(members: list[Member]) -> None:
    await join(members)
    first, second = members
    second.links.removed.add(1)
    assert first.links.send(2, Channel.CONTROL, b"still")  # what is open stays open
    second.links.drop_inbound(1)
    async with asyncio.timeout(10):
        await first.removed.wait()


async def test_a_peer_counts_as_up_since_its_last_connection(members: list[Member]) -> None:
    loop = asyncio.get_running_loop()
    before = loop.time()
    await join(members)
    first, second = members
    after = loop.time()
    assert first.links.is_up(2, since_s=after)
    assert not first.links.is_up(2, since_s=before)
    second.links.drop_inbound(1)
    async with asyncio.timeout(10):
        await first.lost.get()
    await first.connected(2)
    assert not first.links.is_up(2, since_s=after)


DESCRIPTION = Description(
    2**64 - 1,
    12,
    (
        Described(1, ("http://a:1", "http://b:1"), is_learner=False, is_started=True),
        Described(2**63, ("http://c:1",), is_learner=True, is_started=False),
    ),
    (5, 6),
)


async def test_anybody_may_ask_who_is_a_member(members: list[Member]) -> None:
    members[0].receiver.description = encode_description(DESCRIPTION)
    assert await ask(members[0].endpoint) == DESCRIPTION


async def test_a_refusal_to_describe_is_told(members: list[Member]) -> None:
    members[0].receiver.description = b"not now"
    with pytest.raises(HelloError, match="not now"):
        await ask(members[0].endpoint)


@pytest.mark.parametrize("rest", [b"", b"\xc1", b"\x93\x01\x02\x03", b"\x94\x01\x02\x91\x03\x90"])
def test_malformed_descriptions_are_refused(rest: bytes) -> None:
    with pytest.raises(HelloError, match="malformed"):
        decode_description(encode_description(DESCRIPTION)[:4] + rest)
