"""Takes away what an agent that ended has left in the kernel; asks no registry."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace
from ipaddress import IPv4Interface, IPv6Interface

from netplane.agent.errors import AgentError, InterfaceError
from netplane.agent.interface import ExternalInterface
from netplane.agent.lock import InstanceLock
from netplane.agent.ports import FirewallReport, Parts, Report
from netplane.agent.remembered import remembered_config
from netplane.agent.settings import Settings
from netplane.agent.state import State, load, save

log = logging.getLogger("netplane.agent")

NOWHERE = ExternalInterface(1, "lo", 1500, IPv4Interface("127.0.0.1/8"), IPv6Interface("::1/128"))


async def clean(settings: Settings, parts: Parts) -> str:
    """Remove our objects, set settings of the kernel back, and say what was done.

    What the host is (its id, its MAC, its subnet) stays remembered: an agent that starts again
    gets the same.

    Raises:
        AgentError: An agent runs, nothing is remembered, or the kernel refused.
    """
    lock = InstanceLock(settings.lock_file).acquire()
    with contextlib.closing(lock):
        state, complaint = await asyncio.to_thread(load, settings.state_file)
        config = remembered_config(state)
        if config is None:
            raise AgentError(
                complaint or f"{settings.state_file} tells of no network that was programmed",
                "name the agent's --state-dir and --instance, or remove what is left by hand:"
                " `ip link del` the devices np* and npb-*, `nft delete table` those that begin with"
                " netplane, and the rules of FORWARD or DOCKER-USER with that comment",
            )
        external = await _external(settings, parts, state)
        dataplane = parts.dataplane(settings, config, external, state.macs, state.sysctls)
        reports: list[Report] = []
        dataplane.on_report = reports.append
        walls: list[FirewallReport] = []
        dataplane.on_firewall = walls.append
        try:
            await dataplane.clear()
        finally:
            dataplane.close()
        problems = [f"{name}: {text}" for report in reports for name, text in report.failed]
        of_containers = 0
        try:
            of_containers = await parts.clear_containers(settings)
        except AgentError as error:
            problems.append(error.problem)
        problems += [report.broken for report in reports if report.broken]
        if walls and state.firewall:  # else there is nothing there, or nftables are not to be had
            # The newest knows of both.
            problems += [text for text in (walls[-1].problem, walls[-1].forward) if text]
        left = dataplane.sysctls
        try:
            left_there = state.firewall and bool(problems)
            now = replace(state, sysctls=left, firewall=left_there)
            await asyncio.to_thread(save, settings.state_file, now)
        except OSError as error:
            problems.append(f"cannot write {settings.state_file}: {error.strerror}")
        if problems:
            raise AgentError("; ".join(problems), "correct that and repeat")
        back = len(state.sysctls) - len(left)
        removed = of_containers
        removed += sum(number for wall in walls for number in wall.written.values())
        removed += sum(
            number
            for report in reports
            for kind, number in report.written.items()
            if kind != "sysctl"
        )
        return f"{removed} objects removed, {back} settings set back"


async def _external(settings: Settings, parts: Parts, state: State) -> ExternalInterface:
    """Return the interface that our routes leave by, also where nothing tells it any more.

    What else there is of ours has a name, a protocol number or a comment of its own.
    """
    try:
        return await parts.external(settings)
    except InterfaceError as error:
        ours = () if state.own is None else state.own.addresses
        for address in ours:
            with contextlib.suppress(InterfaceError):
                by_address = replace(settings, iface=(str(address),), iface_regex=())
                return await parts.external(by_address)
        log.warning("%s: routes over it that had no device of ours stay", error.problem)
    return NOWHERE
