"""lease grant, revoke, timetolive, list, keep-alive."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from kvstore.cli.ctl import go
from kvstore.cli.ctl.context import (
    BAD_ARGUMENTS,
    BAD_CONNECTION,
    Command,
    CtlError,
    accept_no_arguments,
    arguments,
    failed,
    flush,
    lease_id,
    settings,
    write_line,
)
from kvstore.cli.ctl.printers import make_printer

if TYPE_CHECKING:
    from kvstore.cli.ctl.printers import Printer
    from kvstore.client import AsyncClient

_BAD_ID = "bad lease ID arg ({}), expecting ID in Hex"


@click.group()
def lease() -> None:
    """Grant, renew and revoke leases."""


def _printer() -> Printer:
    return make_printer(settings().output, is_hex=settings().is_hex)


def _call(method: Any, request: Any, *, write: bool, code: int, form: str = "{}") -> Any:
    from kvstore.client import KvError

    try:
        return settings().run(lambda client: client.call(method, request, write=write))
    except KvError as error:
        failed(error, code, form)


@lease.command(cls=Command)
@arguments
def grant(args: tuple[str, ...]) -> None:
    """Grant a lease: lease grant TTL, in seconds."""
    from kvstore.client.methods import LEASE_GRANT

    if len(args) != 1:
        raise CtlError("lease grant command needs TTL argument", BAD_ARGUMENTS)
    try:
        ttl_s = go.parse_int(args[0])
    except ValueError as error:
        raise CtlError(f"bad TTL ({error})", BAD_ARGUMENTS, "write seconds, such as 60") from error
    request = LEASE_GRANT.request(TTL=ttl_s)
    form = "failed to grant lease ({})"
    _printer().grant(_call(LEASE_GRANT, request, write=True, code=1, form=form))


@lease.command(cls=Command)
@arguments
def revoke(args: tuple[str, ...]) -> None:
    """Revoke a lease and delete its keys: lease revoke ID, in hexadecimal."""
    from kvstore.client.methods import LEASE_REVOKE

    if len(args) != 1:
        raise CtlError("lease revoke command needs 1 argument", BAD_ARGUMENTS)
    number = lease_id(args[0], _BAD_ID)
    request = LEASE_REVOKE.request(ID=number)
    answer = _call(LEASE_REVOKE, request, write=True, code=1, form="failed to revoke lease ({})")
    _printer().revoke(answer, number)


@lease.command(cls=Command)
@arguments
@click.option("--keys", is_flag=True, help="Show the keys attached to the lease.")
def timetolive(args: tuple[str, ...], *, keys: bool) -> None:
    """Show how long a lease lives yet: lease timetolive ID, in hexadecimal."""
    from kvstore.client.methods import LEASE_TIME_TO_LIVE

    if len(args) != 1:
        raise CtlError("lease timetolive command needs lease ID as argument", BAD_ARGUMENTS)
    request = LEASE_TIME_TO_LIVE.request(ID=lease_id(args[0], _BAD_ID), keys=keys)
    answer = _call(LEASE_TIME_TO_LIVE, request, write=False, code=BAD_CONNECTION)
    _printer().time_to_live(answer, keys=keys)


@lease.command("list", cls=Command)
@arguments
def list_all(args: tuple[str, ...]) -> None:
    """List all leases."""
    from kvstore.client.methods import LEASE_LEASES

    accept_no_arguments(args, "lease list")
    answer = _call(LEASE_LEASES, LEASE_LEASES.request(), write=False, code=BAD_CONNECTION)
    _printer().leases(answer)


@lease.command("keep-alive", cls=Command)
@arguments
@click.option("--once", is_flag=True, help="Renew it once and exit.")
def keep_alive(args: tuple[str, ...], *, once: bool) -> None:
    """Renew a lease until it ends: lease keep-alive ID, in hexadecimal."""
    from kvstore.client import KvError

    if len(args) != 1:
        raise CtlError("lease keep-alive command needs lease ID as argument", BAD_ARGUMENTS)
    number = lease_id(args[0], _BAD_ID)
    printer = _printer()

    async def renew(client: AsyncClient) -> None:
        while (answer := await client.keep_alive_response(number)).TTL > 0:
            printer.keep_alive(answer)
            flush()
            if once:
                return
            await asyncio.sleep(answer.TTL / 3)
        if once:
            raise CtlError(
                "etcdserver: requested lease not found", BAD_CONNECTION, "grant a new lease"
            )
        write_line(f"lease {number:016x} expired or revoked.")

    try:
        settings().run(renew)
    except KvError as error:
        failed(error, BAD_CONNECTION)
