"""Flow control in both directions, back-pressure, and what we encode after SETTINGS changes."""

from __future__ import annotations

import pytest

from kvstore.http2 import frames
from kvstore.rpc import Call, Limits
from tests.rpc.conftest import Running, numbered_parts, running
from tests.rpc.wire import (
    DATA,
    END_STREAM,
    FLOW_CONTROL_ERROR,
    GOAWAY,
    HEADERS,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Wire,
    frame,
    message,
    request_fields,
    settings,
    window_update,
)

MIB = 1024 * 1024
HUGE = 2**31 - 1 - 65535


def body_for_now(wire: Wire, stream: int) -> bytes:
    """Everything that the server sends on a stream before it has nothing more to send.

    A call that fails is the question: its answer needs no window. A reply leaves at the end of its
    loop turn, so ask twice.
    """
    body = b""
    for _ in range(2):
        question = wire.new_stream()
        wire.send(wire.call(question, b"", "/t.Test/Fail"))
        while True:
            got = wire.read()
            assert got is not None
            if got.kind == HEADERS and got.stream == question:
                break
            if got.kind == DATA and got.stream == stream:
                body += got.payload
    return body


def big(wire: Wire, stream: int, size: int) -> bytes:
    return wire.call(stream, b"%d" % size, "/t.Test/Big")


def test_a_reply_waits_for_the_streams_window(served: Running) -> None:
    with Wire(served.port) as wire:
        wire.hello(settings(window=10))
        wire.send(wire.call(1, b"0123456789abcdef"))
        assert body_for_now(wire, 1) == message(b"0123456789abcdef")[:10]
        wire.send(window_update(1, 3))
        assert body_for_now(wire, 1) == message(b"0123456789abcdef")[10:13]
        wire.send(window_update(1, 1000))
        headers, body, trailers = wire_rest(wire, 1)
        assert (body, trailers) == (message(b"0123456789abcdef")[13:], {"grpc-status": "0"})
        assert headers is None


def wire_rest(wire: Wire, stream: int) -> tuple[None, bytes, dict[str, str]]:
    """The rest of a response whose headers were read already."""
    body = b""
    while True:
        got = wire.read()
        assert got is not None
        if got.stream == stream and got.kind == DATA:
            body += got.payload
        elif got.stream == stream and got.kind == HEADERS:
            return None, body, got.fields


@pytest.mark.parametrize(
    "messages", [[b""], [b"", b""], [b"one"], [b"one", b"two", b"six"], [b"one", b"", b"three"]]
)
def test_messages_are_framed_together_as_if_alone(messages: list[bytes]) -> None:
    assert frames.join_messages(messages) == b"".join(map(message, messages))


@pytest.mark.parametrize("count", [1, 7, 300])
@pytest.mark.parametrize("window", [2**31 - 1, 1000, 10])
def test_messages_sent_together_arrive_as_if_alone(
    served: Running, window: int, count: int
) -> None:
    with Wire(served.port) as wire:
        wire.hello(settings(window=window))
        wire.send(window_update(0, HUGE), wire.call(1, b"all %d" % count, "/t.Test/Chat"))
        expected = b"".join(map(message, numbered_parts(count)))
        if len(expected) <= window:
            _, body, trailers = wire.response(1)
        else:
            body = body_for_now(wire, 1)
            assert body == expected[:window]
            wire.send(window_update(1, 2**31 - 1 - window))
            _, rest, trailers = wire_rest(wire, 1)
            body += rest
        assert body == expected
        assert trailers == {"grpc-status": "0"}
        route = served.run(lambda: served.service.calls[0].head.route)
        if route is not None:
            assert route.sent == count


def test_room_is_told_of_messages_sent_together(served: Running) -> None:
    with Wire(served.port) as wire:
        wire.hello(settings(window=0))
        for stream, count in ((1, 3), (3, 1500)):  # 1.5 KB and 3 MB, no window for either
            wire.send(wire.call(stream, b"all %d" % count, "/t.Test/Chat"))
        assert body_for_now(wire, 1) == b""
        assert [line for line in served.service.log if line.startswith("room")] == [
            "room True",
            "room False",
        ]


