"""One machine of the cluster and the processes that run on it: the product's `Member`, whole.

A `Host` lasts for the run, a `Process` from start to death. Nothing of the product is rewritten
here: `SimPlatform` is the world under a member, `WatchedRaft` and `WatchedApplier` look at what
passes through the real core and the real state machine. No fault is decided here.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn
from zlib import crc32

from kvstore.apply.applier import Applied
from kvstore.peer.link import Channel, Receiver
from kvstore.ports import Backend
from kvstore.raft.config import Config, Restored
from kvstore.raft.messages import (
    AppendWork,
    Configuration,
    Entry,
    HardState,
    InstallSnapshot,
    Message,
    Ready,
    Role,
)
from kvstore.raft.raft import Raft
from kvstore.rpc import Limits
from kvstore.server.config import ServerConfig
from kvstore.server.disk import DiskThread
from kvstore.server.join import Start
from kvstore.server.member import Member
from kvstore.server.replica import Replica
from kvstore.server.startup import FULL, RemovedError, StartError
from kvstore.wal import Options, Wal
from tests.sim.full.disk import Handle, SimDisk
from tests.sim.full.lmdb_files import FileBackend
from tests.sim.full.loop import Died, LocalClock, SimLoop
from tests.sim.full.peers import HEAD_BYTES, SimLinks
from tests.sim.full.rpc import SimServer
from tests.sim.full.sockets import SimTransport, connect
from tests.sim.invariants import MONOTONIC, PROMISES, LogView, Violation

if TYPE_CHECKING:
    from tests.sim.full.cluster import FullCluster

FORGOTTEN = "nothing durable is forgotten"
REFUSED_START = "a member starts on what its own crash left"
FATAL = "a process ends only when its disk fails"


class DurableLog:
    """What of a log must survive, rebuilt from the works whose fsync has ended."""

    def __init__(self) -> None:
        self.hard_state = HardState(0, 0, 0)
        self.base = 0
        self.terms = [0]

    @property
    def last_index(self) -> int:
        return self.base + len(self.terms) - 1

    def keep(self, works: list[AppendWork]) -> None:
        """Take works that are durable now."""
        for work in works:
            if work.snapshot is not None:
                self.base, self.terms = work.snapshot.index, [work.snapshot.term]
            if work.entries:
                del self.terms[work.entries[0].index - self.base :]
                self.terms += [entry.term for entry in work.entries]
            if work.hard_state is not None:
                self.hard_state = work.hard_state

    def after(self, works: list[AppendWork]) -> DurableLog:
        """Return a copy that has these works too."""
        copy = DurableLog()
        copy.hard_state, copy.base, copy.terms = self.hard_state, self.base, list(self.terms)
        copy.keep(works)
        return copy

    def agrees(self, other: DurableLog) -> bool:
        """Tell whether another log has the same term, vote and entries, as far as both reach."""
        start = max(self.base, other.base)
        mine, theirs = self.hard_state, other.hard_state
        return (
            (mine.term, mine.vote) == (theirs.term, theirs.vote)
            and self.last_index == other.last_index
            and start <= self.last_index
            and self.terms[start - self.base :] == other.terms[start - other.base :]
        )

    def __str__(self) -> str:
        state = self.hard_state
        return f"term {state.term}, vote {state.vote:x}, {self.base} to {self.last_index}"


class Host:
    """A machine: disk, clock, address, and the process if one runs."""

    def __init__(self, cluster: FullCluster, number: int) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.id = number
        self.config: ServerConfig | None = cluster.configs.get(number)
        """None: a spare machine that belongs to nobody yet."""
        self.member_id = self.config.member.id if self.config is not None else 0
        self.addresses = [f"10.0.0.{number}"]
        """Of its peer port; all that it ever had lead to it."""
        self.reserved = False
        """Somebody asked for a member on it, and was not refused."""
        self.restore: Callable[[], None] | None = None
        """Puts in the right disk again."""
        self.disk = SimDisk(cluster.world)
        self.durable = DurableLog()
        self.inflight: list[AppendWork] = []
        """Works of the disk thread's round under way."""
        self.process: Process | None = None
        self.incarnation = 0
        self.broken = False
        """Its log rotted: it refuses to start for the rest of the run."""
        self.applied_seen = 0
        profile = cluster.profile
        self.disk.usual_factor = self.disk.slow_factor = cluster.world.between(1, profile.disk_skew)
        self.ppm = cluster.world.between(-profile.clock_ppm, profile.clock_ppm)

    def start(self) -> None:
        """Start a process on what the disk has; nothing if one runs."""
        if self.process is None and self.config is not None and not self.broken:
            self.incarnation += 1
            self.process = self.cluster.parts.process(self)
            self.process.launch()

    def assign(self, member_id: int, config: ServerConfig) -> None:
        """Give the machine to another member: an empty disk, new flags."""
        self.crash(power=False)
        self.restore = None
        self.reserved = False
        self.config = config
        self.member_id = member_id
        self.cluster.by_member_id[member_id] = self
        self.mount()

    def mount(
        self,
        disk: SimDisk | None = None,
        durable: DurableLog | None = None,
        inflight: list[AppendWork] | None = None,
        applied_seen: int = 0,
    ) -> None:
        """Put in another disk, of which one knows what must be on it; without one an empty one."""
        assert self.process is None
        usual = self.disk.usual_factor
        self.disk = disk or SimDisk(self.world)
        self.disk.usual_factor = self.disk.slow_factor = usual
        self.durable, self.inflight = durable or DurableLog(), inflight or []
        self.applied_seen = applied_seen

    def end_mistake(self, _: object = None) -> None:
        """Take out the wrong disk, if one is in."""
        restore, self.restore = self.restore, None
        if restore is not None:
            restore()

    def crash(self, *, power: bool | None = None) -> None:
        """Kill the process, or cut the machine's power."""
        process = self.process
        if process is None:
            return
        if power is None:
            power = self.world.chance(self.cluster.profile.power_cuts)
        self.process = None
        # What a thread was doing may just have ended.
        for func, args in process.loop.jobs[:1]:
            if self.world.chance(0.5):
                process.loop.enter(_ignore_failure, func, args)
        process.die()
        if power:
            self.disk.power_cut()
            self.world.mark("power cut")
        else:
            self.disk.kill()
            self.world.mark("process killed")

    @property
    def paused(self) -> bool:
        return self.process is not None and self.process.loop.paused

    @paused.setter
    def paused(self, value: bool) -> None:
        assert value
        if self.process is not None:
            self.process.loop.pause()

    def resume(self) -> None:
        """End a pause."""
        if self.process is not None and self.process.loop.paused:
            self.process.loop.resume()

    def receive(self, frame: bytes) -> None:
        """Take a frame from the network."""
        process = self.process
        if process is None or int.from_bytes(frame[2:6]) != self.incarnation:
            return
        world = self.world
        world.events += 1
        world.digest = crc32(frame, world.digest ^ (world.now_ns & 0xFFFF_FFFF))
        process.receive(frame)


