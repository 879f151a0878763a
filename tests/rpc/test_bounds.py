"""Bounds on what one connection may hold or take from the others, each with small limits."""

from __future__ import annotations

import contextlib
import http.client
import socket
import time
from collections.abc import Iterator

import pytest

from kvstore.rpc import Limits
from tests.rpc.conftest import Running, running
from tests.rpc.wire import (
    CONTINUATION,
    DATA,
    ENHANCE_YOUR_CALM,
    HEADERS,
    PREFACE,
    Wire,
    frame,
    message,
    request_fields,
    settings,
    window_update,
)

KIB = 1024
MIB = 1024 * KIB
CHAT = request_fields("/t.Test/Chat")


def test_a_flood_of_frames_leaves_every_other_connection_its_turns() -> None:
    # uvloop hands over up to 8 MiB in one turn; all of it at once would be a second of work.
    with running("uvloop") as served, Wire(served.port) as wire:
        wire.hello()
        [connection] = served.connections
        wire.send(wire.headers(1, request_fields("/t.Test/Collect")))
        served.until(lambda: connection.streams)
        handler = connection.streams[1].stream
        turns = 0

        def turn() -> None:
            nonlocal turns
            turns += 1
            if connection.yielding:
                served.loop.call_soon(turn)

        def flood() -> int:
            # Straight to the parser: how much a socket delivers at once is the machine's choice.
            connection.data_received(frame(DATA, 0, 1, message(b"x")) * 300_000)
            turn()
            return len(handler.sizes)

        taken = served.run(flood)
        assert 64 <= taken < 150_000
        served.until(lambda: not connection.yielding)
        assert turns >= 5
        assert len(handler.sizes) == 300_000
        wire.alive()


def test_a_message_with_one_unsent_byte_counts_as_a_whole() -> None:
    # Windows that leave the last byte unsent would else keep any number of messages in memory.
    limits = Limits(unsent_bytes_max=8 * MIB)
    with running("uvloop", limits=limits) as served, Wire(served.port) as wire:
        wire.hello(settings(window=MIB + 4))
        wire.send(window_update(0, 2**30), wire.call(1, b"%d" % MIB, "/t.Test/Big"))
        received = 0
        while received < MIB + 4:
            received += len(wire.until(DATA, 1).payload)
        assert served.run(lambda: served.server.statistics().unsent_bytes) == MIB
        wire.send(wire.call(3, b"%d" % MIB, "/t.Test/Big"))
        wire.until(HEADERS, 3)
        assert wire.until(HEADERS, 3).fields["grpc-status"] == "8"
        assert not [got for got in wire.seen if got.kind == DATA and got.stream == 3]
        wire.send(window_update(1, 1))
        while received < MIB + 5:
            received += len(wire.until(DATA, 1).payload)
        assert served.run(lambda: served.server.statistics().unsent_bytes) == 0


def test_one_connection_cannot_take_the_budget_of_all() -> None:
    limits = Limits(unsent_bytes_max=4 * MIB)
    with (
        running("uvloop", limits=limits) as served,
        Wire(served.port) as greedy,
        Wire(served.port) as other,
    ):
        greedy.hello(settings(window=0))
        other.hello(settings(window=2**31 - 1))
        other.send(window_update(0, 2**30))
        greedy.send(*[greedy.call(1 + 2 * n, b"600000", "/t.Test/Big") for n in range(20)])
        for number in range(1, 20):
            while greedy.until(HEADERS, 1 + 2 * number).fields.get("grpc-status") != "8":
                pass
        # One reply waits, which is always allowed; the other client gets all of its large one.
        assert served.run(lambda: served.server.statistics().unsent_bytes) < MIB
        other.send(other.call(1, b"2500000", "/t.Test/Big"))
        assert len(other.response(1)[1]) == 2_500_005


def test_incomplete_messages_of_all_connections_are_bounded() -> None:
    limits = Limits(received_bytes_max=256 * KIB)
    with running("uvloop", limits=limits) as served, contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(served.port)).hello() for _ in range(8)]
        part = message(bytes(MIB))[: 60 * KIB]
        statuses = []
        for wire in wires:
            wire.send(wire.headers(1), *[frame(DATA, 0, 1, part[at : at + 16384])
                                         for at in range(0, len(part), 16384)])  # fmt: skip
        for wire in wires:
            wire.alive()
            refusals = [f for f in wire.seen if f.stream == 1 and f.kind == HEADERS]
            statuses += [refusal.fields["grpc-status"] for refusal in refusals]
        counters = served.server._engine.counters
        assert served.run(lambda: counters.receiving_bytes) <= 256 * KIB
        assert statuses == ["8"] * 4
        stack.close()
        served.until(lambda: served.server.statistics().connections_open == 0)
        assert served.run(lambda: counters.receiving_bytes) == 0


