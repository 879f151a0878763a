"""The measurements that are not a rate: one function each, by the name used on the command line."""

from __future__ import annotations

from collections.abc import Callable

from bench import failover, gate, idle, million, reconnect

Scenario = Callable[..., dict[str, object]]
"""Takes the kind of cluster, `data_root` and `scale` (1.0: the full size); returns figures."""

SCENARIOS: dict[str, Scenario] = {
    "gate": gate.run,
    "P8": failover.run,
    "P6": million.run,
    "idle": idle.run,
    "tls": reconnect.run,
}
