"""Tables and JSON on standard output."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from netplane.subnet.config import parse_config
from netplane.subnet.errors import SubnetError
from netplane.subnet.lease import WITHOUT_TYPE

LINES_MAX = 20
"""Of one kind of trouble: thousands of junk keys must not push all else off the screen."""


def printable(text: str) -> str:
    """Return a text that cannot move the cursor: what is in a registry anybody may have written."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )


def write_some(lines: Iterable[str]) -> None:
    """Print lines; of very many only the first, and how many there are."""
    lines = list(lines)
    for line in lines[:LINES_MAX]:
        click.echo(printable(line))
    if len(lines) > LINES_MAX:
        click.echo(f"... and {len(lines) - LINES_MAX} more; all of them with -w json")


def write_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns as wide as their widest cell."""
    lines = [head, *(tuple(map(printable, row)) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def both_families(row: Mapping[str, object], name: str) -> str:
    """Return a field of both families as a cell of a table."""
    # Without a space: whoever cuts the table into columns finds them where they were.
    return ",".join(str(row[key]) for key in (name, f"{name}6") if key in row)


def write_json(content: object) -> None:
    """Print for programs."""
    click.echo(json.dumps(content, indent=2))


def write_status(status: dict[str, Any]) -> None:
    """Print what an agent says of itself, for people."""
    own, external, registry = status["own"], status["interface"], status["registry"]
    unnamed = unnamed_backend(status["network"]["config"].encode())
    ready = "yes" if status["ready"] else "no"
    rows = [
        ("ready", ready),
        *(("", f"{code}: {text}") for code, text in sorted(status["missing"].items())),
        *(("note", f"{code}: {text}") for code, text in sorted(status["notes"].items())),
        ("host", status["host_id"]),
        ("instance", status["instance"]),
        (
            "interface",
            f"{external['name']} {_interface_addresses(external)}, MTU {external['mtu']}"
            if external
            else "not known yet",
        ),
        ("subnet", _own(own) if own else "none yet"),
        (
            "registry",
            f"cluster {registry['cluster_id']}, revision {registry['revision']}"
            if registry
            else "not heard yet",
        ),
        ("kernel", _kernel(status["kernel"])),
        ("firewall", _firewall(status["firewall"], by_process=status.get("process") is not None)),
        *(
            ("setting", f"{name}{_setting(found)}")
            for name, found in sorted(status["kernel"]["settings"].items())
        ),
        ("peers", str(len(status["peers"]))),
    ]
    for name, text in rows:
        click.echo(printable(f"{name:<11}{text}".rstrip()))
    if status["peers"]:
        click.echo("")
        refused = status["kernel"]["refused"]
        write_table(
            ("SUBNET", "PUBLIC IP", "BACKEND", "STATE"),
            [
                (
                    both_families(peer, "subnet"),
                    both_families(peer, "public_ip"),
                    peer["backend"] or unnamed,
                    _refusal(peer, refused) or ("leased" if unnamed == "alloc" else "routed"),
                )
                for peer in status["peers"]
            ],
        )
    for title, junk in (
        ("quarantined", (registry or {}).get("quarantined", {})),
        ("refused by the kernel", status["kernel"]["refused"]),
    ):
        write_some(f"{title}: {name}: {reason}" for name, reason in junk.items())


def _interface_addresses(external: dict[str, Any]) -> str:
    both = dict.fromkeys((external["address"], external["address6"]))
    return " and ".join(filter(None, both))


def _own(own: dict[str, Any]) -> str:
    subnets, addresses = both_families(own, "subnet"), both_families(own, "public_ip")
    return f"{subnets}, others send to {addresses}"


def unnamed_backend(config: bytes) -> str:
    """Return the backend of leases that name none, by their network's configuration."""
    try:
        kind = parse_config(config).backend_type
    except SubnetError:
        return "udp"
    return kind if kind in WITHOUT_TYPE else "udp"


def _refusal(peer: dict[str, Any], refused: dict[str, str]) -> str:
    """Return why a peer, or one of its objects, is not in the kernel; "" when all are."""
    names = set()
    for second in ("", "6"):
        subnet, data = peer.get(f"subnet{second}"), peer.get(f"data{second}")
        if subnet is not None:
            names |= {subnet, subnet.partition("/")[0]}
        if isinstance(data, dict):
            names.add(str(data.get("VtepMAC")).lower())
    # `10.5.2.0/24`, `route 10.5.2.0/24 via ...`, `fdb MAC dst ...`: see `netlink.objects`.
    return next((text for name, text in refused.items() if not names.isdisjoint(name.split())), "")


def _kernel(kernel: dict[str, Any]) -> str:
    healed = sum(kernel["healed"].values())
    return f"{sum(kernel['written'].values())} objects written, {healed} of them healed"


def _setting(found: dict[str, str]) -> str:
    value = f" = {found['value']}" if "value" in found else ""
    return value + (f" (was {found['was']}; cleanup sets it back)" if "was" in found else "")


def _firewall(firewall: dict[str, Any], *, by_process: bool) -> str:
    text = f"table {firewall['table']}"
    # A process that moves the packets looks itself whose they are.
    if firewall["vteps"] or (firewall["dropped"] is not None and not by_process):
        text += f", {firewall['vteps']} hosts are let in"
    if firewall["masquerade"]:
        text += ", what leaves the overlay is masqueraded"
    if firewall["dropped"]:
        text += f"; {firewall['dropped']} packets from unknown hosts were dropped"
    return text
