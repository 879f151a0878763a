"""kvctl bench: its flags and their checks; what it does is in `kvstore.cli.bench`."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import click

from kvstore.cli.bench.plan import KEY_BYTES_MIN, VALUE_NUMBER_BYTES, WORKLOADS, Plan
from kvstore.cli.ctl.context import (
    BAD_ARGUMENTS,
    BAD_FEATURE,
    Command,
    CtlError,
    CtlExit,
    Duration,
    settings,
)

DURATION_S = 10.0
_WATCHING = ("watch-latency", "watch-fanout")

_HELP = (
    """Measure the speed of a cluster with one of these workloads:

\b
"""
    + "\n".join(f"  {name:<17}{text}" for name, text in WORKLOADS.items())
    + """

Clients are concurrent: each sends an operation, waits for its answer, and sends the next. They
share the connections. Without --total and --duration it runs for 10 s. Ctrl-C ends it early and
gives the report of what ran.

With --rate operations are due at fixed times, and an operation's latency counts from when it was
due, not from when a client was free to send it. So a server that stalls does not look better
because nobody asked it meanwhile. Without --rate the latencies are those of a saturated server.

Keys are written below PREFIX and the run's own number, and removed at the end.

\b
Examples:
  kvctl bench put --clients 200 --duration 30s
  kvctl bench mixed --reads 90 --rate 5000 --html mixed.html
  kvctl --endpoints a:2379,b:2379 bench sequential --total 1000 --json result.json
"""
)


def _positive(default: int | None, text: str) -> dict[str, Any]:
    return {
        "type": click.IntRange(min=1),
        "default": default,
        "show_default": default is not None,
        "help": text,
    }


@click.command(cls=Command, help=_HELP)
@click.argument("workload", type=click.Choice(list(WORKLOADS)), metavar="WORKLOAD")
@click.option("--clients", **_positive(50, "Clients that work at the same time."))
@click.option("--connections", **_positive(1, "Connections they share, spread over the endpoints."))
@click.option("--total", **_positive(None, "End after so many operations."))
@click.option("--duration", type=Duration(), help="End after this time, such as 30s or 2m.")
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Operations a second, of all clients together.  [default: as fast as it goes]",
)
@click.option(
    "--key-size",
    type=click.IntRange(KEY_BYTES_MIN, 32_768),
    default=16,
    show_default=True,
    help="Bytes of a key, without the prefix.",
)
@click.option(
    "--value-size",
    type=click.IntRange(0, 16 << 20),
    default=64,
    show_default=True,
    help="Bytes of a value.",
)
@click.option("--keys", **_positive(10_000, "Different keys to put and get."))
@click.option("--limit", **_positive(1, "range: keys in one answer."))
@click.option(
    "--reads",
    type=click.FloatRange(0, 100),
    default=75.0,
    show_default=True,
    help="mixed: percent of reads.",
)
@click.option("--serializable", is_flag=True, help="Let one member answer reads from what it has.")
@click.option("--txn-ops", **_positive(4, "txn: puts in a transaction."))
@click.option("--watchers", **_positive(100, "watch-fanout: watchers of every key."))
@click.option("--leases", **_positive(100, "lease-keepalive: leases to renew."))
@click.option("--locks", **_positive(1, "lock: locks that the clients contend for."))
@click.option(
    "--transport",
    type=click.Choice(["auto", "session", "unary"]),
    default="auto",
    show_default=True,
    help="One stream for all calls of a connection (kvstore only), or a call each; auto is the "
    "first where it is offered.",
)
@click.option("--prefix", default="kvctl-bench/", show_default=True, help="Where the keys go.")
@click.option("--keep", is_flag=True, help="Do not remove the keys at the end.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the random choices.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Write the report here.")
@click.option("--html", "html_path", type=click.Path(dir_okay=False), help="Write a page here.")
@click.option("--no-progress", is_flag=True, help="No progress bar on standard error.")
def bench(
    workload: str,
    *,
    duration: float | None,
    total: int | None,
    clients: int,
    limit: int,
    reads: float,
    prefix: str,
    json_path: str | None,
    html_path: str | None,
    no_progress: bool,
    **rest: Any,
) -> None:
    """Run a benchmark; the help page is `_HELP`."""
    flags = settings()
    if flags.output not in {"simple", "json"}:
        raise CtlError("bench writes simple or json", BAD_FEATURE, "leave -w out, or give -w json")
    if duration is not None and duration <= 0:
        raise CtlError("--duration must be longer than 0", BAD_ARGUMENTS, "such as 30s")
    if total is None and duration is None:
        duration = DURATION_S
    if workload == "sequential":
        clients = 1
    plan = Plan(
        workload=workload,
        clients=clients,
        total=total,
        duration_s=duration,
        range_limit=limit,
        reads_percent=reads,
        # A number of its own: what is removed at the end is surely not somebody else's.
        prefix=prefix.encode("utf-8", "surrogateescape") + secrets.token_hex(4).encode() + b"/",
        **rest,
    )
    _check(plan)
    for path in (json_path, html_path):
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise CtlError(f"{path}: there is no such folder", BAD_ARGUMENTS, "make it first")

    from kvstore.cli.bench.command import Outputs, run_bench

    outputs = Outputs(
        json_path, html_path, as_json=flags.output == "json", progress=not no_progress
    )
    if (code := run_bench(plan, flags, outputs)) != 0:
        raise CtlExit(code)


def _check(plan: Plan) -> None:
    """Refuse what does not fit together."""
    if plan.workload in _WATCHING and plan.value_size < VALUE_NUMBER_BYTES:
        raise CtlError(
            f"--value-size {plan.value_size} is too small for {plan.workload}",
            BAD_ARGUMENTS,
            f"values carry a number there: at least {VALUE_NUMBER_BYTES}",
        )
    if plan.workload == "txn" and plan.txn_ops > plan.keys:
        raise CtlError(
            f"--txn-ops {plan.txn_ops} is more than --keys {plan.keys}",
            BAD_ARGUMENTS,
            "a transaction puts each key once",
        )
    if plan.workload == "range" and plan.range_limit > plan.keys:
        raise CtlError(f"--limit {plan.range_limit} is more than --keys {plan.keys}", BAD_ARGUMENTS)
    if plan.keys > 10**KEY_BYTES_MIN:
        raise CtlError(f"--keys must be at most {10**KEY_BYTES_MIN}", BAD_ARGUMENTS)
