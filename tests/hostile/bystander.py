"""The honest client beside an attack, and the gauges of the member that serves both."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Self

from bench.process import cpu_s, memory
from kvstore.pb import rpc_pb2
from tests.hostile.attacks import block, headers
from tests.rpc import wire as w
from tests.rpc.wire import Wire, frame, message

EVERY_S = 0.01
"""Between two operations: a put, then a get of it."""

CALM_S = 0.5
"""How long a test looks at the calm before."""

# Relative to the same connection's calm, with floors that a loaded machine of two cores keeps: the
# attacker takes one of them, the member the other, and the bystander runs beside them.
TYPICAL_TIMES, TYPICAL_FLOOR_S = 10, 0.1
WORST_TIMES, WORST_FLOOR_S = 20, 0.6
WRITE_S = 5.0
OPERATIONS_PER_S_MIN = 4

PUT = block("/etcdserverpb.KV/Put")
RANGE = block("/etcdserverpb.KV/Range")
KEY = b"bystander"


@dataclass
class Latency:
    """What one phase's operations took: `taken_s` the gets, which wait for the member only."""

    taken_s: list[float] = field(default_factory=list)
    writes_s: list[float] = field(default_factory=list)
    """A put waits for the disk besides, which may be busy with others' work."""

    def percentile_s(self, percent: float) -> float:
        assert self.taken_s, "the bystander did nothing"
        ordered = sorted(self.taken_s)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]

    def __str__(self) -> str:
        return f"{self.percentile_s(50) * 1e3:.1f}/{self.percentile_s(99) * 1e3:.0f} ms"


class Bystander:
    """One connection that puts and gets at a steady rate, in a thread, until the block ends.

    Each operation must succeed: a lost or refused one raises at the end of the block.
    """

    def __init__(self, port: int, pid: int) -> None:
        self._wire = Wire(port).hello()
        self._pid = pid
        self._latency = Latency()
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self.peak_bytes = 0
        """The member's largest anonymous memory since `phase`."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(30)
        self._wire.socket.close()
        if self._error is not None:
            raise self._error

    def phase(self) -> Latency:
        """Begin a new phase; returns the latencies of the one that ended."""
        ended, self._latency = self._latency, Latency()
        self.peak_bytes = 0
        return ended

    def watch(self, seconds: float) -> Latency:
        """Let the current phase last that long, then begin another; returns its latencies."""
        self.phase()
        self._stopping.wait(seconds)
        return self.phase()

    def _run(self) -> None:
        try:
            number = 0
            while not self._stopping.wait(EVERY_S):
                number += 1
                value = b"%d" % number
                put = rpc_pb2.PutRequest(key=KEY, value=value)
                self._call(PUT, put.SerializeToString(), self._latency.writes_s)
                get = rpc_pb2.RangeRequest(key=KEY)
                answer = self._call(RANGE, get.SerializeToString(), self._latency.taken_s)
                [found] = rpc_pb2.RangeResponse.FromString(answer).kvs
                assert found.value == value
                self.peak_bytes = max(self.peak_bytes, memory(self._pid).anonymous_bytes)
        except BaseException as error:  # noqa: BLE001  # raised again when the block ends
            self._error = error

    def _call(self, head: bytes, request: bytes, taken_s: list[float]) -> bytes:
        wire = self._wire
        stream = wire.new_stream()
        began_s = time.perf_counter()
        wire.send(headers(stream, head) + frame(w.DATA, w.END_STREAM, stream, message(request)))
        _, body, trailers = wire.response(stream)
        taken_s.append(time.perf_counter() - began_s)
        wire.seen.clear()
        assert trailers == {"grpc-status": "0"}, trailers
        return body[5:]


def settle_s(pid: int, share_max: float, within_s: float) -> float:
    """Return how long a process takes to become idle: `share_max` of a core over 0.25 s."""
    began_s = time.monotonic()
    while True:
        before = cpu_s(pid)
        time.sleep(0.25)  # the measure's own length
        share = (cpu_s(pid) - before) / 0.25
        if share <= share_max:
            return time.monotonic() - began_s
        assert time.monotonic() - began_s < within_s, f"still {share:.0%} of a core"


def judge(calm: Latency, attacked: Latency, seconds: float) -> None:
    """Compare what the bystander met during an attack with what it met before."""
    assert len(attacked.taken_s) >= OPERATIONS_PER_S_MIN * seconds
    typical = max(TYPICAL_TIMES * calm.percentile_s(50), TYPICAL_FLOOR_S)
    assert attacked.percentile_s(50) <= typical, f"{attacked}, calm {calm}"
    assert max(attacked.writes_s) <= WRITE_S
    worst = max(WORST_TIMES * calm.percentile_s(99), WORST_FLOOR_S)
    assert max(attacked.taken_s) <= worst, f"{attacked}, calm {calm}"
