"""The in-repo load generator: prebuilt requests on raw HTTP/2, one process, one loop.

`python -m bench.generator LOAD` takes a `bench.load.Load` as JSON and prints an `Outcome` as
JSON. Every reply's grpc-status is checked and every reply must carry a message. Latency runs from
handing the request to the socket to the loop turn that read its trailers.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict
from itertools import count
from typing import cast
from urllib.parse import unquote_to_bytes

import uvloop
from hpack.exceptions import HPACKError

from bench.load import Load, Outcome, chooser, draws, percentiles
from bench.profiles import BlockSequence, sequence
from bench.wire import (
    ACK,
    DATA,
    END_STREAM,
    FRAME_HEAD,
    FRAME_MAX,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PING,
    RST_STREAM,
    SETTINGS,
    STREAM,
    WINDOW_DEFAULT,
    WINDOW_UPDATE,
    Blocks,
    frame,
    header_payload,
    opening,
    window_update,
)

TOP_UP_BYTES = 1 << 30
DRAIN_S = 20.0
EMPTY_MESSAGE_BYTES = 5


class Run:
    """What the connections of a run share."""

    def __init__(self, load: Load) -> None:
        self.load = load
        share = load.put_share
        self.blocks: BlockSequence = sequence(load.profile, put_share=share)
        self.requests = (draws(load, 0) if share else [], draws(load, 1) if share < 1 else [])
        self.numbers = count(load.first_key)
        self.outcome = Outcome()
        self.errors: Counter[str] = Counter()
        self.latencies: tuple[list[float], list[float]] = ([], [])
        self.measuring = False
        self.stopping = False
        self.left = load.requests or sys.maxsize
        self.in_flight = 0
        self.idle = asyncio.Event()

    def settle(self) -> None:
        """Note that a connection has nothing in flight, so the run may be over."""
        if self.in_flight == 0 and (self.stopping or self.left == 0):
            self.idle.set()


class Outgoing:
    """A request whose body did not fit into a frame or a window."""

    __slots__ = ("payload", "sent", "stream", "window")

    def __init__(self, stream: int, payload: bytes, window: int) -> None:
        self.stream = stream
        self.payload = payload
        self.sent = 0
        self.window = window


class Connection(asyncio.Protocol):
    """One connection that keeps `streams` requests in flight."""

    def __init__(self, run: Run, number: int) -> None:
        load = run.load
        self._run = run
        self._choose = tuple(
            chooser(load, kind, number, run.requests[kind], run.numbers) for kind in (0, 1)
        )
        self._decoder = Blocks()
        self._pending: dict[int, tuple[float, int]] = {}
        self._bytes: dict[int, int] = {}
        """Message bytes so far of streams that had a DATA frame."""
        self._rest = b""
        self._next_stream = 1
        self._sent = 0
        self._received = 0
        self._window = WINDOW_DEFAULT
        self._stream_window = WINDOW_DEFAULT
        self._outgoing: deque[Outgoing] = deque()
        self._closing = False
        # A range of a preloaded key must bring its value, everything else at least a header.
        self._reply_min = (
            EMPTY_MESSAGE_BYTES + 1,
            EMPTY_MESSAGE_BYTES + (load.value_bytes or 16),
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an isinstance check: uvloop's transport does not derive from asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(opening(client=True))

    def connection_lost(self, exc: Exception | None) -> None:
        run = self._run
        if self._pending:
            run.errors[f"connection lost: {exc}"] += 1
            run.outcome.unanswered += len(self._pending)
            run.in_flight -= len(self._pending)
            self._pending.clear()
        self._closing = True
        run.settle()

    def launch(self, wanted: int) -> None:
        """Send that many requests, fewer when the run ends."""
        run = self._run
        if run.stopping or self._closing:
            run.settle()
            return
        requests = min(wanted, run.left)
        run.left -= requests
        run.in_flight += requests
        blocks, choose, pack, pending = run.blocks.items, self._choose, STREAM.pack, self._pending
        while len(blocks) < self._sent + requests:
            run.blocks.extend()
        out: list[bytes] = []
        now = time.perf_counter()
        stream, window = self._next_stream, self._window
        for number in range(self._sent, self._sent + requests):
            kind, start, block = blocks[number]
            data_start, payload = choose[kind](number)
            name = pack(stream)
            size = len(payload)
            if size <= FRAME_MAX and size <= window and not self._outgoing:
                window -= size
                out += (start, name, block, data_start, name, payload)
            else:
                out += (start, name, block)
                self._outgoing.append(Outgoing(stream, payload, self._stream_window))
            pending[stream] = (now, kind)
            stream += 2
        self._sent += requests
        self._next_stream, self._window = stream, window
        if self._outgoing:
            self._send_more(out)
        if out:
            self._transport.write(b"".join(out))
        if not requests:
            run.settle()

    def _send_more(self, out: list[bytes]) -> None:
        for _ in range(len(self._outgoing)):
            item = self._outgoing.popleft()
            while item.sent < len(item.payload):
                size = min(len(item.payload) - item.sent, FRAME_MAX, self._window, item.window)
                if size <= 0:
                    break
                part = item.payload[item.sent : item.sent + size]
                item.sent += size
                item.window -= size
                self._window -= size
                last = item.sent == len(item.payload)
                out.append(frame(DATA, END_STREAM if last else 0, item.stream, part))
            if item.sent < len(item.payload):
                self._outgoing.append(item)

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        unpack = FRAME_HEAD.unpack_from
        sizes = self._bytes
        finished = 0
        now = time.perf_counter()
        while end - at >= 9:
            length_and_kind, flags, stream = unpack(data, at)
            body = at + 9
            after = body + (length_and_kind >> 8)
            if after > end:
                break
            kind = length_and_kind & 0xFF
            if kind == DATA:
                size = length_and_kind >> 8
                self._received += size
                sizes[stream] = sizes.get(stream, 0) + size
                if flags & END_STREAM:
                    finished += self._answered(stream, {}, now)
            elif kind == HEADERS:
                try:
                    headers = self._decoder.decode(header_payload(data[body:after], flags))
                except HPACKError as error:
                    self._broken(f"header block: {error!r}")
                    return
                if flags & END_STREAM:
                    finished += self._answered(stream, headers, now)
            else:
                finished += self._control(kind, flags, stream, data[body:after])
            at = after
        self._rest = data[at:]
        if self._received > TOP_UP_BYTES:
            self._transport.write(window_update(0, self._received))
            self._received = 0
        if finished:
            self._run.in_flight -= finished
            self.launch(finished)

    def _answered(self, stream: int, headers: dict[bytes, bytes], now: float) -> int:
        run = self._run
        begun = self._pending.pop(stream, None)
        size = self._bytes.pop(stream, 0)
        if begun is None:
            run.errors["an answer to nothing"] += 1
            return 0
        then, kind = begun
        if headers.get(b"grpc-status") != b"0":
            run.errors[_explain(headers)] += 1
            return 1
        if size < self._reply_min[kind]:
            run.outcome.short_replies += 1
        run.outcome.acknowledged += 1
        if kind == 0:
            run.outcome.acknowledged_puts += 1
        if run.measuring:
            run.latencies[kind].append(now - then)
        return 1

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> int:
        if kind == WINDOW_UPDATE:
            self._widen(stream, STREAM.unpack(payload)[0])
        elif kind == SETTINGS and not flags & ACK:
            for offset in range(0, len(payload), 6):
                name = int.from_bytes(payload[offset : offset + 2], "big")
                value = int.from_bytes(payload[offset + 2 : offset + 6], "big")
                if name == INITIAL_WINDOW_SIZE:
                    for item in self._outgoing:
                        item.window += value - self._stream_window
                    self._stream_window = value
            self._transport.write(frame(SETTINGS, ACK, 0))
            self._flush()
        elif kind == PING and not flags & ACK:
            self._transport.write(frame(PING, ACK, 0, payload))
        elif kind == RST_STREAM:
            if self._pending.pop(stream, None) is not None:
                self._run.errors[f"stream reset, code {STREAM.unpack(payload)[0]}"] += 1
                self._outgoing = deque(o for o in self._outgoing if o.stream != stream)
                return 1
        elif kind == GOAWAY:
            self._run.errors[f"goaway: {payload[4:].hex()}"] += 1
            self._closing = True
        return 0

    def _widen(self, stream: int, increment: int) -> None:
        if stream == 0:
            self._window += increment
        else:
            for item in self._outgoing:
                if item.stream == stream:
                    item.window += increment
        self._flush()

    def _flush(self) -> None:
        if self._outgoing:
            out: list[bytes] = []
            self._send_more(out)
            if out:
                self._transport.write(b"".join(out))

    def _broken(self, text: str) -> None:
        self._run.errors[text] += 1
        self._transport.abort()

    def close(self) -> None:
        """Close; nothing is in flight."""
        self._transport.close()


def _explain(headers: dict[bytes, bytes]) -> str:
    status = headers.get(b"grpc-status", b"none").decode()
    text = unquote_to_bytes(headers.get(b"grpc-message", b"")).decode(errors="replace")
    return f"grpc-status {status}: {text}"


async def connect(run: Run) -> list[Connection]:
    """Make the run's connections, then let all of them send."""
    loop = asyncio.get_running_loop()
    connections: list[Connection] = []
    targets = run.load.targets
    for number in range(run.load.connections):
        host, _, port = targets[number % len(targets)].rpartition(":")
        connection = Connection(run, number)
        connections.append(connection)
        await loop.create_connection(
            lambda connection=connection: connection,  # type: ignore[misc]
            host,
            int(port),
        )
    # Not before: thousands that are at work would leave the next no turn of the loop.
    for connection in connections:
        connection.launch(run.load.streams)
    return connections


