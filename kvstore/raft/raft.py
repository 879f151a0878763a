"""The consensus core of one member: inputs, the rules of terms, and what the node must do next.

Roles are in `follower`, `candidate` and `leader`. No clock, socket, file, thread or randomness:
time comes as `tick`, everything else as a call, and all effects leave through `take`.

A call either returns, or raises a `RaftError` and changed nothing, or fails an assertion: then an
invariant is broken (lost disk, corrupt message) and the process must end.
"""

from __future__ import annotations

from kvstore.raft.candidate import Candidate
from kvstore.raft.config import Config, Restored
from kvstore.raft.errors import NotLeader
from kvstore.raft.follower import Follower
from kvstore.raft.leader import Leader
from kvstore.raft.log import RaftLog
from kvstore.raft.membership import Change
from kvstore.raft.messages import (
    CHANGE,
    NOBODY,
    NORMAL,
    AppendRequest,
    AppendWork,
    CommitNotice,
    Configuration,
    Entry,
    EntryKind,
    Forward,
    ForwardRefused,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    Index,
    InstallSnapshot,
    MemberId,
    Message,
    PreVoteRequest,
    PreVoteResponse,
    ReadReady,
    ReadRequest,
    Ready,
    Role,
    SnapshotMeta,
    Term,
    VoteRequest,
)
from kvstore.raft.state import State
from kvstore.raft.status import Status, status_of

_FROM_LEADER = (AppendRequest, Heartbeat, CommitNotice, InstallSnapshot)
_OF_ANY_TERM = (Forward, ForwardRefused, ReadRequest)


