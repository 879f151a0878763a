"""`kvstore serve` runs one member, `kvstore up` a local cluster; clients' commands are in kvctl."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from kvstore import __version__
from kvstore.cli.flags import (
    CHOICES,
    ServeCommand,
    check_alone,
    check_environment,
    server_options,
)
from kvstore.server.config import ServerConfig


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kvstore")
def main() -> None:
    """A replicated key-value store that etcd clients can use."""
    if not __debug__:
        raise click.ClickException(
            "python -O removes the checks that keep data safe; run kvstore without -O"
        )


@main.command(
    cls=ServeCommand, epilog="Every flag can be set as ETCD_FLAG_NAME in the environment."
)
@server_options
@click.option(
    "--config-file",
    type=click.Path(exists=True, dir_okay=False),
    envvar="ETCD_CONFIG_FILE",
    help="YAML file with the flags' names as keys. It replaces flags and environment.",
)
@click.pass_context
def serve(ctx: click.Context, /, config_file: str | None, **settings: Any) -> None:
    """Run one member in the foreground."""
    from kvstore.cli.serve import load_config_file, run_member

    for warning in check_environment(os.environ):
        _warn(warning)
    if config_file:
        check_alone(ctx, _warn)
        settings = load_config_file(config_file)
    sys.exit(run_member(ServerConfig(**settings)))


def _warn(text: str) -> None:
    print(f"kvstore: warning: {text}", file=sys.stderr)


@main.command()
@click.option("--nodes", default=3, show_default=True, type=click.IntRange(1, 6))
@click.option("--data-dir", default="kvstore-data", show_default=True, type=click.Path())
@click.option(
    "--client-port",
    default=2379,
    show_default=True,
    type=click.IntRange(1, 65535),
    help="Client port of the first member; the others' are 20000, 30000, ... above it.",
)
@click.option("--no-ui", is_flag=True, help="Print lines instead of the live status view.")
@click.option("--log-level", default="warn", show_default=True, type=CHOICES["log_level"])
def up(nodes: int, data_dir: str, client_port: int, no_ui: bool, log_level: str) -> None:
    """Run a local cluster in the foreground; Ctrl-C stops it."""
    from kvstore.cli.up import LocalCluster, PortsError, UpError

    try:
        cluster = LocalCluster(nodes, Path(data_dir), client_port, log_level)
    except PortsError as error:
        raise click.UsageError(str(error)) from error
    live = not no_ui and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    try:
        sys.exit(cluster.run(live=live))
    except UpError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
