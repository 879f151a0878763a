"""Answers that do not come, or are lost: told as such, and the connection goes on."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from pathlib import Path

import pytest

from netplane.netlink import messages, sysctl
from netplane.netlink.connection import SEND_MAX, SO_RCVBUFFORCE, Connection, NetlinkLostError
from netplane.netlink.kernel import Kernel
from netplane.netlink.monitor import Monitor, ObjectChange, Overrun
from netplane.netlink.namespace import inside
from netplane.netlink.objects import Neighbour, Route
from tests.net.kernel.hosts import Host

pytestmark = [pytest.mark.net, pytest.mark.root]

SILENT = 0
"""Flags of a request that the kernel carries out and does not acknowledge."""
USUAL_BUFFER_BYTES = 212_992
"""The kernel's net.core.rmem_default, half of which it asks for as it doubles what is asked."""


def neighbours(host: Host, *lasts: int) -> list[messages.Request]:
    eth0 = host.indices()["eth0"]
    return [
        messages.add(Neighbour("eth0", bytes([10, 77, 0, last]), bytes([2] * 6)), eth0)
        for last in lasts
    ]


async def test_of_requests_without_a_last_answer_all_are_in_doubt(host: Host) -> None:
    requests = neighbours(host, 7, 8, 9)
    requests[-1] = requests[-1]._replace(flags=requests[-1].flags & ~messages.ACK)
    async with Connection(host.path, timeout_s=0.2) as connection:
        outcomes = await connection.perform(requests)
        assert [outcome.code for outcome in outcomes] == [errno.ETIMEDOUT] * 3
        assert outcomes[0].text == "no answer within 0.2 s"
        assert len(host.neighbours("eth0")) == 3
        # What comes of that request later is not taken for the answer to another.
        assert [item.code for item in await connection.perform(requests[:1])] == [0]


@pytest.mark.parametrize("refused", [{0}, {1, 2}, {3}, {0, 1, 2, 3}, set()])
async def test_each_refusal_is_that_of_its_request(host: Host, refused: set[int]) -> None:
    nowhere = 4_000_000
    requests = neighbours(host, 7, 8, 9, 10)
    for position in refused:
        item = Neighbour("eth0", bytes([10, 77, 1, position]), bytes([2] * 6))
        requests[position] = messages.add(item, nowhere)
    async with Connection(host.path) as connection:
        outcomes = await connection.perform(requests)
    assert {i for i, outcome in enumerate(outcomes) if outcome.code == errno.ENODEV} == refused
    assert {outcome.code for outcome in outcomes} <= {0, errno.ENODEV}
    assert len(host.neighbours("eth0")) == 4 - len(refused)


async def test_a_read_without_an_answer_ends_in_time(host: Host) -> None:
    async with Connection(host.path, timeout_s=0.2) as connection:
        silent = messages.get_link("nothing")._replace(flags=SILENT)
        # An error would be told all the same, so ask for what succeeds without an answer.
        silent = silent._replace(type=messages.Type.NEWLINK, body=messages.get_link("lo").body)
        with pytest.raises(NetlinkLostError, match="no answer within"):
            await connection.get(silent)
        assert (await Kernel(connection).link("lo") or pytest.fail("no lo")).name == "lo"


async def test_answers_that_overflow_the_buffer_are_told_as_lost(host: Host) -> None:
    eth0 = host.indices()["eth0"]
    async with Connection(host.path) as connection:
        requests = [
            messages.add(Route("eth0", bytes([10, 9, 0, last]), 32, b""), eth0)
            for last in range(SEND_MAX)
        ]
        assert {outcome.code for outcome in await connection.perform(requests)} == {0}
        # From now on each is refused, and told so: success is not told of each.
        connection._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4096)
        codes = {outcome.code for outcome in await connection.perform(requests)}
        assert errno.ENOBUFS in codes
        assert codes <= {errno.EEXIST, errno.ENOBUFS}
        # What is asked next has its own answer.
        assert len(host.routes()) == SEND_MAX
        assert (await Kernel(connection).link("lo") or pytest.fail("no lo")).name == "lo"


