"""Both halves of a host's firewall: who waits for them, and what is told of them together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network

import pytest

from netplane.agent import firewall as module
from netplane.agent.firewall import HostFirewall, Wanted
from netplane.agent.ports import FirewallReport
from netplane.nft.firewall import Firewall
from netplane.nft.firewall import FirewallReport as TableReport
from netplane.nft.forward import ForwardReport, ForwardRules, Sight
from netplane.nft.rules import Rules

NETWORK, SUBNET = IPv4Network("10.5.0.0/16"), IPv4Network("10.5.1.0/24")
VTEPS = frozenset({IPv4Address("192.0.2.2")})
GOOD = TableReport("desired", 3, 0, healed=False, problem="", milliseconds=1.0)


@pytest.fixture
def reports() -> list[FirewallReport]:
    return []


@pytest.fixture
def wall(reports: list[FirewallReport]) -> Iterator[HostFirewall]:
    made = HostFirewall(Wanted("netplane", NETWORK, 8472, 1), 3600.0, reports.append)
    with contextlib.closing(made):
        yield made


async def test_routes_wait_for_nftables_only_so_long(
    wall: HostFirewall, reports: list[FirewallReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, answered = asyncio.Event(), asyncio.Event()

    async def slow(self: Firewall, rules: Rules, vteps: frozenset[IPv4Address]) -> TableReport:
        await answer.wait()
        assert (rules.subnet, vteps) == (SUBNET, VTEPS)
        wall._take_own(GOOD)
        answered.set()
        return GOOD

    monkeypatch.setattr(Firewall, "apply", slow)
    monkeypatch.setattr(module, "PATIENCE_S", 0.01)
    await wall.apply(SUBNET, VTEPS)
    assert reports[-1].problem.startswith("nftables have not answered within 0.01 s")
    # It goes on by itself, and is told when it has ended.
    answer.set()
    async with asyncio.timeout(10):
        await answered.wait()
    assert (reports[-1].problem, reports[-1].vteps) == ("", 1)
    assert reports[-1].written == {"firewall": 3}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[frozenset[IPv4Address]]:
    """The hosts of every transaction; none is written."""
    found: list[frozenset[IPv4Address]] = []

    async def apply(self: Firewall, rules: Rules, vteps: frozenset[IPv4Address]) -> TableReport:
        found.append(vteps)
        return GOOD

    async def run(self: Firewall | ForwardRules) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Firewall, "apply", apply)
    monkeypatch.setattr(Firewall, "run", run)
    monkeypatch.setattr(ForwardRules, "run", run)
    return found


async def test_who_goes_is_shut_out_with_who_comes(
    wall: HostFirewall, told: list[frozenset[IPv4Address]]
) -> None:
    other = frozenset({IPv4Address("192.0.2.3")})
    for vteps in (VTEPS, VTEPS, VTEPS | other, other, other, VTEPS):
        await wall.apply(SUBNET, vteps)
    assert told == [VTEPS, VTEPS | other]  # the first is still let in
    third = frozenset({IPv4Address("192.0.2.4")})
    await wall.apply(SUBNET, VTEPS | third)
    assert told == [VTEPS, VTEPS | other, VTEPS | third]


async def test_who_goes_last_is_shut_out_before_long(
    wall: HostFirewall, told: list[frozenset[IPv4Address]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LATER_S", 0.01)
    for vteps in (VTEPS, frozenset[IPv4Address]()):
        await wall.apply(SUBNET, vteps)
    assert told == [VTEPS]
    is_written = asyncio.Event()
    monkeypatch.setattr(Firewall, "step", lambda *_: is_written.set())
    running = asyncio.create_task(wall.run())
    async with asyncio.timeout(10):
        await is_written.wait()
    running.cancel()
    await asyncio.wait({running})
    assert told == [VTEPS, frozenset()]


def test_one_trouble_is_told_once_and_what_others_drop_beside_it(
    wall: HostFirewall, reports: list[FirewallReport]
) -> None:
    problem = "this kernel lacks nf_tables: modprobe nf_tables"
    wall._take_own(TableReport("desired", 0, 0, healed=False, problem=problem, milliseconds=1.0))
    wall._take_foreign(ForwardReport("desired", problem=problem, drops=("chain x drops",)))
    assert (reports[-1].problem, reports[-1].forward) == (problem, "chain x drops")
    wall._take_own(GOOD)
    wall._take_foreign(
        ForwardReport("change", 2, 1, healed=True, problem="iptables failed", found=True)
    )
    assert (reports[-1].problem, reports[-1].forward) == ("", "iptables failed")
    assert (reports[-1].written, reports[-1].healed) == ({"forward": 3}, {"forward": 1})
    assert reports[-1].found == {"forward": 1}


async def test_a_look_tells_of_both(wall: HostFirewall, monkeypatch: pytest.MonkeyPatch) -> None:
    async def wrong(self: Firewall) -> list[str]:
        return ["table ip netplane is missing"]

    async def sight(self: ForwardRules) -> Sight:
        return Sight(
            ("the rules are not in front",),
            (),
            ("chain x drops",),
            "no answer",
            ("whether y drops",),
        )

    monkeypatch.setattr(Firewall, "read", wrong)
    monkeypatch.setattr(ForwardRules, "read", sight)
    look = await wall.look()
    assert look.wrong == ("table ip netplane is missing", "the rules are not in front")
    assert look.drops == ("chain x drops",)
    assert look.unsure == ("whether y drops",)
    assert look.unseen == ()  # one trouble, and told
