"""What a load is: targets, keys, values, mix and length, and what came of it; runs nothing.

Both travel as JSON between the benchmark and the generator's own process.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from math import exp, log

from bench import messages
from bench.wire import DATA, END_STREAM, FRAME_MAX, head

KEY_BYTES = 32
VALUE_MIN_BYTES, VALUE_MAX_BYTES = 16, 64 * 1024
DRAWS = 1 << 16
"""Prebuilt requests per kind; large values get fewer, to take at most DRAWS_MAX_BYTES."""
DRAWS_MAX_BYTES = 128 << 20
ZIPF_EXPONENT = 1.1

Request = tuple[bytes, bytes]
"""First five bytes of the DATA frame, and its payload."""


@dataclass(frozen=True)
class Load:
    """One run of the generator."""

    targets: list[str]
    """host:port; connections go round."""

    connections: int = 10
    streams: int = 50
    """Requests in flight per connection."""

    seconds: float = 5.0
    """Measured time, after the warm-up. Ignored when `requests` is set."""

    warmup_s: float = 1.0
    requests: int = 0
    """Send exactly that many, then stop; no warm-up."""

    put_share: float = 1.0
    """0, 0.5 or 1."""

    keys: int = 10_000
    distribution: str = "uniform"
    """uniform, zipf, one, or sequence: key n for the n-th request, to load a store."""

    first_key: int = 0
    """Of a sequence."""

    value_bytes: int = 256
    """0: from 16 B to 64 KiB, each size class equally likely."""

    serializable: bool = False
    profile: str = "h2load"
    """Of `bench.profiles.NAMES`: whose header blocks are sent."""

    seed: int = 1

    def to_json(self) -> str:
        """Return the text that `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Load:
        """Return the load of a text."""
        return cls(**json.loads(text))


@dataclass
class Outcome:
    """What a run measured. Times are milliseconds."""

    seconds: float = 0.0
    operations: int = 0
    """Answered with status 0 within the measured time."""

    rate: float = 0.0
    put_ms: dict[str, float] = field(default_factory=dict)
    range_ms: dict[str, float] = field(default_factory=dict)
    acknowledged_puts: int = 0
    """Over the whole run, warm-up and end included: what the revision must have moved by."""

    acknowledged: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    """grpc-status and text of every other answer, and broken connections."""

    unanswered: int = 0
    short_replies: int = 0
    """Status 0, but without the message that it must carry."""

    cpu_s: float = 0.0
    """Of the generator itself, in the measured time."""

    def problems(self) -> list[str]:
        """Return what was not as it should be; empty for a clean run."""
        found = [f"{count} x {text}" for text, count in self.errors.items()]
        if self.unanswered:
            found.append(f"{self.unanswered} requests unanswered")
        if self.short_replies:
            found.append(f"{self.short_replies} replies without what was asked for")
        return found


def key(number: int) -> bytes:
    """Return the 32-byte key with that number."""
    return b"bench/%026d" % number


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Return p50, p90, p99, p99.9 and max in milliseconds; empty for no samples."""
    if not seconds:
        return {}
    ordered = sorted(seconds)
    last = len(ordered) - 1
    points = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
    return {name: round(1e3 * ordered[round(last * q)], 3) for name, q in points.items()}


def chooser(
    load: Load, kind: int, connection: int, requests: Sequence[Request], numbers: Iterator[int]
) -> Callable[[int], Request]:
    """Return what gives the n-th request of a kind (0 put, 1 range) on a connection.

    All connections share `requests`, the draws of that kind (each begins elsewhere), and
    `numbers`, the key numbers of a sequence.
    """
    if load.distribution == "sequence":
        assert load.value_bytes, "a load has one value size"
        value = value_of(load.value_bytes)

        def numbered(_: int) -> Request:
            return request(load, kind, key(next(numbers)), value)

        return numbered
    count = len(requests)
    offset = count * connection // load.connections

    def drawn(number: int) -> Request:
        return requests[(number + offset) % count]

    return drawn


def draws(load: Load, kind: int) -> list[Request]:
    """Return prebuilt requests with keys and sizes as the load says; none for a sequence."""
    if load.distribution == "sequence":
        return []
    rng = random.Random(f"{load.seed}/{kind}")
    mean_bytes = (load.value_bytes or 8_000) if kind == 0 else 0
    count = max(256, min(DRAWS, DRAWS_MAX_BYTES // (mean_bytes + 128)))
    if load.distribution == "one":
        numbers: Sequence[int] = [0] * (1 if load.value_bytes else count)
    elif load.distribution == "zipf":
        weights = list(accumulate((rank + 1) ** -ZIPF_EXPONENT for rank in range(load.keys)))
        numbers = rng.choices(range(load.keys), cum_weights=weights, k=count)
    elif load.distribution == "uniform":
        numbers = rng.choices(range(load.keys), k=count)
    else:
        raise ValueError(f"unknown distribution {load.distribution!r}")
    built = []
    for number in numbers:
        size = load.value_bytes or round(
            exp(rng.uniform(log(VALUE_MIN_BYTES), log(VALUE_MAX_BYTES)))
        )
        built.append(request(load, kind, key(number), value_of(size) if kind == 0 else b""))
    return built


def value_of(size_bytes: int) -> bytes:
    """Return a value of that size."""
    return b"v" * size_bytes


def request(load: Load, kind: int, name: bytes, value: bytes) -> Request:
    """Return one request, ready to send."""
    if kind == 0:
        message = messages.put(name, value)
    else:
        message = messages.range_(name, serializable=load.serializable)
    payload = messages.framed(message)
    return head(DATA, END_STREAM, min(len(payload), FRAME_MAX)), payload
