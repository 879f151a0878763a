"""Known bugs of whole members, planted into the real product: the simulator must find each.

None is a flag of the product: each replaces a function of it for the hunt. `imitates` names the
bug of the real world that it stands for. Where an invariant looks at the very place of the bug it
is switched off, so that the consequence must be found.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from tests.sim.full.cluster import FullResult, run
from tests.sim.full.planted import (
    client,
    disk,
    leases,
    membership,
    proposals,
    store,
    watches,
)
from tests.sim.full.planted.bug import FullBug

BUGS = tuple(
    bug
    for layer in (disk, store, proposals, watches, leases, membership, client)
    for bug in layer.BUGS
)


@contextlib.contextmanager
def planted(bug: FullBug) -> Iterator[None]:
    """Put the bug into the product."""
    before = [(where, name, getattr(where, name)) for where, name, _ in bug.patches]
    try:
        for where, name, value in bug.patches:
            setattr(where, name, value)
        yield
    finally:
        for where, name, value in before:
            setattr(where, name, value)


@dataclass
class Hunt:
    """What a hunt came to."""

    found: FullResult | None
    events: int
    runs: int


def hunt(bug: FullBug, first_seed: int, events_max: int | None = None) -> Hunt:
    """Run seeds from `first_seed` on against a planted bug until one fails, within the budget."""
    events = runs = 0
    while events < (events_max or bug.budget):
        with planted(bug):
            result = run(
                first_seed + runs, bug.profile, bug.run_events, off=bug.off, liveness=bug.liveness
            )
        events += result.events
        runs += 1
        if result.failure is not None:
            return Hunt(result, events, runs)
    return Hunt(None, events, runs)
