"""The kernel's half of one family: its order, and what it tells of its rounds.

What it does to a kernel is in `tests.net`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Set as AbstractSet
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from types import SimpleNamespace
from typing import Any, cast

import pytest

from netplane.agent import report as kernel
from netplane.agent.dataplane import RealDataplane
from netplane.agent.firewall import Wanted
from netplane.agent.metrics import Counts
from netplane.agent.settings import Settings
from netplane.backend import External
from netplane.backend.vxlan import VxlanBackend, VxlanConfig
from netplane.netlink.objects import KernelObject, Route, Sysctl
from tests.netplane.agent.world import OWN, peers

NETWORK = IPv4Network("10.5.0.0/16")
ROUTE = Route("np.1", b"\x0a\x05\x02\x00", 24, b"")
FORWARD = Sysctl("ipv4/ip_forward", "1")


def round_of(
    *, healed: tuple[KernelObject, ...] = (), waiting: tuple[KernelObject, ...] = ()
) -> kernel.Report:
    contested = tuple(kernel.Contest(item, 11, "") for item in waiting)
    return kernel.Report("route", healed, (), healed, (), contested, 1.0)


def test_drift_that_waits_is_found_once_and_healed_later() -> None:
    backend = cast(Any, SimpleNamespace(mtu=1450, scope="np.1"))
    plane = RealDataplane(backend, Wanted("netplane", NETWORK, 8472, 1), Settings(), {})
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


async def test_a_host_is_let_in_before_its_route_comes_and_kept_out_after_that_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Who comes may send as soon as they are told of us, and who goes is still sent answers.
    told: list[tuple[str, set[str]]] = []

    async def let_in(subnet: IPv4Network, vteps: frozenset[IPv4Address]) -> None:
        told.append(("let in", set(map(str, vteps))))

    async def write(objects: AbstractSet[KernelObject], **_: object) -> None:
        found = (item.destination for item in objects if isinstance(item, Route))
        told.append(("routes", {str(IPv4Address(each)) for each in found}))

    wall, reconciler = SimpleNamespace(is_placed=True, apply=let_in), SimpleNamespace(apply=write)
    monkeypatch.setattr(RealDataplane, "_firewall", lambda _: wall)
    monkeypatch.setattr(RealDataplane, "_reconciler", lambda _: reconciler)
    external = External("eth0", IPv4Interface("192.0.2.1/24"), 1500)
    backend = VxlanBackend(
        VxlanConfig(), network=NETWORK, external=external, mac="02:00:00:00:00:01"
    )
    dataplane = RealDataplane(backend, Wanted("netplane", NETWORK, 8472, 1), Settings(), {})

    await dataplane.apply(OWN, peers(2), remove=True)
    await dataplane.apply(OWN, peers(3), remove=True)

    assert told == [
        ("let in", {"192.0.2.2"}),
        ("routes", {"10.5.2.0"}),
        ("let in", {"192.0.2.2", "192.0.2.3"}),
        ("routes", {"10.5.3.0"}),
        ("let in", {"192.0.2.3"}),
    ]
