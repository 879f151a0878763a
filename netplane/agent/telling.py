"""What the kernel's half did, as the board and the counts tell it."""

from __future__ import annotations

from netplane.agent.board import Board
from netplane.agent.metrics import Counts
from netplane.agent.ports import FirewallReport, Report


def tell_round(report: Report, board: Board, counts: Counts) -> None:
    """Tell of rounds of comparing and programming links, routes and what belongs to them."""
    for milliseconds in report.milliseconds:
        counts.applied(milliseconds)
    counts.written.update(report.written)
    counts.healed.update(report.healed)
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
    board.miss("firewall", report.problem if masquerades else "")
    board.note("firewall", report.contested if masquerades else report.problem or report.contested)
    board.note("forward", report.forward)
