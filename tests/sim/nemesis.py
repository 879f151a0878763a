"""Who breaks things: timed faults, and faults triggered by the state that a process reached.

Every fault ends by itself after a while, so that a run keeps moving; `stop` ends all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from kvstore.raft.membership import Change, ChangeKind
from kvstore.raft.messages import Role
from tests.sim.node import Crashed
from tests.sim.world import MS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.sim.cluster import Cluster
    from tests.sim.node import Member, Process


class Nemesis:
    """One run's faults."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._world = cluster.world
        self._profile = profile = cluster.profile
        self.active = False
        self._countdown = {
            name: self._world.geometric(chance) for name, chance in profile.points.items() if chance
        }
        self._names = [name for name, weight in profile.fault_weights.items() if weight]
        self._weights = [profile.fault_weights[name] for name in self._names]

    def start(self) -> None:
        """Begin."""
        self.active = True
        if self._names:
            self._schedule()

    def stop(self) -> None:
        """No new faults. What is broken stays broken until `Cluster.heal`."""
        self.active = False

    def _schedule(self) -> None:
        self._world.after(self._world.between(1, 2 * self._profile.fault_every_ns), self._strike)

    def _strike(self, _: object) -> None:
        if not self.active:
            return
        self._schedule()
        [name] = self._world.random.choices(self._names, self._weights)
        self._world.events += 1
        self._world.mark(f"fault: {name}")
        self._world.trace(f"FAULT {name}")
        self._FAULTS[name](self)

    def _length_ns(self) -> int:
        return self._world.between(1, 2 * self._profile.fault_ns)

    def _any(self) -> int:
        return self._world.between(1, self._cluster.size)

    def _leader_or_any(self) -> int:
        leaders = [
            member.id
            for member in self._cluster.members[1:]
            if member.process is not None and member.process.role is Role.LEADER
        ]
        return self._world.random.choice(leaders) if leaders else self._any()

    # --- crashes ---

    def _crash(self, member_id: int, restart_ns: int | None = None) -> None:
        member = self._cluster.members[member_id]
        if member.process is not None:
            self._world.trace(f"CRASH of {member_id}")
            member.crash()
            self.restart_later(member, restart_ns)

    def restart_later(self, member: Member, restart_ns: int | None = None) -> None:
        """Start a dead member after a while."""
        if restart_ns is None:
            restart_ns = self._world.between(1, 2 * self._profile.restart_ns)
        self._world.after(restart_ns, self._restart, member)

    def _restart(self, member: Member) -> None:
        if member.process is None and self.active:
            self._world.events += 1
            self._world.mark("restart")
            self._world.trace(f"START of {member.id} on {member.disk.statistics()}")
            member.start()

    def _crash_all(self) -> None:
        # A power cut: all at once, and back one by one.
        for member in self._cluster.members[1:]:
            self._crash(member.id)

    # --- the network ---

    def _isolate(self, member_id: int, *, inbound: bool = True, outbound: bool = True) -> None:
        self._cluster.network.isolate(member_id, inbound=inbound, outbound=outbound)
        self._world.after(self._length_ns(), self._rejoin, member_id)

    def _rejoin(self, member_id: int) -> None:
        # After the run's first phase `Cluster.heal` decides what stays cut.
        if self.active:
            self._cluster.network.rejoin(member_id)

    def _split(self, *, both_ways: bool = True) -> None:
        size = self._cluster.size
        side = self._world.random.sample(range(1, size + 1), self._world.between(1, size) // 2)
        self._cluster.network.split(side, both_ways=both_ways)
        for member_id in side:
            self._world.after(self._length_ns(), self._rejoin, member_id)

    def _cut_link(self) -> None:
        source, target = self._any(), self._any()
        self._cluster.network.cut(source, target)
        self._world.after(self._length_ns(), self._rejoin, source)

    def _swizzle(self) -> None:
        # Clog a random subset one by one and release it in another order.
        links = [(self._any(), self._any()) for _ in range(self._world.between(1, 6))]
        network, length_ns = self._cluster.network, self._length_ns()
        for source, target in links:
            self._world.after(
                self._world.between(0, length_ns // 2),
                lambda link: network.clog(*link) if self.active else None,
                (source, target),
            )
            self._world.after(
                self._world.between(length_ns // 2, length_ns) + 1,
                lambda link: network.unclog(*link),
                (source, target),
            )

    def _slow_link(self) -> None:
        source, target = self._any(), self._any()
        network = self._cluster.network
        network.slow(source, target, self._world.between(1, 20) * MS)
        self._world.after(self._length_ns(), lambda _: network.slow(source, target, 0))

    # --- machines ---

    def _pause(self, member_id: int) -> None:
        member = self._cluster.members[member_id]
        if member.process is not None and not member.paused:
            member.paused = True
            process = member.process
            self._world.after(
                self._length_ns(), lambda _: member.resume() if member.process is process else None
            )

    def _slow_disk(self) -> None:
        disk = self._cluster.members[self._any()].disk
        disk.slow_factor = self._world.between(2, 100)

        def recover(_: object) -> None:
            disk.slow_factor = disk.usual_factor

        self._world.after(self._length_ns(), recover)

    # --- what operators do ---

    def _with_process(self, member_id: int, act: Callable[[Process], None]) -> None:
        member = self._cluster.members[member_id]
        if member.process is not None and not member.paused:
            act(member.process)

    def _transfer(self) -> None:
        target = self._any()
        if self._world.chance(0.2):
            # To a member that does not hear of it: the leader has to give up.
            self._isolate(target)
        self._with_process(
            self._leader_or_any(), lambda process: process.transfer_leadership(target)
        )

    def _campaign(self) -> None:
        self._with_process(self._any(), lambda process: process.campaign())

    def _unreachable(self) -> None:
        peer = self._any()
        self._with_process(self._leader_or_any(), lambda process: process.unreachable(peer))

    def _change(self) -> None:
        kind = self._world.random.choice(
            (
                ChangeKind.ADD_VOTER,
                ChangeKind.ADD_VOTER,
                ChangeKind.ADD_LEARNER,
                ChangeKind.ADD_LEARNER,
                ChangeKind.REMOVE,
                ChangeKind.UPDATE,
            )
        )
        change = Change(kind, self._any())
        voters = self._cluster.configuration.voters
        if kind is ChangeKind.REMOVE and len(voters) <= 2:
            return  # losing one of two for good leaves the cluster stuck: "3 or more"
        self._with_process(self._leader_or_any(), lambda process: process.change(change))

    # --- state-triggered ---

    def point(self, name: str, process: Process) -> None:
        """A process is at a point; strike with the drawn probability. May raise Crashed."""
        left = self._countdown.get(name)
        if left is None:
            return
        if left > 1:
            self._countdown[name] = left - 1
            return
        if not self.active:
            return
        world = self._world
        self._countdown[name] = world.geometric(self._profile.points[name])
        action = world.random.choice(self._profile.point_actions)
        world.events += 1
        world.mark(f"{action} at: {name}")
        world.trace(f"FAULT {action} of {process.id} at: {name}")
        if action == "crash":
            # Fast restarts find forgotten promises, slow ones let others go on without it.
            fast = world.chance(0.5)
            self.restart_later(process.member, world.between(1, MS) if fast else None)
            self.die(process)
        if action == "isolate":
            self._isolate(process.id, inbound=world.chance(0.7), outbound=world.chance(0.9))
        else:
            self._pause(process.id)

    def die(self, process: Process) -> NoReturn:
        """End the process that is running now."""
        raise Crashed

    _FAULTS: dict[str, Callable[[Nemesis], None]] = {  # noqa: RUF012 (a table, never changed)
        "crash": lambda self: self._crash(self._any()),
        "crash leader": lambda self: self._crash(self._leader_or_any()),
        "crash all": _crash_all,
        "isolate": lambda self: self._isolate(self._leader_or_any()),
        "isolate inbound": lambda self: self._isolate(self._any(), outbound=False),
        "isolate outbound": lambda self: self._isolate(self._any(), inbound=False),
        "split": _split,
        "split one way": lambda self: self._split(both_ways=False),
        "cut link": _cut_link,
        "swizzle": _swizzle,
        "slow link": _slow_link,
        "pause": lambda self: self._pause(self._leader_or_any()),
        "slow disk": _slow_disk,
        "transfer": _transfer,
        "campaign": _campaign,
        "unreachable": _unreachable,
        "change": _change,
    }
