"""The leader: appends proposals, feeds the members, commits, answers reads, hands over.

Appends leave at once and in parallel with the leader's own disk; it counts itself only for what
its own disk has. Everything is sent from `flush`, once per turn, so that several inputs share it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvstore.raft.errors import (
    ChangePending,
    Overloaded,
    RaftError,
    TransferRefused,
    Transferring,
)
from kvstore.raft.log import ENTRY_OVERHEAD_BYTES, entries_bytes
from kvstore.raft.membership import Change, change_configuration
from kvstore.raft.messages import (
    CHANGE,
    NOBODY,
    NORMAL,
    AppendRequest,
    AppendResponse,
    CommitNotice,
    Entry,
    EntryKind,
    Forward,
    Heartbeat,
    HeartbeatResponse,
    Index,
    InstallSnapshot,
    MemberId,
    ReadReady,
    ReadRequest,
    ReadResponse,
    SnapshotMeta,
    Term,
    TimeoutNow,
)
from kvstore.raft.progress import Progress, ProgressState
from kvstore.raft.quorum import Verdict, joint_acknowledged, joint_verdict
from kvstore.raft.read import LeaderReads
from kvstore.raft.state import State

if TYPE_CHECKING:
    from kvstore.raft.raft import Raft

_PROBE, _REPLICATE, _SNAPSHOT = (
    ProgressState.PROBE,
    ProgressState.REPLICATE,
    ProgressState.SNAPSHOT,
)


class Leader(State):
    """One leadership."""

    def __init__(self, raft: Raft) -> None:
        super().__init__(raft)
        log = raft.log
        self.handlers.update(
            {
                AppendResponse: self._on_append_response,
                HeartbeatResponse: self._on_heartbeat_response,
            }
        )
        self.peers: dict[MemberId, Progress] = {}
        """Every member but this one, learners too."""

        self.matched: dict[MemberId, Index] = {raft.id: log.durable}
        """Highest index known durable on each member, this one included: what commits."""

        self.uncommitted_bytes = entries_bytes(log.entries[log.committed - log.offset :])
        self.reads = LeaderReads()
        self.pending_change: Index = log.last_index
        """No further membership change before this index is applied. There may be one among the
        entries of earlier leaders, so a new leader assumes there is."""

        self.heartbeat_elapsed = 0
        self.transfer_target: MemberId = NOBODY
        self.transfer_elapsed = 0
        self._add_peers()
        # The no-op: until an entry of our own term is committed we know neither the commit index
        # nor may we commit older entries (paper 5.4.2, 8).
        self._append(b"", NORMAL)

    # --- proposals ---

    def propose(self, data: bytes, kind: EntryKind) -> tuple[Index, Term]:
        """Append an entry. Raises Transferring or Overloaded; then nothing was appended."""
        if self.transfer_target != NOBODY:
            raise Transferring(self.transfer_target)
        bound = self.raft.config.uncommitted_bytes_max
        # One entry is always let in, however large, and an empty one is never refused.
        if data and self.uncommitted_bytes and self.uncommitted_bytes + len(data) > bound:
            raise Overloaded(self.uncommitted_bytes, bound)
        return self._append(data, kind)

    def propose_change(self, data: bytes) -> tuple[Index, Term]:
        """Append a membership change.

        Raises ChangePending while an earlier one may be unapplied, ChangeRefused if it makes no
        sense, MalformedChange, and what `propose` raises. Nothing was appended then.
        """
        raft = self.raft
        change = Change.decode(data)
        if self.pending_change > raft.log.applied:
            raise ChangePending(f"entry {self.pending_change} must be applied first")
        if not self._has_committed_in_term():
            # One-at-a-time changes are unsafe before (Ongaro, raft-dev, July 2015).
            raise ChangePending("the leader has not committed an entry of its term yet")
        change_configuration(raft.configuration, change)
        index, term = self.propose(data, CHANGE)
        self.pending_change = index
        return index, term

    def _append(self, data: bytes, kind: EntryKind) -> tuple[Index, Term]:
        raft = self.raft
        index = raft.log.last_index + 1
        raft.log.extend([Entry(index, raft.term, kind, data)])
        self.uncommitted_bytes += len(data) + ENTRY_OVERHEAD_BYTES
        return index, raft.term

    def _on_forward(self, forward: Forward) -> None:
        if not self.raft.is_first_delivery(forward):
            return
        if forward.term != self.raft.term:
            # Its origin has already been told "outcome unknown" or will be; do not surprise it.
            self._refuse_forward(forward)
            return
        try:
            if forward.kind == CHANGE:
                self.propose_change(forward.data)
            else:
                self.propose(forward.data, NORMAL)
        except RaftError:
            # Not swallowed: the refusal is the answer. The origin knows that nothing happened.
            self._refuse_forward(forward)

    # --- time ---

    def tick(self) -> bool:
        """Send heartbeats, check the quorum, give up what takes too long."""
        raft = self.raft
        config = raft.config
        if raft.elapsed >= config.election_ticks:
            raft.elapsed = 0
            if not self._quorum_is_active():
                raft.become_follower(raft.term)
                return True
        if self.transfer_target != NOBODY:
            self.transfer_elapsed += 1
            if self.transfer_elapsed >= config.election_ticks:
                self.transfer_target = NOBODY
        if raft.is_disk_stalled() and not self._give_up_for_disk():
            return True
        reads = self.reads
        if reads.outstanding and raft.ticks - reads.begun_tick >= config.read_retry_ticks:
            reads.replace(raft.log.committed, raft.ticks, raft.id)
            self._send_read_round()
        self.heartbeat_elapsed += 1
        if self.heartbeat_elapsed >= config.heartbeat_ticks:
            self.heartbeat_elapsed = 0
            for member, progress in self.peers.items():
                progress.recheck = progress.match
                self._send_heartbeat(member, progress)
        return True

    def _quorum_is_active(self) -> bool:
        """Tell whether a majority answered since the last check (voters only), and start anew."""
        active = {member: progress.active for member, progress in self.peers.items()}
        active[self.raft.id] = True
        for progress in self.peers.values():
            progress.active = False
        configuration = self.raft.configuration
        verdict = joint_verdict(configuration.voters, configuration.outgoing, active)
        return verdict is Verdict.WON

    def _give_up_for_disk(self) -> bool:
        """Hand over, and in the end step down, because the own disk hangs; False if stepped down.

        A leader whose disk hangs slows nobody at first, but it cannot apply, answer, or keep its
        log; and with a second member down it blocks the cluster for as long as the disk hangs.
        """
        raft = self.raft
        others = [voter for voter in raft.configuration.voters if voter != raft.id]
        if not others:
            return True  # nobody else could lead
        if raft.is_disk_stalled(elections=2):
            raft.become_follower(raft.term)
            return False
        if self.transfer_target == NOBODY:
            self.transfer(max(others, key=lambda voter: self.peers[voter].match))
        return True

    def _send_heartbeat(self, member: MemberId, progress: Progress) -> None:
        raft = self.raft
        # Never beyond what the member is known to hold: it may have a dead leader's entries there.
        commit = min(progress.match, raft.log.committed)
        raft.messages.append(Heartbeat(raft.id, member, raft.term, commit, self.reads.round))

    # --- sending ---

    def flush(self) -> None:
        """Begin a read round if it is time, then send every member what it lacks."""
        reads = self.reads
        if (
            (reads.waiting or reads.waiting_peers)
            and not reads.outstanding
            and self._has_committed_in_term()
        ):
            reads.begin(self.raft.log.committed, self.raft.ticks, self.raft.id)
            self._send_read_round()
        last_index = self.raft.log.last_index
        committed = self.raft.log.committed
        for member, progress in self.peers.items():
            if progress.state is _REPLICATE:
                while progress.next <= last_index and not self._is_full(progress):
                    if not self._send_append(member, progress):
                        break
                if progress.commit_sent < committed:
                    # Nothing to send that could carry it. Its term is ours, else it would not
                    # have moved since we lead.
                    progress.commit_sent = committed
                    self.raft.messages.append(
                        CommitNotice(self.raft.id, member, self.raft.term, committed)
                    )
            elif progress.state is _PROBE and not progress.paused:
                self._send_append(member, progress)

    def _is_full(self, progress: Progress) -> bool:
        config = self.raft.config
        return (
            len(progress.inflight) >= config.inflight_messages_max
            or progress.inflight_bytes >= config.inflight_bytes_max
        )

    def _send_append(self, member: MemberId, progress: Progress) -> bool:
        """Send the entries from `next` on, or none if there are none or the window is full.

        Sends a snapshot instead when the log does not reach back so far; False then.
        """
        raft = self.raft
        log = raft.log
        prev_index = progress.next - 1
        prev_term = log.term(prev_index)
        if prev_term is None:
            self._send_snapshot(member, progress)
            return False
        entries: list[Entry] = []
        size = 0
        if prev_index < log.last_index and not self._is_full(progress):
            config = raft.config
            entries, size = log.slice(
                progress.next,
                log.last_index,
                entries_max=config.message_entries_max,
                bytes_max=config.message_bytes_max,
            )
        raft.messages.append(
            AppendRequest(raft.id, member, raft.term, prev_index, prev_term, log.committed, entries)
        )
        progress.commit_sent = log.committed
        if progress.state is _PROBE:
            progress.paused = True
        elif entries:
            progress.sent(entries[-1].index, size)
        return True

    def _send_snapshot(self, member: MemberId, progress: Progress) -> None:
        if not progress.active:
            return  # down: the snapshot would be old when it comes back
        raft = self.raft
        index = raft.log.applied
        term = raft.log.term(index)
        assert term is not None
        progress.become_snapshot(index)
        snapshot = SnapshotMeta(index, term, raft.configuration)
        raft.messages.append(InstallSnapshot(raft.id, member, raft.term, snapshot))

    # --- answers ---

    def _on_append_response(self, response: AppendResponse) -> None:
        """Move what is known of the member's log; commit, feed on, or probe lower (paper 5.3)."""
        member = response.sender
        progress = self.peers.get(member)
        if progress is None:
            return  # removed
        log = self.raft.log
        progress.heard(self.raft.ticks)
        if response.hint is not None:
            if response.index == 0 and log.applied:
                self._send_snapshot(member, progress)  # it joins, see `Follower._has_start`
                return
            agree_at_most, _ = log.newest_match_candidate(*response.hint)
            progress.reject(response.index, agree_at_most)
            return
        assert response.index <= log.last_index, (
            f"member {member:x} acknowledges {response.index}, the log ends at {log.last_index}"
        )
        news = progress.acknowledge(response.index)
        if progress.state is _PROBE:
            # Also without news: it answers a probe at `match`, and an idle member must not stay
            # in the slow state.
            if response.index >= progress.match:
                progress.become_replicate()
        elif progress.state is _SNAPSHOT and progress.match >= log.offset:
            # Any snapshot will do that lets our log continue where it ends.
            progress.become_replicate()
        if news:
            self.matched[member] = progress.match
            self._maybe_commit()
            if member == self.transfer_target:
                self._maybe_hand_over()

    def _on_heartbeat_response(self, response: HeartbeatResponse) -> None:
        member = response.sender
        progress = self.peers.get(member)
        if progress is None:
            return
        progress.heard(self.raft.ticks)
        match_before, progress.recheck = progress.recheck, None
        if match_before is not None:
            progress.paused = False  # the probe, or the answer to it, may be lost
            if (
                progress.state is _REPLICATE
                and progress.match == match_before
                and progress.match < self.raft.log.last_index
            ):
                # Everything on its way may be lost, and with a full window nothing would ever
                # move again: an append, at the worst empty, draws an answer. Not when `match`
                # moves: it would only cost a member under load a message for each heartbeat.
                self._send_append(member, progress)
        reads = self.reads
        if response.round > reads.acknowledged.get(member, 0):
            reads.acknowledged[member] = response.round
            if reads.outstanding:
                self._maybe_finish_reads()

    def _maybe_commit(self) -> bool:
        """Commit what a quorum has on disk, if it is of our term (paper 5.3, 5.4.2)."""
        raft = self.raft
        log = raft.log
        configuration = raft.configuration
        index = joint_acknowledged(configuration.voters, configuration.outgoing, self.matched)
        if index <= log.committed or log.term(index) != raft.term:
            # An older entry on a majority can still be replaced (figure 8); it is committed
            # together with the first one of our term.
            return False
        base = log.offset
        self.uncommitted_bytes -= entries_bytes(log.entries[log.committed - base : index - base])
        log.commit_to(index)
        return True

    def _has_committed_in_term(self) -> bool:
        log = self.raft.log
        return log.term(log.committed) == self.raft.term

    def log_durable(self) -> None:
        """Count ourselves, now that our own disk has it."""
        self.matched[self.raft.id] = self.raft.log.durable
        self._maybe_commit()

    # --- reads ---

    def read(self, read_id: int) -> None:
        """Queue a read; it begins when no round is outstanding and our term has a commit."""
        if self.reads.pending() >= self.raft.config.reads_pending_max:
            self.raft.reads_ready.append(ReadReady(read_id, None))
        else:
            self.reads.waiting.append(read_id)

    def _on_read_request(self, request: ReadRequest) -> None:
        self.reads.waiting_peers[request.sender] = request.round

    def _send_read_round(self) -> None:
        """Prove that we still lead: heartbeats to all voters that began after the reads came."""
        configuration = self.raft.configuration
        for member, progress in self.peers.items():
            if member in configuration.voters or member in configuration.outgoing:
                self._send_heartbeat(member, progress)
        self._maybe_finish_reads()  # a single voter needs nobody

    def _maybe_finish_reads(self) -> None:
        raft = self.raft
        reads = self.reads
        configuration = raft.configuration
        confirmed = joint_acknowledged(
            configuration.voters, configuration.outgoing, reads.acknowledged
        )
        if confirmed < reads.round:
            return
        served, peers = reads.finish()
        for read_id in served:
            raft.reads_ready.append(ReadReady(read_id, reads.index))
        for member, number in peers.items():
            raft.messages.append(ReadResponse(raft.id, member, raft.term, number, reads.index))

    def reads_pending(self) -> int:
        """Return how many of the own reads wait."""
        return self.reads.pending()

    # --- leadership transfer (Ongaro's thesis 3.10) ---

    def transfer(self, target: MemberId) -> None:
        """Hand over to `target`; proposals are refused until it leads or one timeout passed."""
        raft = self.raft
        if target in (raft.id, self.transfer_target):
            return
        if target not in raft.configuration.voters or target not in self.peers:
            raise TransferRefused(f"member {target:x} is not a voter")
        self.transfer_target = target
        self.transfer_elapsed = 0
        self._maybe_hand_over()

    def _maybe_hand_over(self) -> None:
        raft = self.raft
        if self.peers[self.transfer_target].match == raft.log.last_index:
            raft.messages.append(TimeoutNow(raft.id, self.transfer_target, raft.term))

    # --- membership ---

    def reconfigured(self) -> None:
        """Follow a membership change that was applied; step down if it was about us."""
        raft = self.raft
        configuration = raft.configuration
        if raft.id not in configuration.voters and raft.id not in configuration.outgoing:
            raft.become_follower(raft.term)
            return
        members = {*configuration.voters, *configuration.outgoing, *configuration.learners}
        for member in [member for member in self.peers if member not in members]:
            # The last it hears from us: that its removal is committed. Nobody tells it later.
            if self._has_committed_in_term():
                raft.messages.append(CommitNotice(raft.id, member, raft.term, raft.log.committed))
            del self.peers[member]
            self.matched.pop(member, None)
        self._add_peers()
        if self.transfer_target not in configuration.voters:
            self.transfer_target = NOBODY
        self._maybe_commit()  # the quorum may have become smaller
        if self.reads.outstanding:
            self._maybe_finish_reads()

    def _add_peers(self) -> None:
        raft = self.raft
        configuration = raft.configuration
        for member in sorted(
            {*configuration.voters, *configuration.outgoing, *configuration.learners}
        ):
            if member != raft.id and member not in self.peers:
                progress = Progress(raft.log.last_index + 1)
                progress.commit_sent = raft.log.committed
                # A member that was just added has not had the chance to be heard.
                progress.heard(raft.ticks)
                self.peers[member] = progress

    def leave(self) -> None:
        """Refuse the reads: whether we led when they came cannot be proven any more."""
        self.raft.refuse_reads(self.reads.serving + self.reads.waiting)