def _ignore_failure(func: Callable[..., Any], args: Any) -> None:
    # The process is dead; only the disk remembers.
    with contextlib.suppress(Exception, Died):
        func(*args)


class Process:
    """One incarnation of a member."""

    def __init__(self, host: Host) -> None:
        self.host = self.member = host
        self.cluster = cluster = host.cluster
        self.world = cluster.world
        self.profile = cluster.profile
        self.invariants = cluster.invariants
        self.id = host.id
        clock = LocalClock(self.world, host.ppm, self.world.between(0, 10**12))
        self.loop = SimLoop(self.world, clock, turn_ns=self.profile.turn_ns, job_ns=self._job_ns)
        cluster.loops.append(self.loop)
        self.handle = Handle(host.disk)
        self.platform = SimPlatform(self, clock)
        self.server = SimServer(self)
        self.links: SimLinks
        self.log: LogView | None = None
        self.up = False
        self.inbox: dict[int, list[bytes]] = {}
        self.sockets: dict[SimTransport, None] = {}
        self.loop.connect = partial(connect, self)
        self.product = cluster.parts.member(self)
        self._death = ""

    def _job_ns(self) -> int:
        profile = self.profile
        wait_ns = profile.job_ns + self.world.random.getrandbits(profile.job_bits)
        return wait_ns * self.host.disk.slow_factor

    def client_delay_ns(self) -> int:
        """Draw the way between a client and this process."""
        return self.profile.client_ns + self.world.random.getrandbits(16)

    # life

    def launch(self) -> None:
        """Begin."""
        self.enter(lambda: void(self.loop.create_task(self._start())))

    async def _start(self) -> None:
        try:
            await self.product.start()
        except StartError as error:
            self.cluster.refused_to_start(self, error)
        else:
            self.up = True

    def alive(self) -> bool:
        return self.host.process is self

    @property
    def role(self) -> Role:
        node = getattr(self.product, "node", None)
        return node.role if node is not None else Role.FOLLOWER

    def enter(self, callback: Callable[..., Any], *args: Any) -> None:
        """Run something inside the process, unless it is dead; after a pause, if it is paused."""
        if not self.alive():
            return
        if self.loop.paused:
            self.loop._held.append((lambda _: self.enter(callback, *args), None))
        else:
            self.loop.enter(callback, *args)

    def die(self) -> None:
        """Leave nothing but the disk; `Host.crash` calls it."""
        self.up = False
        self.loop.kill()
        self.server.died()
        if hasattr(self, "links"):
            self.links.died()
        for socket in self.sockets:
            socket.broken()
        self.sockets.clear()

    def removed(self, error: RemovedError) -> None:
        """The product learned that it was removed: the process ends, as `kvstore serve` has it."""
        self.cluster.book.stopped(self, error)
        self.end(f"was removed: {error}")

    def end(self, reason: str) -> NoReturn:
        """Die from inside."""
        self.world.trace(f"{self.id} ENDS: {reason}")
        self.host.crash(power=False)
        raise Died

    def point(self, name: str) -> None:
        """Tell the nemesis where the process is; may raise `Died`."""
        self.cluster.nemesis.point(name, self)  # type: ignore[arg-type]

    # network

    def receive(self, frame: bytes) -> None:
        """Gather what arrives in one turn of the loop, as a socket's buffer does."""
        if not hasattr(self, "links"):
            return
        if not self.inbox:
            self.loop.call_soon(self._read)
        sender = int.from_bytes(frame[6:HEAD_BYTES])
        self.inbox.setdefault(sender, []).append(frame[HEAD_BYTES:])

    def _read(self) -> None:
        inbox, self.inbox = self.inbox, {}
        for sender, payloads in inbox.items():
            self.links.receiver.receive(sender, payloads)

    def lost(self, peer: int, channel: Channel) -> None:
        """A connection broke."""
        if self.up:
            self.enter(self.links.on_lost, peer, channel)

    # what operators do

    def transfer_leadership(self, target: int) -> None:
        if self.up and self.role is Role.LEADER:
            self.enter(self._transfer, self.cluster.hosts[target - 1].member_id)

    def _transfer(self, target: int) -> None:
        from kvstore.raft.errors import RaftError  # noqa: PLC0415

        try:
            self.product.raft.transfer_leadership(target)
        except RaftError:
            self.world.mark("transfer refused")
        else:
            self.world.mark("transfer asked")
        self.product.node._wake()

    def campaign(self) -> None:
        def act() -> None:
            self.product.raft.campaign()
            self.product.node._wake()

        if self.up:
            self.enter(act)

    def unreachable(self, peer: int) -> None:
        if self.up:
            self.enter(self.product.node.unreachable, self.cluster.hosts[peer - 1].member_id)


