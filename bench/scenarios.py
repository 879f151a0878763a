"""The measurements that are not a rate: one function each, by the name used on the command line.

Where a driver's rate is among their figures (gate, P6), it is checked against the null server as
the rows are; P5 tells how busy its receiver was; the others measure times, CPU and memory at a
load far below any driver's limit.
"""

from __future__ import annotations

from collections.abc import Callable

from bench import failover, fanout, gate, idle, keepalive, million, reconnect

Scenario = Callable[..., dict[str, object]]
"""Takes the kind of cluster, `data_root` and `scale` (1.0: the full size); returns figures."""

SCENARIOS: dict[str, Scenario] = {
    "gate": gate.run,
    "P8": failover.run,
    "P5": fanout.run,
    "P6": million.run,
    "P7": keepalive.run,
    "idle": idle.run,
    "tls": reconnect.run,
}

TITLES = {
    "gate": "reads from 500 in flight saturate a member, puts go on",
    "P8": "the leader is killed again and again",
    "P5": "many watchers on one prefix",
    "P6": "a million keys",
    "P7": "10,000 leases kept alive",
    "idle": "memory of idle connections and watchers",
    "tls": "a thousand TLS clients at once",
}
"""What each measures."""

ONCE = ("idle", "tls")
"""Those that measure memory and times far from any limit: rounds would tell the same."""
