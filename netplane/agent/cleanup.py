"""Takes away what an agent that ended has left in the kernel; asks no registry."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

from netplane.agent.errors import AgentError
from netplane.agent.files import write_whole
from netplane.agent.lock import InstanceLock
from netplane.agent.ports import Parts, Report
from netplane.agent.settings import Settings
from netplane.agent.state import encode, load
from netplane.subnet.config import parse_config
from netplane.subnet.errors import ConfigError


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
        if not state.config:
            raise AgentError(
                complaint or f"{settings.state_file} tells of no network that was programmed",
                "remove what is left by hand: `ip link del np.VNI`",
            )
        try:
            config = parse_config(state.config.encode())
        except ConfigError as error:
            raise AgentError(
                str(error), "remove what is left by hand: `ip link del np.VNI`"
            ) from error
        external = await parts.external(settings)
        dataplane = parts.dataplane(settings, config, external, state.vtep_mac, state.sysctls)
        reports: list[Report] = []
        dataplane.on_report = reports.append
        try:
            await dataplane.clear()
        finally:
            dataplane.close()
        await asyncio.to_thread(
            write_whole, settings.state_file, encode(replace(state, sysctls=dataplane.sysctls))
        )
        problems = [f"{name}: {text}" for report in reports for name, text in report.failed]
        if problems:
            raise AgentError("; ".join(problems), "correct that and repeat")
        removed = sum(sum(report.written.values()) for report in reports)
        return f"{removed} objects removed, {len(state.sysctls)} settings set back"
