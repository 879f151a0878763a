"""Counting what a client does: plain integers, bumped where things happen; exports nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """The running counts, written by the parts of one client and shared with its views."""

    calls: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    pipelined: int = 0
    retries: int = 0
    failovers: int = 0
    logins: int = 0
    watch_registrations: int = 0
    watch_resumptions: int = 0
    leases_lost: int = 0
    stm_attempts: int = 0
    stm_conflicts: int = 0


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a client has done since it was made. Counts only ever grow, but for `leases_kept`."""

    calls: dict[str, int]
    """Calls by method, such as "KV/Put"; those of a pipeline are in `pipelined`."""
    failures: dict[str, int]
    """Calls that raised, by the class of the error."""
    pipelined: int
    """Operations sent in pipelines."""
    retries: int
    """Attempts that followed another of the same call, because nothing had been applied."""
    failovers: int
    """How often the client turned to another endpoint."""
    logins: int
    """How often it logged in."""
    watch_registrations: int
    """How often a server registered a watch, resumptions included."""
    watch_resumptions: int
    """How often a watch moved to a new stream."""
    leases_kept: int
    """Leases that are being kept alive now."""
    leases_lost: int
    """Leases that ended, or may have, while they were kept alive."""
    stm_attempts: int
    """Runs of software transactions' bodies."""
    stm_conflicts: int
    """Runs that met a conflict and were repeated."""


def statistics(counters: Counters, *, leases_kept: int) -> Statistics:
    """Take a copy of the counts."""
    return Statistics(
        calls={
            path.removeprefix("/etcdserverpb."): number for path, number in counters.calls.items()
        },
        failures=dict(counters.failures),
        pipelined=counters.pipelined,
        retries=counters.retries,
        failovers=counters.failovers,
        logins=counters.logins,
        watch_registrations=counters.watch_registrations,
        watch_resumptions=counters.watch_resumptions,
        leases_kept=leases_kept,
        leases_lost=counters.leases_lost,
        stm_attempts=counters.stm_attempts,
        stm_conflicts=counters.stm_conflicts,
    )
