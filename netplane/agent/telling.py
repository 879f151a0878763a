"""What the kernel's half did, as the board and the counts tell it."""

from __future__ import annotations

from collections.abc import Mapping

from netplane.agent.board import Board
from netplane.agent.metrics import Counts
from netplane.agent.ports import FirewallReport, Report
from netplane.subnet.lease import Lease


def tell_round(report: Report, board: Board, counts: Counts) -> None:
    """Tell of rounds of comparing and programming links, routes and what belongs to them."""
    for milliseconds in report.milliseconds:
        counts.applied(milliseconds)
    counts.written.update(report.written)
    counts.healed.update(report.healed)
    counts.found.update(report.found)
    counts.failed += len(report.failed)
    board.miss("kernel", report.broken)
    # One bad peer must not make every host of the network unready.
    text = ""
    if report.failed:
        (name, reason), number = report.failed[0], len(report.failed)
        text = f"{number} objects of peers cannot be programmed, such as {name}: {reason}"
    board.note("kernel-refused", text)
    board.note("contested", report.contested)


def tell_firewall(
    report: FirewallReport, board: Board, counts: Counts, *, masquerades: bool
) -> None:
    """Tell of a look at the firewall.

    Routes lead to the others whatever becomes of it; who asked to masquerade reaches nobody else.
    """
    counts.written.update(report.written)
    counts.healed.update(report.healed)
    counts.found.update(report.found)
    board.miss("firewall", report.problem if masquerades else "")
    board.note("firewall", report.contested if masquerades else report.problem or report.contested)
    board.note("forward", report.forward)


def tell_key(own: Lease | None, data: object, board: Board) -> None:
    """Tell whether the others know the key of the process that seals our packets.

    Args:
        own: our lease as it is registered.
        data: what it should say of us; no key where packets are plain.
        board: what is told.
    """
    key = data.get("PublicKey") if isinstance(data, Mapping) else None
    told = own.backend_data if own is not None else None
    is_told = isinstance(told, Mapping) and told.get("PublicKey") == key
    board.miss(
        "key",
        ""
        if not key or is_told
        else "the key that packets are sealed with is not in our lease yet, so nobody reads them;"
        " it is written as soon as the registry takes it",
    )
