"""Members of a set by messages of our own: what `nft` and an ear say of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pytest

from netplane.nft.firewall import Firewall
from netplane.nft.members import MEMBERS_MAX, MemberSocket
from netplane.nft.monitor import NftMonitor
from netplane.nft.rules import NftError
from tests.net.kernel.hosts import Host
from tests.net.nft.ear import Ear
from tests.net.nft.tables import RULES, elements, vteps

pytestmark = [pytest.mark.net, pytest.mark.root]


@pytest.fixture
def firewall(host: Host) -> Iterator[Firewall]:
    with contextlib.closing(Firewall("netplane", namespace=host.path)) as made:
        yield made


@pytest.fixture
def members(host: Host) -> Iterator[MemberSocket]:
    with contextlib.closing(MemberSocket(host.path, "netplane", "vteps")) as made:
        yield made


def packed(*numbers: int) -> list[bytes]:
    return [address.packed for address in vteps(*numbers)]


def shown(*numbers: int) -> set[str]:
    return set(map(str, vteps(*numbers)))


async def test_members_come_and_go_in_one_transaction(
    host: Host, firewall: Firewall, members: MemberSocket
) -> None:
    await firewall.apply(RULES, vteps(2, 3))
    with Ear(host.path) as ear:
        members.change(packed(4, 5), packed(2))
        said = [ear.told.get(timeout=20).what]
        while said[-1] != "end":
            said.append(ear.told.get(timeout=20).what)
    assert said == ["del element", "new element", "new element", "end"]
    assert elements(host) == shown(3, 4, 5)
    members.change(packed(5), ())  # which is there already
    assert elements(host) == shown(3, 4, 5)


async def test_of_a_transaction_that_is_refused_nothing_is_done(
    host: Host, firewall: Firewall, members: MemberSocket
) -> None:
    await firewall.apply(RULES, vteps(2, 3))
    with pytest.raises(NftError, match="No such file or directory"):
        members.change(packed(4), packed(99))
    assert elements(host) == shown(2, 3)
    # Nor is the next taken for refused by what is left of the answers.
    members.change(packed(4), packed(2))
    assert elements(host) == shown(3, 4)


def test_without_the_table_it_is_refused(host: Host, members: MemberSocket) -> None:
    with pytest.raises(NftError, match="No such file or directory"):
        members.change(packed(2), ())


async def test_as_many_as_there_may_be_are_taken(
    host: Host, firewall: Firewall, members: MemberSocket
) -> None:
    await firewall.apply(RULES, vteps())
    numbers = range(1, MEMBERS_MAX + 1)
    members.change(packed(*numbers), ())
    assert elements(host) == shown(*numbers)
    members.change((), packed(*numbers))
    assert elements(host) == set()


async def test_a_few_hosts_are_written_at_once_and_more_are_not(
    host: Host, firewall: Firewall
) -> None:
    assert firewall.step(RULES, vteps(2)) is None  # there is no table yet
    await firewall.apply(RULES, vteps(2, 3))
    assert firewall.step(RULES, vteps(3, 4)) == 2
    assert firewall.step(RULES, vteps(3, 4)) == 0
    assert elements(host) == shown(3, 4)
    assert await firewall.read() == []
    assert firewall.step(RULES, vteps(*range(5, MEMBERS_MAX + 10))) is None
    assert firewall.step(replace(RULES, masquerade=False), vteps(3)) is None
    assert elements(host) == shown(3, 4)
    # And the way that takes longer goes on from there.
    report = await firewall.apply(RULES, vteps(4, 5))
    assert (report.written, report.removed, report.healed) == (1, 1, False)
    assert elements(host) == shown(4, 5)


async def test_a_set_that_others_changed_is_left_to_the_longer_way(
    host: Host, firewall: Firewall
) -> None:
    await firewall.apply(RULES, vteps(2, 3))
    host.run("nft", "flush set ip netplane vteps")
    assert firewall.step(RULES, vteps(3)) is None  # 2 is not there to be removed
    report = await firewall.apply(RULES, vteps(3))
    assert (report.problem, report.healed) == ("", True)
    assert elements(host) == shown(3)


async def test_nobody_is_woken_by_what_we_write_ourselves(
    host: Host, firewall: Firewall, members: MemberSocket
) -> None:
    await firewall.apply(RULES, vteps(2))
    monitor = NftMonitor(host.path, but_of_port=members.port)
    with contextlib.closing(monitor):
        members.change(packed(3), ())
        host.run("nft", "add table ip stranger")
        heard = []
        async with asyncio.timeout(20):
            while not heard:
                heard = await monitor.read(-1)
    assert [change.table for change in heard] == ["stranger"]  # type: ignore[union-attr]
