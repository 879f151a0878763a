"""What agents let pass, hide and keep out; packets and `nft` are the witnesses."""

from __future__ import annotations

import contextlib
import json
import select
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar, Self

import pytest

from netplane.agent.ask import ask
from tests.net.namespaces import missing
from tests.net.nft.ear import Ear as NftEar
from tests.net.overlay import PREFIX, AgentProcess, Overlay, until
from tests.net.packets import SO_RCVBUFFORCE, Flow, Place, ping
from tests.net.rig import Container, Host
from tests.net.test_inspection import inspect
from tests.net.witnesses import LINK, vteps_of
from tests.wal.strace import needs_strace

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
    pytest.mark.skipif(shutil.which("nft") is None, reason="no nft (Debian package nftables)"),
]
HEALED_WITHIN_S = 0.1
RATE = 1200
NETWORK = "10.5.0.0/16"
PROBE_PORT = 7001
VXLAN_PORT = 8472
DROPPING = (
    "add table ip filter; add chain ip filter FORWARD"
    " { type filter hook forward priority 0; policy drop; }"
)
"""As iptables-nft make it for `-P FORWARD DROP`."""
SLOW_NFT = (
    *("strace", "-D", "-f", "--seccomp-bpf", "-o", "/dev/null"),
    *("-e", "trace=sendmsg", "-e", "inject=sendmsg:delay_enter=300000"),
)
"""Put before an agent: libnftables' transactions take 0.3 s longer (it alone calls sendmsg)."""
APART = "inject=sendto:delay_enter=50000"
"""For strace: what an agent sends by itself, of nftables and of routes, is 50 ms apart."""


@pytest.fixture(scope="module")
def overlay() -> Iterator[Overlay]:
    """Two hosts that masquerade, and a third without an agent; the timer is at an hour."""
    flags = ("--heal-interval", "1h", "--ip-masq", "--ip-blackhole-route")
    with Overlay(3, agents=2, flags=flags) as made:
        made.add_containers(1)
        until(made.everybody_answers, 20, "every container answers every other")
        yield made


def pair(overlay: Overlay) -> tuple[Container, Container]:
    here, there = overlay.rig.containers
    return here, there


def seen_from(source: Place, target: Place) -> str | None:
    """Send a packet and return whom the target sees as its source; None: nothing came of it.

    The target answers, and the answer has to come back, too.
    """
    with (
        source.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        target.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind((target.address, PROBE_PORT))
        for each in (sender, receiver):
            each.settimeout(2)
        sender.sendto(b"probe", (target.address, PROBE_PORT))
        try:
            _, seen = receiver.recvfrom(100)
            receiver.sendto(b"answer", seen)
            assert sender.recv(100) == b"answer"
        except TimeoutError:
            return None
        found: str = seen[0]
        return found


def ruleset(host: Host) -> str:
    return host.namespace.run("nft", "--stateless", "list", "ruleset")


def test_inside_of_the_overlay_sources_are_kept_and_outside_hidden(overlay: Overlay) -> None:
    here, there = pair(overlay)
    first, second = (agent.host for agent in overlay.agents)
    stranger = overlay.rig.hosts[2]
    assert seen_from(here, there) == here.address
    assert seen_from(there, here) == there.address
    # Nobody out there has a way back to a container.
    assert seen_from(here, stranger) == first.address
    assert seen_from(there, stranger) == second.address
    # The host itself is seen by its address on the overlay.
    zero = str(overlay.agents[0].subnet.network_address)
    assert seen_from(first, there) == zero
    # Who comes from outside over a host is seen by that host's own containers, and answered
    # through it by those of others.
    stranger.namespace.ip(f"route add 10.5.0.0/16 via {first.address}")
    try:
        assert seen_from(stranger, here) == stranger.address
        assert seen_from(stranger, there) == zero
    finally:
        stranger.namespace.ip("route del 10.5.0.0/16")
    assert "FLANNEL_IPMASQ=true\n" in overlay.agents[0].subnet_file.read_text()


def overlay_packet(source: str, target: Container, mac: str, vni: int = 1) -> bytes:
    """Return what a host would send to another one for a container: vxlan, Ethernet, IPv4, UDP."""
    data = b"from outside"
    udp = struct.pack("!HHHH", 4711, PROBE_PORT, 8 + len(data), 0) + data
    ends = socket.inet_aton(source) + socket.inet_aton(target.address)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, socket.IPPROTO_UDP, 0) + ends
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + head[12:]
    frame = bytes.fromhex(mac.replace(":", "")) + bytes.fromhex("020000000099") + b"\x08\x00"
    return struct.pack("!II", 0x08000000, vni << 8) + frame + head + udp