async def finish(run: Run, connections: Sequence[Connection]) -> None:
    """Send nothing more, wait for the answers under way, close."""
    run.stopping = True
    run.settle()
    try:
        await asyncio.wait_for(run.idle.wait(), DRAIN_S)
    except TimeoutError:
        run.outcome.unanswered += run.in_flight
    for connection in connections:
        connection.close()


async def execute(load: Load) -> Outcome:
    """Run the load and return what was measured."""
    run = Run(load)
    outcome = run.outcome
    began = time.perf_counter()
    run.measuring = bool(load.requests)
    cpu = time.process_time()
    connections = await connect(run)
    if load.requests:
        await run.idle.wait()
        outcome.seconds = time.perf_counter() - began
    else:
        await asyncio.sleep(load.warmup_s)
        run.measuring = True
        began, cpu = time.perf_counter(), time.process_time()
        await asyncio.sleep(load.seconds)
        run.measuring = False
        outcome.seconds = time.perf_counter() - began
    outcome.cpu_s = time.process_time() - cpu
    await finish(run, connections)
    puts, ranges = run.latencies
    outcome.operations = len(puts) + len(ranges)
    outcome.rate = outcome.operations / outcome.seconds
    outcome.put_ms, outcome.range_ms = percentiles(puts), percentiles(ranges)
    outcome.errors = dict(run.errors.most_common(20))
    return outcome


def main() -> None:
    """Run the load of the command line."""
    load = Load.from_json(sys.argv[1])
    print(json.dumps(asdict(uvloop.run(execute(load)))))


if __name__ == "__main__":
    main()
