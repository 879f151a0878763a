"""`ctl trace` and `check` on real hosts: what is broken is named by its object, and only that."""

from __future__ import annotations

import contextlib
import json
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from netplane.agent.ask import ask
from tests.net.namespaces import missing
from tests.net.overlay import AgentProcess, Overlay
from tests.net.rig import Container

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]


@pytest.fixture(scope="module")
def overlay() -> Iterator[Overlay]:
    with Overlay(2) as made:
        made.add_containers(1)
        yield made


def inspect(
    agent: AgentProcess, *arguments: str, folder: Path | None = None
) -> tuple[int, list[tuple[str, str, str]]]:
    """Return the exit code, and subject, state and text of each line."""
    done = subprocess.run(
        agent.host.namespace.command(
            *(sys.executable, "-m", "netplane.cli.netplane", "ctl", *arguments),
            *("-w", "json", "--run-dir", str(folder or agent.folder)),
        ),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not done.stderr, done.stderr
    rows = [(row["subject"], row["state"], row["text"]) for row in json.loads(done.stdout)]
    return done.returncode, rows


def wrong(rows: list[tuple[str, str, str]]) -> list[tuple[str, str]]:
    return [(subject, text) for subject, state, text in rows if state == "wrong"]


def pair(overlay: Overlay) -> tuple[Container, Container]:
    here, there = overlay.rig.containers
    return here, there


def test_a_whole_way_is_shown_with_its_objects_and_what_cannot_be_seen(overlay: Overlay) -> None:
    agent, other = overlay.agents
    here, there = pair(overlay)
    code, rows = inspect(agent, "trace", here.address, there.address)
    assert (code, wrong(rows)) == (0, [])
    assert [(subject, state) for subject, state, _ in rows] == [
        ("source", "ok"),
        ("forwarding", "ok"),
        ("lease", "ok"),
        ("route", "ok"),
        ("device", "ok"),
        ("mtu", "ok"),
        ("neighbour", "ok"),
        ("forwarding-entry", "ok"),
        ("interface", "ok"),
        ("underlay", "ok"),
        ("peer", "unseen"),
        ("firewall", "ok"),
        ("forward", "ok"),
        ("firewall", "unseen"),
    ]
    zero = other.subnet.network_address
    texts = {subject: text for subject, _, text in rows}
    assert texts["source"] == f"{here.address} is behind br0"
    assert texts["lease"] == f"{other.subnet} is of host {other.host.address}"
    assert texts["route"] == f"route {other.subnet} via {zero} dev np.1 onlink"
    assert texts["forwarding-entry"].endswith(f"dst {other.host.address} dev np.1")


def test_the_host_itself_is_a_source_too(overlay: Overlay) -> None:
    agent = overlay.agents[0]
    code, rows = inspect(agent, "trace", agent.host.address, pair(overlay)[1].address)
    assert code == 0
    assert rows[0] == ("source", "ok", f"{agent.host.address} is this host's")


def test_what_is_not_of_this_host_or_of_nobody_is_said(overlay: Overlay) -> None:
    agent, other = overlay.agents
    here, there = pair(overlay)
    code, rows = inspect(agent, "trace", there.address, here.address)
    assert code == 1
    assert wrong(rows) == [
        (
            "source",
            f"{there.address} is in {other.subnet} of host {other.host.address}: trace it there",
        )
    ]
    nobody = next(
        f"10.5.{number}.7"
        for number in range(1, 4)
        if not any(str(one.subnet).startswith(f"10.5.{number}.") for one in overlay.agents)
    )
    code, rows = inspect(agent, "trace", here.address, nobody)
    assert code == 1
    assert wrong(rows) == [("lease", f"no host has a subnet with {nobody}")]
    code, rows = inspect(agent, "trace", here.address, "192.0.2.1")
    assert (code, rows[2][:2]) == (0, ("lease", "hint"))


def test_check_of_a_whole_host_finds_nothing_wrong(overlay: Overlay) -> None:
    code, rows = inspect(overlay.agents[0], "check")
    assert (code, wrong(rows)) == (0, [])
    assert {"agent", "device", "mtu", "interface", "objects", "settings", "offload"} <= {
        subject for subject, _, _ in rows
    }
    # Address, and route, neighbour and forwarding entry of the only peer.
    assert ("objects", "ok", "4 as they should be, 1 peers") in rows
    assert ("firewall", "ok", "our table is as it should be") in rows
    assert ("forward", "ok", "no chain drops what no rule of it accepts") in rows


@contextlib.contextmanager
def words_of(agent: AgentProcess) -> Iterator[Path]:
    """Repeat what an agent says now, at a socket in the folder, whatever becomes of the agent."""
    folder = agent.folder / "words"
    folder.mkdir()
    said = {path: ask(agent.socket, "GET", path).body for path in ("/v1/status", "/v1/firewall")}

    class Answer(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            body = said[self.rfile.readline().split()[1].decode()]
            head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body)
            self.wfile.write(head + body)

    with socketserver.ThreadingUnixStreamServer(str(folder / "default.sock"), Answer) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield folder
        finally:
            server.shutdown()
            serving.join()


@pytest.fixture(scope="module")
def words(overlay: Overlay) -> Iterator[tuple[Path, dict[str, str]]]:
    """What an agent said before it was killed; one that ran would heal at once."""
    agent, other = overlay.agents
    [peer] = agent.status()["peers"]
    with words_of(agent) as folder:
        agent.kill()
        yield (
            folder,
            {
                "subnet": str(other.subnet),
                "zero": str(other.subnet.network_address),
                "mac": peer["data"]["VtepMAC"],
                "address": agent.host.address,
                "other": other.host.address,
            },
        )


ROUTE = "ip route replace {subnet} via {zero} dev np.1 onlink proto 181"
NEIGHBOUR = "ip neigh replace {zero} lladdr {mac} dev np.1 nud permanent protocol 181"
ENTRY = "bridge fdb replace {mac} dev np.1 dst {other} self permanent"
BREAKS = {
    "route": (["ip route del {subnet}"], [ROUTE]),
    "neighbour": (
        ["ip neigh del {zero} dev np.1"],
        [NEIGHBOUR],
    ),
    "forwarding-entry": (
        ["bridge fdb del {mac} dev np.1"],
        [ENTRY],
    ),
    "device": (["ip link set np.1 down"], ["ip link set np.1 up", NEIGHBOUR, ENTRY, ROUTE]),
    "mtu": (["ip link set eth0 mtu 1400"], ["ip link set eth0 mtu 1500"]),
    "interface": (
        ["ip addr del {address}/16 dev eth0"],
        ["ip addr add {address}/16 dev eth0", "ip route add default via 10.77.255.254"],
    ),
    "forwarding": (["sysctl -qw net.ipv4.ip_forward=0"], ["sysctl -qw net.ipv4.ip_forward=1"]),
    "forwarding of links": (
        ["sysctl -qw net/ipv4/conf/np.1/forwarding=0", "sysctl -qw net/ipv4/conf/br0/forwarding=0"],
        ["sysctl -qw net/ipv4/conf/np.1/forwarding=1", "sysctl -qw net/ipv4/conf/br0/forwarding=1"],
    ),
}
IN_CHECK = {
    "route": "objects",
    "neighbour": "objects",
    "forwarding-entry": "objects",
    "forwarding": "settings",
}


@pytest.mark.parametrize("what", BREAKS)
def test_what_is_missing_is_named_by_both(
    overlay: Overlay, words: tuple[Path, dict[str, str]], what: str
) -> None:
    agent = overlay.agents[0]
    here, there = pair(overlay)
    folder, names = words
    breaking, mending = ([line.format(**names).split() for line in lines] for lines in BREAKS[what])
    assert wrong(inspect(agent, "check", folder=folder)[1]) == []
    for command in breaking:
        agent.host.namespace.run(*command)
    try:
        traced = inspect(agent, "trace", here.address, there.address, folder=folder)
        checked = inspect(agent, "check", folder=folder)
    finally:
        for command in mending:
            agent.host.namespace.run(*command)
    assert traced[0] == checked[0] == 1
    named = what.split(maxsplit=1)[0]
    assert named in {subject for subject, _ in wrong(traced[1])}, traced[1]
    assert IN_CHECK.get(named, named) in {subject for subject, _ in wrong(checked[1])}, checked[1]


RIVALS = {
    "in front of ours": (
        ["route prepend {subnet} via 10.77.0.9 dev eth0"],
        ["route del {subnet} via 10.77.0.9 dev eth0"],
        "route {subnet} via 10.77.0.9 dev eth0 is in the way of {ours}",
    ),
    "to a half": (
        ["route add {half} via 10.77.0.9 dev eth0"],
        ["route del {half}"],
        "route {half} via 10.77.0.9 dev eth0 is in the way of {ours}",
    ),
    "by a rule": (
        ["route add default via 10.77.0.9 dev eth0 table 99", "rule add to {subnet} lookup 99"],
        ["rule del to {subnet} lookup 99", "route flush table 99"],
        "{last} is led by route 0.0.0.0/0 via 10.77.0.9 dev eth0 in spite of {ours}",
    ),
    "that refuses": (
        ["route add unreachable {half}"],
        ["route del unreachable {half}"],
        "{last} is led by nothing in spite of {ours}",
    ),
}


@pytest.mark.parametrize("where", RIVALS)
def test_a_route_of_others_that_comes_before_ours_is_named_by_check(
    overlay: Overlay, words: tuple[Path, dict[str, str]], where: str
) -> None:
    # All of ours is there, and the peer is not reached.
    host = overlay.agents[0].host.namespace
    folder, names = words
    subnet = overlay.agents[1].subnet
    half, last = str(list(subnet.subnets(1))[1]), str(subnet[-1])
    names = {**names, "half": half, "last": last, "ours": ROUTE_TEXT.format(**names)}
    breaking, mending, said = RIVALS[where]
    host.ip(*(line.format(**names) for line in breaking))
    try:
        code, rows = inspect(overlay.agents[0], "check", folder=folder)
    finally:
        host.ip(*(line.format(**names) for line in mending))
    assert code == 1
    assert ("route", said.format(**names)) in wrong(rows)
    assert {subject for subject, _ in wrong(rows)} == {"route"}


def test_without_an_agent_trace_says_so_and_shows_what_the_kernel_does(
    overlay: Overlay, words: tuple[Path, dict[str, str]]
) -> None:
    here, there = pair(overlay)
    code, rows = inspect(overlay.agents[0], "trace", here.address, there.address)
    assert code == 1
    assert [subject for subject, _ in wrong(rows)] == ["agent"]
    _, names = words
    assert ("route", "ok", ROUTE_TEXT.format(**names)) in rows


ROUTE_TEXT = "route {subnet} via {zero} dev np.1 onlink"
