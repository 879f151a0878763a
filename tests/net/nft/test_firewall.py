"""The table is written whole or by differences, never more than that, and packets obey it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv6Network, ip_address
from typing import Any

import pytest

from netplane.netlink.namespace import inside
from netplane.nft.firewall import Firewall, FirewallReport
from netplane.nft.library import Nft
from tests.cluster.faults.namespaces import missing
from tests.net.kernel.hosts import Host
from tests.net.nft.ear import Ear
from tests.net.nft.tables import RULES, elements, said, vteps

pytestmark = [pytest.mark.net, pytest.mark.root]

FOREIGN = "table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }"


@pytest.fixture
def firewall(host: Host) -> Iterator[Firewall]:
    with contextlib.closing(Firewall("netplane", namespace=host.path)) as made:
        yield made


@pytest.fixture
def pair() -> Iterator[tuple[Host, Host]]:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    made = Host(1), Host(2)
    made[0].join(made[1])
    yield made
    for host in made:
        host.close()


def good(report: FirewallReport) -> FirewallReport:
    assert (report.problem, report.contested) == ("", "")
    return report


def numbers(host: Host) -> str:
    """Return the table with the numbers of its rules, which no two ever have."""
    return host.run("nft", "--handle", "--terse", "--stateless", "list", "table", "ip", "netplane")


async def test_the_table_says_what_is_asked_for_and_why(host: Host, firewall: Firewall) -> None:
    good(await firewall.apply(RULES, vteps(2, 3)))
    text = host.run("nft", "--stateless", "list", "table", "ip", "netplane")
    assert elements(host) == {"10.77.0.2", "10.77.0.3"}
    for line in (
        'udp dport 8472 ip saddr != @vteps counter name "unknown-vteps" drop',
        'ip saddr 10.128.0.0/9 ip daddr != 10.128.0.0/9 counter name "unknown-vteps" drop',
        "ip saddr 10.128.0.0/9 accept",
        "ip saddr != 10.128.0.0/9 ip daddr 10.128.1.0/24 return",
        "ip saddr 10.128.0.0/9 ip daddr != 224.0.0.0/4 masquerade fully-random",
    ):
        assert f'{line} comment "' in text
    for line in text.splitlines():
        if line.endswith("{"):
            continue
        assert 'comment "' in line or not line.startswith("\t\tip"), line
    assert await firewall.read() == []


async def test_hosts_that_come_and_go_leave_the_rest_as_it_is(
    host: Host, firewall: Firewall
) -> None:
    good(await firewall.apply(RULES, vteps(2, 3)))
    before = numbers(host)
    with Ear(host.path) as ear:
        report = good(await firewall.apply(RULES, vteps(3, 4, 5)))
        assert (report.cause, report.written, report.removed) == ("desired", 2, 1)
        ear.until("end")
        report = good(await firewall.apply(RULES, vteps(3, 4, 5)))
        assert (report.written, report.removed) == (0, 0)
        host.run("nft", "add", "chain", "ip", "netplane", "stranger")
        assert ear.until("new chain")
        assert ear.told.get().what == "end"  # ours are over: of the second apply nothing was heard
    host.run("nft", "delete", "chain", "ip", "netplane", "stranger")
    assert elements(host) == {"10.77.0.3", "10.77.0.4", "10.77.0.5"}
    assert numbers(host) == before
    good(await firewall.apply(RULES, vteps()))
    assert elements(host) == set()
    good(await firewall.apply(RULES, vteps(7)))
    assert elements(host) == {"10.77.0.7"}
    assert numbers(host) == before


async def test_other_rules_replace_all_in_one_transaction(host: Host, firewall: Firewall) -> None:
    host.run("nft", "-f", "-", text=FOREIGN)
    foreign = said(host)
    good(await firewall.apply(RULES, vteps(2)))
    with Ear(host.path) as ear:
        good(await firewall.apply(replace(RULES, masquerade=False, vxlan_port=4789), vteps(2)))
        host.run("nft", "add", "chain", "ip", "netplane", "stranger")
        heard = []
        while not heard or heard[-1] != "end":
            heard.append(ear.told.get(timeout=20).what)
    assert {"del table", "new table", "new rule"} <= set(heard)
    host.run("nft", "delete", "chain", "ip", "netplane", "stranger")
    text = said(host)
    assert text.startswith(foreign)
    assert "masquerade" not in text
    assert "udp dport 4789" in text
    assert await firewall.read() == []
    good(await firewall.clear())
    assert said(host) == foreign


async def test_who_comes_after_another_goes_on_from_whatever_there_is(host: Host) -> None:
    with contextlib.closing(Firewall("netplane", namespace=host.path)) as earlier:
        good(await earlier.apply(RULES, vteps(2, 3)))
    right = said(host)
    host.run("nft", "add", "rule", "ip", "netplane", "forward", "drop")
    host.run("nft", "flush", "set", "ip", "netplane", "vteps")
    with contextlib.closing(Firewall("netplane", namespace=host.path)) as later:
        good(await later.apply(RULES, vteps(2, 3)))
    assert said(host) == right


async def test_a_chain_of_another_hook_is_replaced_in_one_transaction(
    host: Host, firewall: Firewall
) -> None:
    # Of an older agent; nft refuses to change the hook of a chain that there is.
    older = "type filter hook prerouting priority raw; policy accept;"
    host.run("nft", "-f", "-", text=f"table ip netplane {{ chain underlay {{ {older} }}; }}")
    with Ear(host.path) as ear:
        good(await firewall.apply(RULES, vteps(2)))
        heard: list[str] = []
        while not heard or heard[-1] != "end":
            heard.append(ear.told.get(timeout=20).what)
    assert {"del table", "new table", "new rule"} <= set(heard)
    assert "prerouting" not in said(host)
    assert await firewall.read() == []


async def test_two_instances_do_not_see_each_other(host: Host, firewall: Firewall) -> None:
    good(await firewall.apply(RULES, vteps(2)))
    with contextlib.closing(Firewall("netplane-b", namespace=host.path)) as other:
        good(await other.apply(replace(RULES, table="netplane-b", vxlan_port=0), vteps(3)))
        assert await other.read() == []
        assert await other.dropped() is None
        report = good(await other.clear())
        assert (report.cause, report.removed) == ("cleared", 1)
        assert good(await other.clear()).removed == 0
    assert await firewall.read() == []


async def test_packets_from_no_host_are_dropped_and_counted(pair: tuple[Host, Host]) -> None:
    here, there = pair
    with contextlib.ExitStack() as stack:
        firewall = stack.enter_context(
            contextlib.closing(Firewall("netplane", namespace=here.path))
        )

        def opened() -> socket.socket:
            return stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))

        overlay, other, sender = (inside(host.path, opened) for host in (here, here, there))
        overlay.bind(("10.77.0.1", 8472))
        other.bind(("10.77.0.1", 9999))
        for receiver in (overlay, other):
            receiver.settimeout(20)

        def send(text: bytes) -> None:
            sender.sendto(text, ("10.77.0.1", 8472))
            # One way, one queue: when this one is there, so is the other, or it never comes.
            sender.sendto(b"after " + text, ("10.77.0.1", 9999))
            assert other.recv(100) == b"after " + text

        good(await firewall.apply(RULES, vteps(2, 3)))
        send(b"from a host")
        assert overlay.recv(100) == b"from a host"
        assert await firewall.dropped() == 0
        good(await firewall.apply(RULES, vteps(3)))
        send(b"from a stranger")
        assert await firewall.dropped() == 1
        good(await firewall.apply(RULES, vteps(2, 3)))
        send(b"from a host again")
        assert overlay.recv(100) == b"from a host again"


OURS, ANOTHER = (struct.pack("!II", 0x08000000, vni << 8) + b"vxlan" for vni in (1, 2))
RULES4 = replace(RULES, masquerade=False, vni=1)
RULES6 = replace(RULES4, network=IPv6Network("fd00:5::/48"), subnet=IPv6Network("fd00:5:0:1::/64"))
"""Who masquerades has fragments put together before."""
MANY = {"ip": ("10.77.255.255", "255.255.255.255", "224.0.0.1"), "ip6": ("ff02::1",)}
"""What reaches all hosts of a cable."""
UDP_NO_CHECK6_RX = 102
fragment_id = itertools.count(1)


def in_two(data: bytes, source: str, target: str, *, cut: int) -> list[bytes]:
    """Return a datagram to the vxlan port as two packets, the first with `cut` bytes of it."""
    ends = ip_address(source).packed + ip_address(target).packed
    udp = struct.pack("!HHHH", 4711, 8472, 8 + len(data), 0) + data
    number, made = next(fragment_id), []
    for offset, more, part in ((0, True, udp[:cut]), (cut, False, udp[cut:])):
        if len(ends) == 8:
            flags = more << 13 | offset >> 3
            made.append(struct.pack("!BBHHHBBH", 0x45, 0, 0, number, flags, 64, 17, 0) + ends)
        else:
            made.append(struct.pack("!IHBB", 6 << 28, 8 + len(part), 44, 64) + ends)
            made[-1] += struct.pack("!BxHI", 17, offset | more, number)
        made[-1] += part
    return made


@pytest.mark.parametrize("family", ["ip", "ip6"])
async def test_what_reaches_the_port_of_no_host_is_dropped_however_it_is_sent(
    pair: tuple[Host, Host], family: str
) -> None:
    # A vxlan device takes what is for many hosts, too, and fragments, the first of which may end
    # before the network identifier.
    here, there = pair
    is_ipv6 = family == "ip6"
    ends = ["fd77::1", "fd77::2"] if is_ipv6 else ["10.77.0.1", "10.77.0.2"]
    domain = socket.AF_INET6 if is_ipv6 else socket.AF_INET
    if is_ipv6:
        for host, end in zip(pair, ends, strict=True):
            host.do(f"ip addr add {end}/64 dev eth0 nodad")
    with contextlib.ExitStack() as stack:

        def opened(host: Host, kind: int, protocol: int = 0, port: int = 0) -> socket.socket:
            made = inside(host.path, lambda: socket.socket(domain, kind, protocol))
            if kind == socket.SOCK_DGRAM:
                made.bind(("", port))
            return stack.enter_context(made)

        overlay = opened(here, socket.SOCK_DGRAM, port=8472)
        overlay.setblocking(False)
        after = opened(here, socket.SOCK_DGRAM, port=9999)
        after.settimeout(20)
        sender, cutter = opened(there, socket.SOCK_DGRAM), opened(there, socket.SOCK_RAW, 255)
        if is_ipv6:
            overlay.setsockopt(socket.IPPROTO_UDP, UDP_NO_CHECK6_RX, 1)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")

        def arrives(data: bytes, target: str = "", cut: int = 0) -> bool:
            if cut:
                for packet in in_two(data, ends[1], ends[0], cut=cut):
                    cutter.sendto(packet, (ends[0], 0))
            else:
                sender.sendto(data, (target, 8472))
            # One way, one queue: when this one is there, so is the other, or it never comes.
            sender.sendto(b"after", (ends[0], 9999))
            assert after.recv(100) == b"after"
            try:
                return overlay.recv(100) == data
            except BlockingIOError:
                return False

        firewall = stack.enter_context(
            contextlib.closing(Firewall("netplane", family=family, namespace=here.path))
        )
        rules = RULES6 if is_ipv6 else RULES4
        good(await firewall.apply(rules, frozenset()))
        ways: list[dict[str, Any]] = [{"target": one} for one in (ends[0], *MANY[family])]
        ways += [{"cut": 8}, {"cut": 16}]
        assert [way for way in ways if arrives(OURS, **way)] == []
        assert await firewall.dropped() == len(ways)
        # Nobody but who means to hides the number of another overlay.
        readable = [way for way in ways if way != {"cut": 8}]
        assert [way for way in readable if arrives(ANOTHER, **way)] == readable
        assert await firewall.dropped() == len(ways)
        good(await firewall.apply(rules, frozenset({ip_address(ends[1])})))
        assert [way for way in ways if arrives(OURS, **way)] == ways
        assert await firewall.dropped() == len(ways)


async def test_a_thousand_hosts_at_once_and_then_one_more(host: Host, firewall: Firewall) -> None:
    many = vteps(*range(1, 1001))
    report = good(await firewall.apply(RULES, many))
    assert report.written > 1000
    assert len(elements(host)) == 1000
    before = numbers(host)
    assert good(await firewall.apply(RULES, many | vteps(1001))).written == 1
    assert len(elements(host)) == 1001
    assert numbers(host) == before
    assert await firewall.read() == []


@pytest.mark.parametrize("when", range(3))
async def test_an_apply_that_was_cancelled_is_made_up_for(
    host: Host, firewall: Firewall, when: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It may have been carried out or not; the next one must not go by either.
    good(await firewall.apply(RULES, vteps(2)))
    applying = asyncio.create_task(firewall.apply(RULES, vteps(2, 3, 4)))
    for _ in range(when):
        await asyncio.sleep(0)
    applying.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await applying
    good(await firewall.apply(RULES, vteps(2, 5)))
    assert elements(host) == {"10.77.0.2", "10.77.0.5"}
    applying = asyncio.create_task(firewall.apply(replace(RULES, masquerade=False), vteps(2, 5)))
    for _ in range(when):
        await asyncio.sleep(0)
    applying.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await applying
    good(await firewall.apply(RULES, vteps(2, 5)))
    assert elements(host) == {"10.77.0.2", "10.77.0.5"}
    assert "masquerade" in said(host)
    assert await firewall.read() == []


async def test_what_is_refused_is_told_and_made_up_for(
    host: Host, firewall: Firewall, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(text: str) -> None:
        real = Nft.run

        async def run(self: Nft, commands: str) -> None:
            await real(self, commands + text)

        monkeypatch.setattr(Nft, "run", run)

    good(await firewall.apply(RULES, vteps(2)))
    right = said(host)
    refuse("add rule ip netplane nothing accept\n")
    report = await firewall.apply(replace(RULES, masquerade=False), vteps(2))
    assert "No such file or directory" in report.problem
    assert "modprobe" in report.problem
    assert (report.written, report.healed) == (0, False)
    assert await firewall.read() == [report.problem]
    # One transaction: what was there before still is.
    assert said(host) == right
    monkeypatch.undo()
    good(await firewall.apply(RULES, vteps(2, 3)))
    assert elements(host) == {"10.77.0.2", "10.77.0.3"}


async def test_another_who_writes_between_our_write_and_our_look_is_noticed(
    host: Host, firewall: Firewall, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What nft shows then is what the table is compared with from then on: a rule of another that
    # slipped in would be kept for ever.
    real = Nft.run

    async def run(self: Nft, commands: str) -> None:
        await real(self, commands)
        host.run("nft", "add", "rule", "ip", "netplane", "forward", "drop")

    monkeypatch.setattr(Nft, "run", run)
    report = await firewall.apply(RULES, vteps(2))
    assert report.problem == "somebody else changed table ip netplane while it was written"
    monkeypatch.undo()
    good(await firewall.apply(RULES, vteps(2)))
    assert "drop\n" not in said(host).partition("chain forward")[2]
    assert await firewall.read() == []
