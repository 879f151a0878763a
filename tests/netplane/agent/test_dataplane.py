"""What the kernel's half of one family tells of its rounds; what it does is in `tests.net`."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Network
from types import SimpleNamespace
from typing import Any, cast

from netplane.agent import report as kernel
from netplane.agent.dataplane import RealDataplane
from netplane.agent.firewall import Wanted
from netplane.agent.metrics import Counts
from netplane.agent.settings import Settings
from netplane.netlink.objects import KernelObject, Route, Sysctl

ROUTE = Route("np.1", b"\x0a\x05\x02\x00", 24, b"")
FORWARD = Sysctl("ipv4/ip_forward", "1")


def round_of(
    *, healed: tuple[KernelObject, ...] = (), waiting: tuple[KernelObject, ...] = ()
) -> kernel.Report:
    contested = tuple(kernel.Contest(item, 11, "") for item in waiting)
    return kernel.Report("route", healed, (), healed, (), contested, 1.0)


def test_drift_that_waits_is_found_once_and_healed_later() -> None:
    backend = cast(Any, SimpleNamespace(mtu=1450, scope="np.1"))
    plane = RealDataplane(
        backend, Wanted("netplane", IPv4Network("10.5.0.0/16"), 8472, 1), Settings(), {}
    )
    counts = Counts()

    def count(report: Any) -> None:
        counts.found.update(report.found)
        counts.healed.update(report.healed)

    plane.on_report = count

    plane._take(round_of(healed=(FORWARD,), waiting=(ROUTE,)))
    assert (counts.found, counts.healed) == (Counter(sysctl=1, route=1), Counter(sysctl=1))
    plane._take(round_of(waiting=(ROUTE,)))
    assert counts.found == Counter(sysctl=1, route=1)
    plane._take(round_of(healed=(ROUTE,)))
    assert counts.found == counts.healed == Counter(sysctl=1, route=1)
    plane._take(round_of(waiting=(ROUTE,)))
    assert counts.found - counts.healed == Counter(route=1)
