"""Known bugs of whole members, planted into the real product: the simulator must find each.

None is a flag of the product: each replaces a function of it for the hunt. `imitates` names the
bug of the real world that it stands for. Where an invariant looks at the very place of the bug it
is switched off, so that the consequence must be found.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from kvstore.client import KvError, OutcomeUnknownError, UnreachableError
from kvstore.client import transport as client_transport
from kvstore.client.errors import error_from_rpc
from kvstore.client.transport import Transport
from kvstore.client.watch import Watcher as ClientWatcher
from kvstore.lease.clock import LeaseClock
from kvstore.lease.lessor import Lessor
from kvstore.mvcc import watch_encode, watch_progress
from kvstore.mvcc.index import Index
from kvstore.mvcc.marks import AppliedMark
from kvstore.mvcc.rebuild import rebuild
from kvstore.mvcc.store import Store
from kvstore.mvcc.watch import WatchHub
from kvstore.peer import codec as peer_codec
from kvstore.raft import leader as leader_module
from kvstore.raft.follower import Follower
from kvstore.raft.leader import Leader
from kvstore.raft.membership import Change, change_configuration
from kvstore.raft.messages import AppendResponse, AppendWork, Configuration, Entry, Role
from kvstore.raft.quorum import joint_acknowledged
from kvstore.raft.raft import Raft
from kvstore.server import member as server_member
from kvstore.server import membership as server_membership
from kvstore.server import node as server_node
from kvstore.server import reconfig, snapshots
from kvstore.server.cluster import Cluster
from kvstore.server.leases import Leases
from kvstore.server.member import Member
from kvstore.server.membership import Membership
from kvstore.server.node import Node
from kvstore.server.proposals import Proposals
from kvstore.server.reads import Reads
from kvstore.server.reconfig import Request, Sight
from kvstore.server.storage import Storage
from kvstore.wal import recovery
from kvstore.wal.log import Wal
from tests.sim.full.cluster import REOPENED, FullResult, run
from tests.sim.full.disk import Handle, SimFile
from tests.sim.full.machine import SimDiskThread
from tests.sim.full.members import ONE_CHANGE
from tests.sim.invariants import DURABLE_FIRST

Patch = tuple[Any, str, Any]
"""Where, which name, and what stands there during the hunt."""


# --- the log and the disk -------------------------------------------------------------------------


def no_fsync(self: SimFile) -> None:
    """Call the data durable while it is in the page cache."""


def no_folder_fsync(self: Handle, path: str) -> None:
    """Trust that names are durable with the data."""


def retrying_save(self: SimDiskThread, works: list[AppendWork]) -> None:
    """Ask the disk again after a failed fsync, and believe the second answer."""
    self._process.host.inflight = self._works = works
    wal = self._wal
    try:
        wal.save(works)
    except OSError:
        wal._failure = None
        assert wal._file is not None
        wal._file.sync()
        wal._last = (
            (works[-1].entries[-1].index, works[-1].entries[-1].term)
            if works[-1].entries
            else wal._last
        )
    self._post(lambda: self._saved(works, 0.0))


def write_skipped_at_open(real: Callable[..., Any]) -> Callable[..., Any]:
    """Only fsync the last batch at the start, not write it again."""

    def resume(self: Wal, recovered: Any, segments: Any) -> None:
        write = SimFile.write
        try:
            SimFile.write = lambda *_: None  # type: ignore[method-assign,assignment]
            real(self, recovered, segments)
        finally:
            SimFile.write = write  # type: ignore[method-assign]

    return resume


def everything_is_torn(segment: recovery.Segment) -> int:
    """Take whatever is behind the last good batch for what a crash left."""
    return len(bytes(segment.data[segment.end :]).rstrip(b"\0"))


def acknowledged_early(self: SimDiskThread, works: list[AppendWork]) -> None:
    """Report before the fsync."""
    self._process.host.inflight = self._works = works
    self._process.loop.call_soon(self._saved, works, 0.0)
    self._wal.save(works)


def release_what_is_applied(real: Callable[..., Any]) -> Callable[..., Any]:
    """Free the log up to what is applied, though the store on disk is behind."""

    def applied(self: Member, result: Any) -> None:
        real(self, result)
        self.disk.release(result.index)

    return applied


# --- the store ------------------------------------------------------------------------------------


async def commits_ahead(self: Storage) -> None:
    """Commit the store without waiting for the own log."""
    index, self._durable_index = self._durable_index, lambda: 1 << 62
    try:
        await real_commit(self)
    finally:
        self._durable_index = index


real_commit = Storage._commit


def mark_of_yesterday(self: Member) -> AppliedMark:
    """Store the applied index of the entry before."""
    mark = real_mark(self)
    earlier = max(mark.index - 1, self.store.applied.index)
    return AppliedMark(earlier, mark.term)


real_mark = Member._mark


def settles_nothing(disk: Any, config: Any, marked: Any) -> None:
    """Throw away a received snapshot at the start, though the log has marked it."""
    real_settle(disk, config, None)


real_settle = snapshots.settle


def adopts_half(self: Member, replica: Any) -> None:
    """Install a snapshot and leave the key-value service on the store before it."""
    store = self.kv.store
    real_adopt(self, replica)
    self.kv.store = store


real_adopt = Member._adopt


def keeps_old_lessor(self: Member, replica: Any) -> None:
    """Install a snapshot and leave the lease book before it in charge."""
    lessor, clock = self.leases.lessor, self.leases.clock
    real_adopt(self, replica)
    self.leases.lessor, self.leases.clock, self.lease_clock = lessor, clock, clock


def swaps_before_the_log(real: Callable[..., Any]) -> Callable[..., Any]:
    """Put a received snapshot in place before the log knows of it."""

    async def install(self: Node, message: Any) -> bool:
        member = self.hooks.snapshot.__self__  # type: ignore[attr-defined]
        index = message.snapshot.index
        disk = member.platform.disk
        folder = member.config.data_dir
        path = snapshots.received_path(folder, index)
        disk.rename(path, f"{folder}/{snapshots.STORE_NAME}")
        disk.sync_folder(folder)
        taken: bool = await real(self, message)
        disk.rename(f"{folder}/{snapshots.STORE_NAME}", path)
        return taken

    return install


def tombstone_goes_early(
    self: Index, key: bytes, revision: int, limit: int
) -> tuple[list[bytes], bool]:
    """Remove a deletion at the compacted revision itself, which is still readable."""
    return real_obsolete(self, key, revision + 1, limit)


real_obsolete = Index.obsolete


def forgets_tombstones(records: Any) -> Any:
    """Rebuild the index without the deletions."""
    return real_rebuild((key, record) for key, record in records if len(key) != 18)


real_rebuild = rebuild


def previous_is_current(self: Store, event: Any) -> bytes | None:
    """Show the newest value as the previous one."""
    current = self.index.current(event.key)
    return None if current is None else self.buffer.record(current)


# --- proposals and reads --------------------------------------------------------------------------


def role_changed_and_sent_again(self: Node, ready: Any) -> None:
    """Send every batch again when the leader changes."""
    real_role_changed(self, ready)
    for first in list(self.proposals._sent):
        self.proposals.refused(first)


real_role_changed = Node._role_changed


def sent_again_in_time(self: Proposals, now_ns: int) -> None:
    """Send a batch again that got no answer for a while."""
    for first, batch in list(self._sent.items()):
        if batch.deadline_ns - now_ns < self._timeout_ns - 200_000_000:
            self.refused(first)
    real_expire(self, now_ns)


real_expire = Proposals.expire


def term_of_the_last_output(real: Callable[..., Any]) -> Callable[..., Any]:
    """Count a batch to the term that the core told last, not to the one it is sent in."""

    def next_batch(self: Proposals, term: int) -> Any:
        return real(self, max(0, term - 1))

    return next_batch


def any_answer_will_do(self: Reads, read_id: int, index: int | None, applied: int) -> None:
    """Take a late answer of a lost round for that of the round under way."""
    real_ready(self, self._round_id, index, applied)


real_ready = Reads.ready


def joins_the_round(self: Reads, fresh: Any) -> None:
    """Let a new read join the round under way."""
    if self._round:
        self._round.append((self._clock.monotonic_ns() + self._timeout_ns, fresh))
    else:
        real_add(self, fresh)


real_add = Reads.add


def serves_before_apply(self: Reads, read_id: int, index: int | None, applied: int) -> None:
    """Serve a confirmed read whatever is applied."""
    real_ready(self, read_id, None if index is None else 0, applied)


def answers_in_any_order(self: Proposals, *args: Any) -> Any:
    """Give the results of a batch to its waiters in the wrong order."""
    return list(reversed(real_applied(self, *args)))


real_applied = Proposals.applied


# --- watches --------------------------------------------------------------------------------------


def loses_on_full(self: WatchHub, stream: Any, first: int | None = None) -> None:
    """Go on after a full stream from now, not from what was missed."""
    stream.full = True
    for watcher in stream.watchers.values():
        if watcher.synced:
            self._fall_behind(watcher, self.revision + 1)
        elif watcher.behind:
            self._ready.pop(watcher, None)


def splits_revisions(self: Store, start: int, end: int, limit: int) -> Any:
    """Stop catching up at the limit, in the middle of a revision."""
    revisions, following = real_events_between(self, start, end, limit)
    if revisions and len(revisions[-1][1]) > limit:
        revisions[-1] = (revisions[-1][0], revisions[-1][1][:limit])
    return revisions, following


real_events_between = Store.events_between


def restored_in_sync(self: WatchHub, store: Any) -> None:
    """Call watchers synced after a snapshot, as if nothing had been skipped."""
    self.store = store
    self.revision = store.revision
    if self._ahead:
        self._admit_ahead()


def restored_from_the_start(self: WatchHub, store: Any) -> None:
    """Let watchers begin again where they were created."""
    self.store = store
    self.revision = store.revision
    for stream in list(self._streams):
        for watcher in stream.watchers.values():
            if watcher.synced:
                self._fall_behind(watcher, max(watcher.start, store.compacted, 1))


def progress_of_the_store(self: Any, stream: Any) -> bool:
    """Tell the store's revision, whether the watchers have got it or not."""
    stream.post(self._hub.head(self._hub.revision) + watch_progress._ALL)
    return True


