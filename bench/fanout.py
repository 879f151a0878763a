"""P5: a thousand watchers on one prefix hear of every put; how many events a second, how late.

One process receives and does nothing else while events come: it keeps the bytes and when they
arrived, and takes them apart afterwards (every watcher: each put once, in order). The writer is
this process; each value says when its put was sent.

`python -m bench.fanout TARGET STREAMS WATCHERS` is the receiver: it prints `ready` when all are
registered, receives until a line comes on standard input and then until nothing comes any more,
and prints JSON.
"""

from __future__ import annotations

import json
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hpack import Encoder

from bench import messages, process
from bench.clusters import Cluster, Member
from bench.load import percentiles
from bench.wire import (
    ACK,
    DATA,
    END_HEADERS,
    FRAME_HEAD,
    HEADERS,
    PING,
    SETTINGS,
    frame,
    opening,
)

PREFIX = b"fanout/"
WATCHERS = 1000
SHAPES = {"1 x 1,000": 1, "100 x 10": 100}
"""Streams that the watchers are spread over."""

FLOOD_PUTS = 300
PACED_PUTS = 100
PACE_S = 0.05
VALUE_BYTES = 256
QUIET_S = 1.0
CALL_S = 60.0
READ_BYTES = 1 << 20


def run(kind: str, *, data_root: str | None, scale: float = 1.0) -> dict[str, object]:
    """Return events a second and delivery times, for both ways to spread the watchers."""
    watchers = max(100, round(WATCHERS * scale))
    found: dict[str, object] = {"watchers": watchers}
    for name, streams in SHAPES.items():
        with Cluster(kind, data_root=data_root) as cluster:
            leader = cluster.leader()
            flood = _measure(leader, streams, watchers, [0.0] * max(20, round(FLOOD_PUTS * scale)))
            pauses = [PACE_S] * max(20, round(PACED_PUTS * scale))
            paced = _measure(leader, streams, watchers, pauses)
            cluster.ensure_running()
        found[f"{name} events/s"] = round(flood["events"] / flood["seconds"])
        found[f"{name} receiver busy"] = flood["busy"]
        for point in ("p50", "p90", "p99", "p99.9", "max"):
            found[f"{name} delivery {point} ms"] = paced["delivery_ms"][point]
        if problems := flood["problems"] + paced["problems"]:
            found[f"{name} problems"] = "; ".join(problems[:5])
    found["target"] = "events/s >= 1x, p50 delivery <= 1x; each event once and in order"
    return found