class Raft:
    """One member's core. Not thread-safe; every public method is called from one thread."""

    def __init__(self, config: Config, restored: Restored) -> None:
        self.config = config
        self.id = config.id
        hard_state = restored.hard_state
        self.term: Term = hard_state.term
        """Latest term seen. Only grows."""

        self.vote: MemberId = hard_state.vote
        """Whom we voted for in `term`."""

        self.leader: MemberId = NOBODY
        """Who leads `term`, as far as known."""

        self.log = RaftLog(
            restored.entries,
            compacted=restored.compacted,
            committed=hard_state.commit,
            applied=restored.applied,
            apply_before_durable=config.apply_before_durable,
        )
        assert self.term >= self.log.last_term, "the log is of a later term than the hard state"
        self.configuration = restored.configuration
        """As of the applied index: a change takes effect when it is applied (as in etcd)."""

        self.ticks = 0
        self.elapsed = 0
        """Ticks since the leader was heard or a vote given; leader: since the quorum check."""

        self.timeout = 0
        """Ticks of silence that start an election."""

        self.read_rounds = config.incarnation << 32
        """Number of the newest round forwarded to a leader."""

        # What the next `take` hands out.
        self.messages: list[Message] = []
        self.promises: list[Message] = []
        """Messages that must not leave before the disk has everything decided so far."""

        self.reads_ready: list[ReadReady] = []
        self.refused: list[int] = []
        self._dirty = True
        self._handed_hard_state = (hard_state.term, hard_state.vote, hard_state.commit)
        self._reported = (Role.FOLLOWER, NOBODY, self.term)

        self._restored_term = self.term
        self._forwards_seen: dict[MemberId, int] = {}
        self.role = Role.FOLLOWER
        self.state: State = Follower(self)
        self._enter(Role.FOLLOWER, self.state)

    # --- inputs ---

    def tick(self) -> None:
        """One tick interval passed. At most one call per interval: never replay missed ones.

        A process that was stopped for a while would else hold an election for its own pause.
        """
        self.ticks += 1
        self.elapsed += 1
        if self.state.tick():
            self._dirty = True

    def step(self, message: Message) -> None:
        """Take a message of another member that is addressed to this one."""
        assert message.target == self.id, "a message for somebody else"
        self._dirty = True
        if message.term != self.term and not self._settle_term(message):
            return
        handler = self.state.handlers.get(type(message))
        if handler is not None:
            handler(message)

    def propose(self, data: bytes) -> tuple[Index, Term]:
        """Append `data` to the log. Leader only.

        Returns:
            Where it was appended. It is applied if an entry of exactly this index and term comes
            out of `take`; it never will be once another entry comes out at this index.

        Raises:
            NotLeader, Overloaded, Transferring: nothing was appended.
        """
        leader = self._as_leader()
        self._dirty = True
        return leader.propose(data, NORMAL)

    def propose_change(self, change: Change) -> tuple[Index, Term]:
        """Append a membership change. Leader only; at most one may be unapplied.

        Raises:
            NotLeader, Overloaded, Transferring, ChangePending, ChangeRefused: nothing was appended.
        """
        leader = self._as_leader()
        self._dirty = True
        return leader.propose_change(change.encode())

    def forward(
        self, data: bytes, forward_id: int, kind: EntryKind = NORMAL
    ) -> tuple[Index, Term] | None:
        """Propose on whoever leads. Sent once and never again.

        Args:
            data: The entry's data; for `kind` CHANGE an encoded `Change`.
            forward_id: Greater than every one before, also than those of earlier starts of this
                member (begin at `incarnation << 32`).
            kind: NORMAL or CHANGE.

        Returns:
            Where it was appended if this member leads, None if it was sent to the leader. Then
            one of three things follows: the entry is applied; `Ready.refused` has `forward_id`, so
            it certainly was not appended; or leader or term change in `Ready`, and the outcome of
            what is neither applied nor refused by then is unknown.

        Raises:
            NotLeader: no leader is known, nothing was sent. And what `propose` raises.
        """
        self._dirty = True
        if self.role is Role.LEADER:
            leader = self._as_leader()
            return leader.propose_change(data) if kind == CHANGE else leader.propose(data, kind)
        if self.leader == NOBODY:
            raise NotLeader(NOBODY)
        self.messages.append(Forward(self.id, self.leader, self.term, forward_id, kind, data))
        return None

    def read(self, read_id: int) -> None:
        """Ask from which index on the store is fresh enough for a read that came before now.

        The answer is a `ReadReady` with this id, always exactly one. It is refused without a
        leader, when the leader changes, or when too many wait.
        """
        self._dirty = True
        self.state.read(read_id)

    def transfer_leadership(self, target: MemberId) -> None:
        """Hand the leadership to a voter, within one election timeout or not at all.

        Raises NotLeader or TransferRefused; nothing happened then.
        """
        leader = self._as_leader()
        self._dirty = True
        leader.transfer(target)

    def step_down(self) -> None:
        """Stop leading, if we do. Somebody is elected after an election timeout."""
        if self.role is Role.LEADER:
            self._dirty = True
            self.become_follower(self.term)

    def campaign(self, *, transfer: bool = False) -> None:
        """Start an election now, if this member may. Nodes need it only in tests and tools.

        `transfer`: the leader told us to; without pre-vote and against its lease.
        """
        if self.role is Role.LEADER:
            return
        self._dirty = True
        if not self._may_campaign():
            # Count the timeout anew, but without the leader that we did not hear: a learner that
            # was promoted unknowingly must not refuse its vote in the name of a dead leader.
            self.become_follower(self.term)
            return
        if transfer:
            self.become_candidate(transfer=True)
        else:
            self.become_pre_candidate()

    def appended(self, work: AppendWork) -> None:
        """Note that a disk job is durable. Call in order, once each, after sending its messages."""
        self._dirty = True
        moved = self.log.finished(work)
        if work.hard_state is not None:
            self.state.hard_state_durable(work.hard_state)
        if moved:
            self.state.log_durable()

    def applied(self, index: Index, configuration: Configuration | None = None) -> None:
        """Note that the state machine has all entries up to `index`.

        Args:
            index: Not beyond what `take` has handed out.
            configuration: After a CHANGE entry at `index`: the new configuration, from
                `membership.change_configuration`. Call for that entry alone, before later ones.
        """
        if index <= self.log.applied:
            return  # of before a snapshot that replaced the state, and the configuration with it
        self._dirty = True
        self.log.applied_to(index)
        if configuration is not None and configuration != self.configuration:
            self.configuration = configuration
            self.state.reconfigured()

    def hear_committed(self, index: Index, term: Term) -> None:
        """Take word from any member, leader or not, that the entry at `index` is committed.

        Args:
            index: Of the entry.
            term: Of the entry. Whoever has it there has the log before it too (paper 5.3), and
                committed stays committed whoever leads. A leader finds out by itself.
        """
        if self.role is not Role.LEADER and self.log.matches(index, term):
            self._dirty |= self.log.commit_to(index)

    def compact(self, index: Index) -> None:
        """Forget the entries up to `index`.

        The node keeps some thousand entries behind what its durable store contains, so that a
        member that was away for a moment catches up from the log and not by snapshot.
        """
        self.log.compact(index)

    def unreachable(self, peer: MemberId) -> None:
        """Note that messages to `peer` were probably lost: its connection broke."""
        if isinstance(self.state, Leader):
            self._dirty = True
            progress = self.state.peers.get(peer)
            if progress is not None and progress.is_replicating():
                progress.become_probe()

    def snapshot_sent(self, peer: MemberId, *, ok: bool) -> None:
        """Report how sending a snapshot ended. Must follow every `InstallSnapshot` of `take`.

        `ok`: the peer has it and will answer; else it is tried again after the next heartbeat.
        """
        if isinstance(self.state, Leader):
            self._dirty = True
            progress = self.state.peers.get(peer)
            if progress is not None:
                progress.snapshot_sent(ok=ok)

    def wants_snapshot(self, snapshot: SnapshotMeta) -> bool:
        """Tell whether a snapshot would be installed, before its data is moved."""
        log = self.log
        return (
            not log.snapshot_outstanding
            and snapshot.index > log.committed
            and not log.matches(snapshot.index, snapshot.term)
        )

    # --- output ---

    def take(self) -> Ready | None:
        """Return what must be done now, None if nothing. Call until None after any input."""
        if not self._dirty:
            return None
        self._dirty = False
        self.state.flush()
        log = self.log
        work = None
        if (
            self.promises
            or log.handed != log.last_index
            or log.snapshot is not None
            or self._handed_hard_state[0] != self.term
            or self._handed_hard_state[1] != self.vote
        ):  # no in most turns
            work = self._take_work()
        apply: list[Entry] = []
        if log.applying < log.committed and log.applying < (limit := log.apply_limit()):
            apply, _ = log.slice(
                log.applying + 1,
                limit,
                entries_max=limit,
                bytes_max=self.config.apply_bytes_max,
            )
            log.applying = apply[-1].index
            self._dirty = log.applying < limit
        messages, reads, refused = self.messages, self.reads_ready, self.refused
        role, leader, term = self._reported
        if self.role is not role or self.leader != leader or self.term != term:
            self._reported = role, leader, term = self.role, self.leader, self.term
        elif not (messages or work or apply or reads or refused):
            return None
        self.messages, self.reads_ready, self.refused = [], [], []
        return Ready(messages, work, apply, reads, refused, role, leader, term)

    def _take_work(self) -> AppendWork | None:
        log = self.log
        term, vote, commit = self._handed_hard_state
        elected = term != self.term or vote != self.vote
        entries = log.take_unhanded()
        snapshot, log.snapshot = log.snapshot, None
        promises = self.promises
        must_sync = elected or snapshot is not None or bool(entries)
        if not must_sync:
            if not promises:
                return None  # a commit index alone is not worth a write
            if not log.outstanding:
                # Everything that they depend upon is on disk already.
                self.messages += promises
                self.promises = []
                return None
        hard_state = None
        if must_sync and (elected or commit != log.committed):
            hard_state = HardState(self.term, self.vote, log.committed)
            self._handed_hard_state = (self.term, self.vote, log.committed)
        self.promises = []
        work = AppendWork(
            entries, hard_state, snapshot, must_sync, promises, log.handed, self.ticks
        )
        log.outstanding.append(work)
        return work

    def status(self) -> Status:
        """Return a snapshot for metrics and operators."""
        return status_of(self)

    # --- terms (paper 5.1) ---

    def _settle_term(self, message: Message) -> bool:
        """Compare terms before anything else; True if the message is to be handled."""
        kind = type(message)
        if message.term > self.term:
            if kind is PreVoteRequest:
                return True  # asks about a term that does not exist yet
            if isinstance(message, PreVoteResponse) and message.granted:
                return True  # a grant in the term that we asked about
            if isinstance(message, VoteRequest) and not message.transfer and self.is_leased():
                return False  # whoever lost touch must not depose a leader that we hear
            self.become_follower(
                message.term, message.sender if isinstance(message, _FROM_LEADER) else NOBODY
            )
            return True
        if isinstance(message, _FROM_LEADER):
            # A leader of the past. It must learn of our term, or we could never agree again: we
            # ignore it, and who hears it ignores our vote requests.
            if kind is not CommitNotice:
                self.messages.append(HeartbeatResponse(self.id, message.sender, self.term, 0))
            return False
        if kind is PreVoteRequest:
            # Refused aloud: its sender may wait for exactly our answer.
            self.messages.append(PreVoteResponse(self.id, message.sender, self.term, granted=False))
            return False
        return kind in _OF_ANY_TERM

    def is_leased(self) -> bool:
        """Tell whether a leader was heard within the shortest election timeout."""
        return self.leader != NOBODY and self.elapsed < self.config.election_ticks

    # --- roles ---

    def become_follower(self, term: Term, leader: MemberId = NOBODY) -> None:
        """Follow `leader`, or nobody yet, in `term`."""
        assert term >= self.term
        self.state.leave()
        if term > self.term:
            self._new_term(term, vote=NOBODY)
        self.leader = leader
        self._enter(Role.FOLLOWER, Follower(self))

    def become_pre_candidate(self) -> None:
        """Ask whether an election could be won. Changes neither term nor vote."""
        self.state.leave()
        self.leader = NOBODY
        candidate = Candidate(self, pre=True, transfer=False)
        self._enter(Role.PRE_CANDIDATE, candidate)
        candidate.start()

    def become_candidate(self, *, transfer: bool) -> None:
        """Start an election in the next term, with our own vote (paper 5.2)."""
        self.state.leave()
        self._new_term(self.term + 1, vote=self.id)
        self.leader = NOBODY
        candidate = Candidate(self, pre=False, transfer=transfer)
        self._enter(Role.CANDIDATE, candidate)
        candidate.start()

    def become_leader(self) -> None:
        """Lead the current term after a won election."""
        assert self.role is Role.CANDIDATE
        self.state.leave()
        self.leader = self.id
        self._enter(Role.LEADER, Leader(self))

    def _new_term(self, term: Term, *, vote: MemberId) -> None:
        self.term = term
        self.vote = vote
        # Answers of the old term that wait for a disk job not even handed over: that job would
        # write the new term, and perhaps other entries, so they would tell of what never was there.
        self.promises = []

    def _enter(self, role: Role, state: State) -> None:
        self.role = role
        self.state = state
        self.elapsed = 0
        ticks = self.config.election_ticks
        self.timeout = self.config.draw_timeout(ticks, 2 * ticks)
        assert ticks <= self.timeout < 2 * ticks, "draw_timeout must stay within its bounds"

    def _may_campaign(self) -> bool:
        return (
            (self.id in self.configuration.voters or self.id in self.configuration.outgoing)
            and not self.log.snapshot_outstanding
            # A committed change that we have not applied could mean another quorum.
            and not self.log.has_unapplied_change()
            and not self.is_disk_stalled()
        )

    def is_disk_stalled(self, *, elections: int = 1) -> bool:
        """Tell whether the oldest disk job has taken as many election timeouts."""
        outstanding = self.log.outstanding
        return bool(outstanding) and (
            self.ticks - outstanding[0].issued_tick >= elections * self.config.election_ticks
        )

    # --- for the roles ---

    def refuse_reads(self, read_ids: list[int]) -> None:
        """Answer reads with "ask again"."""
        self.reads_ready += [ReadReady(read_id, None) for read_id in read_ids]

    def is_first_delivery(self, forward: Forward) -> bool:
        """Tell whether a forwarded proposal is here for the first time, and remember it.

        A second copy must neither be appended nor refused: the first may have been appended. After
        a restart we cannot know about terms in which we may have led before it.
        """
        if forward.term <= self._restored_term or forward.forward_id <= self._forwards_seen.get(
            forward.sender, 0
        ):
            return False
        self._forwards_seen[forward.sender] = forward.forward_id
        return True

    def _as_leader(self) -> Leader:
        if not isinstance(self.state, Leader):
            raise NotLeader(self.leader)
        return self.state
