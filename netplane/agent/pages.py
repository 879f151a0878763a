"""What the agent tells: health and metrics to everybody, status and commands to its socket."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from netplane.agent.agent import Agent
from netplane.agent.errors import AgentError
from netplane.agent.health import Page, Routes, Server, json_page, text_page
from netplane.agent.metrics import render
from netplane.agent.remembered import remembered_config
from netplane.netlink.objects import Sysctl
from netplane.subnet.lease import Lease


@contextlib.asynccontextmanager
async def serving(agent: Agent) -> AsyncIterator[None]:
    """Serve the pages of an agent while the block runs. Raises SettingsError."""
    public = public_routes(agent)
    private = Server({**public, **command_routes(agent)})
    health = Server(public)
    settings = agent.settings
    try:
        await private.listen_unix(settings.socket)
        if settings.healthz_port:
            await health.listen_tcp(settings.healthz_ip, settings.healthz_port)
        yield
    finally:
        await health.close()
        await private.close()


def public_routes(agent: Agent) -> Routes:
    """Return the pages for load balancers, monitoring and people without root."""

    async def healthz(_query: Mapping[str, str]) -> Page:
        return text_page("ok\n")

    async def readyz(_query: Mapping[str, str]) -> Page:
        if agent.board.is_ready:
            return text_page("ok\n" + agent.board.notes_text())
        return text_page(agent.board.text() + agent.board.notes_text(), 503)

    async def metrics(_query: Mapping[str, str]) -> Page:
        board = agent.board
        dropped = await agent.dropped()
        page = render(
            agent.counts, gauges(agent), board.missing, board.notes, dropped, await agent.counters()
        )
        return Page(200, page, "text/plain; version=0.0.4; charset=utf-8")

    return {
        ("GET", "/healthz"): healthz,
        ("GET", "/readyz"): readyz,
        ("GET", "/metrics"): metrics,
    }


def command_routes(agent: Agent) -> Routes:
    """Return what `netplane ctl` asks for, and may order."""

    async def show(_query: Mapping[str, str]) -> Page:
        told = status(agent, await agent.dropped())
        return json_page({**told, "process": await agent.counters()})

    async def firewall(_query: Mapping[str, str]) -> Page:
        look = await agent.look_at_firewall()
        return json_page({} if look is None else asdict(look))

    async def accept_view(_query: Mapping[str, str]) -> Page:
        if agent.accept_view():
            return json_page({})
        return json_page({"error": "the registry has not told anything yet"}, 409)

    async def drain(_query: Mapping[str, str]) -> Page:
        try:
            await agent.drain()
        except AgentError as error:
            return json_page({"error": error.problem, "remedy": error.remedy}, 409)
        return json_page({})

    return {
        ("GET", "/v1/status"): show,
        ("GET", "/v1/firewall"): firewall,
        ("POST", "/v1/accept-view"): accept_view,
        ("POST", "/v1/drain"): drain,
    }


def gauges(agent: Agent) -> dict[str, float]:
    """Return the values of now for the metrics page."""
    now_s = time.monotonic()
    values: dict[str, float] = {"ready": agent.board.is_ready}
    values |= {"peers": len(agent.peers), "vteps": agent.firewall.vteps}
    if agent.view is not None:
        values["quarantined"] = len(agent.view.quarantined)
        values["view_revision"] = agent.view.revision
        values["view_age_seconds"] = now_s - agent.view_at_s
    lease_age_s = agent.lease_age_s()
    if lease_age_s is not None:
        values["lease_age_seconds"] = lease_age_s
    return values


def status(agent: Agent, dropped: int | None) -> dict[str, Any]:
    """Return everything that `netplane ctl status` shows; `dropped` as of `Agent.dropped`."""
    view, external, state = agent.view, agent.external, agent.keeper.state
    settings, config = agent.settings, remembered_config(state)
    return {
        "ready": agent.board.is_ready,
        "missing": agent.board.missing,
        "notes": agent.board.notes,
        "instance": settings.instance,
        "host_id": state.host_id,
        "interface": None
        if external is None
        else {
            "name": external.name,
            "address": str(external.address),
            "address6": str(external.address6) if external.address6 is not None else None,
            "mtu": external.mtu,
        },
        "network": {
            "config": state.config,
            "mac": state.macs[0],
            **({"mac6": state.macs[1]} if config is not None and config.second else {}),
        },
        "own": None if agent.own is None else show_lease(agent.own),
        "peers": [show_lease(lease) for _, lease in sorted(agent.peers.items())],
        "registry": None
        if view is None
        else {
            "cluster_id": f"{view.cluster_id:x}",
            "revision": view.revision,
            "age_s": round(time.monotonic() - agent.view_at_s, 3),
            "quarantined": {
                key.decode("utf-8", "backslashreplace"): reason
                for key, reason in sorted(view.quarantined.items())
            },
        },
        "kernel": {
            "rounds": agent.counts.applies,
            "written": dict(agent.counts.written),
            "healed": dict(agent.counts.healed),
            "settings": show_settings(agent.kept_sysctls, state.sysctls),
            "refused": dict(agent.report.failed),
        },
        "firewall": {
            "table": settings.table,
            "masquerade": settings.ip_masq,
            "fully_random": not settings.ip_masq_fully_random_disable,
            "forward_rules": settings.iptables_forward_rules,
            "blackhole_route": settings.ip_blackhole_route,
            "vteps": agent.firewall.vteps,
            "dropped": dropped,
        },
    }


def show_settings(kept: Sequence[Sysctl], before: Mapping[str, str]) -> dict[str, Any]:
    """Return the kernel's settings as JSON shows them: what they are kept as, and were before."""
    shown: dict[str, dict[str, str]] = {name: {"was": before[name]} for name in sorted(before)}
    for one in kept:
        value = f"{one.value} or {one.also}" if one.also else one.value
        shown.setdefault(one.name, {})["value"] = value
    return shown


def show_lease(lease: Lease) -> dict[str, Any]:
    """Return a lease as JSON shows it."""
    shown = {
        "subnet": str(lease.subnet),
        "public_ip": str(lease.public_ip),
        "backend": lease.backend_type,
        "data": lease.backend_data,
        "reserved": not lease.expires,
        "created": lease.create_revision,
    }
    if lease.subnet6 is not None:
        shown |= {
            "subnet6": str(lease.subnet6),
            "public_ip6": str(lease.public_ip6),
            "data6": lease.backend_data6,
        }
    return shown