def compaction_unnoticed(self: WatchHub) -> int:
    """Let watchers that need compacted revisions go on behind them."""
    compacted = self.store.compacted
    for watcher in self._ready:
        if watcher.next < compacted:
            watcher.next = compacted
    return int(real_settle_ready(self))


real_settle_ready = WatchHub._settle_ready


def history_unfiltered(self: WatchHub, events: Any, options: int) -> Any:
    """Forget the filters."""
    return real_pack(self, events, options & ~(watch_encode.NOPUT | watch_encode.NODELETE))


real_pack = WatchHub._pack


# --- leases ---------------------------------------------------------------------------------------


def revokes_in_any_term(
    self: Leases, term: int, kind: int, request: Any, done: Callable[[Any], None]
) -> None:
    """Propose an expiry that another leader's log takes too."""
    self._node.propose(kind, request.SerializeToString(), done)


def revokes_without_round(self: Leases) -> None:
    """Revoke what the own clock says, without asking whether anybody else leads."""
    node = self._node
    linearizable = node.linearizable
    node.linearizable = lambda done: done(None)  # type: ignore[method-assign]
    propose = self._propose
    self._propose = lambda *args: revokes_in_any_term(self, *args)  # type: ignore[method-assign]
    try:
        real_lease_tick(self)
    finally:
        node.linearizable = linearizable  # type: ignore[method-assign]
        self._propose = propose  # type: ignore[method-assign]


