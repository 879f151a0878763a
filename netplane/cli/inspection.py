"""`netplane ctl trace` and `check`: they look at this host's kernel, and change nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import click

from netplane.agent.check import check as check_host
from netplane.agent.errors import AgentError
from netplane.agent.inspection import Finding, Known, State, known_of
from netplane.agent.trace import trace as trace_packet
from netplane.cli.ctl import ask_agent, output_option
from netplane.cli.flags import Address, Command, Failed, failed, instance_options
from netplane.cli.tables import write_json, write_table
from netplane.subnet import family


@click.command(cls=Command)
@instance_options
@output_option
@click.argument("source", type=Address())
@click.argument("destination", type=Address())
@click.pass_context
def trace(
    ctx: click.Context,
    /,
    source: family.Address,
    destination: family.Address,
    run_dir: Path,
    instance: str,
    write_out: str,
) -> None:
    """Show the way of a packet from SOURCE, on this host, to DESTINATION.

    Each line names an object that it depends on. The exit code is 1 when one is missing or wrong.
    """
    if source.version != destination.version:
        raise click.UsageError(f"{source} and {destination} are of different families")
    known = None
    try:
        halves = known_of(ask_agent("GET", "/v1/status", run_dir, instance))
        firewall = _firewall(halves, run_dir, instance)
        known = next((one for one in halves if one.own.subnet.version == source.version), None)
        agent = []
        if not halves:
            agent.append(Finding("agent", State.WRONG, "it has not joined a network yet"))
        elif known is None:
            text = f"its network has no IPv{source.version}"
            agent.append(Finding("agent", State.HINT, text))
    except Failed as error:
        firewall = None
        agent = [Finding("agent", State.WRONG, error.message)]
    _show(ctx, agent + _run(trace_packet(known, source, destination, firewall)), write_out)


@click.command(cls=Command)
@instance_options
@output_option
@click.pass_context
def check(ctx: click.Context, /, run_dir: Path, instance: str, write_out: str) -> None:
    """Compare this host's kernel with what its agent means to have.

    The exit code is 1 when something is wrong.
    """
    status = ask_agent("GET", "/v1/status", run_dir, instance)
    halves = known_of(status)
    firewall = _firewall(halves, run_dir, instance)
    _show(ctx, _run(check_host(halves, status, firewall)), write_out)


def _firewall(halves: list[Known], run_dir: Path, instance: str) -> dict[str, Any] | None:
    """Have the agent read the firewall: how its rules look in the kernel only it knows."""
    return (ask_agent("GET", "/v1/firewall", run_dir, instance) or None) if halves else None


def _run(work: Coroutine[Any, Any, list[Finding]]) -> list[Finding]:
    try:
        return asyncio.run(work)
    except AgentError as error:
        raise failed(error) from error


def _show(ctx: click.Context, found: list[Finding], write_out: str) -> None:
    rows: list[dict[str, Any]] = [
        {"subject": one.subject, "state": one.state.value, "text": one.text} for one in found
    ]
    if write_out == "json":
        write_json(rows)
    else:
        write_table(
            ("STATE", "SUBJECT", ""), [(row["state"], row["subject"], row["text"]) for row in rows]
        )
    ctx.exit(any(one.state is State.WRONG for one in found))
