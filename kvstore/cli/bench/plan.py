"""What a benchmark is asked to do: the checked settings. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Transport = Literal["auto", "session", "unary"]

WORKLOADS = {
    "put": "Put random keys.",
    "range": "Get random keys (or ranges, with --limit).",
    "mixed": "Gets and puts of random keys.",
    "txn": "Transactions of a condition and some puts.",
    "watch-latency": "From a put to its event at a watcher.",
    "watch-fanout": "From a put to its events at many watchers.",
    "lease-keepalive": "Renew leases.",
    "lock": "Acquire and release locks that others want.",
    "hot-key": "All clients put the same key.",
    "sequential": "One client: a put, a get, a put ...",
}

KEY_BYTES_MIN = 8

VALUE_NUMBER_BYTES = 12
"""Where values carry the number of their operation, in its decimal digits."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The settings of one run."""

    workload: str
    clients: int
    connections: int
    total: int | None
    """Operations; None: until `duration_s` is over."""

    duration_s: float | None
    rate: float | None
    """Operations a second for all clients together; None: as fast as they get answers."""

    key_size: int
    value_size: int
    keys: int
    range_limit: int
    reads_percent: float
    serializable: bool
    txn_ops: int
    watchers: int
    leases: int
    locks: int
    transport: Transport
    prefix: bytes
    keep: bool
    seed: int

    def key(self, number: int) -> bytes:
        """Return the key with this number: all have the same size, below the prefix."""
        return self.prefix + b"%0*d" % (self.key_size, number)