real_lease_tick = Leases.tick


def renews_alone(self: Leases, lease_id: int, done: Any, deadline_ns: int) -> None:
    """Answer a renewal from the own clock, without a ReadIndex round."""
    now_ns = self._node.clock.monotonic_ns()
    if not self.clock.leading or self._node.role is not Role.LEADER:
        done(0)
        return
    ttl_s = self.clock.renew(lease_id, now_ns)
    done(max(0, ttl_s))


def confirmed_by_anybody(
    self: Leases, lease_id: int, ttl_s: int, term: int, again: Any, done: Any, error: Any
) -> None:
    """Believe a ReadIndex round that another leader confirmed after this one was replaced."""
    if error is None and not self.clock.leading:
        done(ttl_s if lease_id in self.lessor.leases else 0)
    else:
        real_confirmed(self, lease_id, ttl_s, term, again, done, error)


real_confirmed = Leases._confirmed


def clock_remembers(self: LeaseClock, now_ns: int, extend_ns: int) -> None:
    """Lead again with the times of an earlier leadership."""
    ends = dict(self._ends)
    slots = self._slots, self._slot_of, self._slot_order
    real_promote(self, now_ns, extend_ns)
    self._ends = ends
    self._slots, self._slot_of, self._slot_order = slots


def clock_never_forgets(self: LeaseClock) -> None:
    """Keep the times when another leads."""
    self.leading = False
    self._lessor.listener = None


