"""Two families as one: what each half is given, and what both say together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from netplane.agent.halves import DualDataplane
from netplane.agent.ports import FirewallLook, FirewallReport, Peers, Report
from netplane.subnet import lease as leases
from netplane.subnet.lease import Lease


@dataclass
class Half:
    """Notes what it is given: the real ones are in tests/net."""

    scopes: frozenset[Hashable]
    mtu: int
    sysctls: dict[str, str]
    count: int | None = None
    on_report: Callable[[Report], None] = lambda _: None
    on_firewall: Callable[[FirewallReport], None] = lambda _: None
    given: list[tuple[Lease, Peers, bool]] = field(default_factory=list)

    def lease_data(self) -> object:
        return {"mtu": self.mtu}

    def lease_data6(self) -> object:
        return None

    async def apply(self, own: Lease, peers: Peers, *, remove: bool) -> None:
        self.given.append((own, peers, remove))

    async def run(self) -> None:
        return

    async def look(self) -> FirewallLook:
        names = tuple(map(str, self.scopes))
        return FirewallLook(names, (), (), (), names)

    async def dropped(self) -> int | None:
        return self.count

    async def clear(self, kept: frozenset[Hashable] = frozenset()) -> None:
        if not self.scopes <= kept:
            self.given.clear()

    def close(self) -> None:
        return


def lease(number: int) -> Lease:
    return Lease(
        IPv4Network(f"10.5.{number}.0/24"),
        IPv4Address(f"192.0.2.{number}"),
        "vxlan",
        "first",
        subnet6=IPv6Network(f"fd00:5:0:{number}::/64"),
        public_ip6=IPv6Address(f"fd77::{number}"),
        backend_data6="second",
    )


def halves() -> tuple[Half, Half, DualDataplane]:
    first, second = (
        Half(frozenset({"4"}), 1450, {"ipv4/a": "0"}),
        Half(frozenset({"6"}), 1430, {"ipv6/b": "1"}),
    )
    return first, second, DualDataplane(first, second)


async def test_each_half_has_its_part_of_every_lease() -> None:
    first, second, both = halves()
    own, peer, other = lease(1), lease(2), lease(3)
    await both.apply(own, {peer.subnet: peer, other.subnet: other}, remove=False)
    assert first.given == [(own, {peer.subnet: peer, other.subnet: other}, False)]
    [(own6, peers6, _)] = second.given
    assert own6 == own.second()
    assert peers6 == {one.subnet6: one.second() for one in (peer, other)}

    # The half of a lease that stayed is the very same: plans go on from the last by identity.
    changed = replace(other, backend_data6="new")
    await both.apply(own, {peer.subnet: peer, other.subnet: changed}, remove=True)
    _, (_, later, _) = second.given
    assert peer.subnet6 is not None
    assert later[peer.subnet6] is peers6[peer.subnet6]
    assert other.subnet6 is not None
    assert later[other.subnet6].backend_data == "new"


async def test_what_is_kept_of_one_family_stays_when_the_other_goes() -> None:
    first, second, both = halves()
    own = lease(1)
    await both.apply(own, {}, remove=True)
    await both.clear(frozenset({"4"}))
    assert (len(first.given), len(second.given)) == (1, 0)
    await both.clear()
    assert first.given == []


async def test_halves_go_on_from_those_before_as_leases_do() -> None:
    _, second, both = halves()
    bare = replace(lease(9), subnet6=None, public_ip6=None, backend_data6=None)
    views = [
        [lease(1), lease(2), bare],
        [lease(1), replace(lease(2), subnet6=lease(3).subnet6), bare],
        [lease(3), replace(lease(1), backend_data6="another")],
        [lease(3), lease(9)],
    ]
    told = leases.Peers({})
    for number, view in enumerate(views):
        after = {one.subnet: told.get(one.subnet, one) for one in view}
        after |= {one.subnet: one for one in view if after[one.subnet] != one}
        came, gone = leases.Peers.changed(told, after)
        told = leases.Peers(after, told, came, gone)
        await both.apply(lease(0), told, remove=True)
        given = second.given[-1][1]
        made = [half for one in view if (half := one.second()) is not None]
        assert given == {half.subnet: half for half in made}
        if number:
            # What is the same is the same object, and what is another is named.
            before = second.given[-2][1]
            fresh = [half for half in given.values() if half not in before.values()]
            old = [half for half in before.values() if half not in given.values()]
            assert leases.Peers.changed(before, given) == (fresh, old)
            assert all(one is given[one.subnet] for one in before.values() if one not in old)
    await both.apply(lease(0), told, remove=True)
    assert second.given[-1][1] is second.given[-2][1]


async def test_both_speak_as_one() -> None:
    first, second, both = halves()
    assert both.mtu == 1430
    assert both.scopes == {"4", "6"}
    assert both.sysctls == {"ipv4/a": "0", "ipv6/b": "1"}
    assert (both.lease_data(), both.lease_data6()) == ({"mtu": 1450}, {"mtu": 1430})
    look = await both.look()
    assert look.wrong == look.unsure == ("4", "6")
    assert await both.dropped() is None
    second.count = 2
    assert await both.dropped() == 2
    first.count = 1
    assert await both.dropped() == 3


def test_what_one_half_lacks_is_told_until_it_has_it() -> None:
    # The board goes by the newest report: a good one of IPv4 must not hide what IPv6 lacks.
    first, second, both = halves()
    reports: list[Report] = []
    both.on_report = reports.append
    second.on_report(Report(Counter(route=1), broken="no device", failed=(("a", "b"),)))
    first.on_report(Report(Counter(route=2), contested="routes"))
    assert (reports[-1].broken, reports[-1].failed) == ("no device", (("a", "b"),))
    assert reports[-1].written == Counter(route=2)
    second.on_report(Report())
    assert (reports[-1].broken, reports[-1].contested) == ("", "routes")

    # Each look of either half is told: in an order that changes it would be logged each time.
    troubles = [Report(broken=name, failed=((name, "why"),), contested=name) for name in "ab"]
    for half, report in ((first, troubles[0]), (second, troubles[1]), (first, troubles[0])):
        half.on_report(report)
        said = replace(reports[-1], written=Counter())
    assert said == Report(broken="a; b", failed=(("a", "why"), ("b", "why")), contested="a; b")
    second.on_report(troubles[1])
    assert replace(reports[-1], written=Counter()) == said

    walls: list[FirewallReport] = []
    both.on_firewall = walls.append
    second.on_firewall(FirewallReport(problem="no nftables", vteps=2, found=Counter(forward=1)))
    assert walls[-1].found == {"forward": 1}
    first.on_firewall(FirewallReport(problem="no nftables", vteps=3))
    assert (walls[-1].problem, walls[-1].vteps) == ("no nftables", 3)
    first.on_firewall(FirewallReport())
    assert walls[-1].problem == "no nftables"
