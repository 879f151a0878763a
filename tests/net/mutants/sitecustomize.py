"""Plants one bug into agents and tests, for those who check that a test notices it.

Python imports this at its start when the folder is in PYTHONPATH; NETPLANE_MUTANT names the bug.
"""

# ruff: noqa: PLC0415 (it is imported before anything else is)

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any


def deaf() -> None:
    """No change of the kernel is heard."""
    from netplane.agent.reconcile import Reconciler

    async def listen(self: Any, monitor: Any) -> None:
        import asyncio

        await asyncio.Event().wait()

    Reconciler._listen = listen  # type: ignore[method-assign]


def no_sweep() -> None:
    """What departed peers have left stays."""
    from netplane.agent.reconcile import Reconciler

    apply = Reconciler.apply

    async def add_only(self: Any, *desired: Any, **options: Any) -> Any:
        return await apply(self, *desired, **options | {"remove": False})

    Reconciler.apply = add_only  # type: ignore[method-assign]


def kernel_before_view() -> None:
    """The kernel is made as an empty view has it, before the first real one came."""
    from netplane.agent.agent import Agent
    from netplane.subnet.config import parse_config

    join = Agent._join

    async def hasty(self: Any, external: Any) -> Any:
        state = self.keeper.state
        if state.own is not None:
            dataplane = self._make_dataplane(parse_config(state.config.encode()), external)
            await dataplane.apply(state.own, {}, remove=True)
            dataplane.close()
        return await join(self, external)

    Agent._join = hasty  # type: ignore[method-assign]


def wrong_fdb() -> None:
    """Packets for a peer go to the host beside it."""
    from dataclasses import replace

    from netplane.backend.vxlan import VxlanBackend
    from netplane.netlink.objects import FdbEntry

    serve = VxlanBackend._serve

    def beside(self: Any, peer: Any) -> Any:
        served = serve(self, peer)
        objects = tuple(
            item._replace(destination=item.destination[:3] + bytes([item.destination[3] ^ 1]))
            if isinstance(item, FdbEntry)
            else item
            for item in served.objects
        )
        return replace(served, objects=objects)

    VxlanBackend._serve = beside  # type: ignore[method-assign]


def no_compare() -> None:
    """What a claim goes by is not compared when it is written."""
    from dataclasses import replace

    from netplane.subnet.claim import Claimer

    attempt = Claimer._attempt

    def blind(self: Any, claim: Any, subnet: Any) -> Any:
        return replace(attempt(self, claim, subnet), conditions=())

    Claimer._attempt = blind  # type: ignore[method-assign]


def regress_unguarded() -> None:
    """A registry that lost its memory is believed at once."""
    from netplane.subnet.regress import Guard

    judge = Guard.judge

    def trusting(self: Any, view: Any, now_s: float) -> Any:
        self.known = None
        return judge(self, view, now_s)

    Guard.judge = trusting  # type: ignore[method-assign]


def compaction_ignored() -> None:
    """Neither a watch that compaction has ended nor the next renewal leads to a listing."""
    from netplane.subnet.etcd import EtcdFeed
    from netplane.subnet.manager import SubnetManager
    from netplane.subnet.registry import CompactedError

    follow = EtcdFeed.next

    async def patient(self: Any) -> Any:
        try:
            return await follow(self)
        except CompactedError:
            import asyncio

            await asyncio.Event().wait()

    EtcdFeed.next = patient  # type: ignore[method-assign]
    SubnetManager._check_history = lambda self, grant: None  # type: ignore[method-assign]


def junk_empties() -> None:
    """One key that cannot be read makes the view an empty one, as in Flannel until 2026."""
    from dataclasses import replace

    from netplane.subnet.view import ViewBuilder

    build = ViewBuilder.build

    def emptied(self: Any, *given: Any, **named: Any) -> Any:
        view = build(self, *given, **named)
        return replace(view, peers={}) if view.quarantined else view

    ViewBuilder.build = emptied  # type: ignore[method-assign]


def nft_deaf() -> None:
    """No change of nftables is heard."""
    from netplane.nft.firewall import Firewall

    async def listen(self: Any) -> None:
        import asyncio

        await asyncio.Event().wait()

    Firewall._listen = listen  # type: ignore[method-assign]


def vtep_late() -> None:
    """A host is let in when its route is there already, and kept out when it is there yet."""
    from netplane.agent.dataplane import RealDataplane

    async def apply(self: Any, own: Any, peers: Any, *, remove: bool) -> None:
        plan = self._backend.plan(own.subnet, peers)
        gone = self._vteps - plan.vteps
        self._vteps = plan.vteps
        if gone:
            await self._firewall().apply(own.subnet, plan.vteps)
        await self._reconciler().apply(plan.objects, remove=remove, step=plan.step)
        await self._firewall().apply(own.subnet, plan.vteps)

    RealDataplane.apply = apply  # type: ignore[method-assign]


def gate_open() -> None:
    """At a start, routes do not wait until the hosts that they lead to are let in."""
    from netplane.agent.reconcile import Reconciler

    write = Reconciler._write

    async def at_once(self: Any, changes: Any, gate: Any) -> Any:
        return await write(self, changes, None)

    Reconciler._write = at_once  # type: ignore[method-assign]


def nothing_remembered() -> None:
    """Without a registry nothing is programmed."""
    from netplane.agent.agent import Agent

    async def nothing(self: Any, *given: Any) -> None:
        pass

    Agent._program_what_is_remembered = nothing  # type: ignore[method-assign]


def clones_welcome() -> None:
    """Nobody looks whether a host with our id runs already."""
    from netplane.subnet import plan

    plan._check_session = lambda registered, who: None


MUTANTS: dict[str, Callable[[], None]] = {
    plant.__name__.replace("_", "-"): plant
    for plant in (
        deaf,
        no_sweep,
        kernel_before_view,
        wrong_fdb,
        no_compare,
        regress_unguarded,
        compaction_ignored,
        junk_empties,
        nft_deaf,
        vtep_late,
        gate_open,
        nothing_remembered,
        clones_welcome,
    )
}

IN_TESTS = {"no-compare"}
"""Those whose test calls the product itself; pytest wants to import the others' modules first."""

name = os.environ.get("NETPLANE_MUTANT", "")
if name and ("netplane.cli.netplane" in sys.orig_argv or name in IN_TESTS):
    MUTANTS[name]()