real_promote = LeaseClock.promote


def promoted_without_life(self: LeaseClock, now_ns: int, extend_ns: int) -> None:
    """Start leases of an earlier leader as if half their life were over."""
    real_promote(self, now_ns, extend_ns)
    self._promoted_ns = now_ns - 500_000_000 - extend_ns


def keys_one_by_one(self: Lessor, lease_id: int, delete_keys: Any) -> int | None:
    """Delete the keys of a lease in a revision each."""
    for key in self.keys(lease_id)[1:]:
        delete_keys([key])
    return real_revoke(self, lease_id, delete_keys)


real_revoke = Lessor.revoke


def attaches_nothing_at_start(self: Any, backend: Any, **options: Any) -> None:
    """Rebuild the store without telling the lessor which keys hang on which lease."""
    leases = options["leases"]
    attach = leases.attach
    leases.attach = lambda *_: None
    try:
        real_store_init(self, backend, **options)
    finally:
        leases.attach = attach
    self._lease_of = {}


real_store_init = Store.__init__


# --- membership -----------------------------------------------------------------------------------


def changes_side_by_side(self: Leader, data: bytes) -> tuple[int, int]:
    """Append a change while another one is under way."""
    self.pending_change = 0
    return real_propose_change(self, data)


real_propose_change = Leader.propose_change


def in_force_when_appended(self: Leader, data: bytes) -> tuple[int, int]:
    """Follow a change from when it is appended, and never take that back."""
    place = real_propose_change(self, data)
    raft = self.raft
    raft.configuration = change_configuration(raft.configuration, Change.decode(data))
    raft.state.reconfigured()
    return place