def _measure(
    leader: Member, streams: int, watchers: int, pauses_s: Sequence[float]
) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.fanout", leader.target, str(streams), str(watchers)]
    receiver = subprocess.Popen(
        [*process.bound(), *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert receiver.stdout is not None
        if receiver.stdout.readline() != "ready\n":
            raise RuntimeError(f"the receiver did not start: {' '.join(command)}")
        puts = 0
        with leader.channel() as channel:
            put = channel.unary_unary(messages.PUT)
            for pause_s in pauses_s:
                time.sleep(pause_s)
                value = b"%020d" % time.monotonic_ns()
                put(messages.put(PREFIX + b"key", value.ljust(VALUE_BYTES, b".")), timeout=CALL_S)
                puts += 1
        output, _ = receiver.communicate(f"{puts}\n", timeout=10 * CALL_S)
    finally:
        receiver.kill()
        receiver.wait()
    if receiver.returncode:
        raise RuntimeError(f"the receiver failed: {' '.join(command)}")
    result: dict[str, Any] = json.loads(output)
    return result


@dataclass
class Heard:
    """What one watcher got."""

    count: int = 0
    last_revision: int = 0


@dataclass
class Arrivals:
    """Takes apart what came."""

    heard: dict[tuple[int, int], Heard] = field(default_factory=dict)
    delivery_s: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    created: int = 0
    first_ns: int = 0
    last_ns: int = 0
    _rest: bytes = b""
    _bodies: dict[int, bytearray] = field(default_factory=dict)
    _events: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    """Every watcher gets the same event: taken apart once."""

    def take(
        self, data: bytes, arrived_ns: int, control: Callable[[int, int, bytes], None]
    ) -> None:
        """Take the next bytes of the connection."""
        data = self._rest + data
        at = 0
        while len(data) - at >= FRAME_HEAD.size:
            length_kind, flags, stream = FRAME_HEAD.unpack_from(data, at)
            end = at + FRAME_HEAD.size + (length_kind >> 8)
            if end > len(data):
                break
            payload = data[at + FRAME_HEAD.size : end]
            at = end
            if length_kind & 0xFF == DATA:
                self._body(stream, payload, arrived_ns)
            else:
                control(length_kind & 0xFF, flags, payload)
        self._rest = data[at:]

    def _body(self, stream: int, payload: bytes, arrived_ns: int) -> None:
        body = self._bodies.setdefault(stream, bytearray())
        body += payload
        at = 0
        while len(body) - at >= 5:
            end = at + 5 + int.from_bytes(body[at + 1 : at + 5], "big")
            if end > len(body):
                break
            self._response(stream, bytes(body[at + 5 : end]), arrived_ns)
            at = end
        del body[:at]

    def _response(self, stream: int, message: bytes, arrived_ns: int) -> None:
        fields = messages.decode(message)
        watcher = (stream, messages.number(fields, 2))
        if messages.number(fields, 4):
            self.problems.append(f"watcher {watcher} was cancelled")
        if messages.number(fields, 3):
            self.created += 1
            self.heard[watcher] = Heard()
            return
        heard = self.heard[watcher]
        for event in fields.get(11, []):
            assert isinstance(event, bytes)
            known = self._events.get(event)
            if known is None:
                pair = messages.decode(messages.data(messages.decode(event), 2))
                known = messages.number(pair, 3), int(messages.data(pair, 5)[:20])
                self._events[event] = known
            revision, sent_ns = known
            if revision <= heard.last_revision:
                self.problems.append(f"watcher {watcher}: {revision} after {heard.last_revision}")
            heard.last_revision = revision
            heard.count += 1
            self.first_ns = self.first_ns or sent_ns
            self.last_ns = arrived_ns
            self.delivery_s.append((arrived_ns - sent_ns) / 1e9)


def receive(target: str, streams: int, watchers: int) -> None:
    """Be the receiver."""
    host, _, port = target.rpartition(":")
    connection = socket.create_connection((host, int(port)), CALL_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    encoder = Encoder()
    fields = [
        *((":method", "POST"), (":scheme", "http"), (":path", messages.WATCH)),
        *((":authority", target), ("content-type", "application/grpc"), ("te", "trailers")),
    ]
    out = [opening(client=True)]
    create = messages.framed(messages.watch_create(PREFIX, PREFIX[:-1] + b"0"))
    for number in range(streams):
        stream = 2 * number + 1
        share = watchers // streams + (number < watchers % streams)
        out.append(frame(HEADERS, END_HEADERS, stream, encoder.encode(fields)))
        out += [frame(DATA, 0, stream, create)] * share
    arrivals = Arrivals()

    def control(kind: int, flags: int, payload: bytes) -> None:
        if kind in (SETTINGS, PING) and not flags & ACK:
            connection.sendall(frame(kind, ACK, 0, payload if kind == PING else b""))

    # A thousand small requests fit the windows that a connection begins with.
    connection.sendall(b"".join(out))
    while arrivals.created < watchers:
        data = connection.recv(READ_BYTES)
        if not data:
            raise RuntimeError("the member closed the connection")
        arrivals.take(data, time.monotonic_ns(), control)
    print("ready", flush=True)

    chunks: list[tuple[int, bytes]] = []
    puts = 0
    selector = selectors.DefaultSelector()
    selector.register(connection, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    begin_s, busy_s = time.monotonic(), time.process_time()
    spent_s = 0.0
    while ready := selector.select(QUIET_S if puts else None):
        for key, _ in ready:
            if key.fileobj is connection:
                data = connection.recv(READ_BYTES)
                if not data:
                    raise RuntimeError("the member closed the connection")
                chunks.append((time.monotonic_ns(), data))
                spent_s = time.process_time() - busy_s
            else:
                puts = int(sys.stdin.readline())
                selector.unregister(sys.stdin)
    for arrived_ns, data in chunks:
        arrivals.take(data, arrived_ns, control)
    counts = [heard.count for heard in arrivals.heard.values()]
    if set(counts) != {puts}:
        arrivals.problems.append(f"{min(counts)} to {max(counts)} events instead of {puts}")
    last_s = arrivals.last_ns / 1e9
    print(
        json.dumps(
            {
                "events": sum(counts),
                "seconds": (arrivals.last_ns - arrivals.first_ns) / 1e9,
                "busy": f"{100 * spent_s / max(1e-9, last_s - begin_s):.0f} %",
                "delivery_ms": percentiles(arrivals.delivery_s),
                "problems": arrivals.problems[:20],
            }
        )
    )


if __name__ == "__main__":
    receive(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