def test_window_of_zero_sends_headers_only(served: Running) -> None:
    with Wire(served.port) as wire:
        wire.hello(settings(window=0))
        wire.send(wire.call(1))
        assert body_for_now(wire, 1) == b""
        assert [f.kind for f in wire.seen if f.stream == 1] == [HEADERS]
        wire.send(settings(window=65535))
        assert wire_rest(wire, 1)[1] == message(b"hello")


def test_errors_need_no_window(served: Running) -> None:
    with Wire(served.port) as wire:
        wire.hello(settings(window=0))
        wire.send(wire.call(1, b"no such key", "/t.Test/Fail"))
        assert wire.response(1)[0]["grpc-status"] == "5"


def test_a_window_may_become_negative(served: Running) -> None:
    # RFC 9113 6.9.2. 65,535 bytes are out when the initial window drops to 0.
    with Wire(served.port) as wire:
        wire.hello()
        wire.send(window_update(0, HUGE), big(wire, 1, 100_000))
        assert len(body_for_now(wire, 1)) == 65535
        wire.send(settings(window=0), window_update(1, 65535))
        assert body_for_now(wire, 1) == b""
        wire.send(window_update(1, 1))
        assert len(body_for_now(wire, 1)) == 1
        wire.send(settings(window=4))
        assert len(body_for_now(wire, 1)) == 4
        wire.send(settings(window=2**31 - 1 - 65536))
        assert len(wire_rest(wire, 1)[1]) == 100_005 - 65535 - 5


def test_streams_share_the_connections_window(served: Running) -> None:
    with Wire(served.port) as wire:
        wire.hello(settings(window=2**31 - 1))
        wire.send(big(wire, 1, 300_000), big(wire, 3, 300_000))
        got = 0
        while got < 65535:
            frame_ = wire.until(DATA)
            got += len(frame_.payload)
        assert got == 65535
        wire.send(window_update(0, 200_000))
        sizes = {1: 0, 3: 0}
        while sum(sizes.values()) < 200_000:
            frame_ = wire.until(DATA)
            sizes[frame_.stream] += len(frame_.payload)
        # The first reply had a head start of 65,535; from then on they take turns.
        assert abs(sizes[1] - sizes[3]) <= 32768
        wire.send(window_update(0, HUGE))
        ended = set()
        while len(ended) < 2:
            ended.add(wire.until(HEADERS).stream)


@pytest.mark.parametrize(("allowed", "expected"), [(16384, 16384), (50_000, 50_000), (MIB, 65536)])
def test_frames_are_as_large_as_the_client_allows(
    served: Running, allowed: int, expected: int
) -> None:
    with Wire(served.port) as wire:
        wire.hello(settings(frame=allowed, window=2**31 - 1))
        wire.send(window_update(0, HUGE), big(wire, 1, 300_000))
        wire.response(1)
        assert max(len(f.payload) for f in wire.seen if f.kind == DATA) == expected


@pytest.mark.parametrize("primed", [False, True])
@pytest.mark.parametrize("sizes", [[0], [50], [103], [104], [2048], [0, 4096], [100, 200], [65536]])
def test_the_clients_table_size_is_obeyed(served: Running, sizes: list[int], primed: bool) -> None:
    # RFC 7541 4.2: the library refuses a block without the due update, or one that is too large.
    with Wire(served.port) as wire:
        wire.hello()
        if primed:
            wire.alive()
            assert len(wire.decoder.header_table.dynamic_entries) == 2
        wire.send(*[settings(table=size) for size in sizes])
        for _ in sizes:
            wire.until(SETTINGS)
        wire.decoder.max_allowed_table_size = sizes[-1]
        for _ in range(3):
            wire.alive()
        if min(sizes) < 4096:
            assert wire.decoder.header_table_size == min(sizes[-1], 4096)
        stream = wire.new_stream()
        wire.send(wire.call(stream, b"x", "/t.Test/Fail"))
        assert wire.response(stream)[0]["grpc-status"] == "5"


def test_repeated_replies_use_the_clients_table(served: Running) -> None:
    with Wire(served.port) as wire:
        wire.hello()
        wire.alive()
        wire.alive()
        last = [f.payload for f in wire.seen if f.kind == HEADERS][-2:]
        assert last == [b"\x88\xbf", b"\xbe"]