def learners_count(self: Leader) -> bool:
    """Commit what as many members hold as there must be voters, learners among them."""
    configuration = self.raft.configuration
    everybody = (*configuration.voters, *configuration.learners)
    held = sorted((self.matched.get(one, 0) for one in everybody), reverse=True)
    index = held[len(configuration.voters) // 2]
    leader_module.joint_acknowledged = lambda *_: index
    try:
        return real_maybe_commit(self)
    finally:
        leader_module.joint_acknowledged = joint_acknowledged


real_maybe_commit = Leader._maybe_commit


def whoever_asks(request: Request, cluster: Cluster, sight: Sight) -> Change:
    """Promote a learner whatever it holds."""
    return real_plan(request, cluster, replace(sight, progress=lambda member: 1.0))


real_plan = reconfig.plan


def change_not_stored(self: Membership, entry: Entry) -> Configuration | None:
    """Follow a change in memory and forget to store it."""
    write, self._write = self._write, lambda record: None
    try:
        return real_apply_change(self, entry)
    finally:
        self._write = write


real_apply_change = Membership.apply


def campaigns_after_removal(self: Raft) -> bool:
    """Hold elections though this member is no voter."""
    return (
        bool(self.configuration.voters)
        and not self.log.snapshot_outstanding
        and not self.is_disk_stalled()
    )


def starts_at_nothing(self: Follower) -> bool:
    """Let a member that joins replay the log over the members that it was told of."""
    return True


# --- peers ----------------------------------------------------------------------------------------


def hint_is_lost(payload: Any) -> Any:
    """Read a rejected append as an accepted one."""
    message = real_decode(payload)
    if isinstance(message, AppendResponse):
        message.hint = None
    return message


real_decode = peer_codec.decode


def last_entry_is_lost(payload: Any) -> Any:
    """Lose the data of entries that share a message."""
    message = real_decode(payload)
    entries = getattr(message, "entries", None)
    if entries and len(entries) > 1:
        entries[-1].data = entries[0].data
    return message


# --- the client library ---------------------------------------------------------------------------


def repeats_what_is_open(self: Transport, failure: KvError, *, write: bool) -> KvError:
    """Call a write that was sent and not answered "not applied", so that it is sent again."""
    if isinstance(failure, OutcomeUnknownError):
        return UnreachableError(failure.text)
    return failure


def repeats_calls(error: Any, *, write: bool) -> KvError:
    """Do the same for calls outside of sessions."""
    failure = error_from_rpc(error, write=write)
    return UnreachableError(failure.text) if isinstance(failure, OutcomeUnknownError) else failure


async def resumes_late(self: ClientWatcher) -> None:
    """Resume a watch one revision behind where it stopped."""
    if self._registrations:
        self._next_revision += 1
    await real_serve(self)


real_serve = ClientWatcher._serve_one_stream


@dataclass(frozen=True)
class FullBug:
    """One bug and what finding it may cost."""

    name: str
    layer: str
    imitates: str
    patches: tuple[Patch, ...]
    profile: str
    budget: int
    """Events within which a hunt must succeed."""

    off: frozenset[str] = frozenset()
    run_events: int = 2_500
    slow: bool = False
    seeds: tuple[int, ...] = field(default=(1_000, 2_000))
    """First seeds of unrelated hunts."""


_REBUILD = "kvstore.mvcc.store"


def _bugs() -> tuple[FullBug, ...]:
    import kvstore.mvcc.store as store_module  # noqa: PLC0415 (a module and a class share the name)

    return (
        FullBug(
            "fsync does nothing",
            "log",
            "etcd #14143: loss of a committed write under lazyfs",
            ((SimFile, "sync", no_fsync),),
            "crash",
            20_000,
        ),
        FullBug(
            "names are not synced",
            "log",
            "etcd #6378: file systems persist in another order than written",
            ((Handle, "sync_folder", no_folder_fsync),),
            "crash",
            20_000,
        ),
        FullBug(
            "acknowledged before the fsync",
            "log",
            "etcd #14370: acknowledged while the log is still being written",
            ((SimDiskThread, "_save", acknowledged_early),),
            "crash",
            30_000,
            frozenset((DURABLE_FIRST,)),
        ),
        FullBug(
            "a failed fsync is tried again",
            "log",
            "fsyncgate: PostgreSQL and others until 2018",
            ((SimDiskThread, "_save", retrying_save),),
            "rot",
            120_000,
            slow=True,
        ),
        FullBug(
            "the last batch is not written again at the start",
            "log",
            "fsyncgate, across a restart",
            ((Wal, "_resume", write_skipped_at_open(Wal._resume)),),
            "rot",
            150_000,
            slow=True,
        ),
        FullBug(
            "damage is taken for a torn tail",
            "recovery",
            "logs truncated at a bad checksum (FAST '18, protocol-aware recovery)",
            ((recovery, "torn_bytes", everything_is_torn),),
            "rot",
            210_000,
            slow=True,
        ),
        FullBug(
            "the log is released ahead of the store",
            "recovery",
            "etcd #10219: segments deleted before the snapshot was safe",
            ((Member, "_applied", release_what_is_applied(Member._applied)),),
            "crash",
            60_000,
        ),
        FullBug(
            "the store commits ahead of the log",
            "store",
            "raft-rs apply-unpersisted: applied beyond the log after a restart",
            ((Storage, "_commit", commits_ahead),),
            "crash",
            550_000,
            slow=True,
        ),
        FullBug(
            "the applied index lags behind the data",
            "store",
            "etcd 3.5.0 to 3.5.2: applied index and data stored apart (#13766, #14685)",
            ((Member, "_mark", mark_of_yesterday),),
            "crash",
            20_000,
        ),
        FullBug(
            "an interrupted installation is forgotten",
            "snapshot",
            "etcd #10219: order of snapshot, log mark and store",
            ((server_member, "settle", settles_nothing),),
            "snapshot",
            90_000,
        ),
        FullBug(
            "the store is swapped before the log marks it",
            "snapshot",
            "etcd #10219 and #18055: the steps of an installation out of order",
            ((Node, "install", swaps_before_the_log(Node.install)),),
            "snapshot",
            580_000,
            slow=True,
        ),
        FullBug(
            "a service keeps the store before the snapshot",
            "snapshot",
            "etcd #15271: members that answer from before a snapshot",
            ((Member, "_adopt", adopts_half),),
            "snapshot",
            120_000,
        ),
        FullBug(
            "a compaction removes a readable deletion",
            "compaction",
            "etcd #19179: deletions lost at the compacted revision",
            ((Index, "obsolete", tombstone_goes_early),),
            "watch",
            50_000,
        ),
        FullBug(
            "a restart forgets deletions",
            "store",
            "etcd #18089: tombstones and restart",
            ((store_module, "rebuild", forgets_tombstones),),
            "crash",
            20_000,
            frozenset((REOPENED,)),
        ),
        FullBug(
            "batches are sent again when the leader changes",
            "proposals",
            "FoundationDB layers: increments executed twice after commit unknown",
            ((Node, "_role_changed", role_changed_and_sent_again),),
            "swarm",
            20_000,
        ),
        FullBug(
            "batches are sent again after a while",
            "proposals",
            "hashicorp raft before 1.6.1, PySyncObj: a retried proposal is applied twice",
            ((Proposals, "expire", sent_again_in_time),),
            "network",
            50_000,
        ),
        FullBug(
            "a batch counts to the term before",
            "proposals",
            "found here: a batch counted to the term last told was sent twice",
            ((Proposals, "next_batch", term_of_the_last_output(Proposals.next_batch)),),
            "swarm",
            40_000,
        ),
        FullBug(
            "a late ReadIndex answer serves a later round",
            "reads",
            "etcd #20418: request ids used again after a pause",
            ((Reads, "ready", any_answer_will_do),),
            "reads",
            30_000,
        ),
        FullBug(
            "a read joins the round under way",
            "reads",
            "Raft thesis 6.4; TiKV and others answered reads that came after the round began",
            ((Reads, "add", joins_the_round),),
            "reads",
            250_000,
        ),
        FullBug(
            "a read does not wait for apply",
            "reads",
            "etcd #14140: stale read",
            ((Reads, "ready", serves_before_apply),),
            "swarm",
            50_000,
        ),
        FullBug(
            "a slow watcher skips what it missed",
            "watch",
            "Xline #677, #491: events lost under load",
            ((WatchHub, "filled", loses_on_full),),
            "watch",
            20_000,
        ),
        FullBug(
            "catching up splits a revision",
            "watch",
            "etcd's robustness tests: a revision's events in two responses",
            ((Store, "events_between", splits_revisions),),
            "watch",
            20_000,
        ),
        FullBug(
            "a snapshot is not told to watchers",
            "watch",
            "etcd #19179 and kin: events skipped by a snapshot are lost",
            ((WatchHub, "restored", restored_in_sync),),
            "snapshot",
            140_000,
        ),
        FullBug(
            "a watch goes back in time after a snapshot",
            "watch",
            "etcd #15271: watch going back in time",
            ((WatchHub, "restored", restored_from_the_start),),
            "snapshot",
            140_000,
        ),
        FullBug(
            "progress is told to watchers that are behind",
            "watch",
            "etcd's robustness tests: a bookmark ahead of the events",
            ((watch_progress.Progress, "_tell_all", progress_of_the_store),),
            "watch",
            20_000,
        ),
        FullBug(
            "watchers jump over a compaction in silence",
            "watch",
            "etcd #18089: events lost at compaction",
            (
                (WatchHub, "_settle_ready", compaction_unnoticed),
                (WatchHub, "compacted", lambda self, revision: None),
            ),
            "watch",
            150_000,
        ),
        FullBug(
            "the previous value is the newest one",
            "watch",
            "etcd's robustness tests: prev_kv of another revision",
            ((Store, "prev_kv", previous_is_current),),
            "watch",
            20_000,
        ),
        FullBug(
            "filters are forgotten",
            "watch",
            "kine #100 and kin: options of a request ignored",
            ((WatchHub, "_pack", history_unfiltered),),
            "watch",
            20_000,
        ),
        FullBug(
            "a stale leader revokes a lease",
            "leases",
            "a paused leader of the past revokes what the new one renewed",
            ((Leases, "tick", revokes_without_round),),
            "lease",
            770_000,
            slow=True,
        ),
        FullBug(
            "a stale leader renews a lease",
            "leases",
            "a renewal answered by a leader of the past",
            ((Leases, "_renew_here", renews_alone),),
            "lease",
            40_000,
        ),
        FullBug(
            "another leader confirms a renewal",
            "leases",
            "etcd #15247: a leader of the past answers renewals",
            ((Leases, "_confirmed", confirmed_by_anybody),),
            "lease",
            1_200_000,
            slow=True,
            seeds=(2_000, 20_000),
        ),
        FullBug(
            "a leader leads again with old times",
            "leases",
            "etcd #9888 and kin: lease times at a change of leader",
            (
                (LeaseClock, "promote", clock_remembers),
                (LeaseClock, "demote", clock_never_forgets),
            ),
            "lease",
            40_000,
        ),
        FullBug(
            "a new leader gives leases no full life",
            "leases",
            "etcd #9888: lease transfer at a change of leader",
            ((LeaseClock, "promote", promoted_without_life),),
            "lease",
            280_000,
        ),
        FullBug(
            "a lease's keys go one by one",
            "leases",
            "t4 #120: lease operations that are not atomic",
            ((Lessor, "revoke", keys_one_by_one),),
            "lease",
            20_000,
        ),
        FullBug(
            "a restart forgets which keys hang on a lease",
            "leases",
            "keys that outlive their lease",
            ((Store, "__init__", attaches_nothing_at_start),),
            "lease",
            30_000,
        ),
        FullBug(
            "two membership changes at a time",
            "membership",
            "etcd raft: the one pending change forgotten at a change of leader",
            ((Leader, "propose_change", changes_side_by_side),),
            "members",
            220_000,
            frozenset((ONE_CHANGE,)),
            slow=True,
        ),
        FullBug(
            "a change is in force when it is appended",
            "membership",
            "rules of the Raft thesis 4.1 without its way back when the entry is lost",
            ((Leader, "propose_change", in_force_when_appended),),
            "members",
            60_000,
        ),
        FullBug(
            "what learners hold counts for the commit",
            "membership",
            "non-voters counted in the quorum",
            ((Leader, "_maybe_commit", learners_count),),
            "members",
            400_000,
        ),
        FullBug(
            "a learner is promoted whatever it holds",
            "membership",
            "etcd before 3.4: a new voter without a log holds the quorum back",
            ((server_membership, "plan", whoever_asks),),
            "members",
            60_000,
        ),
        FullBug(
            "a membership change is not stored",
            "membership",
            "etcd 3.5: removed members that are back after a restart",
            ((Membership, "apply", change_not_stored),),
            "members",
            60_000,
        ),
        FullBug(
            "a removed member campaigns",
            "membership",
            "Raft thesis 4.2.3: removed servers disrupt the cluster",
            ((Raft, "_may_campaign", campaigns_after_removal),),
            "members",
            120_000,
        ),
        FullBug(
            "a member that joins replays the log",
            "membership",
            "found here: a joining member counted itself as the only voter",
            ((Follower, "_has_start", starts_at_nothing),),
            "members",
            60_000,
        ),
        FullBug(
            "a write of unknown outcome is repeated",
            "client",
            "writes retried after an error that leaves them open",
            (
                (Transport, "_unless_closed", repeats_what_is_open),
                (client_transport, "error_from_rpc", repeats_calls),
            ),
            "client",
            60_000,
        ),
        FullBug(
            "a watch resumes one revision too late",
            "client",
            "client libraries that resume behind the header's revision",
            ((ClientWatcher, "_serve_one_stream", resumes_late),),
            "client",
            60_000,
        ),
        FullBug(
            "a rejection reads as an acknowledgement",
            "peer codec",
            "a field lost between versions",
            ((server_node, "decode", hint_is_lost),),
            "swarm",
            20_000,
        ),
        FullBug(
            "entries of one message are mixed up",
            "peer codec",
            "a buffer used twice",
            ((server_node, "decode", last_entry_is_lost),),
            "swarm",
            20_000,
        ),
    )


BUGS = _bugs()


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
                first_seed + runs, bug.profile, bug.run_events, off=bug.off, liveness=False
            )
        events += result.events
        runs += 1
        if result.failure is not None:
            return Hunt(result, events, runs)
    return Hunt(None, events, runs)
