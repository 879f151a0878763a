"""Tables and JSON on standard output."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click


def write_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns as wide as their widest cell."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def write_json(content: object) -> None:
    """Print for programs."""
    click.echo(json.dumps(content, indent=2))


def write_status(status: dict[str, Any]) -> None:
    """Print what an agent says of itself, for people."""
    own, external, registry = status["own"], status["interface"], status["registry"]
    ready = "yes" if status["ready"] else "no"
    rows = [
        ("ready", ready),
        *(("", f"{code}: {text}") for code, text in sorted(status["missing"].items())),
        *(("note", f"{code}: {text}") for code, text in sorted(status["notes"].items())),
        ("host", status["host_id"]),
        ("instance", status["instance"]),
        (
            "interface",
            f"{external['name']} {external['address']}, MTU {external['mtu']}"
            if external
            else "not known yet",
        ),
        ("subnet", f"{own['subnet']}, others send to {own['public_ip']}" if own else "none yet"),
        (
            "registry",
            f"cluster {registry['cluster_id']}, revision {registry['revision']}"
            if registry
            else "not heard yet",
        ),
        ("kernel", _kernel(status["kernel"])),
        *(
            ("changed", f"{name} (was {value}; cleanup sets it back)")
            for name, value in sorted(status["kernel"]["settings"].items())
        ),
        ("peers", str(len(status["peers"]))),
    ]
    for name, text in rows:
        click.echo(f"{name:<11}{text}".rstrip())
    if status["peers"]:
        click.echo("")
        refused = status["kernel"]["refused"]
        write_table(
            ("SUBNET", "PUBLIC IP", "BACKEND", "STATE"),
            [
                (
                    peer["subnet"],
                    peer["public_ip"],
                    peer["backend"] or "udp",
                    refused.get(peer["subnet"], "routed"),
                )
                for peer in status["peers"]
            ],
        )
    for title, junk in (
        ("quarantined", (registry or {}).get("quarantined", {})),
        ("refused by the kernel", status["kernel"]["refused"]),
    ):
        for name, reason in junk.items():
            click.echo(f"{title}: {name}: {reason}")


def _kernel(kernel: dict[str, Any]) -> str:
    healed = sum(kernel["healed"].values())
    return f"{sum(kernel['written'].values())} objects written, {healed} of them healed"
