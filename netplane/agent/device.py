"""Keeps our link as desired, and knows which links there are; what lives on it is `reconcile`'s."""

from __future__ import annotations

from netplane.agent.desired import LinkPlan, external_problems, plan_link, uplink_problem
from netplane.agent.report import Failure, PassLog
from netplane.backend import Scope
from netplane.netlink.decode import Link
from netplane.netlink.kernel import Change, Kernel
from netplane.netlink.messages import AF_OF_LENGTH
from netplane.netlink.objects import Uplink, VxlanLink


class LinkKeeper:
    """Our link and the interface below it, as they were read last."""

    def __init__(self, scope: Scope, kernel: Kernel) -> None:
        self._scope = scope
        self._kernel = kernel
        self.family = AF_OF_LENGTH[len(scope.networks[0][0])]
        self.indices: dict[str, int] = {}
        self.names: dict[int, str] = {}
        """The other way round; always the same object, who listens has it in hand."""
        self._index = 0
        """Of our link when it was seen last: if it is renamed it keeps that."""
        self._external: Link | None = None
        self._own: Link | None = None
        """As it was read; what is done to it since is not seen in it."""
        self._right: set[VxlanLink] = set()
        """The link, if it was right at the end of the last pass."""
        self.troubles: list[Failure] = []
        """What the interface below no longer has of what our link needs."""

    def may_have_taken(self, link: Link, wanted: VxlanLink | None, *, removed: bool) -> bool:
        """Tell whether a change of a link may have taken something of ours away."""
        if link.name not in {self._scope.link, self._scope.external}:
            # One that was ours and has another name now is still at its index.
            return link.index in self.names
        if removed or not link.up or self.indices.get(link.name) != link.index:
            return True
        if link.name == self._scope.external:
            # What could not be written through it when it was down, can be now.
            before = self._external
            return before is None or not before.up or before.mtu != link.mtu
        if wanted is None:
            # A process keeps it. What could not be written when it was down, can be now.
            return self._own is None or not self._own.up
        return plan_link(wanted, link, self._external, ()) != LinkPlan()

    async def keep(
        self,
        wanted: VxlanLink | None,
        done: PassLog,
        *,
        remove: bool,
        uplink: Uplink | None = None,
    ) -> bool:
        """Make our link as desired; False: the objects on it have to wait.

        `uplink` is what they need of the interface below, where they are on that.
        """
        # Reading one link waits until who changes links has finished, and a link that goes down is
        # told before its routes are gone. So this comes first, and the routes are read after.
        external = self._external = await self._kernel.link(self._scope.external)
        own = await self._kernel.link(self._scope.link) if self._scope.link else None
        self._own = own
        self._see(external, own)
        self.troubles = []
        if wanted is None:
            if remove and own is not None and own.vxlan is not None:
                await self._write(_as_object(own), done, removed=True)
            return uplink is None or await self._is_usable(uplink, external, done)
        others = await self._kernel.vxlan_links()
        plan = plan_link(wanted, own, external, others, self._scope.adopts, self._index)
        if plan.adopt is not None:
            if done.must_wait(wanted):
                return False
            own = await self._take_over(plan.adopt, wanted, done)
            if own is None:
                return False
            if wanted in self._right:
                done.note_heal(wanted)
            self._see(external, own)
            plan = plan_link(wanted, own, external, ())
        if plan.refused:
            done.failed.append(Failure(wanted, plan.refused))
            self._right.discard(wanted)
            return False
        assert external is not None
        addresses = await self._kernel.addresses(self.family, external.index, external.name)
        problems = external_problems(wanted, external, addresses)
        self.troubles = [Failure(wanted, problem) for problem in problems]
        if not (plan.make or plan.set):
            self._right.add(wanted)
            return True
        if done.must_wait(wanted):
            return False
        if plan.remove and not await self._write(wanted, done, removed=True):
            return False
        if plan.make:
            if not await self._write(wanted, done):
                return False
            made = await self._kernel.link(wanted.name)
            if made is None:
                return False  # gone again; that is told, and the next pass sees to it
            self._see(external, made)
        else:
            assert own is not None
            refusals = await self._kernel.set_link(
                wanted, self.indices[wanted.name], mac=own.mac != wanted.mac
            )
            if refusals:
                done.note_refusal(refusals[0])
                return True  # a wrong MTU is better than no objects
            done.written.append(wanted)
        if wanted in self._right:
            done.note_heal(wanted)
        self._right.add(wanted)
        return True

    async def _is_usable(self, uplink: Uplink, external: Link | None, done: PassLog) -> bool:
        found = []
        if external is not None:
            found = await self._kernel.addresses(self.family, external.index, external.name)
        problem = uplink_problem(uplink, external, found)
        if problem:
            done.failed.append(Failure(uplink, problem))
        return not problem

    async def _take_over(self, link: Link, wanted: VxlanLink, done: PassLog) -> Link | None:
        """Give a device the name of ours; what is on it stays, and packets go on."""
        refusals = await self._kernel.rename_link(wanted, link.index)
        if refusals:
            done.note_refusal(refusals[0])
            return None
        done.written.append(wanted)
        return await self._kernel.link(wanted.name)

    async def _write(self, item: VxlanLink, done: PassLog, *, removed: bool = False) -> bool:
        refusals = await self._kernel.write([Change(item, removed=removed)], self.indices)
        if refusals:
            done.note_refusal(refusals[0])
            return False
        (done.removed if removed else done.written).append(item)
        if removed:
            self._see(self._external)
        return True

    def _see(self, *links: Link | None) -> None:
        """Note which links there are."""
        self.indices = {link.name: link.index for link in links if link is not None}
        self._index = self.indices.get(self._scope.link, self._index)
        self.names.clear()
        self.names.update({index: name for name, index in self.indices.items()})


def _as_object(found: Link) -> VxlanLink:
    """Return a link that is to be removed; only its name counts."""
    assert found.vxlan is not None
    vxlan = found.vxlan
    return VxlanLink(found.name, vxlan.vni, "", vxlan.local, vxlan.port, found.mtu, found.mac)