def dropped(agent: AgentProcess) -> int:
    """Return the counter, and see that the agent tells the same."""
    found = agent.host.namespace.run("nft", "-j", "list", "counters", "table", "ip", "netplane")
    [counter] = [entry["counter"] for entry in json.loads(found)["nftables"] if "counter" in entry]
    number = int(counter["packets"])
    assert agent.status()["firewall"]["dropped"] == number
    metrics = ask(agent.socket, "GET", "/metrics").body.decode()
    assert f"netplane_dropped_total {number}.0\n" in metrics
    return number


def test_who_is_no_host_of_the_overlay_reaches_no_container(overlay: Overlay) -> None:
    here, there = pair(overlay)
    agent = overlay.agents[0]
    known, stranger = overlay.agents[1].host, overlay.rig.hosts[2]
    [mac] = [mac for subnet, mac, _ in overlay.peers() if subnet == agent.subnet]
    packet = overlay_packet(there.address, here, mac)
    before = dropped(agent)

    def send(source: Host) -> None:
        with source.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(packet, (agent.host.address, VXLAN_PORT))

    with here.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind((here.address, PROBE_PORT))
        receiver.settimeout(5)
        send(stranger)
        until(lambda: dropped(agent) == before + 1, 5, "it is dropped and counted")
        # The very same bytes of a host that has a lease; what came before them would be read first.
        send(known)
        assert receiver.recvfrom(100) == (b"from outside", (there.address, 4711))
        receiver.settimeout(0.2)
        with pytest.raises(TimeoutError):
            receiver.recv(100)
    assert dropped(agent) == before + 1
    assert "1 packets from unknown hosts were dropped" in agent.ctl("status")


def test_containers_cannot_speak_as_a_host_of_the_overlay(overlay: Overlay) -> None:
    # To their own host they come over its bridge, and to others with their host's address: as it
    # hides theirs, they would be taken for it.
    here, there = pair(overlay)
    first, second = overlay.agents
    for agent, to, target, forged in (
        (first, first.host.address, here, there.address),
        (first, str(first.subnet.broadcast_address), here, there.address),
        (second, second.host.address, there, "10.5.250.9"),
    ):
        [mac] = [mac for subnet, mac, _ in overlay.peers() if subnet == agent.subnet]
        packet = overlay_packet(forged, target, mac)
        before = [dropped(one) for one in overlay.agents]
        with (
            target.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
            here.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        ):
            receiver.bind((target.address, PROBE_PORT))
            receiver.settimeout(0.3)
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sender.sendto(packet, (to, VXLAN_PORT))
            with pytest.raises(TimeoutError):
                receiver.recv(100)
        assert [dropped(one) for one in overlay.agents] == [before[0] + 1, before[1]]