def test_uploads_through_small_windows() -> None:
    # 5 MB through windows of 64 KiB: each byte must be given back, to stream and connection.
    limits = Limits(connection_window_bytes=65535, stream_window_bytes=65535)
    with running("uvloop", limits=limits) as served, Wire(served.port) as wire:
        wire.hello()
        wire.send(wire.headers(1, request_fields("/t.Test/Collect")))
        chunk = message(b"u" * 16000)
        windows = {0: 65535, 1: 65535}
        count = 300
        for _ in range(count):
            while min(windows.values()) < len(chunk):
                got = wire.until(WINDOW_UPDATE)
                windows[got.stream] += int.from_bytes(got.payload, "big")
                assert windows[got.stream] <= 65535
            windows[0] -= len(chunk)
            windows[1] -= len(chunk)
            wire.send(frame(DATA, 0, 1, chunk))
        wire.send(frame(DATA, END_STREAM, 1))
        assert wire.response(1)[1][5:] == b",".join([b"16000"] * count)


def test_bytes_on_dead_streams_are_given_back_to_the_connection() -> None:
    limits = Limits(connection_window_bytes=65535)
    with running("uvloop", limits=limits) as served, Wire(served.port) as wire:
        wire.hello()
        wire.send(wire.headers(1, request_fields("/no.Such/Method")))
        assert wire.reset(1) == 0
        wire.send(frame(DATA, 0, 1, b"x" * 16384) * 3)
        assert wire.until(WINDOW_UPDATE, 0)
        wire.alive()


