"""watch: follow keys, interactively or not, and run a command for each event."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from kvstore.cli.ctl import go
from kvstore.cli.ctl.context import (
    BAD_ARGUMENTS,
    INTERRUPTED,
    INVALID_INPUT,
    Command,
    CtlError,
    CtlExit,
    Int64,
    Settings,
    error_text,
    failed,
    flush,
    hint_for,
    settings,
    to_bytes,
    write_error,
    write_line,
)
from kvstore.cli.ctl.printers import make_printer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvstore.client import AsyncClient, KvError, Watcher

_EXEC = "kvstore.ctl.watch.exec"


class WatchCommand(Command):
    """Keeps what stands behind `--` apart: it is the command to run, not a key."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Cut the arguments at `--`."""
        ctx.meta[_EXEC] = ()
        if "--" in args:
            position = args.index("--")
            ctx.meta[_EXEC] = tuple(args[position + 1 :])
            args = args[:position]
            if not ctx.meta[_EXEC]:
                raise CtlError(
                    "bad number of arguments (found separator --, but no commands)", BAD_ARGUMENTS
                )
        return super().parse_args(ctx, args)


@click.command(cls=WatchCommand)
@click.argument("args", nargs=-1)
@click.option("-i", "--interactive", is_flag=True, help="Read watch and progress lines from stdin.")
@click.option("--prefix", is_flag=True, help="Watch all keys that start with KEY.")
@click.option("--rev", default=0, type=Int64(), help="Revision to start at.")
@click.option("--prev-kv", is_flag=True, help="Show each key as it was before.")
@click.option("--progress-notify", is_flag=True, help="Let the server report how far it is.")
@click.pass_context
def watch(ctx: click.Context, /, *, interactive: bool, **options: Any) -> None:
    """Watch keys: watch KEY [RANGE_END] [-- COMMAND ARG...].

    The command runs once for each event, with ETCD_WATCH_REVISION, _EVENT_TYPE, _KEY and _VALUE
    in its environment.
    """
    if interactive:
        settings().run(lambda client: Session(settings(), client).read_lines())
        return
    keys, extra = bounds(options["args"], prefix=options["prefix"])
    command = ctx.meta[_EXEC]
    session_settings = settings()

    async def follow(client: AsyncClient) -> None:
        from kvstore.client import KvError

        session = Session(session_settings, client)
        watcher = session.open(keys, extra, options)
        try:
            await session.show(watcher, command)
        except KvError as error:
            if error.grpc_code == "":
                failed(error)
            session.say_cancelled(error)
            raise CtlError(
                "watch is canceled by the server", INTERRUPTED, hint_for(error)
            ) from error

    session_settings.run(follow)


def bounds(args: Sequence[str], *, prefix: bool) -> tuple[str, str]:
    """Return key and range end, from the arguments or the environment."""
    key, range_end = (
        os.environ.get(name, "") for name in ("ETCDCTL_WATCH_KEY", "ETCDCTL_WATCH_RANGE_END")
    )
    if range_end and not key:
        raise CtlError(
            "ETCDCTL_WATCH_KEY is empty but got"
            f" ETCDCTL_WATCH_RANGE_END={go.quote(to_bytes(range_end))}",
            BAD_ARGUMENTS,
        )
    if key:
        if args:
            raise CtlError(
                "bad number of arguments (found conflicting environment key)", BAD_ARGUMENTS
            )
        args = (key, range_end) if range_end else (key,)
    if not 1 <= len(args) <= 2:
        raise CtlError("bad number of arguments", BAD_ARGUMENTS)
    if len(args) == 2 and prefix:
        raise CtlError("`range_end` and `--prefix` are mutually exclusive", BAD_ARGUMENTS)
    return args[0], args[1] if len(args) == 2 else ""


