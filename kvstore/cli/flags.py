"""etcd's flags and `ETCD_*` environment for `kvstore serve`: each is honoured or refused."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click
from click.core import ParameterSource

from kvstore.server.config import ServerConfig
from kvstore.server.logs import LEVELS

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
    "metrics": "basic; extensive adds the durations of calls, for some microseconds a call.",
    "cert_file": "Certificate of the client port (PEM).",
    "key_file": "Key of the client port (PEM).",
    "trusted_ca_file": "Authority that client certificates must come from (PEM).",
    "client_cert_auth": "Demand a client certificate; --trusted-ca-file does so too, as etcd's.",
    "enable_failpoints": "For tests only: let KVSTORE_FAILPOINTS and PUT /failpoints make it fail.",
}
CHOICES: dict[str, click.Choice[str]] = {
    "initial_cluster_state": click.Choice(["new", "existing"]),
    "log_level": click.Choice(list(LEVELS)),
    "metrics": click.Choice(["basic", "extensive"]),
}
FIELDS = [field for field in dataclasses.fields(ServerConfig) if field.init]
OURS = frozenset(field.name.replace("_", "-") for field in FIELDS) | {"config-file"}

_ETCD_ONLY = """
auth-token auth-token-ttl auto-compaction-mode auto-compaction-retention auto-tls
backend-batch-interval backend-batch-limit backend-bbolt-freelist-type bcrypt-cost
bootstrap-defrag-threshold-megabytes cipher-suites client-cert-allowed-hostname client-cert-file
client-crl-file client-key-file compact-hash-check-enabled compact-hash-check-time
compaction-batch-limit compaction-sleep-interval corrupt-check-time cors debug discovery
discovery-endpoints discovery-fallback discovery-proxy discovery-srv discovery-srv-name
discovery-token distributed-tracing-address distributed-tracing-instance-id
distributed-tracing-sampling-rate distributed-tracing-service-name downgrade-check-time
enable-distributed-tracing enable-grpc-gateway enable-lease-checkpoint enable-log-rotation
enable-pprof enable-v2 feature-gates force-new-cluster grpc-keepalive-interval
grpc-keepalive-min-time grpc-keepalive-timeout host-whitelist initial-corrupt-check
initial-election-tick-advance listen-client-http-urls listen-metrics-urls log-format log-outputs
log-package-levels log-rotation-config-json logger max-concurrent-streams max-snapshots max-wals
memory-mlock peer-auto-tls peer-cert-allowed-cn peer-cert-allowed-hostname
peer-cert-file peer-client-cert-auth peer-client-cert-file peer-client-key-file peer-crl-file
peer-key-file peer-skip-client-san-verification peer-trusted-ca-file pre-vote proxy
raft-read-timeout raft-write-timeout self-signed-cert-validity snapshot-catchup-entries
socket-reuse-address socket-reuse-port stop-grpc-service-on-defrag tls-max-version
tls-min-version unsafe-no-fsync v2-deprecation wal-dir warning-apply-duration
warning-unary-request-duration watch-progress-notify-interval
"""
NOT_OFFERED = frozenset(_ETCD_ONLY.split())
"""etcd's other flags (3.4 to 3.6), so that a refusal can say that they are no slip of the pen."""

PARENT_VARIABLE = "KVSTORE_UP_PID"
"""Tells a member the process id of the `kvstore up` that it must not outlive."""

_GO_STYLE = re.compile(r"-[a-z][a-z0-9-]+(=.*)?", re.DOTALL)
"""-name, as Go's flags may be written; our only short option has one letter."""


def server_options(command: Any) -> Any:
    """Give a command one option per setting, with etcd's flag and environment variable."""
    for field in reversed(FIELDS):
        kind = CHOICES.get(field.name, type(field.default))
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


def offered_by_etcd(flag: str) -> bool:
    """Tell whether etcd has this flag (without dashes) and we do not."""
    return flag in NOT_OFFERED or flag.startswith("experimental-")


class ServeCommand(click.Command):
    """A command that takes flags as Go programs do and explains those of etcd that are missing."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, as `click.Command` does."""
        args = [f"-{arg}" if _GO_STYLE.fullmatch(arg) else arg for arg in args]
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            flag = error.option_name.lstrip("-")
            if not offered_by_etcd(flag):
                raise
            raise click.UsageError(
                f"etcd's flag --{flag} is not offered by kvstore; leave it out", ctx
            ) from error


def check_environment(environment: Mapping[str, str]) -> Iterator[str]:
    """Yield a warning for each `ETCD_*` variable that means nothing here.

    Only a warning, as from etcd: container platforms set ETCD_PORT and the like on their own.

    Raises:
        click.UsageError: A variable sets a flag of etcd that is not offered.
    """
    for name in sorted(environment):
        flag = name.removeprefix("ETCD_").lower().replace("_", "-")
        if not name.startswith("ETCD_") or flag in OURS:
            continue
        if offered_by_etcd(flag):
            raise click.UsageError(
                f"{name} in the environment sets etcd's flag --{flag}, which is not offered by "
                "kvstore; unset it"
            )
        near = difflib.get_close_matches(flag, OURS, n=1)
        advice = f"; did you mean ETCD_{near[0].upper().replace('-', '_')}?" if near else ""
        yield f"unrecognized environment variable {name}={environment[name]}{advice}"


def check_alone(ctx: click.Context, warn: Callable[[str], None]) -> None:
    """See that nothing else is set beside --config-file, which replaces flags and environment.

    Raises:
        click.UsageError: A flag is given as well.
    """
    for name, source in ((field.name, ctx.get_parameter_source(field.name)) for field in FIELDS):
        flag = f"--{name.replace('_', '-')}"
        if source is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{flag} has no effect beside --config-file; write it there")
        if source is ParameterSource.ENVIRONMENT:
            warn(f"ETCD_{name.upper()} has no effect beside --config-file")


def without_etcd(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment for members whose settings are all given as flags."""
    return {name: value for name, value in environment.items() if not name.startswith("ETCD_")}
