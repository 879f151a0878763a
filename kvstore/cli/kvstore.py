"""`kvstore serve` runs one member, `kvstore up` a local cluster; clients' commands are in kvctl."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import click

from kvstore import __version__
from kvstore.server.config import ServerConfig

HELP: dict[str, str] = {
    "name": "Name of this member, as --initial-cluster has it.",
    "data_dir": "Folder of the log and the store. [default: NAME.kvstore]",
    "listen_client_urls": "Where clients are served.",
    "advertise_client_urls": "What clients are told to use. [default: the listen URLs]",
    "listen_peer_urls": "Where the other members are served.",
    "initial_advertise_peer_urls": "What other members use. [default: the listen URLs]",
    "initial_cluster": "All members: NAME=PEER_URL,NAME=PEER_URL. [default: this member alone]",
    "initial_cluster_state": "new, or existing to join a running cluster.",
    "initial_cluster_token": "Tells clusters apart that use the same URLs.",
    "strict_reconfig_check": "Refuse membership changes that could cost the quorum.",
    "max_learners": "Most members that may be learners at a time.",
    "heartbeat_interval": "Milliseconds between heartbeats.",
    "election_timeout": "Milliseconds without a leader before an election.",
    "snapshot_count": "Log entries kept for members that lag behind.",
    "quota_backend_bytes": "Size at which the store refuses more; 0 is 2 GiB.",
    "max_request_bytes": "Largest request in bytes.",
    "max_txn_ops": "Most operations in one transaction.",
    "log_level": "debug, info, warn, error, panic or fatal.",
    "cert_file": "Certificate of the client port (PEM).",
    "key_file": "Key of the client port (PEM).",
    "trusted_ca_file": "Authority that client certificates must come from (PEM).",
    "client_cert_auth": "Demand a client certificate.",
    "enable_failpoints": "For tests only: let KVSTORE_FAILPOINTS and PUT /failpoints make it fail.",
}
DEFAULT_TYPES: dict[str, Any] = {
    "initial_cluster_state": click.Choice(["new", "existing"]),
    "log_level": click.Choice(["debug", "info", "warn", "error", "panic", "fatal"]),
}
FIELDS = [field for field in dataclasses.fields(ServerConfig) if field.init]


def server_options(command: Any) -> Any:
    """Give a command one option per setting, with etcd's flag and environment variable."""
    for field in reversed(FIELDS):
        kind = DEFAULT_TYPES.get(field.name, type(field.default))
        # `--client-cert-auth` and `--client-cert-auth=true` are both etcd's way to say it.
        extra: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if kind is bool else {}
        command = click.option(
            f"--{field.name.replace('_', '-')}",
            envvar=f"ETCD_{field.name.upper()}",
            type=kind,
            default=field.default,
            show_default=bool(field.default),
            help=HELP[field.name],
            **extra,
        )(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kvstore")
def main() -> None:
    """A replicated key-value store that etcd clients can use."""
    if not __debug__:
        raise click.ClickException(
            "python -O removes the checks that keep data safe; run kvstore without -O"
        )


@main.command(epilog="Every flag can be set as ETCD_FLAG_NAME in the environment.")
@server_options
@click.option(
    "--config-file",
    type=click.Path(exists=True, dir_okay=False),
    envvar="ETCD_CONFIG_FILE",
    help="YAML file with the flags' names as keys. It replaces flags and environment.",
)
def serve(config_file: str | None, **settings: Any) -> None:
    """Run one member in the foreground."""
    from kvstore.cli.serve import load_config_file, run_member

    if config_file:
        settings = load_config_file(config_file)
    sys.exit(run_member(ServerConfig(**settings)))


@main.command()
@click.option("--nodes", default=3, show_default=True, type=click.IntRange(1, 7))
@click.option("--data-dir", default="kvstore-data", show_default=True, type=click.Path())
@click.option(
    "--client-port",
    default=2379,
    show_default=True,
    type=click.IntRange(1, 65535),
    help="Client port of the first member; the others' are 20000, 30000, ... above it.",
)
@click.option("--no-ui", is_flag=True, help="Print lines instead of the live status view.")
@click.option("--log-level", default="warn", show_default=True, type=DEFAULT_TYPES["log_level"])
def up(nodes: int, data_dir: str, client_port: int, no_ui: bool, log_level: str) -> None:
    """Run a local cluster in the foreground; Ctrl-C stops it."""
    from kvstore.cli.up import LocalCluster, PortsError

    try:
        cluster = LocalCluster(nodes, Path(data_dir), client_port, log_level)
    except PortsError as error:
        raise click.UsageError(str(error)) from error
    sys.exit(
        cluster.run(live=not no_ui and sys.stdout.isatty() and os.environ.get("TERM") != "dumb")
    )


if __name__ == "__main__":
    main()
