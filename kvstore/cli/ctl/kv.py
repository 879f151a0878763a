"""put, get, del, compaction: keys; the same options build the operations of `txn`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from kvstore.cli.ctl import go
from kvstore.cli.ctl.context import (
    BAD_ARGUMENTS,
    BAD_FEATURE,
    Command,
    CtlError,
    Int64,
    arguments,
    failed,
    lease_id,
    settings,
    to_bytes,
    write_line,
)
from kvstore.cli.ctl.printers import make_printer

if TYPE_CHECKING:
    from collections.abc import Sequence

PUT_USAGE = "put command needs 1 argument and input from stdin or 2 arguments"


def put_request(
    args: Sequence[str], *, lease: str, prev_kv: bool, ignore_value: bool, ignore_lease: bool
) -> Any:
    """Build the request of `put`."""
    from kvstore.client.methods import PUT

    if not 1 <= len(args) <= 2:
        raise CtlError(PUT_USAGE, BAD_ARGUMENTS, "quote values that contain blanks")
    if ignore_value and len(args) > 1:
        raise CtlError(
            "put command needs only 1 argument when 'ignore-value' is set", BAD_ARGUMENTS
        )
    number = lease_id(lease, "bad lease ID ({}), expecting ID in Hex")
    value = b""
    if len(args) == 2:
        value = to_bytes(args[1])
    elif not ignore_value:
        value = sys.stdin.buffer.read()
        if not value:
            raise CtlError(PUT_USAGE, BAD_ARGUMENTS, "for an empty value give '' as the second")
    return PUT.request(
        key=to_bytes(args[0]),
        value=value,
        lease=number,
        prev_kv=prev_kv,
        ignore_value=ignore_value,
        ignore_lease=ignore_lease,
    )


def bounds(
    args: Sequence[str], command: str, *, prefix: bool, from_key: bool
) -> tuple[bytes, bytes]:
    """Return key and range end of `get` and `del`."""
    from kvstore.client import TO_THE_END, prefix_end

    if prefix and from_key:
        raise CtlError(
            "`--prefix` and `--from-key` cannot be set at the same time, choose one",
            BAD_ARGUMENTS,
        )
    if not 1 <= len(args) <= 2:
        raise CtlError(
            f"{command} command needs one argument as key and an optional argument as range_end",
            BAD_ARGUMENTS,
        )
    key = to_bytes(args[0])
    if len(args) == 2:
        if prefix or from_key:
            raise CtlError(
                "too many arguments, only accept one argument when `--prefix` or `--from-key`"
                " is set",
                BAD_ARGUMENTS,
            )
        return key, to_bytes(args[1])
    if from_key:
        return key or b"\0", TO_THE_END
    if prefix:
        return key or b"\0", prefix_end(key)
    return key, b""


def range_request(
    args: Sequence[str],
    *,
    consistency: str,
    order: str,
    sort_by: str,
    limit: int,
    rev: int,
    prefix: bool,
    from_key: bool,
    keys_only: bool,
    count_only: bool,
) -> Any:
    """Build the request of `get`."""
    from kvstore.client.methods import RANGE

    key, range_end = bounds(args, "get", prefix=prefix, from_key=from_key)
    if consistency not in {"l", "s"}:
        raise CtlError(
            f"unknown consistency flag {go.quote(consistency.encode())}",
            BAD_FEATURE,
            "l asks the leader, s takes what one member has",
        )
    if order.upper() not in {"", "ASCEND", "DESCEND"}:
        raise CtlError(f"bad sort order {order}", BAD_FEATURE, "write ASCEND or DESCEND")
    targets = {name: name for name in ("CREATE", "KEY", "VALUE", "VERSION")}
    targets |= {"": "KEY", "MODIFY": "MOD"}
    if sort_by.upper() not in targets:
        raise CtlError(
            f"bad sort target {sort_by}",
            BAD_FEATURE,
            "write CREATE, KEY, MODIFY, VALUE or VERSION",
        )
    return RANGE.request(
        key=key,
        range_end=range_end,
        limit=limit,
        revision=rev,
        sort_order=order.upper() or "NONE",
        sort_target=targets[sort_by.upper()],
        serializable=consistency == "s",
        keys_only=keys_only,
        count_only=count_only,
    )


def delete_request(args: Sequence[str], *, prefix: bool, from_key: bool, prev_kv: bool) -> Any:
    """Build the request of `del`."""
    from kvstore.client.methods import DELETE_RANGE

    key, range_end = bounds(args, "del", prefix=prefix, from_key=from_key)
    return DELETE_RANGE.request(key=key, range_end=range_end, prev_kv=prev_kv)


def call(method: Any, request: Any, *, write: bool) -> Any:
    """Make one call with the global flags; end kvctl when it fails."""
    from kvstore.client import KvError

    try:
        return settings().run(lambda client: client.call(method, request, write=write))
    except KvError as error:
        failed(error)


@click.command(cls=Command)
@arguments
@click.option("--lease", default="0", help="Lease ID (in hexadecimal) to attach to the key.")
@click.option("--prev-kv", is_flag=True, help="Show what was there before.")
@click.option("--ignore-value", is_flag=True, help="Keep the key's value.")
@click.option("--ignore-lease", is_flag=True, help="Keep the key's lease.")
def put(args: tuple[str, ...], **options: Any) -> None:
    """Put the given key into the store.

    put KEY VALUE; or put KEY, with the value from standard input. Write -- before a value that
    begins with a dash.
    """
    from kvstore.client.methods import PUT

    printer = make_printer(settings().output, is_hex=settings().is_hex)
    printer.put(call(PUT, put_request(args, **options), write=True))


@click.command(cls=Command)
@arguments
@click.option("--consistency", default="l", help="Linearizable (l) or serializable (s).")
@click.option("--order", default="", help="Order of results: ASCEND or DESCEND.")
@click.option("--sort-by", default="", help="CREATE, KEY, MODIFY, VALUE or VERSION.")
@click.option("--limit", default=0, type=Int64(), help="Maximum number of results.")
@click.option("--rev", default=0, type=Int64(), help="Read the store as of this revision.")
@click.option("--prefix", is_flag=True, help="Get all keys that start with KEY.")
@click.option("--from-key", is_flag=True, help="Get all keys from KEY on, in byte order.")
@click.option("--keys-only", is_flag=True, help="Get only the keys.")
@click.option("--count-only", is_flag=True, help="Get only the count (as etcdctl 3.5).")
@click.option("--print-value-only", is_flag=True, help="Write only values (with -w simple).")
def get(args: tuple[str, ...], *, print_value_only: bool, **options: Any) -> None:
    """Get the key, or a range of keys: get KEY [RANGE_END]."""
    from kvstore.client.methods import RANGE

    request = range_request(args, **options)
    flags = settings()
    if print_value_only and flags.output != "simple":
        raise CtlError("print-value-only is only for `--write-out=simple`", BAD_ARGUMENTS)
    if options["count_only"] and flags.output == "simple":
        raise CtlError("--count-only is only for `--write-out=fields`", BAD_ARGUMENTS, "or -w json")
    printer = make_printer(flags.output, is_hex=flags.is_hex, value_only=print_value_only)
    printer.get(call(RANGE, request, write=False))


@click.command("del", cls=Command)
@arguments
@click.option("--prefix", is_flag=True, help="Delete all keys that start with KEY.")
@click.option("--from-key", is_flag=True, help="Delete all keys from KEY on, in byte order.")
@click.option("--prev-kv", is_flag=True, help="Show what was deleted.")
def delete(args: tuple[str, ...], **options: Any) -> None:
    """Delete the key, or a range of keys: del KEY [RANGE_END]."""
    from kvstore.client.methods import DELETE_RANGE

    request = delete_request(args, **options)
    printer = make_printer(settings().output, is_hex=settings().is_hex)
    printer.delete(call(DELETE_RANGE, request, write=True))


@click.command(cls=Command)
@arguments
@click.option("--physical", is_flag=True, help="Wait until the space is free for reuse.")
def compaction(args: tuple[str, ...], *, physical: bool) -> None:
    """Give up the history before a revision: compaction REVISION."""
    from kvstore.client.methods import COMPACT

    if len(args) != 1:
        raise CtlError("compaction command needs 1 argument", BAD_ARGUMENTS)
    try:
        revision = go.parse_int(args[0])
    except ValueError as error:
        raise CtlError(str(error)) from error
    call(COMPACT, COMPACT.request(revision=revision, physical=physical), write=True)
    write_line(f"compacted revision {revision}")
