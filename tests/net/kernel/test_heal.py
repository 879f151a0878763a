"""What others change is put right: on notifications alone, by the timer alone, and while we watch.

The witness is `ip` and `bridge`: they see an object gone, and see it return.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from netplane.agent import reconcile
from netplane.agent.reconcile import Report
from netplane.backend.vxlan import VxlanConfig
from netplane.netlink.connection import SO_RCVBUFFORCE
from netplane.netlink.heals import Heals
from netplane.netlink.objects import KernelObject
from tests.net.kernel.hosts import (
    Host,
    arrives,
    assert_serves,
    clean,
    kinds,
    lease,
    peers,
    running,
)

pytestmark = [pytest.mark.net, pytest.mark.root]

HOUR_S = 3600.0
HEALED_WITHIN_S = 1.0
"""Where a test has the machine for itself; elsewhere what counts is that it happens at all."""

PATIENCE_S = 20.0

DRIFTS = {
    "the device is taken down": ["ip link set np.1 down"],
    "the device is taken down and up": ["ip link set np.1 down", "ip link set np.1 up"],
    "the device is deleted": ["ip link del np.1"],
    "the device is another": ["ip link del np.1", "ip link add np.1 type vxlan id 5 dstport 8472"],
    "the device is renamed": [
        "ip link set np.1 down", "ip link set np.1 name foo", "ip link set foo up",
    ],
    "the MTU is changed": ["ip link set np.1 mtu 1300"],
    "the MAC is changed": ["ip link set np.1 address 02:66:66:66:66:66"],
    "the device has another source": [
        "ip link set np.1 type vxlan id 1 local 10.77.0.9",
    ],
    "neighbours are flushed": ["ip neigh flush dev np.1 nud permanent"],
    "a neighbour has another MAC": ["ip neigh replace 10.128.2.0 lladdr 02:6:6:6:6:6 dev np.1"],
    "a neighbour may age": ["ip neigh change 10.128.2.0 dev np.1 nud stale"],
    "forwarding entries are deleted": [
        "bridge fdb del 02:00:00:00:00:02 dev np.1", "bridge fdb del 02:00:00:00:00:03 dev np.1",
    ],
    "a forwarding entry leads elsewhere": [
        "bridge fdb replace 02:00:00:00:00:02 dev np.1 dst 10.77.0.66",
    ],
    "routes are flushed": ["ip route flush proto 181"],
    "a route leads elsewhere": [
        "ip route replace 10.128.2.0/24 via 10.128.3.0 dev np.1 onlink proto 181",
    ],
    "routes of others take the places of ours": [
        "ip route replace 10.128.2.0/24 via 10.77.0.9 dev eth0",
        "ip route replace unreachable 10.128.4.0/24",
    ],
    "the device's address is removed": ["ip addr flush dev np.1"],
    "the underlay's address is removed and put back": [
        "ip addr del 10.77.0.1/16 dev eth0", "ip addr add 10.77.0.1/16 dev eth0",
    ],
    "the underlay is taken down and up": ["ip link set eth0 down", "ip link set eth0 up"],
    "a stranger of ours comes": [
        "ip route add 10.128.77.0/24 via 10.128.77.0 dev np.1 onlink proto 181",
        "ip neigh add 10.128.77.0 lladdr 02:77:77:77:77:77 dev np.1 protocol 181",
        "bridge fdb add 02:77:77:77:77:77 dev np.1 dst 10.77.0.77",
    ],
    "forwarding is switched off": ["tee /proc/sys/net/ipv4/ip_forward"],
    "forwarding from the device is switched off": [
        "tee /proc/sys/net/ipv4/conf/np.1/forwarding",
    ],
    "a filter is switched on": ["tee /proc/sys/net/ipv4/conf/np.1/rp_filter"],
}  # fmt: skip


EXTERNAL = {
    "its address changes": (
        ["ip addr del 10.77.0.1/16 dev eth0", "ip addr add 10.77.0.201/16 dev eth0"],
        ["ip addr add 10.77.0.1/16 dev eth0"],
        "address 10.77.0.1/32 dev eth0 is gone",
    ),
    "its MTU shrinks": (
        ["ip link set eth0 mtu 1400"], ["ip link set eth0 mtu 1500"],
        "eth0 has MTU 1400, and large packets need 1500",
    ),
    "it is renamed": (
        ["ip link set eth0 down", "ip link set eth0 name wan0", "ip link set wan0 up"],
        ["ip link set wan0 down", "ip link set wan0 name eth0", "ip link set eth0 up"],
        "there is no interface eth0",
    ),
}  # fmt: skip


def plan(host: Host) -> frozenset[KernelObject]:
    """Return routes of both kinds: one peer through the device, one beside it, one on the wire."""
    direct = host.plan(peers(4), config=VxlanConfig(direct_routing=True)).objects
    return host.plan(peers(2, 3)).objects | direct


def state(host: Host) -> dict[str, Any]:
    """Return what the kernel has, as far as we are responsible."""
    link = host.link()
    if link is None:
        return {}
    return {
        "link": {key: link[key] for key in ("mtu", "address", "linkinfo")},
        "up": "UP" in link["flags"],
        "addresses": host.addresses(),
        "routes": host.routes(),
        "neighbours": host.neighbours(),
        "fdb": host.fdb(),
        "settings": [
            host.sysctl(f"ipv4/{name}")
            for name in ("ip_forward", "conf/np.1/forwarding", "conf/np.1/rp_filter")
        ],
    }


class Watched:
    """A reconciler whose reports can be awaited."""

    def __init__(self, host: Host, **options: Any) -> None:
        self.host = host
        self.reports: list[Report] = []
        self._news = asyncio.Event()
        self.reconciler = host.reconciler(on_report=self._take, **options)

    def _take(self, report: Report) -> None:
        self.reports.append(report)
        self._news.set()

    async def until(self, done: Callable[[], object], *, within_s: float = PATIENCE_S) -> None:
        """Wait for reports until something is so."""
        async with asyncio.timeout(within_s):
            while not done():
                await self._news.wait()
                self._news.clear()


@contextlib.asynccontextmanager
async def watched(host: Host, **options: Any) -> AsyncIterator[Watched]:
    here = Watched(host, **options)
    with contextlib.closing(here.reconciler):
        yield here


def disturb(host: Host, name: str) -> None:
    for command in DRIFTS[name]:
        host.run(*command.split(), text="0" if "forward" in command else "1")


@pytest.mark.parametrize("name", DRIFTS)
async def test_drift_is_healed_when_the_kernel_tells(host: Host, name: str) -> None:
    # It happens before anybody heals, so that it can be seen; with the timer at an hour, only the
    # notification that waits can lead to the heal.
    await make_device(host)
    async with watched(host, interval_s=HOUR_S) as here:
        clean(await here.reconciler.apply(plan(host)))
        before = state(host)
        disturb(host, name)
        assert state(host) != before
        async with running(here.reconciler):
            await here.until(lambda: state(host) == before)
        assert sum(len(report.healed) for report in here.reports) >= 1
        assert here.reports[-1].failed == ()


async def test_a_renamed_device_gets_its_name_back_and_packets_go_on(host: Host) -> None:
    await make_device(host)
    async with watched(host, interval_s=HOUR_S) as here:
        clean(await here.reconciler.apply(plan(host)))
        index, before = host.indices()["np.1"], state(host)
        host.do("ip link set np.1 down", "ip link set np.1 name foo", "ip link set foo up")
        async with running(here.reconciler):
            await here.until(lambda: state(host) == before)
        assert host.indices()["np.1"] == index
        assert kinds(here.reports[1].healed)["VxlanLink"] == 1
    # Who starts knows its MAC only, and leaves it to others: they may have a reason.
    host.do("ip link set np.1 down", "ip link set np.1 name foo")
    async with host.reconciler() as again:
        [failure] = (await again.apply(plan(host))).failed
    assert "by its MAC it is np.1, renamed: give it its name back (ip link set foo name np.1;" in (
        failure.text
    )


@pytest.mark.parametrize("name", DRIFTS)
async def test_drift_is_healed_by_the_timer(host: Host, name: str) -> None:
    async with watched(host, interval_s=0.05, listen=False) as here:
        clean(await here.reconciler.apply(plan(host)))
        before = state(host)
        disturb(host, name)
        assert state(host) != before
        async with running(here.reconciler):
            await here.until(lambda: state(host) == before)
        assert {report.cause for report in here.reports[1:]} <= {"timer", "retry"}


# What takes several commands that cannot all succeed when we heal between them.
NOT_LIVE = {"the device is another", "the device is renamed"}


@pytest.mark.alone
@pytest.mark.parametrize("name", sorted(DRIFTS.keys() - NOT_LIVE))
async def test_drift_is_healed_within_a_second_while_we_watch(host: Host, name: str) -> None:
    # Now the passes run into the change while it goes on, as they do in life.
    async with watched(host, interval_s=HOUR_S) as here, running(here.reconciler):
        clean(await here.reconciler.apply(plan(host)))
        before = state(host)
        for _ in range(3):
            seen = len(here.reports)
            await asyncio.to_thread(disturb, host, name)
            await here.until(lambda seen=seen: len(here.reports) > seen)  # type: ignore[misc]
            await here.until(lambda: state(host) == before, within_s=HEALED_WITHIN_S)


async def test_routes_that_vanish_without_a_word_are_never_missed(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The kernel tells that a link goes down before it takes the routes away. A pass that reads
    # them in between finds them all, and nothing else would be told. So that it could: no pause.
    monkeypatch.setattr(reconcile, "SETTLE_S", 0.0)
    monkeypatch.setattr(Heals, "COUNT_MAX", 1000)
    async with watched(host, interval_s=HOUR_S) as here, running(here.reconciler):
        clean(await here.reconciler.apply(host.plan(peers(*range(2, 102))).objects))
        for _ in range(25):
            seen = len(here.reports)
            batch = "link set np.1 down\nlink set np.1 up\n"
            await asyncio.to_thread(host.run, "ip", "-batch", "-", text=batch)
            await here.until(lambda seen=seen: len(here.reports) > seen)  # type: ignore[misc]
            await here.until(lambda: len(host.routes()) == 100)


async def test_what_happens_on_a_device_just_found_is_heard(host: Host) -> None:
    # Who listens is waiting already when the device's index becomes known, and nothing is written
    # that would wake it up.
    plan = host.plan(peers(2, 3)).objects
    async with host.reconciler() as earlier:
        clean(await earlier.apply(plan))
    async with watched(host, interval_s=HOUR_S) as here, running(here.reconciler):
        await asyncio.sleep(0.01)  # the listener starts
        assert clean(await here.reconciler.apply(plan)).written == ()
        host.do("bridge fdb del 02:00:00:00:00:02 dev np.1")
        await here.until(lambda: len(here.reports) > 1, within_s=5)
        assert_serves(host, 2, 3)


async def test_a_lost_underlay_comes_back_with_everything_on_it(hosts: tuple[Host, Host]) -> None:
    # The cable is pulled out with the card: the kernel takes the vxlan device along.
    one, two = hosts
    async with (
        watched(one, interval_s=HOUR_S) as here,
        two.reconciler() as there,
        running(here.reconciler),
    ):
        clean(await there.apply(two.plan(peers(1)).objects))
        clean(await here.reconciler.apply(one.plan(peers(2)).objects))
        assert arrives(one, two)
        one.run("ip", "link", "del", "eth0")
        await here.until(
            lambda: (
                here.reports[-1].failed[:1]
                and here.reports[-1].failed[0].text == "there is no interface eth0"
            )
        )
        assert one.link() is None
        one.join(two)
        await here.until(lambda: not here.reports[-1].failed and one.routes())
        assert_serves(one, 2)
        # The other one has lost its device too, and nobody heals it here.
        clean(await there.apply(frozenset()))
        clean(await there.apply(two.plan(peers(1)).objects))
        assert arrives(one, two)


@pytest.mark.parametrize("name", EXTERNAL)
async def test_what_becomes_of_the_external_interface_is_told_until_it_is_undone(
    host: Host, name: str
) -> None:
    # Packets would be lost without a word: the device keeps its source, and its size.
    change, undo, said = EXTERNAL[name]
    await make_device(host)
    async with watched(host, interval_s=HOUR_S) as here:
        clean(await here.reconciler.apply(plan(host)))
        before = state(host)
        async with running(here.reconciler):
            host.do(*change)
            await here.until(lambda: any(said in str(one) for one in here.reports[-1].failed))
            if here.reports[-1].failed[0].text != "there is no interface eth0":
                # A peer that comes meanwhile is no news of the interface.
                report = await here.reconciler.apply(plan(host) | host.plan(peers(9)).objects)
                assert any(said in str(one) for one in report.failed)
                await here.reconciler.apply(plan(host))
            host.do(*undo)
            await here.until(lambda: not here.reports[-1].failed and state(host) == before)


async def make_device(host: Host) -> None:
    """Let the device be there already: of one that is made the kernel tells in several steps."""
    async with host.reconciler() as earlier:
        clean(await earlier.apply(host.plan({}).objects))


async def test_what_the_underlay_was_down_for_is_written_when_it_is_up(host: Host) -> None:
    async with watched(host, interval_s=HOUR_S) as here, running(here.reconciler):
        clean(await here.reconciler.apply(plan(host)))
        host.run("ip", "link", "set", "eth0", "down")
        await here.until(lambda: here.reports[-1].failed)
        [failure] = here.reports[-1].failed
        assert str(failure).startswith("route 10.128.4.0/24 via 10.77.0.4 dev eth0: ")
        assert "(ENETUNREACH)" in failure.text
        assert set(host.routes()) == {"10.128.2.0/24", "10.128.3.0/24"}
        host.run("ip", "link", "set", "eth0", "up")
        await here.until(lambda: "10.128.4.0/24" in host.routes())


async def test_our_own_writes_cause_no_pass(host: Host) -> None:
    await make_device(host)
    async with watched(host, interval_s=HOUR_S) as here, running(here.reconciler):
        for numbers in (range(2, 60), range(30, 90), range(2, 90), range(2, 20)):
            clean(await here.reconciler.apply(host.plan(peers(*numbers)).objects))
        # Their MACs move, so forwarding entries are replaced: the kernel does not say by whom.
        swapped = {
            item.subnet: item
            for item in (*peers(*range(4, 20)).values(), lease(2, mac="02:09:09:09:09:09"))
        }
        clean(await here.reconciler.apply(host.plan(swapped).objects))
        applied = len(here.reports)
        # Notifications come in order: once this one is dealt with, all of ours were read.
        host.run("ip", "route", "del", "10.128.4.0/24")
        await here.until(lambda: len(here.reports) > applied)
        assert [report.cause for report in here.reports[applied:]] == ["route"]
        assert applied == 5


async def test_foreign_changes_cause_no_pass(host: Host) -> None:
    await make_device(host)
    async with watched(host, interval_s=HOUR_S) as here, running(here.reconciler):
        clean(await here.reconciler.apply(host.plan(peers(2)).objects))
        for command in (
            "ip route add 10.128.50.0/24 via 10.77.0.2 proto static",
            "ip route add 192.0.2.0/24 via 10.77.0.2 proto 181",
            "ip neigh add 10.77.0.9 lladdr 02:11:11:11:11:11 dev eth0",
            "ip neigh add 10.128.50.9 lladdr 02:11:11:11:11:11 dev np.1",
            "ip link add br7 type bridge",
            "ip link del br7",
            "ip route del 192.0.2.0/24 proto 181",
        ):
            host.run(*command.split())
        host.run("ip", "route", "del", "10.128.2.0/24")
        await here.until(lambda: len(here.reports) > 1)
        assert [report.cause for report in here.reports] == ["desired", "route"]


async def test_lost_notifications_lead_to_a_look_at_everything(host: Host) -> None:
    await make_device(host)
    async with watched(host, interval_s=HOUR_S) as here:
        clean(await here.reconciler.apply(host.plan(peers(2, 3)).objects))
        assert here.reconciler._monitor is not None
        here.reconciler._monitor._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4096)
        noise = "".join(f"route add 10.200.0.{last}/32 dev eth0\n" for last in range(200))
        host.run("ip", "-batch", "-", text=noise)
        host.run("bridge", "fdb", "del", "02:00:00:00:00:02", "dev", "np.1")  # not heard
        assert "02:00:00:00:00:02" not in host.fdb()
        async with running(here.reconciler):
            await here.until(lambda: len(here.reports) > 1)
        assert here.reports[1].cause == "overrun"
        assert kinds(here.reports[1].healed) == {"FdbEntry": 1}
        assert_serves(host, 2, 3)


async def test_who_fights_over_an_object_is_slowed_down_and_named(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Heals, "PAUSE_S", 1.5)
    async with watched(host, interval_s=HOUR_S) as here, running(here.reconciler):
        clean(await here.reconciler.apply(host.plan(peers(2, 3)).objects))

        async def remove(destination: str) -> Report:
            seen = len(here.reports)
            host.run("ip", "route", "del", destination)
            await here.until(lambda: len(here.reports) > seen)
            return here.reports[-1]

        for _ in range(Heals.COUNT_MAX + 1):
            clean(await remove("10.128.2.0/24"))
        [warning] = [record.getMessage() for record in caplog.records]
        assert warning.startswith("route 10.128.2.0/24 via 10.128.2.0 dev np.1 onlink was changed")
        # Each `ip` has ended before anybody could see who it was.
        assert re.search(r"last by netlink port id \d+;", warning)

        healed_at = time.monotonic()
        report = await remove("10.128.2.0/24")
        [contest] = report.contested
        assert str(contest.item).startswith("route 10.128.2.0/24")
        assert contest.heals == Heals.COUNT_MAX + 1
        assert report.written == ()
        # Nobody else waits for it.
        report = await remove("10.128.3.0/24")
        assert kinds(report.healed) == {"Route": 1}
        assert set(host.routes()) == {"10.128.3.0/24"}

        await here.until(lambda: "10.128.2.0/24" in host.routes())
        assert time.monotonic() - healed_at >= 1.4
        assert here.reports[-1].cause == "retry"


@pytest.mark.parametrize("apart", [False, True])
async def test_who_writes_is_named_if_it_is_that_process_and_not_one_of_the_same_number(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, apart: bool
) -> None:
    # The port is the writer's id in its own PID namespace: 1 there is somebody else's here.
    monkeypatch.setattr(Heals, "COUNT_MAX", 0)
    command = host.command(*(("unshare", "--pid", "--fork") if apart else ()), "ip", "-batch", "-")
    async with watched(host, interval_s=HOUR_S) as here, running(here.reconciler):
        clean(await here.reconciler.apply(host.plan(peers(2)).objects))
        writer = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE)
        assert writer.stdin is not None
        writer.stdin.write(b"route del 10.128.2.0/24\n")
        await here.until(lambda: caplog.records)
        writer.stdin.close()
        await writer.wait()
    [warning] = [record.getMessage() for record in caplog.records]
    name = "netlink port id 1" if apart else f"process {writer.pid} (ip)"
    assert f"last by {name};" in warning


async def test_who_keeps_taking_the_place_of_a_route_is_slowed_down_and_then_still_undone(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    # While ours waits for its turn theirs is there; that ours was there first is to be known yet.
    monkeypatch.setattr(Heals, "PAUSE_S", 1.0)
    monkeypatch.setattr(Heals, "COUNT_MAX", 2)
    async with watched(host, interval_s=HOUR_S) as here, running(here.reconciler):
        clean(await here.reconciler.apply(host.plan(peers(2, 3)).objects))

        async def take() -> Report:
            seen = len(here.reports)
            host.do("ip route replace 10.128.2.0/24 via 10.77.0.9 dev eth0")
            await here.until(lambda: len(here.reports) > seen)
            return here.reports[-1]

        for _ in range(Heals.COUNT_MAX + 1):
            assert kinds((await take()).healed) == {"Route": 1}
        for _ in range(2):
            report = await take()
            [contest] = report.contested
            assert (str(contest.item), report.failed) == (
                "route 10.128.2.0/24 via 10.128.2.0 dev np.1 onlink",
                (),
            )
            # Nor does a peer that comes meanwhile change that.
            assert (await here.reconciler.apply(host.plan(peers(2, 3, 4)).objects)).failed == ()
            await here.reconciler.apply(host.plan(peers(2, 3)).objects)
            await here.until(lambda: "10.128.2.0/24" in host.routes())
            assert (here.reports[-1].cause, kinds(here.reports[-1].healed)) == (
                "retry",
                {"Route": 1},
            )
        # Once nobody wants ours there, theirs is not ours to remove.
        await take()
        await here.reconciler.apply(host.plan(peers(3)).objects)
        await here.reconciler._pass("timer", read=True)
        assert "10.128.2.0/24 via 10.77.0.9 dev eth0" in host.run("ip", "route")


async def test_a_thousand_objects_in_one_trouble_are_not_a_thousand_lines(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Heals, "COUNT_MAX", 0)
    await make_device(host)
    async with watched(host, interval_s=HOUR_S) as here:
        clean(await here.reconciler.apply(host.plan(peers(*range(2, 102))).objects))
        host.do("ip route flush proto 181")
        async with running(here.reconciler):
            await here.until(lambda: len(host.routes()) == 100)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 6
    assert lines[-1] == "... and 95 more like these"


async def test_a_refused_device_is_taken_up_once_the_other_is_gone(host: Host) -> None:
    host.run(
        "ip",
        "link",
        "add",
        "flannel.1",
        *["type", "vxlan", "id", "1", "dev", "eth0", "dstport", "8472"],
    )
    async with watched(host, interval_s=HOUR_S) as here, running(here.reconciler):
        assert (await here.reconciler.apply(host.plan(peers(2)).objects)).failed
        host.run("ip", "link", "del", "flannel.1")
        await here.until(lambda: not here.reports[-1].failed)
        assert_serves(host, 2)


async def test_traffic_goes_on_without_us(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    for host, other in ((one, 2), (two, 1)):
        async with watched(host) as here, running(here.reconciler):
            clean(await here.reconciler.apply(host.plan(peers(other)).objects))
    assert arrives(one, two)
    assert arrives(two, one)