class Paused:
    """Takes messages only when the test lets it."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.log: list[str] = []
        call.pause_receiving()

    def message(self, data: bytes) -> None:
        self.log.append(f"{len(data)}")
        if data == b"stop":
            self.call.pause_receiving()

    def half_closed(self) -> None:
        self.log.append("half closed")
        self.call.finish()

    def cancelled(self) -> None:
        self.log.append("cancelled")

    def writable(self) -> None:
        raise AssertionError


def test_a_paused_handler_holds_the_client_back() -> None:
    handlers: list[Paused] = []

    def start(call: Call) -> Paused:
        handlers.append(Paused(call))
        return handlers[-1]

    limits = Limits(stream_window_bytes=40_000)
    with running("uvloop", limits=limits) as served, Wire(served.port) as wire:
        served.server.stream("/t.Test/Paused", start)
        wire.hello()
        wire.send(wire.headers(1, request_fields("/t.Test/Paused")))
        wire.send(frame(DATA, 0, 1, message(b"a" * 10_000)) * 3)
        wire.send(frame(DATA, END_STREAM, 1, message(b"stop") + message(b"last")))
        body_for_now(wire, 1)
        assert handlers[0].log == []
        assert not [f for f in wire.seen if f.kind == WINDOW_UPDATE and f.stream == 1]
        served.run(handlers[0].call.resume_receiving)
        assert handlers[0].log == ["10000", "10000", "10000", "4"]
        served.run(handlers[0].call.resume_receiving)
        assert handlers[0].log[4:] == ["4", "half closed"]
        assert wire.response(1)[0]["grpc-status"] == "0"

        stream = wire.new_stream()
        wire.send(wire.headers(stream, request_fields("/t.Test/Paused")))
        wire.send(frame(DATA, 0, stream, b"x" * 16000) * 3)  # 48,000 bytes, the window is 40,000
        assert wire.reset(stream) == FLOW_CONTROL_ERROR
        served.until(lambda: handlers[1].log == ["cancelled"])
        wire.alive()


def test_incomplete_messages_of_a_connection_are_bounded() -> None:
    limits = Limits(receive_buffer_bytes_max=MIB)
    with running("uvloop", limits=limits) as served, Wire(served.port) as wire:
        wire.hello()
        part = message(b"p" * MIB)[:16384]
        for number in range(65):
            wire.send(wire.headers(1 + 2 * number), frame(DATA, 0, 1 + 2 * number, part))
        refused = wire.until(HEADERS)
        assert refused.fields["grpc-status"] == "8"
        wire.alive()
        wire.send(*[frame(RST_STREAM, 0, 1 + 2 * n, b"\0\0\0\x08") for n in range(60)])
        wire.alive()
        [connection] = served.connections
        assert connection.receiving_bytes <= 4 * 16384


def test_a_slow_reader_is_held_back_and_disturbs_nobody(served: Running) -> None:
    # The windows are wide open but the client reads nothing: TCP alone pushes back.
    count, size = 3000, 10_000
    with Wire(served.port) as slow, Wire(served.port) as other:
        slow.hello(settings(window=2**31 - 1))
        slow.send(window_update(0, HUGE))
        slow.send(slow.call(1, b"%d %d" % (count, size), "/t.Test/Produce"))
        other.hello()
        served.until(lambda: served.service.calls and served.service.calls[0].throttled)
        for _ in range(20):
            other.alive()
        [call] = served.service.calls
        high = Limits().stream_high_bytes
        assert 0 < served.run(lambda: call.unsent_bytes) <= high + size + 5
        assert served.run(lambda: served.server.statistics().unsent_bytes) <= high + size + 5
        headers, body, trailers = slow.response(1)
        assert (headers[":status"], trailers) == ("200", {"grpc-status": "0"})
        assert body == message(b"x" * size) * count
    served.until(lambda: served.server.statistics().connections_open == 0)
    assert served.server.statistics().unsent_bytes == 0


def test_a_client_that_never_reads_cannot_pile_up_work(served: Running) -> None:
    # It asks and asks; once our writes back up we stop reading its requests, so its own block.
    body = b"r" * 16_000
    with Wire(served.port, buffer_bytes=65536) as greedy, Wire(served.port) as other:
        greedy.hello(settings(window=2**31 - 1))
        greedy.send(window_update(0, HUGE))
        greedy.socket.settimeout(0.5)
        requests = b"".join(greedy.call(1 + 2 * number, body) for number in range(4000))
        with pytest.raises(TimeoutError):
            greedy.send(requests)
        other.hello()
        other.alive()
        answered = served.run(lambda: served.server.statistics().sent_bytes) // len(body)
        assert answered < 1000  # what the kernel's buffers took
        held = served.run(lambda: served.server.statistics().unsent_bytes)
        chunk = 262_144  # asyncio's largest; the one in hand is still finished
        assert held < Limits().connection_high_bytes + chunk + 2 * len(body)
    served.until(lambda: served.server.statistics().connections_open == 0)


def test_errors_for_a_client_that_never_reads_are_bounded(served: Running) -> None:
    # No window governs headers, so the transport's buffer is what could grow.
    text = b"e" * 8_000
    with Wire(served.port, buffer_bytes=65536) as greedy:
        greedy.hello()
        greedy.socket.settimeout(0.5)
        requests = [greedy.call(1 + 2 * n, text, "/t.Test/Fail") for n in range(8000)]
        with pytest.raises(TimeoutError):
            greedy.send(*requests)
        [connection] = served.connections
        waiting = served.run(connection.transport.get_write_buffer_size)
        # One turn's reading may come on top (uvloop: up to 32 chunks of 256,000 bytes).
        assert waiting < Limits().connection_high_bytes + 32 * 256_000


def test_a_stream_that_fills_the_socket_can_be_cancelled(served: Running) -> None:
    with Wire(served.port, buffer_bytes=65536) as wire:
        wire.hello(settings(window=2**31 - 1))
        wire.send(window_update(0, HUGE), wire.call(1, b"100000 10000", "/t.Test/Produce"))
        served.until(lambda: served.service.calls and served.service.calls[0].throttled)
        wire.send(frame(RST_STREAM, 0, 1, b"\0\0\0\x08"))
        served.until(lambda: served.service.log[-1:] == ["cancelled"])
        assert served.run(lambda: served.server.statistics().unsent_bytes) == 0
        wire.alive()


def test_replies_beyond_the_servers_budget_are_refused() -> None:
    limits = Limits(unsent_bytes_max=MIB)
    with running("uvloop", limits=limits) as served, Wire(served.port) as wire:
        wire.hello(settings(window=0))
        wire.send(big(wire, 1, 600_000), big(wire, 3, 600_000))
        refused = [wire.until(HEADERS, 1), wire.until(HEADERS, 3), wire.until(HEADERS, 3)]
        assert refused[-1].fields["grpc-status"] == "8"
        assert "slow readers" in refused[-1].fields["grpc-message"]
        assert served.run(lambda: served.server.statistics().refused_replies) == 1
        wire.send(settings(window=2**31 - 1), window_update(0, HUGE))
        assert len(wire_rest(wire, 1)[1]) == 600_005


def test_the_handler_of_a_stream_hears_that_the_budget_ended_it() -> None:
    # A watch whose stream was refused would else stay registered, waiting to be writable.
    limits = Limits(unsent_bytes_max=MIB)
    with running("uvloop", limits=limits) as served, Wire(served.port) as wire:
        wire.hello(settings(window=0))
        wire.send(wire.call(1, b"3 1200000", "/t.Test/Produce"))
        wire.until(HEADERS, 1)
        assert wire.until(HEADERS, 1).fields["grpc-status"] == "8"
        served.until(lambda: served.service.log[-1:] == ["cancelled"])
        assert served.service.calls[0].cancelled


def test_a_reset_frees_what_was_queued(served: Running) -> None:
    with Wire(served.port) as wire:
        wire.hello(settings(window=0))
        wire.send(big(wire, 1, MIB))
        body_for_now(wire, 1)
        # The message, and the first 64 KiB of it that were copied behind its head.
        assert served.run(lambda: served.server.statistics().unsent_bytes) == MIB + 65536 + 5
        wire.send(frame(RST_STREAM, 0, 1, b"\0\0\0\x08"))
        body_for_now(wire, 1)
        assert served.run(lambda: served.server.statistics().unsent_bytes) == 0
        assert not [f for f in wire.seen if f.kind == GOAWAY]


def test_a_connection_that_was_ended_holds_no_replies(served: Running) -> None:
    # It stays open for a moment so that the client can read why; that may take no memory.
    with Wire(served.port) as wire:
        wire.hello(settings(window=0))
        wire.send(big(wire, 1, MIB), wire.call(3, b"held", "/t.Test/Hold"))
        served.until(lambda: served.server.statistics().unsent_bytes and served.service.held)
        wire.send(frame(DATA, 0, 0, b"on no stream"))
        wire.goaway()
        assert served.run(lambda: served.server.statistics().unsent_bytes) == 0
        assert served.service.log == ["cancelled"]


def test_an_error_in_the_middle_of_a_message_is_a_reset(served: Running) -> None:
    # Trailers behind half a message would read as a broken message, not as the error.
    with Wire(served.port) as wire:
        wire.hello(settings(window=1000))
        wire.send(wire.headers(1, request_fields("/t.Test/Chat")))
        wire.send(frame(DATA, 0, 1, message(b"m" * 5000)))
        assert len(wire.until(DATA, 1).payload) == 1000
        wire.send(frame(DATA, 0, 1, message(b"fail")))
        assert wire.reset(1) == 8
        wire.alive()


def test_an_error_in_the_middle_of_a_reply_in_parts_is_a_reset(served: Running) -> None:
    # The window ends where a part does, so that the next one in the queue is whole.
    window = 5 + sum(map(len, numbered_parts(60)))
    with Wire(served.port) as wire:
        wire.hello(settings(window=window))
        wire.send(window_update(0, HUGE), wire.call(1, b"1000", "/t.Test/Parts"))
        served.until(lambda: served.service.calls and not served.service.calls[0].queued)
        [call] = served.service.calls
        served.run(call.fail, 13, "too late for trailers")
        assert wire.reset(1) == 8
        assert served.run(lambda: served.server.statistics().unsent_bytes) == 0
        wire.alive()


@pytest.mark.slow
def test_one_connection_uploads_more_than_4_gib() -> None:
    with running("uvloop") as served, Wire(served.port) as wire:
        # The reply names each of 260,000 messages: 1.6 MB, more than a client's default windows.
        wire.hello(settings(window=HUGE))
        wire.send(window_update(0, HUGE))
        chunk = message(b"u" * (16384 - 5))
        wire.send(wire.headers(1, request_fields("/t.Test/Collect")))
        windows = {0: 8 * MIB, 1: MIB}
        batch = 16
        total = 4 * 1024 * MIB + 32 * MIB
        sent = 0
        burst = frame(DATA, 0, 1, chunk) * batch
        while sent < total:
            while min(windows.values()) < batch * 16384:
                got = wire.until(WINDOW_UPDATE)
                windows[got.stream] += int.from_bytes(got.payload, "big")
                wire.seen.clear()
            windows[0] -= batch * 16384
            windows[1] -= batch * 16384
            sent += batch * 16384
            wire.send(burst)
        assert served.run(lambda: served.server.statistics().received_bytes) > 2**32 - MIB
        wire.send(frame(DATA, END_STREAM, 1))
        assert wire.response(1)[1][5:].count(b"16379") == total // 16384