def void(_: object) -> None:
    """Swallow a value."""


class SimMember(Member):
    """The product's member; only looks at what passes."""

    def __init__(self, process: Process) -> None:
        assert process.host.config is not None
        super().__init__(process.host.config, process.platform)  # type: ignore[arg-type]
        self.process = process
        self.on_removed = process.removed

    def _open_replica(self, path: str) -> Replica:
        replica = super()._open_replica(path)
        replica.applier = WatchedApplier(replica, self.process)  # type: ignore[assignment]
        return replica

    def _open_data(self, start: Start | None) -> None:
        super()._open_data(start)
        process, recovered = self.process, self.recovered
        host = process.host
        found = DurableLog()
        found.hard_state = recovered.hard_state
        found.base = recovered.compacted[0]
        found.terms = [recovered.compacted[1], *(entry.term for entry in recovered.entries)]
        expected = host.durable
        if not found.agrees(expected) and not found.agrees(expected.after(host.inflight)):
            process.invariants.fail(
                FORGOTTEN, f"member {host.id} recovers {found}, its disk had {expected}"
            )
        host.durable, host.inflight = found, []
        applied = self.replica.applied.index
        if applied < host.applied_seen:
            process.invariants.fail(
                FORGOTTEN, f"member {host.id} has applied {applied}, had {host.applied_seen}"
            )
        host.applied_seen = applied
        if recovered.dropped_bytes:
            process.world.mark("torn tail repaired")
        process.cluster.opened(process, self.replica)

    def _committed(self, mark: Any, duration_s: float) -> None:
        self.process.host.applied_seen = mark.index
        self.process.world.mark("store committed")
        released = self.raft.log.offset
        super()._committed(mark, duration_s)
        if self.raft.log.offset != released:
            self.process.world.mark("log compacted")
        self.process.point("store committed")
        if self.store.purging:
            self.process.world.mark("compaction under way")
            self.process.point("compaction half done")

    def _change_committed(self, entry: Entry) -> Configuration | None:
        previous = self.node.applied_index
        configuration = super()._change_committed(entry)
        self.process.cluster.changed(self.process, entry, previous, configuration)
        return configuration

    def _role_changed(self, role: Role, leader: int, term: int) -> None:
        super()._role_changed(role, leader, term)
        process = self.process
        if process.world.lines is not None:
            process.world.trace(f"{process.id} is {role.name} in term {term}")

    async def install(self, message: InstallSnapshot) -> bool:
        taken = await super().install(message)
        if taken:
            self.process.world.mark("snapshot installed")
            self.process.host.applied_seen = message.snapshot.index
            self.process.cluster.opened(self.process, self.replica)
            self.process.point("snapshot installed")
        return taken