def test_other_overlays_on_the_same_port_are_left_alone(overlay: Overlay) -> None:
    # Such as that of another agent, whose hosts are others.
    agent, stranger = overlay.agents[0], overlay.rig.hosts[2]
    here, there = pair(overlay)
    before = dropped(agent)
    with stranger.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for vni in (2, 257, 1):
            packet = overlay_packet(there.address, here, "02:00:00:00:00:01", vni)
            sender.sendto(packet, (agent.host.address, VXLAN_PORT))
    until(lambda: dropped(agent) > before, 5, "ours is counted")
    assert dropped(agent) == before + 1
    # Or one between containers, with whatever number.
    with (
        here.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        there.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind((there.address, VXLAN_PORT))
        receiver.settimeout(5)
        sender.sendto(packet, (there.address, VXLAN_PORT))
        assert receiver.recv(1000) == packet


@pytest.mark.alone
def test_a_foreign_flush_of_everything_is_healed_within_a_tenth_of_a_second(
    overlay: Overlay,
) -> None:
    here, there = pair(overlay)
    agent = overlay.agents[0]
    before = ruleset(agent.host)
    healed = []
    with Flow(here, there, RATE) as flow:
        until(lambda: flow.received > 200, 20, "packets arrive")
        for _ in range(5):
            with NftEar(agent.host.namespace.path) as ear:
                agent.host.namespace.run("nft", "flush", "ruleset")
                gone = ear.until("del table")
                healed.append(ear.until("new table").at - gone.at)
            until(lambda: ruleset(agent.host) == before, 5, "all is as before")
        loss = flow.stop()
    assert max(healed) < HEALED_WITHIN_S, healed
    assert loss.missing == ()
    assert seen_from(here, overlay.rig.hosts[2]) == agent.host.address


@pytest.mark.alone  # a busy machine sends fewer
def test_an_agent_that_ends_and_comes_back_masquerades_without_a_gap(overlay: Overlay) -> None:
    here, there = pair(overlay)
    agent, stranger = overlay.agents[0], overlay.rig.hosts[2]
    before = ruleset(agent.host)
    with (
        NftEar(agent.host.namespace.path) as ear,
        Flow(here, there, RATE) as out,
        Flow(there, here, RATE, port=7003) as back,
        Flow(here, stranger, RATE, port=7004) as beyond,
    ):
        flows = out, back, beyond
        until(lambda: min(flow.received for flow in flows) > 1000, 20, "packets arrive")
        agent.kill()
        assert ruleset(agent.host) == before
        mark = out.sent
        until(lambda: out.sent > mark + 1000, 20, "packets are sent without an agent")
        agent.start()
        agent.wait_ready()
        until(lambda: min(flow.sent for flow in flows) > 5000, 20, "packets are sent")
        losses = [flow.stop() for flow in flows]
        said = [ear.told.get_nowait().what for _ in range(ear.told.qsize())]
    assert [loss.missing for loss in losses] == [(), (), ()]
    assert ruleset(agent.host) == before
    # Whenever it was away, it was back when the transaction ended.
    transactions = " ".join(said).split(" end")
    assert all("new table" in one for one in transactions if "del table" in one)


@contextlib.contextmanager
def sending_apart(agent: AgentProcess) -> Iterator[None]:
    """Let no two things that an agent writes be heard at once."""
    command = "strace", "-f", "-o", "/dev/null", "-e", "trace=sendto", "-e", APART, "-p"
    with subprocess.Popen([*command, str(agent.pid)], stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        line = tracer.stderr.readline()
        assert " attached" in line, line
        try:
            yield
        finally:
            tracer.terminate()


@needs_strace
def test_a_host_is_let_in_before_there_is_a_route_to_it_and_kept_out_after(
    overlay: Overlay,
) -> None:
    # In the other order its first packets, or the last answers to it, would be dropped.
    host = overlay.agents[0].host
    key = PREFIX + "subnets/10.5.99.0-24"
    value = (
        '{"PublicIP":"10.77.0.99","PublicIPv6":null,"BackendType":"vxlan",'
        '"BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:99"}}'
    )
    with sending_apart(overlay.agents[0]), Order(host, "10.77.0.99", "10.5.99.0") as order:
        for _ in range(3):
            overlay.put_leased(key, value)
            until(lambda: "route" in order.told, 20, "the route is there")
            overlay.kvctl("del", key)
            until(lambda: len(order.told) >= 4, 20, "all has been told")
            assert order.told == Order.RIGHT
            order.told.clear()


@needs_strace
def test_an_agent_that_starts_lets_hosts_in_before_there_are_routes_to_them(
    overlay: Overlay,
) -> None:
    # It writes both at once, and of the two nft takes longer: here for certain.
    agent = overlay.agents[0]
    key = PREFIX + "subnets/10.5.98.0-24"
    overlay.put_leased(
        key,
        '{"PublicIP":"10.77.0.98","PublicIPv6":null,"BackendType":"vxlan",'
        '"BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:98"}}',
    )
    until(lambda: "10.77.0.98" in vteps_of(agent.host), 20, "the host is let in")
    with Order(agent.host, "10.77.0.98", "10.5.98.0") as order:
        agent.kill()
        agent.host.namespace.run("ip", "link", "del", LINK)
        agent.host.namespace.run("nft", "delete", "table", "ip", "netplane")
        order.told.clear()
        agent.wrapper = SLOW_NFT
        try:
            agent.start()
            agent.wait_ready()
            until(lambda: {"let in", "route"} <= {*order.told}, 20, "both have been told")
            assert order.told.index("let in") < order.told.index("route")
        finally:
            agent.wrapper = ()
            agent.kill()
            agent.start()
            agent.wait_ready()
    overlay.kvctl("del", key)
    until(overlay.everybody_answers, 20, "every container answers every other")


class Order:
    """Hears of one host's element and of its route, and in which order.

    Both are told within the writer's own call, on two sockets. What is found on both at once is
    taken to be in the right order: that it was not could only be missed, never made up. So who
    uses it slows a writer.
    """

    NETFILTER = 12
    SAID: ClassVar = {
        (10 << 8) + 12: "let in",
        24: "route",
        25: "no route",
        (10 << 8) + 14: "kept out",
    }
    RIGHT: ClassVar = ["let in", "route", "no route", "kept out"]

    def __init__(self, host: Host, address: str, destination: str) -> None:
        self.told: list[str] = []
        self._wanted = socket.inet_aton(address), socket.inet_aton(destination)
        self._sockets = [self._listen(host, self.NETFILTER, 7), self._listen(host, 0, 7)]
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._hear, name="order")
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._ending.set()
        self._thread.join()
        for each in self._sockets:
            each.close()

    @staticmethod
    def _listen(host: Host, protocol: int, group: int) -> socket.socket:
        opened = host.namespace.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
        opened.bind((0, 0))
        opened.setsockopt(270, 1, group)  # NETLINK_ADD_MEMBERSHIP: NFTABLES, IPV4_ROUTE
        opened.setblocking(False)
        return opened

    def _hear(self) -> None:
        while not self._ending.is_set():
            select.select(self._sockets, (), (), 0.05)
            said: list[str] = []
            for each in self._sockets:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        said += self._read(each.recv(1 << 20))
            self.told += sorted(said, key=self.RIGHT.index)

    def _read(self, data: bytes) -> Iterator[str]:
        while len(data) >= 16:
            length, kind = struct.unpack_from("=IH", data)
            address, destination = self._wanted
            if kind in self.SAID and (destination if kind < 256 else address) in data[16:length]:
                yield self.SAID[kind]
            data = data[(length + 3) & ~3 :]


@pytest.mark.parametrize("docker", [False, True])
def test_a_chain_that_drops_what_is_forwarded_lets_the_overlay_pass(
    overlay: Overlay, *, docker: bool
) -> None:
    here, there = pair(overlay)
    host = overlay.agents[0].host
    nft = host.namespace.run
    chain = "DOCKER-USER" if docker else "FORWARD"
    nft("nft", DROPPING)
    try:
        if docker:
            nft(
                "nft",
                "add chain ip filter DOCKER-USER; add rule ip filter FORWARD jump DOCKER-USER",
            )

        def rules() -> str:
            return nft("nft", "list", "chain", "ip", "filter", chain)

        until(lambda: rules().count("netplane: ") == 2, 20, "our rules are in it")
        assert ping(here, there.address) is not None
        # And what else is forwarded is dropped as before.
        stranger = overlay.rig.hosts[2]
        stranger.namespace.ip(f"route add 192.0.2.1 via {host.address}")
        assert ping(stranger, "192.0.2.1", timeout_s=0.2) is None
        stranger.namespace.ip("route del 192.0.2.1")

        overlay.agents[0].pause()
        try:
            nft("nft", "flush", "chain", "ip", "filter", chain)
            assert ping(here, there.address, timeout_s=0.2) is None
        finally:
            overlay.agents[0].resume()
        until(lambda: ping(here, there.address, timeout_s=0.2) is not None, 20, "packets pass")
        _, rows = inspect(overlay.agents[0], "trace", here.address, there.address)
        assert ("forward", "ok", f"accepted in front of chain ip filter {chain}") in rows
        assert "forward:" not in overlay.agents[0].missing()
    finally:
        nft("nft", "delete", "table", "ip", "filter")
    assert ping(here, there.address) is not None


@pytest.mark.skipif(
    shutil.which("iptables-legacy") is None, reason="no iptables (Debian package iptables)"
)
def test_iptables_without_nftables_let_the_overlay_pass_too(overlay: Overlay) -> None:
    here, there = pair(overlay)
    agent = overlay.agents[0]
    iptables = partial(agent.host.namespace.run, "iptables-legacy")
    agent.terminate()
    iptables("-P", "FORWARD", "DROP")
    flags, agent.flags = agent.flags, (*agent.flags, "--iptables-resync", "1")
    try:
        assert ping(here, there.address, timeout_s=0.2) is None
        agent.start()
        agent.wait_ready()
        assert ping(here, there.address) is not None
        # They tell nobody when they change: the timer looks.
        iptables("-F", "FORWARD")
        until(lambda: ping(here, there.address, timeout_s=0.2) is not None, 20, "packets pass")
        assert iptables("-S", "FORWARD").count("netplane: ") == 2
    finally:
        agent.flags = flags
        iptables("-P", "FORWARD", "ACCEPT")
        iptables("-F", "FORWARD")
        if agent.is_running:
            agent.kill()
        agent.start()
        agent.wait_ready()


@pytest.mark.skipif(
    shutil.which("iptables-nft") is None, reason="no iptables (Debian package iptables)"
)
def test_without_forward_rules_none_is_written_and_who_drops_is_named(overlay: Overlay) -> None:
    here, there = pair(overlay)
    agent = overlay.agents[0]
    nft, iptables = (
        partial(agent.host.namespace.run, program) for program in ("nft", "iptables-nft")
    )
    ways = (["check"], ["trace", here.address, there.address])
    agent.terminate()
    flags, agent.flags = agent.flags, (*agent.flags, "--iptables-forward-rules=false")
    try:
        iptables("-P", "FORWARD", "DROP")
        agent.start()
        agent.wait_ready()
        for rules in (
            ["-P FORWARD DROP"],
            ["-A FORWARD -j REJECT --reject-with icmp-host-prohibited"],
            ["-N BLOCK", "-A BLOCK -j DROP", "-A FORWARD -j BLOCK"],
            [f"-A FORWARD -d {NETWORK} -j DROP"],
            ["-A FORWARD -o np.1 -j DROP"],
        ):
            iptables("-P", "FORWARD", "ACCEPT")
            iptables("-F")
            until(lambda: "forward:" not in agent.missing(), 20, "nobody drops")
            assert ping(here, there.address) is not None
            for words in rules:
                iptables(*words.split())
            until(
                lambda: "note forward: chain ip filter FORWARD drops" in agent.missing(),
                20,
                "it is named",
            )
            for command in ways:
                _, rows = inspect(agent, *command)
                [(state, text)] = [row[1:] for row in rows if row[0] == "forward"]
                assert state == "hint"
                assert text.startswith("chain ip filter FORWARD drops ")
                assert text.endswith("or start the agent with --iptables-forward-rules")
            assert ping(here, there.address, timeout_s=0.2) is None
            assert "netplane" not in iptables("-S")
            assert "netplane: " not in nft("-j", "list", "table", "ip", "filter")
        # What may drop is not said to, and neither that nothing does.
        iptables("-F", "FORWARD")
        iptables("-A", "FORWARD", "-p", "tcp", "-j", "DROP")
        until(lambda: "forward:" not in agent.missing(), 20, "nobody drops for certain")
        for command in ways:
            _, rows = inspect(agent, *command)
            assert [row[1] for row in rows if row[0] == "forward"] == ["unseen"]
    finally:
        nft("delete", "table", "ip", "filter")
        agent.flags = flags
        if agent.is_running:
            agent.kill()
        agent.start()
        agent.wait_ready()


def test_a_chain_that_drops_and_is_nobodys_we_know_is_named_everywhere(overlay: Overlay) -> None:
    here, there = pair(overlay)
    agent = overlay.agents[0]
    nft = agent.host.namespace.run
    nft(
        "nft",
        DROPPING.replace("ip filter FORWARD", "inet mine through").replace(
            "ip filter", "inet mine"
        ),
    )
    try:
        said = "forward: chain inet mine through drops what no rule of it accepts: nft insert rule"
        until(lambda: said in agent.missing(), 20, "it is named")
        assert ask(agent.socket, "GET", "/readyz").status == 200  # rules may let it pass
        for command in (["check"], ["trace", here.address, there.address]):
            _, rows = inspect(agent, *command)
            [text] = [
                text for subject, state, text in rows if (subject, state) == ("forward", "hint")
            ]
            assert text.startswith(said.removeprefix("forward: "))
        assert ping(here, there.address, timeout_s=0.2) is None
        # What it says helps.
        for field in ("saddr", "daddr"):
            nft("nft", f"insert rule inet mine through ip {field} 10.5.0.0/16 accept")
        until(lambda: "forward:" not in agent.missing(), 20, "it is named no more")
        assert ping(here, there.address) is not None
    finally:
        nft("nft", "delete", "table", "inet", "mine")


def test_a_blackhole_ends_what_no_container_takes_and_is_kept(overlay: Overlay) -> None:
    agent = overlay.agents[0]
    namespace = agent.host.namespace

    def found() -> list[dict[str, Any]]:
        return namespace.json("ip", "-j", "route", "show", "type", "blackhole")

    [route] = found()
    assert (route["dst"], route["protocol"]) == (str(agent.subnet), "181")
    assert route["metric"] == 4294967295
    # Containers are reached all the same: the bridge's own route goes before it.
    assert ping(overlay.rig.containers[1], overlay.rig.containers[0].address) is not None
    namespace.ip(f"route del blackhole {agent.subnet}")
    until(lambda: found() == [route], 20, "it comes back")


def test_without_nftables_packets_are_routed_and_it_is_said(overlay: Overlay) -> None:
    here, there = pair(overlay)
    agent = overlay.agents[0]
    library = "/usr/lib/x86_64-linux-gnu/libnftables.so.1"
    hide = "".join(f"mount --bind /dev/null {path}; " for path in (library, shutil.which("nft")))
    agent.terminate()
    agent.host.namespace.run("nft", "delete", "table", "ip", "netplane")
    flags, agent.flags = agent.flags, ("--heal-interval", "1h")
    agent.wrapper = ("unshare", "--mount", "sh", "-c", f'{hide} exec "$@"', "sh")
    try:
        agent.start()
        agent.wait_ready()
        said = agent.missing()
        assert "note firewall: there is neither libnftables.so.1 nor nft on this host: " in said
        assert "apt-get install nftables" in said
        assert ping(here, there.address) is not None
        agent.terminate()
        # Who asked for masquerading does not get what they count on.
        agent.flags = (*agent.flags, "--ip-masq")
        agent.start()
        until(lambda: "firewall: there is neither" in readiness(agent), 30, "it is missing")
        assert ask(agent.socket, "GET", "/readyz").status == 503
        assert ping(here, there.address) is not None
        agent.terminate()
    finally:
        agent.flags, agent.wrapper = flags, ()
        if agent.is_running:
            agent.kill()
        agent.start()
        agent.wait_ready()
    assert vteps_of(agent.host) == {overlay.agents[1].host.address}


def readiness(agent: AgentProcess) -> str:
    try:
        return agent.missing()
    except OSError:
        return ""
