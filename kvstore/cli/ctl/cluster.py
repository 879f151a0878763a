"""endpoint health, status and hashkv, alarm list and disarm."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import click

from kvstore.cli.ctl import go
from kvstore.cli.ctl.context import (
    Command,
    CtlError,
    CtlExit,
    Int64,
    accept_no_arguments,
    arguments,
    error_text,
    failed,
    hint_for,
    printer,
    settings,
    write_error,
)
from kvstore.cli.ctl.printers import Health

if TYPE_CHECKING:
    from kvstore.cli.ctl.context import Settings
    from kvstore.cli.ctl.printers import Rows
    from kvstore.client import AsyncClient, KvError

_CLUSTER = "kvstore.ctl.cluster"


@click.group()
@click.option("--cluster", is_flag=True, help="Ask every member in the cluster's own list.")
@click.pass_context
def endpoint(ctx: click.Context, *, cluster: bool) -> None:
    """Ask single endpoints."""
    ctx.meta[_CLUSTER] = cluster


def _cluster_flag(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
    return value or bool(ctx.meta.get(_CLUSTER))


cluster_option = click.option(
    "--cluster",
    is_flag=True,
    callback=_cluster_flag,
    help="Ask every member in the cluster's own list.",
)


async def _endpoints(flags: Settings, client: AsyncClient, *, cluster: bool) -> tuple[str, ...]:
    from kvstore.client import KvError

    if not cluster:
        return flags.endpoints
    try:
        members = await client.member_list()
    except KvError as error:
        failed(error, form="failed to fetch endpoints from etcd cluster member list: {}")
    return tuple(url for each in members for url in each.client_urls)


@endpoint.command(cls=Command)
@arguments
@cluster_option
def health(args: tuple[str, ...], *, cluster: bool) -> None:
    """Check that each endpoint can serve: a linearizable read, and no alarm."""
    accept_no_arguments(args, "endpoint health")
    flags = settings()

    async def check(name: str) -> Health:
        async with flags.client([name]) as client:
            begun_ns = time.perf_counter_ns()
            error = await _ailment(client)
            took = go.duration(time.perf_counter_ns() - begun_ns)
        return Health(name, is_healthy=not error, took=took, error=error)

    async def check_all(client: AsyncClient) -> list[Health]:
        names = await _endpoints(flags, client, cluster=cluster)
        return await asyncio.gather(*(check(name) for name in names))

    results = flags.run(check_all)
    printer().health(results)
    if not all(result.is_healthy for result in results):
        raise CtlError(
            "unhealthy cluster", hint="the reason is beside each endpoint; is the server running?"
        )


async def _ailment(client: AsyncClient) -> str:
    from kvstore.client import KvError, PermissionDeniedError

    try:
        await client.get(b"health")
    except PermissionDeniedError:
        return ""  # it took a quorum to refuse that; alarms are not for this user to see
    except KvError as error:
        return error_text(error)
    try:
        alarms = await client.alarm_list()
    except PermissionDeniedError:
        return ""
    except KvError as error:
        return "Unable to fetch the alarm list: " + error_text(error)
    if alarms:
        return "Active Alarm(s): " + " ".join(alarm.kind for alarm in alarms)
    return ""


def _ask_each(
    method: Any, request: Any, what: str, *, cluster: bool
) -> tuple[Rows, KvError | None]:
    """Ask every endpoint the same, say which fail, and return the answers and the last failure."""
    from kvstore.client import KvError

    flags = settings()

    async def ask(client: AsyncClient) -> tuple[Rows, KvError | None]:
        rows: Rows = []
        last: KvError | None = None
        for name in await _endpoints(flags, client, cluster=cluster):
            try:
                answer = await client.call(method, request, write=False, endpoint=name)
            except KvError as error:
                last = error
                write_error(f"Failed to get the {what} of endpoint {name} ({error_text(error)})")
            else:
                rows.append((name, answer))
        return rows, last

    return flags.run(ask)


@endpoint.command(cls=Command)
@arguments
@cluster_option
def status(args: tuple[str, ...], *, cluster: bool) -> None:
    """Show the status of each endpoint."""
    from kvstore.client.methods import STATUS

    accept_no_arguments(args, "endpoint status")
    rows, error = _ask_each(STATUS, STATUS.request(), "status", cluster=cluster)
    printer().status(rows)
    if error is not None:
        write_error(f"Hint: {hint_for(error)}")
        raise CtlExit(1)


@endpoint.command(cls=Command)
@arguments
@cluster_option
@click.option("--rev", default=0, type=Int64(), help="Hash the history up to this revision.")
def hashkv(args: tuple[str, ...], *, cluster: bool, rev: int) -> None:
    """Show the hash of each endpoint's history: equal on all healthy members."""
    from kvstore.client.methods import HASH_KV

    accept_no_arguments(args, "endpoint hashkv")
    request = HASH_KV.request(revision=rev)
    rows, error = _ask_each(HASH_KV, request, "hash", cluster=cluster)
    printer().hashes(rows)
    if error is not None:
        failed(error)


@click.group()
def alarm() -> None:
    """Show and clear alarms."""


@alarm.command("list", cls=Command)
@arguments
def alarm_list(args: tuple[str, ...]) -> None:
    """List all alarms."""
    from kvstore.client import KvError
    from kvstore.client.methods import ALARM

    accept_no_arguments(args, "alarm list")
    try:
        answer = settings().run(
            lambda client: client.call(ALARM, ALARM.request(action="GET"), write=False)
        )
    except KvError as error:
        failed(error)
    printer().alarms(answer)


@alarm.command("disarm", cls=Command)
@arguments
def alarm_disarm(args: tuple[str, ...]) -> None:
    """Clear all alarms."""
    from kvstore.client import KvError
    from kvstore.client.methods import ALARM

    accept_no_arguments(args, "alarm disarm")

    async def disarm(client: AsyncClient) -> Any:
        cleared = ALARM.response()
        raised = await client.call(ALARM, ALARM.request(action="GET"), write=False)
        for each in raised.alarms:
            request = ALARM.request(action="DEACTIVATE", memberID=each.memberID, alarm=each.alarm)
            answer = await client.call(ALARM, request, write=True)
            cleared.alarms.extend(answer.alarms)
        return cleared

    try:
        answer = settings().run(disarm)
    except KvError as error:
        failed(error)
    printer().alarms(answer)
