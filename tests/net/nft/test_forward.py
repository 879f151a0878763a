"""Our two rules in the chain FORWARD of iptables, in either form; iptables are the witness."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from ipaddress import IPv4Network

import pytest

from netplane.netlink.heals import Heals
from netplane.nft import forward
from netplane.nft.chains import Pair
from netplane.nft.forward import ForwardReport, ForwardRules
from netplane.nft.monitor import NftMonitor
from tests.net.kernel.hosts import Host

pytestmark = [
    pytest.mark.net,
    pytest.mark.root,
    pytest.mark.skipif(
        shutil.which("iptables-legacy") is None, reason="no iptables (Debian package iptables)"
    ),
]

NETWORK = IPv4Network("10.128.0.0/9")
PAIR = Pair("netplane", NETWORK)
PROGRAMS = {"nft": "iptables-nft", "legacy": "iptables-legacy"}
OURS = [
    '-A {chain} -d 10.128.0.0/9 -m comment --comment "netplane: to 10.128.0.0/9" -j ACCEPT',
    '-A {chain} -s 10.128.0.0/9 -m comment --comment "netplane: from 10.128.0.0/9" -j ACCEPT',
]
TIMEOUT_S = 60.0
"""On a busy machine a look takes a second, and twenty times as long passes before the next."""


class Tables:
    """iptables of one form, on a host."""

    def __init__(self, host: Host, form: str) -> None:
        self.form = form
        self._host = host

    def do(self, *arguments: str) -> str:
        return self._host.run(PROGRAMS[self.form], *arguments)

    def rules(self, chain: str = "FORWARD") -> list[str]:
        return [line for line in self.do("-S", chain).splitlines() if line.startswith("-A")]


@pytest.fixture(params=PROGRAMS)
def iptables(request: pytest.FixtureRequest, host: Host) -> Tables:
    return Tables(host, request.param)


@pytest.fixture
def make(host: Host) -> Iterator[Callable[..., ForwardRules]]:
    with contextlib.ExitStack() as stack:

        def made(pair: Pair = PAIR, **options: object) -> ForwardRules:
            rules = ForwardRules(pair, namespace=host.path, **options)  # type: ignore[arg-type]
            return stack.enter_context(contextlib.closing(rules))

        yield made


def ours(chain: str = "FORWARD") -> list[str]:
    return [line.format(chain=chain) for line in OURS]


def good(report: ForwardReport) -> ForwardReport:
    assert report.problem == ""
    return report


@contextlib.asynccontextmanager
async def healing(rules: ForwardRules, host: Host) -> AsyncIterator[None]:
    async def listen(monitor: NftMonitor) -> None:
        while True:
            for change in await monitor.read(own_port=-1):
                rules.hear(change)

    with contextlib.closing(NftMonitor(host.path)) as monitor:
        tasks = {asyncio.create_task(rules.run()), asyncio.create_task(listen(monitor))}
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 (iptables can only be asked)
            await asyncio.sleep(0.01)


async def test_where_there_is_no_chain_none_is_made(
    host: Host, make: Callable[..., ForwardRules]
) -> None:
    report = good(await make().apply())
    assert (report.written, report.drops) == (0, ())
    assert host.run("nft", "list", "ruleset") == ""
    assert host.run("cat", "/proc/net/ip_tables_names") == ""


async def test_the_pair_is_in_front_once_and_goes_without_a_trace(
    iptables: Tables, make: Callable[..., ForwardRules]
) -> None:
    iptables.do("-P", "FORWARD", "DROP")
    iptables.do(
        "-A", "FORWARD", "-i", "eth7", "-m", "conntrack", "--ctstate", "NEW", "-j", "ACCEPT"
    )
    iptables.do("-A", "FORWARD", "-j", "REJECT")
    before = iptables.rules()
    rules = make()
    report = good(await rules.apply())
    assert (report.written, report.drops, report.healed) == (2, (), False)
    assert iptables.rules() == [*ours(), *before]
    assert good(await rules.apply()).written == 0
    # The agent that is started after this one finds them.
    assert good(await make().apply()).written == 0
    sight = await rules.read()
    assert (sight.missing, sight.drops, sight.problem) == ((), (), "")
    assert len(sight.kept) == 1
    # iptables can delete them by their own words, as an operator would.
    iptables.do("-D", *shlex.split(ours()[0])[1:])
    assert iptables.rules() == [ours()[1], *before]
    assert [text.split(" are ")[0] for text in (await rules.read()).missing] == [
        "the rules that accept 10.128.0.0/9"
    ]
    good(await rules.apply())
    assert good(await rules.clear()).removed == 2
    assert iptables.rules() == before
    assert iptables.do("-S", "FORWARD").startswith("-P FORWARD DROP\n")


async def test_saved_and_restored_by_iptables_they_are_still_ours(
    host: Host, iptables: Tables, make: Callable[..., ForwardRules]
) -> None:
    # As a machine does that keeps its rules in a file.
    iptables.do("-P", "FORWARD", "DROP")
    good(await make().apply())
    saved = host.run(f"{PROGRAMS[iptables.form]}-save")
    host.run(f"{PROGRAMS[iptables.form]}-restore", text=saved)
    assert good(await make().apply()).written == 0
    assert iptables.rules() == ours()


async def test_docker_has_a_chain_for_this(
    iptables: Tables, make: Callable[..., ForwardRules]
) -> None:
    iptables.do("-P", "FORWARD", "DROP")
    rules = make()
    good(await rules.apply())
    # Docker is started after us.
    iptables.do("-N", "DOCKER-USER")
    iptables.do("-A", "DOCKER-USER", "-j", "RETURN")
    iptables.do("-I", "FORWARD", "-j", "DOCKER-USER")
    good(await rules.apply())
    assert iptables.rules() == ["-A FORWARD -j DOCKER-USER"]
    assert iptables.rules("DOCKER-USER") == [*ours("DOCKER-USER"), "-A DOCKER-USER -j RETURN"]
    good(await rules.clear())
    assert iptables.rules("DOCKER-USER") == ["-A DOCKER-USER -j RETURN"]


async def test_two_agents_of_a_host_do_not_push_each_other(
    iptables: Tables, make: Callable[..., ForwardRules]
) -> None:
    iptables.do("-P", "FORWARD", "DROP")
    one, two = make(), make(Pair("netplane-two", IPv4Network("10.9.0.0/16")))
    for rules in (one, two):
        assert good(await rules.apply()).written == 2
    for rules in (one, two):
        assert good(await rules.apply()).written == 0
    good(await one.clear())
    assert [line.split('"')[1] for line in iptables.rules()] == [
        "netplane-two: to 10.9.0.0/16",
        "netplane-two: from 10.9.0.0/16",
    ]


async def test_rules_of_another_network_go(
    iptables: Tables, make: Callable[..., ForwardRules]
) -> None:
    iptables.do("-P", "FORWARD", "DROP")
    good(await make(Pair("netplane", IPv4Network("10.4.0.0/16"))).apply())
    report = good(await make().apply())
    assert (report.written, report.removed) == (2, 2)
    assert iptables.rules() == ours()


async def test_what_is_flushed_or_set_up_later_is_healed(
    host: Host, iptables: Tables, make: Callable[..., ForwardRules]
) -> None:
    reports: list[ForwardReport] = []
    # The one form tells of changes; the other has to be looked at.
    interval_s = 3600.0 if iptables.form == "nft" else 0.05
    rules = make(interval_s=interval_s, on_report=reports.append)
    good(await rules.apply())
    async with healing(rules, host):
        iptables.do("-P", "FORWARD", "DROP")
        await until(lambda: iptables.rules() == ours())
        assert not any(report.healed for report in reports)
        iptables.do("-F", "FORWARD")
        await until(lambda: iptables.rules() == ours())
        await until(lambda: reports[-1].healed or any(report.healed for report in reports))
        iptables.do("-I", "FORWARD", "-j", "DROP")
        await until(lambda: iptables.rules() == [*ours(), "-A FORWARD -j DROP"])
    assert not any(report.problem for report in reports)


async def test_however_long_a_look_took_the_next_comes_after_the_interval(
    host: Host, make: Callable[..., ForwardRules], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "PAUSE_FACTOR", 1e6)
    iptables = Tables(host, "nft")
    iptables.do("-P", "FORWARD", "DROP")
    rules = make(interval_s=0.3)
    good(await rules.apply())
    async with healing(rules, host):
        for _ in range(2):
            iptables.do("-F", "FORWARD")
            await until(lambda: iptables.rules() == ours())


async def test_a_writer_that_insists_is_named_and_answered_seldom(
    host: Host, make: Callable[..., ForwardRules], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "PAUSE_S", 0.0)
    monkeypatch.setattr(forward, "PAUSE_FACTOR", 0)
    iptables = Tables(host, "nft")
    iptables.do("-P", "FORWARD", "DROP")
    reports: list[ForwardReport] = []
    rules = make(interval_s=3600.0, on_report=reports.append)
    good(await rules.apply())
    async with healing(rules, host):
        for _ in range(Heals.COUNT_MAX + 1):
            iptables.do("-F", "FORWARD")
            await until(lambda: iptables.rules() == ours())
        iptables.do("-F", "FORWARD")
        await until(lambda: bool(reports[-1].problem))
    assert "chain ip filter FORWARD is changed again and again" in reports[-1].problem
    assert sum(report.healed for report in reports) == Heals.COUNT_MAX + 1
    assert sum(report.found for report in reports) == Heals.COUNT_MAX + 2
    assert iptables.rules() == []


async def test_without_them_who_drops_is_named(
    host: Host, iptables: Tables, make: Callable[..., ForwardRules]
) -> None:
    iptables.do("-P", "FORWARD", "DROP")
    good(await make().apply())
    rules = make(wanted=False)
    [text] = good(await rules.apply()).drops
    assert "FORWARD" in text
    assert "--iptables-forward-rules" in text
    assert iptables.rules() == []
    # Whoever accepts the network there otherwise is not bothered.
    for flag in ("-s", "-d"):
        iptables.do("-A", "FORWARD", flag, str(NETWORK), "-j", "ACCEPT")
    assert good(await rules.apply()).drops == ()


@pytest.mark.parametrize(
    "rules",
    [
        ["-A FORWARD -j REJECT --reject-with icmp-host-prohibited"],
        ["-N BLOCK", "-A BLOCK -j DROP", "-A FORWARD -j BLOCK"],
        ["-N BLOCK", "-A BLOCK -j REJECT", "-A FORWARD -g BLOCK"],
        ["-N DOCKER-USER", "-A DOCKER-USER -j DROP", "-A FORWARD -j DOCKER-USER"],
        ["-A FORWARD -d 10.128.0.0/9 -j DROP"],
        ["-A FORWARD -i npb-default -j REJECT"],
        ["-t mangle -A FORWARD -j DROP"],
        ["-t mangle -P FORWARD DROP"],
        ["-t security -P FORWARD DROP"],
    ],
    ids=lambda rules: rules[-1],
)
async def test_without_a_policy_who_drops_is_named(
    iptables: Tables, make: Callable[..., ForwardRules], rules: list[str]
) -> None:
    for words in rules:
        iptables.do(*words.split())
    pair = Pair("netplane", NETWORK, ("npb-default",))
    looks = make(pair, wanted=False)
    [text] = good(await looks.apply()).drops
    assert "FORWARD" in text
    assert list((await looks.read()).drops) == [text]
    # Ours are in front of all but what is in another table; there helps what is said.
    report = good(await make(pair).apply())
    assert len(report.drops) == rules[-1].startswith("-t")
    for said in report.drops:
        table = rules[-1].split()[1]
        assert table in said
        for flag in ("-s", "-d"):
            iptables.do("-t", table, "-I", "FORWARD", flag, str(NETWORK), "-j", "ACCEPT")
        assert good(await make(pair).apply()).drops == ()


@pytest.mark.parametrize(
    ("rules", "unsure"),
    [
        (["-A FORWARD -m conntrack --ctstate INVALID -j DROP"], 1),
        (["-N BLOCK", "-A BLOCK -j DROP", "-A FORWARD -p tcp -j BLOCK"], 1),
        (["-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT", "-A FORWARD -j LOG"], 0),
        (["-N BLOCK", "-A BLOCK -j RETURN", "-A BLOCK -j DROP", "-A FORWARD -j BLOCK"], 0),
    ],
    ids=lambda rules: rules[-1] if isinstance(rules, list) else "",
)
async def test_what_may_drop_is_not_said_to_nor_that_nothing_does(
    iptables: Tables, make: Callable[..., ForwardRules], rules: list[str], unsure: int
) -> None:
    for words in rules:
        iptables.do(*words.split())
    sight = await make(wanted=False).read()
    assert (sight.drops, len(sight.unsure)) == ((), unsure)


async def test_a_chain_without_a_name_is_not_known(
    host: Host, make: Callable[..., ForwardRules]
) -> None:
    # nft has no JSON for it.
    host.run(
        "nft",
        "add table inet mine; add chain inet mine through"
        " { type filter hook forward priority 0; policy accept; };"
        " add rule inet mine through jump { counter drop; }",
    )
    sight = await make().read()
    assert (sight.drops, sight.unsure) == (
        (), ("whether rules of chain inet mine through drop packets of 10.128.0.0/9",),
    )  # fmt: skip


async def test_a_chain_of_neither_kind_is_named_until_it_lets_the_network_pass(
    host: Host, make: Callable[..., ForwardRules]
) -> None:
    host.run(
        "nft",
        "add table inet mine; add chain inet mine through"
        " { type filter hook forward priority 0; policy drop; }",
    )
    rules = make()
    [text] = good(await rules.apply()).drops
    assert text.startswith(
        "chain inet mine through drops what no rule of it accepts: nft insert rule"
    )
    # What it says helps.
    for field in ("saddr", "daddr"):
        host.run(
            "nft", "insert", "rule", "inet", "mine", "through", "ip", field, str(NETWORK), "accept"
        )
    assert good(await rules.apply()).drops == ()
    assert (await rules.read()).drops == ()


async def test_firewalld_is_told_by_its_own_words(
    host: Host, make: Callable[..., ForwardRules]
) -> None:
    host.run(
        "nft", "-f", "-",
        text="""table inet firewalld {
          chain filter_FWD_trusted { accept; }
          chain filter_FORWARD_ZONES { }
          chain filter_FORWARD {
            type filter hook forward priority filter + 10; policy accept;
            ct state established,related accept
            jump filter_FORWARD_ZONES
            reject with icmpx admin-prohibited
          }
        }""",
    )  # fmt: skip
    rules = make()
    [text] = good(await rules.apply()).drops
    assert "firewall-cmd --permanent --zone=trusted --add-source=10.128.0.0/9" in text
    host.run(
        *("nft", "add", "rule", "inet", "firewalld", "filter_FORWARD_ZONES"),
        *("ip", "saddr", str(NETWORK), "goto", "filter_FWD_trusted"),
    )
    assert good(await rules.apply()).drops == ()
    # It may as well be a zone that drops.
    assert (await rules.read()).unsure == (
        "whether rules of chain inet firewalld filter_FORWARD drop packets of 10.128.0.0/9",
    )