@pytest.fixture
def hasty() -> Iterator[Running]:
    with running("uvloop", limits=Limits(unfinished_s=0.2, body_s=0.2)) as served:
        yield served


@pytest.mark.parametrize(
    ("begin", "drip", "text"),
    [
        (b"", b"", b"SETTINGS took too long"),
        (settings() + b"\0\x40\0" + bytes(6), b"x", b"a frame took too long"),
        (settings() + frame(HEADERS, 0, 1, b"\x82"), b"", b"a header block took too long"),
        (settings() + frame(HEADERS, 0, 1, b"\x82"), frame(CONTINUATION, 0, 1), b"a header block"),
    ],
)
def test_what_is_begun_must_be_finished(
    hasty: Running, begin: bytes, drip: bytes, text: bytes
) -> None:
    with Wire(hasty.port) as wire:
        wire.send(PREFACE + begin)
        wire.socket.settimeout(0.1)
        chunks = bytearray()
        ends_at = time.monotonic() + 5
        while time.monotonic() < ends_at:
            try:
                data = wire.socket.recv(65536)
            except TimeoutError:
                with contextlib.suppress(ConnectionError):
                    wire.send(drip)
                continue
            if not data:
                break
            chunks += data
        assert text in chunks
        assert ENHANCE_YOUR_CALM.to_bytes(4, "big") in chunks
    hasty.until(lambda: hasty.server.statistics().connections_open == 0)


@pytest.mark.parametrize("path", ["/t.Test/Echo", "/t.Test/Chat"])
def test_a_message_that_drips_ends_its_call_only(hasty: Running, path: str) -> None:
    with Wire(hasty.port) as wire:
        wire.hello()
        wire.send(wire.headers(1, request_fields(path)))
        if path == "/t.Test/Chat":
            wire.send(frame(DATA, 0, 1, message(b"whole")))
            wire.until(DATA, 1)
        body = message(bytes(KIB))
        wire.socket.settimeout(0.05)
        ended = None
        for byte in body:
            wire.send(frame(DATA, 0, 1, bytes((byte,))))
            with contextlib.suppress(TimeoutError):
                ended = wire.until(HEADERS, 1)
                if "grpc-status" in ended.fields:
                    break
        assert ended is not None
        assert ended.fields["grpc-status"] == "4"
        assert "took too long" in ended.fields["grpc-message"]
        wire.socket.settimeout(10)
        wire.alive()


def test_slow_but_steady_messages_are_welcome(hasty: Running) -> None:
    # Each is quick enough; together they take longer than one may.
    with Wire(hasty.port) as wire:
        wire.hello()
        wire.send(wire.headers(1, CHAT))
        ends_at = time.monotonic() + 0.6
        while time.monotonic() < ends_at:
            wire.send(frame(DATA, 0, 1, message(b"xyz")[:4]))
            time.sleep(0.02)  # the client's slowness is what this is about
            wire.send(frame(DATA, 0, 1, message(b"xyz")[4:]))
            assert wire.until(DATA, 1).payload == message(b"xyz")


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_connections_beyond_the_bound_are_closed_at_once(loop: str) -> None:
    with running(loop, limits=Limits(connections_max=4)) as served, contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(served.port)).hello() for _ in range(2)]
        plain = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
        plain.request("GET", "/x")
        plain.getresponse().read()
        silent = stack.enter_context(socket.create_connection(("127.0.0.1", served.port)))
        served.until(lambda: len(served.server._engine.opening) == 1)

        turned_away = stack.enter_context(Wire(served.port))
        assert turned_away.closed_without_answer()
        assert served.run(lambda: served.server.statistics().connections_refused) == 1
        for wire in wires:
            wire.alive()

        silent.close()
        served.until(lambda: not served.server._engine.opening)
        stack.enter_context(Wire(served.port)).hello().alive()
        plain.close()