class WatchedApplier:
    """The real applier, and what it did shown to the cluster's book of facts."""

    def __init__(self, replica: Replica, process: Process) -> None:
        self._inner = replica.applier
        self._replica = replica
        self._process = process

    def apply(self, entry: Entry) -> Applied:
        previous = self._process.product.node.applied_index
        applied = self._inner.apply(entry)
        self._process.cluster.applied(self._process, self._replica, entry, previous, applied)
        return applied


class WatchedRaft(Raft):
    """The real core; checks what it hands out (`tests.sim.invariants`)."""

    process: Process

    def take(self) -> Ready | None:
        ready = super().take()
        if ready is not None:
            self._look(ready)
        return ready

    def _look(self, ready: Ready) -> None:
        process = self.process
        invariants, world, log = process.invariants, process.world, process.log
        assert log is not None
        work = ready.append
        if work is not None and (work.entries or work.snapshot is not None):
            if world.lines is not None:
                world.trace(f"{process.id} writes {_story(work)}")
            if invariants.appended(process.id, work, log):
                world.mark("log truncated")
            process.cluster.book.appended(process, self, ready.role, work)
        term, role, leader = process.cluster.roles.get(process, (0, Role.FOLLOWER, 0))
        now = (ready.term, ready.role, ready.leader)
        if now != (term, role, leader):
            if ready.term < term:
                invariants.fail(MONOTONIC, f"member {process.id} goes back to term {ready.term}")
            process.cluster.roles[process] = now
            if ready.role is Role.LEADER and (role is not Role.LEADER or ready.term > term):
                world.mark("leader elected")
                process.cluster.leader_hint = process.id
                process.cluster.book.leads(process, self)
                invariants.became_leader(self.id, ready.term, log)
                process.point("leader")
            elif ready.role is not Role.LEADER and role is Role.LEADER:
                world.mark("leader stepped down")
        commit = self.log.committed
        if commit != log.commit:
            invariants.committed_to(process.id, self.term, commit, log)
            if ready.role is Role.LEADER:
                process.point("leader committed")
        if ready.refused:
            world.mark("forwarded proposal refused")
        self.check_leaving(ready.messages)
        for read in ready.reads:
            world.mark("read refused" if read.index is None else "read confirmed")

    def check_leaving(self, messages: list[Message]) -> None:
        """Check that what messages promise is durable already."""
        process = self.process
        for message in messages:
            if type(message) in PROMISES:
                process.invariants.leaving(message, process.host.durable)  # type: ignore[arg-type]
            elif type(message) is InstallSnapshot:
                process.world.mark("snapshot wanted")


def _story(work: AppendWork) -> str:
    parts = []
    if work.snapshot is not None:
        parts.append(f"snapshot {work.snapshot.index}")
    if work.entries:
        parts.append(
            f"entries {work.entries[0].index}..{work.entries[-1].index} of term "
            f"{work.entries[-1].term}"
        )
    return ", ".join(parts)