async def test_the_answers_to_one_send_fit_a_buffer_of_the_usual_size(host: Host) -> None:
    # Which is what a process has that may not ask for a larger one. Each refusal is told.
    nowhere = 4_000_000
    requests = [
        messages.add(Route("eth0", bytes([10, 9, *divmod(number, 256)]), 32, b""), nowhere)
        for number in range(1500)
    ]
    async with Connection(host.path) as connection:
        connection._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, USUAL_BUFFER_BYTES // 2)
        codes = {outcome.code for outcome in await connection.perform(requests)}
    assert codes == {errno.ENODEV}


async def test_one_caller_at_a_time_has_the_socket(host: Host) -> None:
    async with Connection(host.path) as connection:
        kernel = Kernel(connection)
        names = ["lo", "eth0", "nothing"] * 20
        found = await asyncio.gather(*map(kernel.link, names))
    assert [item.name if item else "nothing" for item in found] == names


async def test_a_monitor_tells_kinds_objects_and_losses(host: Host) -> None:
    names = {host.indices()["eth0"]: "eth0"}
    monitor = Monitor(host.path, buffer_bytes=4096)
    try:
        host.do("ip route add 10.9.0.0/24 via 10.77.0.2 proto 181")
        [change] = await monitor.read(names, own_port=0xFFFFFFFF)
        assert isinstance(change, ObjectChange)
        assert str(change.item) == "route 10.9.0.0/24 via 10.77.0.2 dev eth0"
        assert not change.removed
        batch = "".join(f"route add 10.9.1.{last}/32 dev eth0\n" for last in range(200))
        host.run("ip", "-batch", "-", text=batch)
        told = monitor.pending(names, own_port=0xFFFFFFFF)
        assert Overrun() in told
        assert len(told) < 200
        assert monitor.pending(names, own_port=0xFFFFFFFF) == []
    finally:
        monitor.close()


async def test_a_monitor_is_not_woken_by_the_socket_that_it_leaves_out(host: Host) -> None:
    eth0 = host.indices()["eth0"]
    names = {eth0: "eth0"}
    async with Connection(host.path) as connection:
        monitor = Monitor(host.path)
        try:
            monitor.leave_out(connection.port)
            [outcome] = await connection.perform(
                [messages.add(Route("eth0", bytes([10, 9, 0, 0]), 24, b""), eth0)]
            )
            host.do("ip route add 10.9.1.0/24 dev eth0")
            [change] = await monitor.read(names, own_port=0xFFFFFFFF)
        finally:
            monitor.close()
    assert outcome.code == 0
    assert isinstance(change, ObjectChange)
    assert str(change.item) == "route 10.9.1.0/24 dev eth0"


def test_other_namespaces_are_entered_without_leaving_ones_own(host: Host) -> None:
    own = os.readlink("/proc/thread-self/ns/net")
    there = inside(host.path, lambda: os.readlink("/proc/thread-self/ns/net"))
    assert there != own
    assert os.readlink("/proc/thread-self/ns/net") == own
    assert all(thread.name != "netns" for thread in threading.enumerate())
    with pytest.raises(ZeroDivisionError):
        inside(host.path, lambda: 1 // 0)
    with pytest.raises(FileNotFoundError):
        inside("/proc/self/ns/nothing", lambda: None)
    with pytest.raises(OSError, match="Invalid argument"):
        inside("/proc/self/ns/mnt", lambda: pytest.fail("entered a mount namespace"))


def test_settings_are_those_of_the_namespace(host: Host) -> None:
    outside = Path("/proc/sys/net/ipv4/ip_forward").read_text()
    sysctl.write("ipv4/conf/eth0/rp_filter", "2", host.path)
    assert host.sysctl("ipv4/conf/eth0/rp_filter") == "2"
    assert sysctl.read(["ipv4/conf/eth0/rp_filter", "ipv4/nothing"], host.path) == {
        "ipv4/conf/eth0/rp_filter": "2"
    }
    with pytest.raises(OSError, match="No such file"):
        sysctl.write("ipv4/nothing", "1", host.path)
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == outside
