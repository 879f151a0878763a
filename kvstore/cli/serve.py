"""Runs one member in this process: loop, signals, exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import difflib
import logging
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import click
import yaml

from kvstore.cli.flags import PARENT_VARIABLE, offered_by_etcd
from kvstore.cli.loops import loop_factory
from kvstore.cli.wall import WallClock, check_against
from kvstore.compiled import form
from kvstore.server.config import ConfigError, ServerConfig
from kvstore.server.identity import InitialClusterError
from kvstore.server.logs import set_up
from kvstore.server.member import Member
from kvstore.server.replica import INCARNATION_NAME
from kvstore.server.startup import EXIT_REMOVED, RemovedError, StartError

log = logging.getLogger("kvstore.serve")

PR_SET_PDEATHSIG = 1
CLOCK_CHECK_S = 1.0


def load_config_file(path: str) -> dict[str, Any]:
    """Return the settings of a YAML file whose keys are flag names.

    Raises:
        click.ClickException: Not YAML, an unknown key (with the nearest valid one), a wrong type.
    """
    try:
        content = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise click.ClickException(f"--config-file {path}: {error}") from error
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise click.ClickException(f"--config-file {path}: expected flag names and their values")
    types = {
        field.name: type(field.default) for field in dataclasses.fields(ServerConfig) if field.init
    }
    settings: dict[str, Any] = {}
    # etcd's file has the flags of the client port in a group of their own.
    group = content.pop("client-transport-security", None)
    if group is not None and not isinstance(group, dict):
        raise click.ClickException(
            f"--config-file {path}: client-transport-security must hold flag names and values"
        )
    for key, value in [*content.items(), *(group or {}).items()]:
        name = str(key).replace("-", "_")
        if name not in types:
            near = difflib.get_close_matches(name, types, n=1)
            advice = f"; did you mean {near[0].replace('_', '-')}?" if near else ""
            if offered_by_etcd(str(key)):
                advice = ": etcd's flag, not offered by kvstore; leave it out"
            raise click.ClickException(f"--config-file {path}: unknown key {key!r}{advice}")
        if type(value) is not types[name]:
            raise click.ClickException(
                f"--config-file {path}: {key} must be of type {types[name].__name__}, not {value!r}"
            )
        settings[name] = value
    return settings


def run_member(config: ServerConfig) -> int:
    """Run until SIGINT or SIGTERM; return the exit code."""
    try:
        config.check()
    except (ConfigError, InitialClusterError) as error:
        print(f"kvstore: {error}", file=sys.stderr)
        return 2
    set_up(config.log_level)
    raise_file_limit()
    end_with_parent()
    factory = loop_factory()
    with asyncio.Runner(loop_factory=factory) as runner:
        try:
            return runner.run(_serve(config))
        except RemovedError as error:
            print(f"kvstore: {error}", file=sys.stderr)
            return EXIT_REMOVED
        except StartError as error:
            print(f"kvstore: {error}", file=sys.stderr)
            return 1


def raise_file_limit() -> None:
    """Allow as many open files as the system lets us, which bounds connections.

    The usual soft limit of 1,024 is for programs that use select. Go's runtime does the same, so
    etcd's operators need not raise it either.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS: a hard limit may be "infinite"
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def end_with_parent() -> None:
    """Let SIGTERM come when the `kvstore up` that started this member is gone, even by SIGKILL.

    Its members would go on unseen and hold their ports. Linux only; elsewhere nothing happens.
    """
    parent = os.environ.get(PARENT_VARIABLE)
    if not parent or not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        sys.exit("kvstore up is gone")  # it ended before the line above


async def _serve(config: ServerConfig) -> int:
    loop = asyncio.get_running_loop()
    member = Member(config)
    stopped: asyncio.Future[None] = loop.create_future()

    def stop(error: RemovedError | None = None) -> None:
        if not stopped.done():
            if error is None:
                stopped.set_result(None)
            else:
                stopped.set_exception(error)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    member.on_removed = stop
    check_against(f"{config.data_dir}/{INCARNATION_NAME}", member.clock)
    watch = loop.create_task(_watch_clock(WallClock(member.clock)))
    try:
        await member.start()
        # Health checks come over HTTP/1; none of them should wait for the import. What it made
        # lives as long as the process too.
        await member.server.load_http1()
        member.platform.started()
        log.info(
            "serving clients",
            extra={
                "fields": {
                    "urls": config.listen_client_urls,
                    "member": f"{member.id:x}",
                    "modules": form(),
                }
            },
        )
        await stopped
    finally:
        watch.cancel()
        await member.stop()
    return 0


async def _watch_clock(wall: WallClock) -> None:
    while True:
        await asyncio.sleep(CLOCK_CHECK_S)
        wall.check()