class SimDiskThread(DiskThread):
    """The product's disk thread, its rounds as events of the world."""

    def __init__(
        self, process: Process, wal: Wal, on_saved: Callable[[list[AppendWork], float], None]
    ) -> None:
        super().__init__(wal, self._keep_post, on_saved)
        self._process = process
        self._posts: list[Callable[[], None]] = []
        self._works: list[AppendWork] = []
        self._under_way = False
        self._rotated = False

    def start(self) -> None: ...

    def submit(self, work: AppendWork) -> None:
        super().submit(work)
        self._kick()

    def release(self, index: int) -> None:
        super().release(index)
        self._kick()

    def close(self) -> None:
        raise AssertionError("a simulated process never ends in peace")

    def _kick(self) -> None:
        if not self._under_way:
            self._under_way = True
            self._process.world.after(self._process.profile.wake_ns, self._begin)

    def _keep_post(self, post: Callable[[], None]) -> None:
        self._posts.append(post)

    def _save(self, works: list[AppendWork]) -> None:
        self._process.host.inflight = self._works = works
        super()._save(works)

    def _begin(self, _: object) -> None:
        process = self._process
        loop = process.loop
        if loop.dead:
            return
        if loop.paused:
            loop._held.append((self._begin, None))
            return
        disk, profile = process.host.disk, process.profile
        segments = self._wal.segment_count
        self._rotated = False
        disk.begin_round()
        error: Exception | None = None
        try:
            self._round()
        except Exception as failure:  # noqa: BLE001 (as the product's `_run`, which ends the process)
            error = failure
        if self._wal.segment_count > segments:
            self._rotated = True
            process.world.mark("segment rotated")
        elif self._wal.segment_count < segments:
            process.world.mark("segment released")
        if any(work.snapshot is not None for work in self._works):
            loop.call_soon(process.point, "snapshot being marked")
        wait_ns = profile.sync_ns + process.world.random.getrandbits(profile.sync_bits)
        process.world.after(wait_ns * disk.slow_factor, self._finish, error)

    def _finish(self, error: Exception | None) -> None:
        process = self._process
        if process.loop.dead:
            return
        process.world.events += 1
        host = process.host
        host.disk.end_round()
        if error is not None:
            try:
                process.platform.fatal(error)
            except Died:
                return
        works, self._works = self._works, []
        host.durable.keep(works)
        host.inflight = []
        posts, self._posts = self._posts, []
        core = process.product.raft
        assert isinstance(core, WatchedRaft)
        for work in works:
            core.check_leaving(work.messages)
            if work.snapshot is not None:
                posts.insert(0, partial(process.point, "snapshot marked"))
        for post in posts:
            process.loop.call_soon(self._deliver, post)
        self._under_way = False
        if not self._queue.empty():
            self._kick()

    def _deliver(self, post: Callable[[], None]) -> None:
        self._process.point("durable")
        if self._rotated:
            self._process.point("segment rotated")
        post()


class SimPlatform:
    """`kvstore.server.platform.Platform` of one process."""

    def __init__(self, process: Process, clock: LocalClock) -> None:
        self._process = process
        self.disk = process.handle
        self.clock = clock
        self.random: random.Random = process.world.random

    def wal_options(self) -> Options:
        profile = self._process.profile
        return Options(profile.segment_bytes, profile.zero_ahead_bytes)

    def open_backend(self, path: str, *, map_size_bytes: int) -> Backend:
        files = self._process.cluster.store_files
        if files is not None:
            return FileBackend(self._process.handle, files, path, map_size_bytes=map_size_bytes)
        return self._process.cluster.parts.backend(
            self._process.handle, path, map_size_bytes=map_size_bytes
        )

    def core(self, settings: Mapping[str, Any], restored: Restored) -> WatchedRaft:
        process = self._process
        core = process.cluster.parts.core(Config(**{**settings, **process.profile.core}), restored)
        core.process = process
        process.log = LogView(
            restored.compacted[0], restored.compacted[1], list(restored.entries), core.log.committed
        )
        return core

    def disk_thread(
        self, wal: Wal, on_saved: Callable[[list[AppendWork], float], None]
    ) -> SimDiskThread:
        return self._process.cluster.parts.thread(self._process, wal, on_saved)

    def links(
        self,
        cluster_id: int,
        member_id: int,
        receiver: Receiver,
        *,
        on_lost: Callable[[int, Channel], None],
        on_removed: Callable[[int], None],
    ) -> SimLinks:
        self._process.links = SimLinks(self._process, member_id, receiver, on_lost, on_removed)
        return self._process.links

    def server(self, limits: Limits, http: Any, on_error: Any) -> SimServer:
        return self._process.server

    def fatal(self, error: BaseException, *, what: str = "the disk failed") -> NoReturn:
        process = self._process
        if not isinstance(error, OSError) or what not in {"the disk failed", FULL}:
            if isinstance(error, Violation):
                raise error
            raise Violation(FATAL, f"member {process.id}: {what}: {error!r}") from error
        process.world.mark(f"disk failed: {error.strerror}")
        process.cluster.nemesis.disk_failed(process)
        process.end(f"{what}: {error}")

    def starting(self) -> None: ...

    def started(self) -> None: ...
