"""The order in which an agent does things; registry and kernel are made up here."""

from __future__ import annotations

import contextlib
import json
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from netplane.agent.agent import Agent
from netplane.agent.errors import InterfaceError, LockedError, SettingsError
from netplane.agent.pages import serving
from netplane.agent.ports import FirewallReport, Occupant, Report
from netplane.agent.state import encode, load
from netplane.backend.vxlan import second_mac
from netplane.subnet.config import parse_config
from netplane.subnet.errors import ConfigError
from netplane.subnet.family import Pair
from netplane.subnet.registry import Head, RefusedError, UnavailableError
from tests.netplane.agent.world import (
    CONFIG,
    CONFIG_TEXT,
    EXTERNAL,
    OWN,
    World,
    call,
    lease,
    remember,
    running,
    view,
)

OTHER_CONFIG = parse_config(b'{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":9}}')


async def test_the_kernel_is_not_touched_before_the_first_complete_view(world: World) -> None:
    async with running(world) as agent:
        world.registry_is_up.set()
        await world.until_last("lease")
        assert (await call(world, "GET", "/readyz")).status == 503
        assert world.happened == ["lease"]
        assert not world.settings.subnet_file.exists()

        world.views.put_nowait(view(2, 3))
        await world.until_ready(agent)

    assert world.happened == [
        "lease",
        "set 10.5.2.0/24,10.5.3.0/24",
        "healing",
        "healing ended",
        "disconnected",
    ]
    assert world.settings.subnet_file.read_text().splitlines()[1] == "FLANNEL_SUBNET=10.5.1.1/24"


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """Be told as systemd is; calling it returns what was heard since the last call."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))

        def heard() -> list[str]:
            texts = []
            with contextlib.suppress(BlockingIOError):
                while True:
                    texts.append(listener.recv(4096).decode())
            return texts

        yield heard


NO_VIEW = "STATUS=no-view: the registry has not told yet who the other hosts are"


async def test_systemd_hears_ready_when_it_is_true_and_of_the_end(
    world: World, systemd: Callable[[], list[str]]
) -> None:
    async with running(world) as agent:
        world.registry_is_up.set()
        await world.until_last("lease")
        assert set(systemd()) == {NO_VIEW}
        world.views.put_nowait(view(2))
        await world.until_ready(agent)
        assert systemd() == ["READY=1\nSTATUS=10.5.1.0/24, 1 peers"]
    assert systemd() == ["STOPPING=1"]


async def test_systemd_hears_ready_also_when_the_last_that_was_missing_comes_by_itself(
    world: World, systemd: Callable[[], list[str]]
) -> None:
    # Such as a foreign device that somebody removes: no view comes of it, and systemd would kill.
    world.report = Report(broken="device flannel.1 has VNI 1 already")
    async with running(world) as agent:
        world.registry_is_up.set()
        world.views.put_nowait(view(2))
        await world.until(lambda: list(agent.board.missing) == ["kernel"])
        assert systemd()[-1] == "STATUS=kernel: device flannel.1 has VNI 1 already"
        agent._take_report(Report())
        assert systemd() == ["READY=1\nSTATUS=10.5.1.0/24, 1 peers"]


async def test_systemd_hears_what_is_missing_before_the_agent_is_ready_and_after(
    world: World, systemd: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netplane.agent.agent.RETRY_FIRST_S", 0.01)
    # Two lines would be two assignments to systemd.
    world.refusals = [ConfigError("there is no configuration\nREADY=1")]
    async with running(world) as agent:
        world.registry_is_up.set()
        world.views.put_nowait(view(2))
        await world.until_ready(agent)
        ready = "READY=1\nSTATUS=10.5.1.0/24, 1 peers"
        waited = dict.fromkeys(systemd())  # a text is said again when another one behind it goes
        assert list(waited) == [NO_VIEW, "STATUS=no-lease: there is no configuration", ready]

        world.stand("our subnet belongs to host 'b' now", "")
        await world.until(lambda: "no-subnet" in agent.board.missing)
        assert systemd() == ["STATUS=no-subnet: our subnet belongs to host 'b' now"]
        world.stand("", "")
        await world.until_ready(agent)
        assert systemd() == [ready]


async def test_subnet_env_is_written_as_soon_as_its_place_can_be_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netplane.agent.agent.RETRY_MAX_S", 0.01)
    path = world.settings.subnet_file
    path.mkdir()
    async with running(world) as agent:
        world.registry_is_up.set()
        world.views.put_nowait(view(2))
        await world.until(lambda: list(agent.board.missing) == ["subnet-file"])
        path.rmdir()  # no view comes, and nothing else tells
        await world.until_ready(agent)
    assert path.read_text().startswith("FLANNEL_NETWORK=")


async def test_who_ends_the_agent_ends_nothing_else(world: World) -> None:
    # SIGTERM and a failure alike: neither lease nor kernel state nor subnet.env go.
    async with running(world) as agent:
        world.registry_is_up.set()
        world.views.put_nowait(view(2))
        await world.until_ready(agent)
    assert not {"lease given back", "cleared"} & set(world.happened)
    assert world.settings.subnet_file.exists()
    state, complaint = load(world.settings.state_file)
    assert not complaint
    assert (state.own, state.peers, state.revision) == (OWN, (lease(2),), 10)


async def test_views_that_come_while_one_is_programmed_are_one(world: World) -> None:
    async with running(world):
        world.registry_is_up.set()
        world.views.put_nowait(view(2))
        await world.until_last("healing")
        for numbers in ((2, 3), (2, 3, 4), (3, 4)):
            world.views.put_nowait(view(*numbers))
        await world.until_last("set 10.5.3.0/24,10.5.4.0/24")
    assert sum(text.startswith("set") for text in world.happened) == 2


async def test_a_registry_that_is_down_is_asked_again_and_named(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netplane.agent.agent.RETRY_FIRST_S", 0.001)
    world.refusals += [
        ConfigError("run `netplane ctl init`"),
        UnavailableError("no endpoint answers"),
    ]
    world.registry_is_up.set()
    said = []
    async with running(world) as agent:
        miss = agent.board.miss
        agent.board.miss = lambda code, text: (said.append((code, text)), miss(code, text))  # type: ignore[assignment,func-returns-value]
        world.views.put_nowait(view(2))
        await world.until_ready(agent)
    assert [text for code, text in said if code == "no-lease"] == [
        "no endpoint answers",
        "run `netplane ctl init`",
        "",
    ]


async def test_who_waits_for_a_registry_that_is_down_goes_on_soon_after_it_is_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What an operator must change is asked after ever more seldom; a registry comes back by itself.
    monkeypatch.setattr("netplane.agent.agent.RETRY_FIRST_S", 3600.0)
    monkeypatch.setattr("netplane.agent.agent.RETRY_MAX_S", 3600.0)
    monkeypatch.setattr("netplane.agent.agent.RETRY_DOWN_MAX_S", 0.001)
    world.refusals += [UnavailableError("no endpoint answers") for _ in range(20)]
    world.registry_is_up.set()
    async with running(world) as agent:
        world.views.put_nowait(view(2))
        await world.until_ready(agent)


async def test_after_a_reboot_with_the_registry_down_the_remembered_view_is_added(
    world: World,
) -> None:
    remember(world, 2, 3)
    async with running(world, patience_s=0.01) as agent:
        await world.until_last("healing")
        assert world.happened == ["add 10.5.2.0/24,10.5.3.0/24", "healing"]
        assert list(agent.board.missing) == ["no-view"]

        # The registry is back and one host has gone meanwhile: the same kernel half goes on.
        world.registry_is_up.set()
        world.views.put_nowait(view(2))
        await world.until_ready(agent)
    assert "set 10.5.2.0/24" in world.happened
    assert world.happened.count("healing") == 1
    assert "cleared" not in world.happened


async def test_with_nothing_remembered_a_silent_registry_means_no_write(world: World) -> None:
    world.refusals.append(ConfigError("run `netplane ctl init`"))
    async with running(world, patience_s=0.0) as agent:
        await world.until(lambda: "starting" not in agent.board.missing)
        world.registry_is_up.set()  # and only now; the patience ended before
        await world.until_last("lease")
    assert world.happened == ["lease", "disconnected"]


async def test_a_state_file_of_no_use_is_named_and_the_agent_starts(world: World) -> None:
    world.settings.state_dir.mkdir(parents=True)
    world.settings.state_file.write_text("{")
    async with running(world):
        world.registry_is_up.set()
        world.views.put_nowait(view(2))
        await world.until_last("healing")
        status = json.loads((await call(world, "GET", "/v1/status")).body)
    assert "is of no use" in status["notes"]["state-file"]


async def test_who_we_are_outlives_the_agent(world: World) -> None:
    for _ in range(2):
        async with running(world) as agent:
            world.registry_is_up.set()
            world.views.put_nowait(view(2))
            await world.until_ready(agent)
    first, second = world.who
    assert (first.host_id, second.host_id) == ("host-1", "host-1")
    assert second.previous_session == first.session
    assert second.session not in ("", first.session)
    # Peers have the MAC in their kernels.
    assert world.data[0] == world.data[1]
    assert load(world.settings.state_file)[0].sysctls == {"ipv4/ip_forward": "0"}


async def test_a_session_that_had_no_lease_is_not_remembered(world: World) -> None:
    # The registry may still hold the sign of life of the one before.
    remember(world)
    async with running(world):
        await world.until(lambda: bool(world.who))
    assert load(world.settings.state_file)[0].session == "nonce"


async def test_the_subnet_of_our_containers_is_asked_for_again(world: World) -> None:
    world.settings.subnet_file.write_text("FLANNEL_SUBNET=10.5.44.1/24\n")
    async with running(world):
        await world.until(lambda: len(world.who) == 1)
    assert world.who[0].previous == Pair(IPv4Network("10.5.44.0/24"))
    assert world.who[0].public_ip == EXTERNAL.address.ip
    # What we remember knows more than the file, which others may write.
    remembered = replace(load(world.settings.state_file)[0], own=OWN)
    world.settings.state_file.write_text(encode(remembered))
    async with running(world):
        await world.until(lambda: len(world.who) == 2)
    assert world.who[1].previous == OWN.pair


async def test_where_there_are_containers_no_other_subnet_will_do(world: World) -> None:
    remember(world, 2)
    world.registry_is_up.set()
    async with running(world) as agent:
        agent.has_containers = lambda: True
        await world.until(lambda: "lease of before" in world.happened)
        # It was taken meanwhile.
        world.stand("our subnet belongs to host 'b' now", "", "")
        world.views.put_nowait(replace(view(2), own=None))
        await world.until(lambda: list(agent.board.missing) == ["no-subnet"])
        assert (agent.own, list(agent.peers)) == (OWN, [lease(2).subnet])


async def test_a_registry_that_lost_its_memory_removes_nothing_until_accepted(world: World) -> None:
    remember(world, 2, 3)
    world.registry_is_up.set()
    for turn in range(2):  # a restart in between must not let go of them either
        world.happened.clear()
        async with running(world) as agent:
            world.views.put_nowait(view(revision=3))
            missing = agent.board.missing
            await world.until(lambda missing=missing: list(missing) == ["registry-regressed"])
            assert world.happened[1] == "set 10.5.2.0/24,10.5.3.0/24"
            ready = await call(world, "GET", "/readyz")
            assert ready.status == 503
            assert b"went back from revision 9 to 3" in ready.body
            if turn == 1:
                assert (await call(world, "POST", "/v1/accept-view")).status == 200
                await world.until_last("set nobody")
                await world.until_ready(agent)
    assert load(world.settings.state_file)[0].revision == 3


async def test_what_was_doubted_is_doubted_after_a_restart(world: World) -> None:
    # What a store that lost its memory has by now looks like any other.
    remember(world, 2, 3)
    state, _ = load(world.settings.state_file)
    world.settings.state_file.write_text(encode(replace(state, doubt="it lost our lease")))
    world.registry_is_up.set()
    async with running(world) as agent:
        world.views.put_nowait(view(2))
        await world.until(lambda: list(agent.board.missing) == ["registry-regressed"])
        assert world.happened[1] == "set 10.5.2.0/24,10.5.3.0/24"
        assert (await call(world, "POST", "/v1/accept-view")).status == 200
        await world.until_last("set 10.5.2.0/24")
    assert load(world.settings.state_file)[0].doubt == ""


async def test_held_peers_go_when_the_grace_ends_without_another_view(world: World) -> None:
    remember(world, 2)
    world.settings = replace(world.settings, removal_grace_s=0.05)
    async with running(world) as agent:
        world.registry_is_up.set()
        world.views.put_nowait(view(revision=3))
        await world.until_last("set nobody")
        await world.until_ready(agent)
    assert world.happened[1] == "set 10.5.2.0/24"


async def test_a_subnet_that_was_taken_is_named_and_our_containers_keep_theirs(
    world: World,
) -> None:
    async with running(world) as agent:
        world.registry_is_up.set()
        world.views.put_nowait(view(2))
        await world.until_ready(agent)
        world.stand("our subnet belongs to host 'b' now", "no endpoint answers")
        world.views.put_nowait(replace(view(2, 3), own=None))
        await world.until_last("set 10.5.2.0/24,10.5.3.0/24")
        await world.until(lambda: "no-subnet" in agent.board.missing)
        ready = await call(world, "GET", "/readyz")
        assert ready.body == (
            b"no-subnet: our subnet belongs to host 'b' now\nnote registry: no endpoint answers\n"
        )
        age_s = agent.lease_age_s()
        assert age_s is not None
        assert age_s > 0
        assert agent.own == OWN
        world.stand("", "")
        await world.until_ready(agent)
        assert agent.lease_age_s() == 0


async def test_a_changed_configuration_is_named_and_nothing_of_it_applied(world: World) -> None:
    async with running(world) as agent:
        world.registry_is_up.set()
        world.views.put_nowait(view(2))
        await world.until_ready(agent)
        done = list(world.happened)
        world.stand("", "", "the network's configuration has changed")
        await world.until(lambda: "config" in agent.board.notes)
        ready = await call(world, "GET", "/readyz")
        assert (ready.status, ready.body) == (
            200, b"ok\nnote config: the network's configuration has changed\n",
        )  # fmt: skip
        assert world.happened == done


async def test_a_configuration_that_changes_while_we_join_is_not_applied_by_halves(
    world: World,
) -> None:
    # What was told of us when the lease was claimed is of the old one: claimed again.
    async with running(world) as agent:
        world.registry_is_up.set()
        await world.until_last("lease")
        world.config = OTHER_CONFIG
        world.views.put_nowait(replace(view(2), config=OTHER_CONFIG))
        world.views.put_nowait(replace(view(2), config=OTHER_CONFIG))
        await world.until_ready(agent)
    assert world.happened[:3] == ["lease", "lease", "set 10.5.2.0/24"]


@pytest.mark.parametrize("patience_s", [60.0, 0.01], ids=["at once", "later"])
async def test_another_network_than_before_takes_the_old_device_and_peers_away(
    world: World, patience_s: float
) -> None:
    # Whether or not the registry was silent at first, so that the old one was programmed.
    remember(world, 2, 3, 4, 5, 6)
    world.config = OTHER_CONFIG
    async with running(world, patience_s) as agent:
        if patience_s < 1:
            await world.until_last("healing")
        world.registry_is_up.set()
        # Far fewer peers, which in the same network would be held.
        world.views.put_nowait(replace(view(revision=20), config=OTHER_CONFIG))
        await world.until_ready(agent)
        assert "set nobody" in world.happened
    kept = [text for text in world.happened if text in {"cleared", "set nobody", "lease"}]
    assert kept == ["lease", "cleared", "set nobody"]


@pytest.mark.parametrize("head", [Head(8, 20), Head(7, 8)], ids=["another cluster", "went back"])
async def test_another_network_of_a_registry_that_lost_its_memory_takes_nothing_away(
    world: World, head: Head
) -> None:
    remember(world, 2, 3)
    world.config, world.head = OTHER_CONFIG, head
    world.registry_is_up.set()
    for turn in range(2):  # a restart in between must not believe it either
        world.happened.clear()
        async with running(world, 0.01) as agent:
            await world.until_last("healing")
            assert world.happened == ["add 10.5.2.0/24,10.5.3.0/24", "healing"]
            assert "Its network is another" in agent.board.missing["registry-regressed"]
            if turn == 1:
                world.views.put_nowait(replace(view(revision=20), config=OTHER_CONFIG))
                assert (await call(world, "POST", "/v1/accept-view")).status == 200
                await world.until_ready(agent)
                assert world.happened[2:] == [
                    "lease", "healing ended", "cleared", "set nobody", "healing",
                ]  # fmt: skip


async def test_another_network_is_gone_on_with_when_the_grace_ends(world: World) -> None:
    remember(world, 2)
    world.settings = replace(world.settings, removal_grace_s=0.05)
    world.config, world.head = OTHER_CONFIG, Head(8, 20)
    world.registry_is_up.set()
    world.views.put_nowait(replace(view(revision=20), config=OTHER_CONFIG))
    async with running(world, 60) as agent:
        await world.until_ready(agent)
    assert "cleared" in world.happened


async def test_a_registry_that_is_put_right_is_gone_on_with(world: World) -> None:
    remember(world, 2)
    world.config, world.head = OTHER_CONFIG, Head(8, 20)
    world.registry_is_up.set()
    async with running(world, 0.01) as agent:
        await world.until_last("healing")
        await world.until(lambda: "registry-regressed" in agent.board.missing)
        world.config, world.head = CONFIG, Head(7, 10)
        world.views.put_nowait(view(2))
        await world.until_ready(agent)
    assert "cleared" not in world.happened


async def test_what_cannot_be_gone_on_with_costs_a_network_that_is_programmed_nothing(
    world: World,
) -> None:
    # The others of the network may be served well by what they remember, too.
    remember(world, 2)
    world.registry_is_up.set()
    world.head = Head(8, 20)
    world.refusals = [ConfigError("there is no network configuration")] * 1000
    async with running(world, 0.01) as agent:
        await world.until(lambda: "no-lease" in agent.board.missing)
        assert CONFIG_TEXT in agent.board.missing["no-lease"]
        assert "another cluster" in agent.board.missing["registry-regressed"]
        await world.until_last("healing")
        world.refusals.clear()
        world.no_dataplane = SettingsError("the network's backend is 'ipsec'", "write another")
        await world.until(lambda: "ipsec" in agent.board.missing["no-lease"])
        world.no_dataplane, world.head = None, Head(7, 10)
        world.views.put_nowait(view(2))
        await world.until_ready(agent)
    assert world.happened.count("healing") == 1


async def test_a_network_that_only_divides_otherwise_keeps_what_is_programmed(
    world: World,
) -> None:
    remember(world, 2)
    world.config = replace(CONFIG, first=replace(CONFIG.first, subnet_len=25))
    async with running(world, 0.01) as agent:
        await world.until_last("healing")
        world.registry_is_up.set()
        world.views.put_nowait(replace(view(2), config=world.config))
        await world.until_ready(agent)
    assert "cleared" not in world.happened


FLANNELS = Occupant("flannel.1", "02:00:00:00:00:0f", True, "device flannel.1 has VNI 1")


async def test_a_device_in_our_place_is_named_before_others_hear_of_us(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The lease tells the MAC: a Flannel that runs here would be cut off.
    monkeypatch.setattr("netplane.agent.agent.OCCUPIED_RETRY_S", 0.01)
    world.occupied = [FLANNELS]
    world.registry_is_up.set()
    world.views.put_nowait(view(2))
    async with running(world) as agent:
        await world.until(lambda: "kernel" in agent.board.missing)
        assert agent.board.missing["kernel"] == "device flannel.1 has VNI 1"
        assert world.happened == []
        world.occupied = []
        await world.until_ready(agent)


@pytest.mark.parametrize("is_flannels", [True, False])
async def test_flannels_device_is_taken_over_with_its_mac_and_no_other(
    world: World, is_flannels: bool
) -> None:
    world.settings = replace(world.settings, adopt_flannel=True)
    world.occupied = [FLANNELS._replace(is_flannels=is_flannels)]
    world.registry_is_up.set()
    world.views.put_nowait(view(2))
    async with running(world) as agent:
        if is_flannels:
            await world.until_ready(agent)
            assert world.data == [{"VNI": 1, "VtepMAC": FLANNELS.mac}]
            assert load(world.settings.state_file)[0].vtep_mac == FLANNELS.mac
        else:
            await world.until(lambda: "kernel" in agent.board.missing)
            assert world.data == []


FLANNELS6 = Occupant(
    "flannel-v6.1", "02:06:00:00:00:0f", True, "device flannel-v6.1 has VNI 1", is_second=True
)


@pytest.mark.parametrize("foreign", [None, FLANNELS, FLANNELS6])
async def test_two_devices_of_flannel_are_taken_over_together_or_not_at_all(
    world: World, foreign: Occupant | None
) -> None:
    world.settings = replace(world.settings, adopt_flannel=True)
    world.occupied = [one._replace(is_flannels=one is not foreign) for one in (FLANNELS, FLANNELS6)]
    world.registry_is_up.set()
    world.views.put_nowait(view(2))
    async with running(world) as agent:
        if foreign is None:
            await world.until_ready(agent)
            state = load(world.settings.state_file)[0]
            assert state.macs == (FLANNELS.mac, FLANNELS6.mac)
        else:
            await world.until(lambda: "kernel" in agent.board.missing)
            assert agent.board.missing["kernel"] == foreign.problem
            assert world.data == []


@pytest.mark.parametrize("mac6", ["", "02:06:00:00:00:0f"])
async def test_without_a_remembered_mac_it_is_that_of_our_device(world: World, mac6: str) -> None:
    # The file is lost and the device is not: peers go on to send to its MAC.
    mac = "02:00:00:00:00:bb"
    world.found_macs = (mac, mac6 or second_mac(mac))
    world.registry_is_up.set()
    world.views.put_nowait(view(2))
    async with running(world) as agent:
        await world.until_ready(agent)
        assert world.data == [{"VNI": 1, "VtepMAC": mac}]
        state = load(world.settings.state_file)[0]
        # The second follows from the first, unless it was Flannel's.
        assert (state.vtep_mac, state.vtep_mac6) == (mac, mac6)


async def test_a_remembered_mac_goes_before_that_of_a_device(world: World) -> None:
    remember(world, 2)
    world.found_macs = ("02:00:00:00:00:bb", "")
    world.registry_is_up.set()
    world.views.put_nowait(view(2))
    async with running(world) as agent:
        await world.until_ready(agent)
        assert world.data == [{"VNI": 1, "VtepMAC": "02:00:00:00:00:aa"}]


async def test_the_second_device_alone_does_not_give_the_first_its_mac(world: World) -> None:
    # An agent that was killed when it had renamed one of them.
    world.settings = replace(world.settings, adopt_flannel=True)
    world.occupied = [FLANNELS6]
    world.registry_is_up.set()
    world.views.put_nowait(view(2))
    async with running(world) as agent:
        await world.until_ready(agent)
        state = load(world.settings.state_file)[0]
        assert state.vtep_mac not in ("", FLANNELS6.mac)
        assert state.vtep_mac6 == FLANNELS6.mac


async def test_drain_gives_the_lease_back_first_then_the_kernel_and_ends(world: World) -> None:
    async with running(world) as agent:
        await world.until(lambda: "starting" not in agent.board.missing)
        assert (await call(world, "POST", "/v1/drain")).status == 409  # not joined yet
        world.registry_is_up.set()
        world.views.put_nowait(view(2))
        await world.until_ready(agent)
        world.refusals.append(UnavailableError("no endpoint answers"))
        refused = await call(world, "POST", "/v1/drain")
        assert json.loads(refused.body) == {
            "error": "the registry http://127.0.0.1:2379 does not answer: nothing was given back"
            " for good, the agent goes on",
            "remedy": "repeat it when `netplane ctl status` has no note `registry`",
        }
        world.refusals.append(RefusedError("permission denied"))
        refused = await call(world, "POST", "/v1/drain")
        assert json.loads(refused.body)["error"].startswith("permission denied: nothing was given")
        assert "cleared" not in world.happened

        assert (await call(world, "POST", "/v1/drain")).status == 200
    assert world.happened[-4:] == ["lease given back", "healing ended", "disconnected", "cleared"]
    assert not world.settings.subnet_file.exists()
    state, _ = load(world.settings.state_file)
    assert (state.own, state.peers) == (None, ())
    assert state.session  # we are still who we were


async def test_one_bad_peer_is_a_note_and_a_broken_device_is_not_ready(world: World) -> None:
    world.report = Report(
        Counter(route=2), Counter(route=1), (("route 10.5.2.0/24", "No route to host"),)
    )
    async with running(world) as agent:
        world.registry_is_up.set()
        world.views.put_nowait(view(2))
        await world.until_ready(agent)
        assert "route 10.5.2.0/24: No route to host" in agent.board.notes["kernel-refused"]
        world.report = Report(broken="cannot create np.1: Operation not permitted")
        world.views.put_nowait(view(2, 3))
        await world.until_last("set 10.5.2.0/24,10.5.3.0/24")
        assert b"kernel: cannot create np.1" in (await call(world, "GET", "/readyz")).body
        metrics = (await call(world, "GET", "/metrics")).body.decode()
    assert 'netplane_missing{code="kernel"} 1.0' in metrics
    assert 'netplane_healed_total{kind="route"} 1.0' in metrics


@pytest.mark.parametrize("masquerade", [False, True])
async def test_a_firewall_that_fails_is_a_note_unless_masquerading_was_asked_for(
    world: World, *, masquerade: bool
) -> None:
    problem = "this kernel lacks nf_tables: modprobe nf_tables"
    drops = "chain inet mine through drops what no rule of it accepts"
    world.settings = replace(world.settings, ip_masq=masquerade)
    world.wall = FirewallReport(problem=problem, forward=drops)
    async with running(world) as agent:
        world.registry_is_up.set()
        world.views.put_nowait(view(2))
        await world.until_last("healing")
        await world.until(lambda: "no-view" not in agent.board.missing)
        assert agent.board.missing == ({"firewall": problem} if masquerade else {})
        notes = {"forward": drops} | ({} if masquerade else {"firewall": problem})
        assert agent.board.notes == notes
        assert not agent.keeper.state.firewall
        world.wall = FirewallReport(Counter(firewall=9), Counter(forward=1), vteps=2)
        world.dropped = 5
        world.views.put_nowait(view(2, 3))
        await world.until_last("set 10.5.2.0/24,10.5.3.0/24")
        await world.until_ready(agent)
        assert agent.board.notes == {}
        assert agent.keeper.state.firewall
        metrics = (await call(world, "GET", "/metrics")).body.decode()
        status = json.loads((await call(world, "GET", "/v1/status")).body)
    assert 'netplane_healed_total{kind="forward"} 1.0' in metrics
    assert 'netplane_written_total{kind="firewall"} 9.0' in metrics
    assert "netplane_vteps 2.0" in metrics
    assert "netplane_dropped_total 5.0" in metrics
    assert status["firewall"]["masquerade"] is masquerade
    assert (status["firewall"]["vteps"], status["firewall"]["dropped"]) == (2, 5)
    assert f"FLANNEL_IPMASQ={str(masquerade).lower()}\n" in world.settings.subnet_file.read_text()


async def test_what_the_operator_must_change_ends_the_agent_with_that_error(world: World) -> None:
    world.no_interface = InterfaceError("there is no default route", "name it with --iface")
    agent = Agent(world.settings, world)
    with pytest.raises(InterfaceError):
        await agent.run(serving(agent))
    world.no_interface = None
    world.no_dataplane = SettingsError("the network's backend is 'ipsec'", "write another")
    world.registry_is_up.set()
    agent = Agent(world.settings, world)
    with pytest.raises(SettingsError, match="ipsec"):
        await agent.run(serving(agent))
    # ... and leaves lock and socket to the next.
    world.no_dataplane = None
    async with running(world):
        world.registry_is_up.set()
        await world.until_last("lease")
        second = Agent(world.settings, world)
        with pytest.raises(LockedError):
            await second.run(serving(second))
        assert (await call(world, "GET", "/healthz")).status == 200


async def test_a_folder_that_cannot_be_made_says_so(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    agent = Agent(replace(world.settings, state_dir=tmp_path / "file" / "lib"), world)
    with pytest.raises(SettingsError, match="--state-dir"):
        await agent.run(serving(agent))
