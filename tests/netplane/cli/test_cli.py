"""The command lines: what they refuse and why, what they load, what they print of an agent."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from netplane.agent.cleanup import clean
from netplane.agent.errors import AgentError, LockedError
from netplane.agent.ports import FirewallReport, Report, Standing
from netplane.agent.settings import Settings
from netplane.agent.state import load, save
from netplane.cli import agent as agent_command
from netplane.cli.flags import Duration
from netplane.cli.netplane import main
from netplane.subnet.registry import OutcomeUnknownError
from tests.netplane.agent.world import World, remember, running, view


def invoke(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(main, arguments, env={**environment})


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """What the agent would run with; it is not run."""
    found: list[Settings] = []
    monkeypatch.setattr(agent_command, "run", lambda made: found.append(made) or 0)
    monkeypatch.setattr(agent_command, "set_up", lambda level: None)
    for name in os.environ:
        if name.startswith("FLANNELD_"):
            monkeypatch.delenv(name)
    return found


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["ctl", "--help"], ["agent", "-h"]]
)
def test_help_loads_no_client_no_kernel_and_no_event_loop(arguments: list[str]) -> None:
    script = (
        "import sys\n"
        "from netplane.cli.netplane import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'asyncio', 'grpc', 'pyroute2', 'prometheus_client', 'kvstore.client'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_agent_of_a_fleet_loads_metrics_only_when_asked() -> None:
    script = (
        "import sys, netplane.agent.agent, netplane.agent.pages, netplane.cli.agent\n"
        "assert 'prometheus_client' not in sys.modules\n"
        "assert 'aiohttp' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_flags_become_settings(settings: list[Settings]) -> None:
    done = invoke(
        "agent",
        *("--etcd-endpoints", "http://a:2379, http://b:2379", "--etcd-prefix=/net/"),
        *("--iface", "eth1", "--iface", "10.0.0.1", "--iface-regex", "^en"),
        *("--public-ip", "203.0.113.7", "--subnet-file", "/run/x.env", "--healthz-port", "8471"),
        *("--instance", "two", "--removal-grace", "1h30m", "--heal-interval", "500ms"),
        *("--host-id", "rack-7", "--state-dir", "lib"),
    )
    assert done.exit_code == 0, done.output
    [made] = settings
    assert made.registry.endpoints == ("http://a:2379", "http://b:2379")
    assert made.registry.prefix == "/net"
    assert made.iface == ("eth1", "10.0.0.1")
    assert made.iface_regex == ("^en",)
    assert made.public_ip == IPv4Address("203.0.113.7")
    assert made.subnet_file == Path("/run/x.env")
    assert (made.healthz_port, made.instance, made.host_id) == (8471, "two", "rack-7")
    assert (made.removal_grace_s, made.heal_interval_s) == (5400.0, 0.5)
    assert made.state_dir == Path.cwd() / "lib"
    assert made.socket == Path("/run/netplane/two.sock")


def test_without_flags_the_settings_are_the_defaults(settings: list[Settings]) -> None:
    assert invoke("agent").exit_code == 0
    assert settings == [Settings()]


@pytest.mark.parametrize(
    ("arguments", "environment", "masquerade", "forward_rules"),
    [
        ([], {}, False, True),
        (["--ip-masq", "--iptables-forward-rules"], {}, True, True),
        (["-ip-masq=true", "--iptables-forward-rules=false"], {}, True, False),
        (["--ip-masq=false"], {"FLANNELD_IP_MASQ": "true"}, False, True),
        ([], {"FLANNELD_IP_MASQ": "true", "FLANNELD_IPTABLES_FORWARD_RULES": "f"}, True, False),
        ([], {"FLANNELD_IP_MASQ": "", "FLANNELD_IPTABLES_FORWARD_RULES": ""}, False, True),
    ],
)
def test_switches_are_written_as_for_flannel(
    arguments: list[str],
    environment: dict[str, str],
    settings: list[Settings],
    *,
    masquerade: bool,
    forward_rules: bool,
) -> None:
    done = invoke("agent", *arguments, "--healthz-port", "7", **environment)
    assert done.exit_code == 0, done.output
    [made] = settings
    assert (made.ip_masq, made.iptables_forward_rules) == (masquerade, forward_rules)
    assert made.healthz_port == 7  # a switch takes no word that is not its own


def test_the_firewall_is_read_as_often_as_the_kernel_unless_told() -> None:
    assert Settings().firewall_interval_s == Settings().heal_interval_s
    assert Settings(iptables_resync=5).firewall_interval_s == 5
    assert Settings().table == "netplane"
    assert Settings(instance="two").table == "netplane-two"


def test_flannels_environment_and_gos_dashes_mean_the_same(settings: list[Settings]) -> None:
    done = invoke(
        "agent", "-iface=eth9", "-healthz-port", "1",
        FLANNELD_ETCD_PREFIX="/y", FLANNELD_SUBNET_FILE="/a/b", FLANNELD_PUBLIC_IP="192.0.2.1",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    [made] = settings
    assert (made.iface, made.healthz_port) == (("eth9",), 1)
    assert (made.registry.prefix, str(made.subnet_file)) == ("/y", "/a/b")
    assert made.public_ip == IPv4Address("192.0.2.1")


def test_an_interface_without_a_name_is_that_of_the_default_route(
    settings: list[Settings],
) -> None:
    # As a unit has it: --iface=${IFACE}, with a variable that is not set.
    assert invoke("agent", "--iface=").exit_code == 0
    assert invoke("agent", FLANNELD_IFACE="").exit_code == 0
    assert invoke("agent", "--iface", "", "--iface", "eth1").exit_code == 0
    assert [made.iface for made in settings] == [(), (), ("eth1",)]


def test_who_is_not_root_is_told_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    done = invoke("agent")
    assert done.exit_code == 1
    assert "Error: the agent writes routes, so it needs root\nHint: run it as root" in done.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--vmodule=x"], "Flannel's flag --vmodule is not offered; leave it out: "),
        (["-kube-subnet-mgr"], "Flannel's flag --kube-subnet-mgr is not offered"),
        (["--no-such-flag"], "No such option"),
        (["--public-ip", "::1"], "'::1' is no IPv4 address"),
        (["--public-ip", "127.0.0.1"], "no host can be reached by --public-ip 127.0.0.1"),
        (["--heal-interval", "10"], "'10' is no duration; write 500ms, 10s, 10m or 1h"),
        (["--iptables-resync", "-1"], "give seconds; 0 is as --heal-interval"),
        (["--ip-masq=perhaps"], "'perhaps' is not a valid boolean"),
        (["--heal-interval", "0s"], "Hint: write 10s, 10m or 1h"),
        (["--etcd-prefix", "x"], "Hint: write it as /coreos.com/network"),
        (["--etcd-endpoints", ","], "no registry endpoint"),
        (["--etcd-cafile", "ca.pem"], "Hint: write it as https://, or leave the files out"),
        (["--instance", "A"], "--instance 'A' does not fit"),
        (["--subnet-file", ""], "Invalid value for '--subnet-file': it is empty"),
        (["--subnet-file", "/"], "'/' is a directory"),
        (["--state-dir", ""], "Invalid value for '--state-dir': it is empty"),
        (["--run-dir", ""], "Invalid value for '--run-dir': it is empty"),
        (["--healthz-ip", "localhost"], "Hint: give one of this host's, or 0.0.0.0 for all"),
        (["--healthz-port", "65536"], "--healthz-port 65536 is no port"),
        (["--version"], "leave it out: ask `netplane --version`"),
        (["--instance", "blue"], "Hint: give it a --subnet-file of its own"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    arguments: list[str], said: str, settings: list[Settings]
) -> None:
    done = invoke("agent", *arguments)
    assert done.exit_code in {1, 2}
    assert said in done.output
    assert settings == []


def test_a_variable_that_cannot_be_honoured_is_refused(settings: list[Settings]) -> None:
    done = invoke("agent", FLANNELD_KUBE_SUBNET_MGR="true")
    assert done.exit_code == 2
    said = "FLANNELD_KUBE_SUBNET_MGR in the environment sets Flannel's flag --kube-subnet-mgr"
    assert said in done.output
    # What is off cannot disappoint, and a flag no more than a variable.
    for off in ("", "0", "f", "false", "False"):
        assert invoke("agent", FLANNELD_KUBE_SUBNET_MGR=off).exit_code == 0
        for flag in ("--kube-subnet-mgr", "-kube-subnet-mgr", "-v"):
            assert invoke("agent", f"{flag}={off}").exit_code == 0


def test_a_variable_of_nobodys_is_named(
    settings: list[Settings], caplog: pytest.LogCaptureFixture
) -> None:
    assert invoke("agent", FLANNELD_PUBLIC_PI="x").exit_code == 0
    assert "unknown environment variable FLANNELD_PUBLIC_PI" in caplog.text


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("90s", 90), ("10m", 600), ("1h", 3600), ("1m1s", 61)]
)
def test_durations(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "5", "s", "5 s", "-5s", "5s5", "5x"])
def test_no_durations(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Duration().convert(text, None, None)


async def ctl(world: World, *arguments: str) -> Result:
    where = ("--run-dir", str(world.settings.run_dir))
    return await asyncio.to_thread(invoke, "ctl", *arguments, *where)


async def test_status_for_people_and_for_programs(world: World) -> None:
    async with running(world) as agent:
        world.registry_is_up.set()
        world.views.put_nowait(view(2, 3))
        await world.until_ready(agent)
        people = await ctl(world, "status")
        programs = await ctl(world, "status", "-w", "json")
    assert people.exit_code == 0
    lines = people.output.splitlines()
    assert lines[0].split() == ["ready", "yes"]
    assert "subnet     10.5.1.0/24, others send to 192.0.2.1" in lines
    assert [line.split() for line in lines if "routed" in line] == [
        ["10.5.2.0/24", "192.0.2.2", "vxlan", "routed"],
        ["10.5.3.0/24", "192.0.2.3", "vxlan", "routed"],
    ]
    # All that are kept, and not only those that were others before.
    assert [line for line in lines if line.startswith("setting")] == [
        "setting    ipv4/conf/np.1/rp_filter = 2",
        "setting    ipv4/ip_forward = 1 (was 0; cleanup sets it back)",
    ]
    found: dict[str, Any] = json.loads(programs.output)
    assert found["ready"] is True
    assert "mac6" not in found["network"]  # nobody has it: this network has IPv4 only
    assert [peer["subnet"] for peer in found["peers"]] == ["10.5.2.0/24", "10.5.3.0/24"]
    assert found["kernel"]["settings"] == {
        "ipv4/conf/np.1/rp_filter": {"value": "2"},
        "ipv4/ip_forward": {"value": "1", "was": "0"},
    }


async def test_nobody_is_said_to_be_kept_out_where_the_firewall_lets_nobody_in(
    world: World,
) -> None:
    world.dropped = 0
    async with running(world) as agent:
        world.registry_is_up.set()
        world.views.put_nowait(view(2))
        await world.until_ready(agent)
        by_table = await ctl(world, "status")
        # That looks itself whose packets it moves.
        world.counters = {"dropped": {}}
        by_process = await ctl(world, "status")
    assert "0 hosts are let in" in by_table.output
    assert "are let in" not in by_process.output


async def test_status_tells_what_is_missing(world: World) -> None:
    world.standing = Standing("our subnet belongs to host 'b' now", "")
    async with running(world) as agent:
        world.registry_is_up.set()
        world.views.put_nowait(view(2))
        await world.until(lambda: list(agent.board.missing) == ["no-subnet"])
        found = await ctl(world, "status")
    assert found.output.splitlines()[:2] == [
        "ready      no",
        "           no-subnet: our subnet belongs to host 'b' now",
    ]


async def test_without_an_agent_the_commands_say_what_to_do(world: World) -> None:
    for command in ("status", "drain", "accept-view"):
        done = await ctl(world, command)
        assert done.exit_code == 1
        assert f"Error: no agent answers at {world.settings.socket}" in done.output
        assert "Hint: start it with `netplane agent`" in done.output
        assert "there are" not in done.output


async def test_who_asks_the_wrong_instance_is_told_the_others(world: World) -> None:
    async with running(world):
        await world.until(lambda: bool(world.who))
        done = await ctl(world, "status", "--instance", "blue")
    assert done.exit_code == 1
    assert done.output.endswith("(there are sockets of: default)\n")


async def test_an_agent_that_hangs_is_not_said_to_be_absent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def patient(*_arguments: object) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr("netplane.cli.ctl.ask", patient)
    done = await ctl(world, "status")
    assert f"Error: the agent at {world.settings.socket} does not answer" in done.output


async def test_status_of_a_network_full_of_junk_stays_readable(world: World) -> None:
    # Two thousand keys of somebody's, one of which would clear the terminal.
    junk = {f"/junk/{number}".encode(): "not JSON" for number in range(2000)}
    junk |= {b"/junk/\x1b[2J": "not JSON"}
    route = "route 10.5.2.0/24 via 10.5.2.0 dev np.1 onlink"
    world.report = Report(failed=((route, "File exists"),))
    async with running(world) as agent:
        world.registry_is_up.set()
        world.views.put_nowait(replace(view(2, 3), quarantined=junk))
        await world.until_ready(agent)
        people = await ctl(world, "status")
        programs = await ctl(world, "status", "-w", "json")
    assert len(people.output.splitlines()) < 50
    assert "... and 1981 more; all of them with -w json" in people.output
    assert "\x1b" not in people.output
    assert "quarantined: /junk/\\x1b[2J: not JSON" in people.output
    assert len(json.loads(programs.output)["registry"]["quarantined"]) == 2001
    # A peer whose route the kernel refuses is not "routed".
    states = [line.split(maxsplit=3)[3] for line in people.output.splitlines() if "vxlan" in line]
    assert states == ["File exists", "routed"]


async def test_drain_and_accept_view_order_the_agent(world: World) -> None:
    async with running(world) as agent:
        world.registry_is_up.set()
        await world.until_last("lease")
        refused = await ctl(world, "accept-view")
        assert refused.exit_code == 1
        assert "Error: the registry has not told anything yet" in refused.output
        world.views.put_nowait(view(2))
        await world.until_ready(agent)
        assert (await ctl(world, "accept-view")).exit_code == 0
        world.refusals.append(OutcomeUnknownError("Deadline Exceeded (it may have been applied)"))
        refused = await ctl(world, "drain")
        assert refused.output == (
            "Error: the registry http://127.0.0.1:2379 does not answer: nothing was given back for"
            " good, the agent goes on\n"
            "Hint: repeat it when `netplane ctl status` has no note `registry`\n"
        )
        done = await ctl(world, "drain")
        assert done.output == "the subnet is given back, the agent has ended\n"
    assert world.happened[-1] == "cleared"


async def test_cleanup_clears_the_kernel_and_remembers_who_we_are(world: World) -> None:
    remember(world, 2)
    state, _ = load(world.settings.state_file)
    save(world.settings.state_file, replace(state, sysctls={"ipv4/ip_forward": "0"}))
    world.containers = 3
    said = await clean(world.settings, world)
    assert said == "3 objects removed, 1 settings set back"
    assert world.happened == ["cleared", "containers cleared"]
    assert world.settings.state_file.stat().st_mode & 0o777 == 0o600
    state, _ = load(world.settings.state_file)
    assert state.vtep_mac == "02:00:00:00:00:aa"
    assert state.sysctls == {}
    assert state.own is not None
    assert state.own.subnet == IPv4Network("10.5.1.0/24")


async def test_cleanup_that_could_not_remove_the_device_does_not_say_it_did(world: World) -> None:
    remember(world, 2)
    world.report = Report(broken="link np.1: Operation not permitted")
    with pytest.raises(AgentError, match=r"link np\.1: Operation not permitted; correct that"):
        await clean(world.settings, world)


@pytest.mark.parametrize("was_written", [True, False])
async def test_cleanup_complains_of_the_firewall_only_where_there_was_one(
    world: World, *, was_written: bool
) -> None:
    # A host without nftables has none, and would never come to a clean end.
    remember(world, 2)
    state, _ = load(world.settings.state_file)
    save(world.settings.state_file, replace(state, firewall=was_written))
    world.wall = FirewallReport(problem="no nftables here: install it")
    if was_written:
        with pytest.raises(AgentError, match="no nftables here: install it; correct that"):
            await clean(world.settings, world)
    else:
        assert await clean(world.settings, world) == "0 objects removed, 0 settings set back"
    assert load(world.settings.state_file)[0].firewall is was_written
    world.wall = FirewallReport(Counter(firewall=1, forward=2))
    assert await clean(world.settings, world) == "3 objects removed, 0 settings set back"
    assert not load(world.settings.state_file)[0].firewall


def test_cleanup_without_root_says_what_helps(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = invoke("ctl", "cleanup", "--state-dir", str(tmp_path / "file" / "lib"))
    assert done.exit_code == 1
    assert "Hint: run as root, free space there, or choose another --state-dir" in done.output


async def test_cleanup_leaves_a_running_agent_alone(world: World) -> None:
    async with running(world):
        world.registry_is_up.set()
        await world.until_last("lease")
        with pytest.raises(LockedError):
            await clean(world.settings, world)
    assert "cleared" not in world.happened


async def test_cleanup_of_nothing_says_so(world: World) -> None:
    with pytest.raises(
        AgentError, match="tells of no network that was programmed; name the agent's --state-dir"
    ):
        await clean(world.settings, world)
