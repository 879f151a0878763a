"""One member around the real core: what `kvstore.server.node` is in production, on simulated ports.

A `Member` lasts for the run, a `Process` from start to crash. Storage stands behind
`tests.sim.disk.Storage` and the state machine behind `tests.sim.machine.Machine`; the real log,
store, leases and watches replace them there. No fault is decided here: `Nemesis.point` is told
where the process is and may raise `Crashed`.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappush
from typing import TYPE_CHECKING, Any
from zlib import crc32

from kvstore.peer import codec
from kvstore.raft.config import Config, Restored
from kvstore.raft.errors import ChangeRefused, RaftError
from kvstore.raft.membership import Change, change_configuration
from kvstore.raft.messages import (
    CHANGE,
    AppendRequest,
    AppendResponse,
    AppendWork,
    Entry,
    Heartbeat,
    InstallSnapshot,
    Message,
    PreVoteResponse,
    ReadReady,
    Ready,
    Role,
    TimeoutNow,
    VoteResponse,
)
from kvstore.raft.raft import Raft
from tests.sim.disk import Disk
from tests.sim.invariants import MONOTONIC, PROMISES, LogView
from tests.sim.linear import READ, Value
from tests.sim.machine import Image, Machine, Write, decode, encode
from tests.sim.transfer import Transfer

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster

APPLIED, REFUSED, UNKNOWN = "applied", "refused", "unknown"

Done = Callable[[str, "Value | None", int], None]
"""Takes outcome, result, and the index of the log that it shows."""

Request = tuple[int, int, int, Done]
"""Key, PUT or APPEND or READ, value, whom to tell."""

WATCHED = PROMISES | {InstallSnapshot, PreVoteResponse, TimeoutNow}
"""Messages that are more to `Process.send` than bytes."""


class Crashed(Exception):  # noqa: N818 (no error: it unwinds a process that dies)
    """The process dies here."""


class Member:
    """What lasts: identity, disk, and the process if one runs."""

    def __init__(self, cluster: Cluster, member_id: int, disk: Disk) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.id = member_id
        self.disk = disk
        self.process: Process | None = None
        self.incarnation = 0
        self.paused = False
        self.inbox: list[tuple[Callable[[Any], None], Any]] = []
        self.tick_ns = 0
        self.seen = (0, 0, 0)
        """Term, commit and applied index that were durable when a process ended or started."""

    def start(self) -> None:
        """Start a process on what the disk kept; nothing if one runs."""
        if self.process is None:
            self.incarnation += 1
            self.paused = False
            self.process = self.cluster.make_process(self)

    def crash(self) -> None:
        """Kill the process and lose what was not durable."""
        process, self.process = self.process, None
        if process is not None:
            self.inbox.clear()
            self.paused = False
            process.die()
            self.disk.crash()
            state = self.disk.hard_state
            self.check_memory((state.term, state.commit, self.disk.store.index))

    def check_memory(self, now: tuple[int, int, int]) -> None:
        """Check that nothing durable was forgotten."""
        if any(new < old for new, old in zip(now, self.seen, strict=True)):
            self.cluster.invariants.fail(
                MONOTONIC, f"member {self.id} has {now} on disk and had {self.seen}"
            )
        self.seen = now

    def receive(self, frame: bytes) -> None:
        """Take a frame from the network."""
        process = self.process
        if process is None:
            return
        world = self.world
        world.events += 1
        world.digest = crc32(frame, world.digest ^ (world.now_ns & 0xFFFF_FFFF))
        if self.paused:
            self.inbox.append((process.receive, frame))
            return
        # `Process.receive`, without the call: this is the hottest path of the simulator.
        message = codec.decode(frame)
        if world.lines is not None:
            world.trace(f"{self.id} <- {message}")
        process.step(message)
        process.pump()

    def resume(self) -> None:
        """End a pause: all that came meanwhile is handled now, in order."""
        self.paused = False
        inbox, self.inbox = self.inbox, []
        process = self.process
        for act, argument in inbox:
            if self.process is not process:
                return
            act(argument)


class Process:
    """One incarnation of a member: core, live state machine, pending client operations."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.cluster = cluster = member.cluster
        self.world = member.world
        self.disk = member.disk
        self.id = member.id
        self.invariants = cluster.invariants
        self.network = cluster.network
        self.point = cluster.nemesis.point
        knobs = self.knobs = cluster.profile
        recovered = member.disk.start(self._durable)
        state, image = recovered.hard_state, recovered.image
        member.check_memory((state.term, state.commit, image.index))
        self.machine = Machine(image)
        self.raft: Raft = cluster.make_core(
            Config(
                id=self.id,
                draw_timeout=self.world.random.randrange,
                incarnation=member.incarnation,
                **knobs.core,
            ),
            Restored(
                hard_state=state,
                entries=recovered.entries,
                compacted=(recovered.compacted_index, recovered.compacted_term),
                configuration=image.configuration,
                applied=image.index,
            ),
        )
        # Bound once: both are called for every message.
        self.step, self.take = self.raft.step, self.raft.take
        self.log = LogView(
            recovered.compacted_index,
            recovered.compacted_term,
            recovered.entries,
            self.raft.log.committed,
        )
        self.term, self.role, self.leader = state.term, Role.FOLLOWER, 0
        self.applying: list[Entry] = []
        """Taken from the core, not applied yet."""
        self.apply_due = False
        self.turn_due = False
        self.turn_ns, self.turn_late = knobs.turn_ns, self._turn_late
        self.pump = self._turn_soon if knobs.turn_ns else self._turn
        """Do what the core wants: now, or together with what else this turn of the loop brings."""
        self.sequence = 0
        self.forwards = member.incarnation << 32
        self.asked = False
        """A client asked for something since the last turn."""
        self.batch: list[tuple[Write, Done]] = []
        self.pending: dict[int, Done] = {}
        """By sequence number: writes whose entry this process has not applied yet."""
        self.sent: dict[int, tuple[int, int]] = {}
        """By forward id: first sequence number and count of the writes in it."""
        self.reads = member.incarnation << 32
        self.queued_reads: list[tuple[int, Done]] = []
        self.asked_reads: dict[int, list[tuple[int, Done]]] = {}
        self.ready_reads: list[tuple[int, list[tuple[int, Done]]]] = []
        self.sealed: Image | None = None
        self.incoming: Transfer | None = None
        """The one slot for a snapshot that is received."""
        self.installing = False
        self.world.after(self.world.between(0, member.tick_ns), self._tick, None)

    # --- inputs ---

    def alive(self) -> bool:
        """Tell whether this process still runs."""
        return self.member.process is self

    def receive(self, frame: bytes) -> None:
        """Take one encoded message."""
        self.raft.step(codec.decode(frame))
        self.pump()

    def _tick(self, _: object) -> None:
        if self.member.process is not self:
            return
        self.world.after(self.member.tick_ns, self._tick, None)
        # A paused process does not make up for the ticks that it missed.
        if not self.member.paused:
            self.raft.tick()
            self.pump()

    def _durable(self, works: list[AppendWork]) -> None:
        if self.member.paused:
            self.member.inbox.append((self._durable, works))
            return
        try:
            for work in works:
                if work.messages:
                    self.point("durable", self)
                    self.send(work.messages)
                self.raft.appended(work)
                if work.snapshot is not None:
                    self.installing = False
            self._commit_store()
            self.pump()
        except Crashed:
            self.member.crash()

    def submit(self, request: Request) -> None:
        """Take a client's operation; `done` is called once, unless the client gave up."""
        if self.member.paused:
            self.member.inbox.append((self.submit, request))
            return
        key, kind, value, done = request
        if kind == READ:
            self.queued_reads.append((key, done))
        else:
            self.batch.append(((key, kind, value), done))
        self.asked = True
        self.pump()

    def _turn_soon(self) -> None:
        if not self.turn_due:
            self.turn_due = True
            # `World.after`, without the call: with this knob, a turn goes with most events.
            world = self.world
            world.sequence = sequence = world.sequence + 1
            heappush(world.heap, (world.now_ns + self.turn_ns, sequence, self.turn_late, None))

    def _turn_late(self, _: object) -> None:
        member = self.member
        if member.process is not self:
            return
        if member.paused:
            member.inbox.append((self._turn_late, None))
            return
        self.turn_due = False
        self._turn()

    # --- one turn of the loop ---

    def _turn(self) -> None:
        take = self.take
        try:
            if self.asked:
                self.asked = False
                self._take_operations()
            while (ready := take()) is not None:
                self._handle(ready)
        except Crashed:
            self.member.crash()

    def _handle(self, ready: Ready) -> None:
        log, invariants, work = self.log, self.invariants, ready.append
        if work is not None and (work.entries or work.snapshot is not None):
            self._note_work(work)
        if ready.refused:
            self.world.mark("forwarded proposal refused")
            self._refuse(ready.refused)
        if ready.term != self.term or ready.role is not self.role or ready.leader != self.leader:
            self._changed(ready)
        commit = self.raft.log.committed
        if commit != log.commit:
            invariants.committed_to(self.id, self.term, commit, log)
            if self.role is Role.LEADER:
                self.point("leader committed", self)
        if ready.messages:
            self.send(ready.messages)
        if work is not None:
            self.disk.submit(work)
        if ready.apply:
            self.applying += ready.apply
            if not self.knobs.apply_ns:
                self._apply()
            elif not self.apply_due:
                self.apply_due = True
                self.world.after(self.knobs.apply_ns, self._apply_late, None)
        if ready.reads:
            self._reads_ready(ready.reads)

    def _note_work(self, work: AppendWork) -> None:
        world = self.world
        if world.lines is not None:
            world.trace(f"{self.id} writes {work}")
        if self.invariants.appended(self.id, work, self.log):
            world.mark("log truncated")
            self.point("truncated", self)
        if work.snapshot is not None:
            assert self.incoming is not None
            image, self.incoming = self.incoming.image, None
            assert (image.index, image.term) == (work.snapshot.index, work.snapshot.term)
            world.mark("snapshot installed")
            self.disk.stage(image)
            self.applying.clear()
            self.machine.restore(image)
            self.installing = True
            self.sealed = None
            # Whatever this process waited for may lie inside the snapshot: nobody can tell.
            self._forget_pending()
            self.point("snapshot installed", self)
        for entry in work.entries:
            if entry.kind == CHANGE:
                self.point("change appended", self)

    def _changed(self, ready: Ready) -> None:
        world = self.world
        if ready.term < self.term:
            self.invariants.fail(MONOTONIC, f"member {self.id} goes back to term {ready.term}")
        if world.lines is not None:
            world.trace(f"{self.id} is {ready.role.name} of {ready.leader} in term {ready.term}")
        old_role, newer = self.role, ready.term > self.term
        # The leader may have appended what it was sent before it lost its place: from here on
        # only `refused` could say more, and it has been looked at.
        if self.pending and (ready.term != self.term or ready.leader != self.leader):
            self._forget_pending()
        self.term, self.role, self.leader = ready.term, ready.role, ready.leader
        if ready.role is Role.LEADER and (old_role is not Role.LEADER or newer):
            world.mark("leader elected")
            self.cluster.leader_hint = self.id
            self.invariants.became_leader(self.id, ready.term, self.log)
            self.point("leader", self)
        elif ready.role is not Role.LEADER and old_role is Role.LEADER:
            world.mark("leader stepped down")
        elif ready.role is Role.PRE_CANDIDATE:
            world.mark("pre-vote started")
        elif ready.role is Role.FOLLOWER and old_role is Role.CANDIDATE:
            world.mark("election lost")

    def send(self, messages: list[Message]) -> None:
        """Hand messages to the network, each checked for what it promises."""
        send, encode, own, watched = self.network.send, codec.encode, self.id, WATCHED
        for message in messages:
            kind = type(message)
            if kind not in watched:
                send(own, message.target, encode(message))
            elif kind is Heartbeat:
                # Half of what is watched, and all that is asked of it.
                self.invariants.leads(message, self.disk)
                send(own, message.target, encode(message))
            else:
                self._send_watched(message)

    def _send_watched(self, message: Message) -> None:
        kind = type(message)
        if kind in PROMISES:
            self.invariants.leaving(message, self.disk)
        if kind is InstallSnapshot:
            self._send_snapshot(message)  # type: ignore[arg-type]
            return
        self.network.send(self.id, message.target, codec.encode(message))
        if kind is AppendRequest:
            self.point("append sent", self)
        elif isinstance(message, AppendResponse):
            if message.hint is None:
                self.point("append answered", self)
            else:
                self.world.mark("append rejected")
        elif isinstance(message, VoteResponse):
            if message.granted:
                self.point("vote sent", self)
            else:
                self.world.mark("vote refused")
        elif isinstance(message, PreVoteResponse):
            self.world.mark("pre-vote granted" if message.granted else "pre-vote refused")
        elif isinstance(message, TimeoutNow):
            self.point("transfer started", self)

    # --- client operations ---

    def _take_operations(self) -> None:
        if self.batch:
            self._propose()
        if self.queued_reads and not self.asked_reads:
            self._ask()

    def _propose(self) -> None:
        world = self.world
        while self.batch:
            count = self.knobs.operations_per_entry_max
            taken, self.batch = self.batch[:count], self.batch[count:]
            first = self.sequence
            self.sequence += len(taken)
            for i, (_, done) in enumerate(taken):
                self.pending[first + i] = done
            origin = (self.id, self.member.incarnation, first)
            data = encode(origin, [write for write, _ in taken])
            self.forwards += 1
            self.sent[self.forwards] = (first, len(taken))
            try:
                if self.raft.forward(data, self.forwards) is None:
                    world.mark("proposal forwarded")
            except RaftError as error:
                world.mark(f"proposal refused: {type(error).__name__}")
                self._refuse([self.forwards])

    def _refuse(self, forward_ids: list[int]) -> None:
        for forward_id in forward_ids:
            # One of the past, answered as unknown meanwhile, is not in `sent`; still the promise
            # would have to hold, but nobody relies on it.
            first, count = self.sent.pop(forward_id, (0, 0))
            if count:
                self.invariants.was_refused((self.id, self.member.incarnation, first))
            for sequence in range(first, first + count):
                done = self.pending.pop(sequence, None)
                if done is not None:
                    done(REFUSED, None, 0)

    def _forget_pending(self) -> None:
        pending, self.pending = self.pending, {}
        self.sent.clear()
        for done in pending.values():
            self.world.mark("outcome unknown")
            done(UNKNOWN, None, 0)

    def _ask(self) -> None:
        # At most one round is open; reads that come meanwhile form the next one.
        self.reads += 1
        self.asked_reads[self.reads] = self.queued_reads
        self.queued_reads = []
        if self.role is not Role.LEADER:
            self.world.mark("read forwarded")
        self.raft.read(self.reads)
        self.point("read asked", self)

    def _reads_ready(self, answers: list[ReadReady]) -> None:
        for answer in answers:
            waiting = self.asked_reads.pop(answer.read_id)
            if answer.index is None:
                self.world.mark("read refused")
                for _, done in waiting:
                    done(REFUSED, None, 0)
            elif answer.index <= self.machine.index:
                self._serve(waiting)
            else:
                self.world.mark("read waited for apply")
                self.ready_reads.append((answer.index, waiting))
        if self.queued_reads and not self.asked_reads:
            self._ask()

    def _serve(self, waiting: list[tuple[int, Done]]) -> None:
        machine = self.machine
        for key, done in waiting:
            done(APPLIED, machine.lists.get(key, ()), machine.index)

    # --- the state machine ---

    def _apply_late(self, _: object) -> None:
        member = self.member
        if member.process is not self:
            return
        if member.paused:
            member.inbox.append((self._apply_late, None))
            return
        self.apply_due = False
        try:
            self._apply()
            self.pump()
        except Crashed:
            member.crash()

    def _apply(self) -> None:
        entries, self.applying = self.applying, []
        machine, invariants, raft = self.machine, self.invariants, self.raft
        for entry in entries:
            previous, machine.index, machine.term = machine.index, entry.index, entry.term
            if entry.kind == CHANGE:
                self._apply_change(entry)
            elif entry.data:
                origin, writes = decode(entry.data)
                if entry.index == len(invariants.applied_data):
                    invariants.first_applied(origin, entry.index)
                results = machine.apply(writes)
                if origin[0] == self.id and origin[1] == self.member.incarnation:
                    for i, result in enumerate(results):
                        done = self.pending.pop(origin[2] + i, None)
                        if done is not None:
                            done(APPLIED, result, entry.index)
            invariants.applied(self.id, entry, previous, machine.digest)
        if entries:
            raft.applied(machine.index)
            if len(self.sent) > 64 and not self.pending:
                self.sent.clear()
        if self.ready_reads:
            waiting, self.ready_reads = self.ready_reads, []
            for index, reads in waiting:
                if index <= machine.index:
                    self._serve(reads)
                else:
                    self.ready_reads.append((index, reads))
        self._seal()

    def _apply_change(self, entry: Entry) -> None:
        machine = self.machine
        try:
            machine.configuration = change_configuration(
                machine.configuration, Change.decode(entry.data)
            )
            self.world.mark("membership changed")
        except ChangeRefused:
            self.world.mark("membership change refused")
        self.raft.applied(entry.index, machine.configuration)
        self.cluster.configuration_applied(entry.index, machine.configuration)

    # --- durable store and compaction ---

    def _seal(self) -> None:
        due = self.machine.index - self.disk.store.index >= self.knobs.store_every
        if due and self.sealed is None and not self.installing:
            self.sealed = self.machine.image()
            self._commit_store()

    def _commit_store(self) -> None:
        image = self.sealed
        # Never ahead of the own log: the entries might be gone after a crash. The core's mark and
        # not the disk's last index, which may still count entries that are being replaced.
        if image is None or self.installing or self.raft.log.durable < image.index:
            return
        self.sealed = None
        self.disk.commit_store(image)
        self.point("store committed", self)
        keep = image.index - self.knobs.trailing
        if keep - self.disk.compacted_index >= self.knobs.compact_every:
            self.world.mark("log compacted")
            self.raft.compact(keep)
            self.point("compacted in memory", self)
            self.disk.release(keep)

    # --- snapshots ---

    def _send_snapshot(self, message: InstallSnapshot) -> None:
        # Either will do: the live state, or what the durable store would stream.
        durable = self.disk.store
        fresh = durable.index < message.snapshot.index or self.world.chance(0.5)
        Transfer(self, message, self.machine.image() if fresh else durable).start()

    def take_snapshot(self, frame: bytes) -> None:
        """Step the message of a snapshot that has arrived whole and is safe on disk."""
        self.raft.step(codec.decode(frame))
        # At once, whatever the turn: `incoming` is the image that this message means.
        self._turn()
        self.incoming = None

    def hit(self, name: str) -> None:
        """Pass a point outside of a turn."""
        try:
            self.point(name, self)
        except Crashed:
            self.member.crash()

    # --- nemesis entry points ---

    def change(self, change: Change) -> None:
        """Propose a membership change; a refusal is an answer like any other."""
        self._attempt("propose_change", change)

    def transfer_leadership(self, target: int) -> None:
        """Ask to hand over."""
        world, term = self.world, self.term
        if self._attempt("transfer_leadership", target) and target != self.id:
            world.mark("transfer asked")
            timeout_ns = 3 * self.raft.config.election_ticks * self.member.tick_ns

            def look(_: object) -> None:
                if self.alive() and self.role is Role.LEADER and self.term == term:
                    world.mark("transfer aborted")

            world.after(timeout_ns, look)

    def campaign(self) -> None:
        """Start an election out of turn."""
        self._attempt("campaign")

    def unreachable(self, peer: int) -> None:
        """Report a broken connection."""
        self._attempt("unreachable", peer)

    def snapshot_sent(self, peer: int, *, ok: bool) -> None:
        """Report the end of a transfer."""
        self.raft.snapshot_sent(peer, ok=ok)
        self.pump()

    def _attempt(self, name: str, *arguments: Any) -> bool:
        accepted = True
        try:
            getattr(self.raft, name)(*arguments)
        except RaftError:
            self.world.mark(f"{name} refused")
            accepted = False
        self.pump()
        return accepted

    def die(self) -> None:
        """Tell the clients what a broken connection tells them."""
        if self.machine.index > self.disk.last_index:
            # Only with `apply_before_durable`: the state beyond the own log is lost with us.
            self.world.mark("crash with applied entries not durable")
        self._forget_pending()
        for _, done in self.batch:
            done(UNKNOWN, None, 0)
        lost = [self.queued_reads, *self.asked_reads.values()]
        lost += [reads for _, reads in self.ready_reads]
        for reads in lost:
            for _, done in reads:
                done(UNKNOWN, None, 0)