class Session:
    """The watches of one run of kvctl."""

    def __init__(self, flags: Settings, client: AsyncClient) -> None:
        self._client = client
        self._printer = make_printer(flags.output, is_hex=flags.is_hex)
        self._watchers: list[Watcher] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, key: str, range_end: str, options: dict[str, Any]) -> Watcher:
        """Prepare a watch; an empty key without a prefix is the first one there can be."""
        return self._client.watch(
            to_bytes(key) if key or options["prefix"] else b"\0",
            to_bytes(range_end),
            prefix=options["prefix"],
            start_revision=options["rev"],
            prev_kv=options["prev_kv"],
            progress_notify=options["progress_notify"],
        )

    async def show(self, watcher: Watcher, command: Sequence[str]) -> None:
        """Print what arrives, until the watch ends with an error."""
        while (response := await watcher.next_response()) is not None:
            if not response.events:
                write_line(f"progress notify: {response.header.revision}")
            self._printer.watch(response)
            flush()
            if command:
                for event in response.events:
                    await self._run(command, response.header.revision, event)

    async def _run(self, command: Sequence[str], revision: int, event: Any) -> None:
        kind = "DELETE" if event.type else "PUT"
        environment = os.environ | {
            "ETCD_WATCH_REVISION": str(revision),
            "ETCD_WATCH_EVENT_TYPE": go.quote(kind.encode()),
            "ETCD_WATCH_KEY": go.quote(event.kv.key),
            "ETCD_WATCH_VALUE": go.quote(event.kv.value),
        }
        try:
            process = await asyncio.create_subprocess_exec(*command, env=environment)
        except OSError as error:
            raise CtlError(f"command {command[0]} error ({error.strerror})") from error
        code = await process.wait()
        if code:
            raise CtlError(f"command {list(command)} error (exit status {code})")

    def say_cancelled(self, error: KvError) -> None:
        """Say why a watch has ended."""
        write_error(f"watch was canceled ({error_text(error)})")

    async def read_lines(self) -> None:
        """Obey the lines of standard input: `watch ...` and `progress`."""
        loop = asyncio.get_running_loop()
        while True:
            raw = await loop.run_in_executor(None, sys.stdin.buffer.readline)
            if not raw.endswith(b"\n"):
                raise CtlError("error reading watch request line: EOF", INVALID_INPUT)
            line = raw[:-1].decode("utf-8", "surrogateescape")
            try:
                words = go.split_words(line)
            except ValueError as error:
                raise CtlError(str(error), INVALID_INPUT) from error
            if words[:1] == ["watch"]:
                await self._watch(line, words[1:])
            elif words[:1] == ["progress"]:
                for watcher in self._watchers:
                    await watcher.request_progress()
            elif words:
                write_error(f"Invalid command {line} (only support watch)")
            else:
                write_error(f"Invalid command: {line} (watch and progress supported)")

    async def _watch(self, line: str, words: list[str]) -> None:
        from kvstore.client import KvError

        try:
            context = watch.make_context("watch", words)
            options = context.params
            keys = bounds(options["args"], prefix=options["prefix"])
        except click.UsageError as error:
            raise CtlError(error.format_message(), BAD_ARGUMENTS) from error
        except CtlError as error:
            write_error(f"Invalid command {line} ({error.text})")
            return
        watcher = self.open(*keys, options)
        try:
            # Registered before the next line is read: a `progress` behind it finds the watch.
            await watcher.start()
        except KvError as error:
            self.say_cancelled(error)
            return
        self._watchers.append(watcher)
        task = asyncio.create_task(self._show_until_it_ends(watcher, context.meta[_EXEC]))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _show_until_it_ends(self, watcher: Watcher, command: Sequence[str]) -> None:
        from kvstore.client import KvError

        try:
            await self.show(watcher, command)
        except KvError as error:
            self.say_cancelled(error)
        except CtlError as error:
            write_error(f"Error: {error.text}")
            raise CtlExit(error.code) from error
        finally:
            self._watchers.remove(watcher)
