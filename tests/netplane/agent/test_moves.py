"""The interface to the other hosts becomes another one under an agent."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

import pytest

from netplane.agent.errors import InterfaceError, SettingsError
from netplane.agent.ports import Report
from tests.netplane.agent.world import EXTERNAL, World, running, view


@pytest.mark.parametrize(
    ("changes", "public_ip", "done"),
    [
        (
            {"address": IPv4Interface("192.0.2.77/24")},
            "",
            ["lost 192.0.2.1", "moved to 192.0.2.77"],
        ),
        ({"address": IPv4Interface("192.0.2.77/24")}, "198.51.100.1", ["lost 192.0.2.1"]),
        ({"mtu": 1400}, "", ["moved to 192.0.2.1"]),
        ({"name": "wan0"}, "", ["left", "moved to 192.0.2.1"]),
    ],
)
async def test_an_interface_that_becomes_another_is_followed(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    public_ip: str,
    done: list[str],
) -> None:
    monkeypatch.setattr("netplane.agent.moves.SETTLE_S", 0.0)
    if public_ip:
        world.settings = replace(world.settings, public_ip=IPv4Address(public_ip))
    async with running(world) as agent:
        world.registry_is_up.set()
        world.views.put_nowait(view(2))
        await world.until_last("healing")
        before = len(world.happened)
        world.interface = replace(EXTERNAL, **changes)
        agent._take_report(Report(in_doubt=True))
        await world.until(lambda: len(world.happened) > before and world.happened[-1] == "healing")
        assert world.happened[before:] == ["healing ended", *done, "set 10.5.2.0/24", "healing"]
        assert agent.external == world.externals[-1] == world.interface


async def test_an_interface_that_is_gone_or_of_no_use_leaves_all_as_it_is(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netplane.agent.moves.SETTLE_S", 0.0)
    async with running(world) as agent:
        world.registry_is_up.set()
        world.views.put_nowait(view(2))
        await world.until_last("healing")
        before = list(world.happened)
        looked = len(world.looks)

        async def look_again() -> None:
            nonlocal looked
            agent._take_report(Report(in_doubt=True))
            await world.until(lambda: len(world.looks) > looked)
            looked = len(world.looks)

        world.no_interface = InterfaceError("there is no default route", "name it with --iface")
        await look_again()
        # Another index alone is nothing to us.
        world.no_interface, world.interface = None, replace(EXTERNAL, index=9)
        await look_again()
        assert world.happened == before
        world.interface = replace(EXTERNAL, mtu=600)
        world.no_dataplane = SettingsError("MTU 600 leaves 550 bytes", "raise it")
        await look_again()
        await world.until_last("set 10.5.2.0/24")  # as it was
        assert agent.external == EXTERNAL
        world.no_dataplane = None
        await look_again()
        await world.until_last("healing")
        assert agent.external == world.interface
