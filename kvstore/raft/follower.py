"""The follower: takes the leader's entries, and asks it for reads.

Learners and members outside of the configuration are followers that never campaign.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvstore.raft.messages import (
    NOBODY,
    AppendRequest,
    AppendResponse,
    CommitNotice,
    Heartbeat,
    HeartbeatResponse,
    Index,
    InstallSnapshot,
    MemberId,
    Message,
    ReadReady,
    ReadRequest,
    ReadResponse,
    TimeoutNow,
)
from kvstore.raft.read import FollowerReads
from kvstore.raft.state import State

if TYPE_CHECKING:
    from kvstore.raft.raft import Raft


class Follower(State):
    """Behaviour under one leader, or while none is known."""

    def __init__(self, raft: Raft) -> None:
        super().__init__(raft)
        self.reads = FollowerReads()
        self.noticed: Index = 0
        """Highest index that a notice of this term named: it may overtake the entry itself."""

        self.handlers.update(
            {
                AppendRequest: self._on_append,
                Heartbeat: self._on_heartbeat,
                CommitNotice: self._on_commit_notice,
                InstallSnapshot: self._on_snapshot,
                TimeoutNow: self._on_timeout_now,
                ReadResponse: self._on_read_response,
            }
        )

    # --- inputs ---

    def tick(self) -> bool:
        """Campaign when no leader was heard for the drawn timeout (paper 5.2)."""
        raft = self.raft
        if raft.elapsed >= raft.timeout:
            raft.campaign()
            return True
        reads = self.reads
        if reads.asked and raft.ticks - reads.asked_tick >= raft.config.read_retry_ticks:
            self._ask()
            return True
        return False

    def read(self, read_id: int) -> None:
        """Queue a read for the next round to the leader."""
        raft = self.raft
        if raft.leader == NOBODY or self.reads.pending() >= raft.config.reads_pending_max:
            raft.reads_ready.append(ReadReady(read_id, None))
        else:
            self.reads.waiting.append(read_id)

    def flush(self) -> None:
        """Begin the next read round if none is outstanding."""
        if self.reads.waiting and not self.reads.asked:
            self._ask()

    def leave(self) -> None:
        """Refuse the reads: they were the old leader's to answer."""
        self.raft.refuse_reads(self.reads.asked + self.reads.waiting)

    def reads_pending(self) -> int:
        """Return how many reads wait for the leader."""
        return self.reads.pending()

    # --- messages of the leader; `Raft.step` has moved us to its term ---

    def _hear(self, leader: MemberId) -> None:
        raft = self.raft
        if raft.leader != leader:
            assert raft.leader == NOBODY, f"two leaders in term {raft.term}"
            raft.leader = leader
        raft.elapsed = 0

    def _on_append(self, request: AppendRequest) -> None:
        """Take the leader's entries, or tell it where the two logs may still agree (paper 5.3)."""
        self._hear(request.sender)
        log = self.raft.log
        entries = request.entries
        last = request.prev_index + len(entries)
        if request.prev_index < log.committed:
            # A late duplicate, or a probe that starts below what we know to be settled. Entries up
            # to `committed` are the leader's as well and may be compacted away: skip them.
            log.append(entries[log.committed - request.prev_index :])
            last = max(last, log.committed)
        elif self._has_start() and log.matches(request.prev_index, request.prev_term):
            log.append(entries)
        else:
            hint = log.newest_match_candidate(request.prev_index, request.prev_term)
            # A rejection promises nothing, it need not wait for the disk.
            self.raft.messages.append(
                AppendResponse(
                    self.raft.id, request.sender, self.raft.term, request.prev_index, hint
                )
            )
            return
        # Not our own last index: a dead leader's entries can follow `last`.
        log.commit_to(min(request.commit, last))
        if self.noticed > log.committed:
            self._commit_noticed()
        self._answer(request, last)

    def _has_start(self) -> bool:
        # A member that joins knows no configuration, and the log does not hold the first one. Were
        # it to replay the log from index 1, it would count itself as the only voter in the end. So
        # it has not even index 0: the leader sees a rejection of index 0 and sends a snapshot.
        return bool(self.raft.configuration.voters)

    def _answer(self, request: Message, index: Index) -> None:
        # An answer is a promise that must outlive a crash: it leaves after the fsync. Several of
        # one turn become one, because the highest index says it all.
        promises = self.raft.promises
        if promises:
            last = promises[-1]
            if (
                type(last) is AppendResponse
                and last.target == request.sender
                and last.term == self.raft.term
            ):
                last.index = max(last.index, index)
                return
        promises.append(AppendResponse(self.raft.id, request.sender, self.raft.term, index, None))

    def _on_heartbeat(self, heartbeat: Heartbeat) -> None:
        self._hear(heartbeat.sender)
        self.raft.log.commit_to(heartbeat.commit)
        self.raft.messages.append(
            HeartbeatResponse(self.raft.id, heartbeat.sender, self.raft.term, heartbeat.round)
        )

    def _on_commit_notice(self, notice: CommitNotice) -> None:
        self._hear(notice.sender)
        if notice.commit > self.noticed:
            self.noticed = notice.commit
            self._commit_noticed()

    def _commit_noticed(self) -> None:
        if self.raft.log.matches(self.noticed, self.raft.term):
            self.raft.log.commit_to(self.noticed)

    def _on_snapshot(self, install: InstallSnapshot) -> None:
        """Start again from a snapshot whose data the node has made safe (paper section 7)."""
        self._hear(install.sender)
        raft = self.raft
        log = raft.log
        snapshot = install.snapshot
        if log.snapshot_outstanding:
            return  # one slot; the answer to the first is on its way
        if snapshot.index > log.committed:
            if log.matches(snapshot.index, snapshot.term):
                log.commit_to(snapshot.index)  # we have it all, keep the log
            else:
                log.restore(snapshot)
                raft.configuration = snapshot.configuration
        self._answer(install, log.committed)

    def _on_timeout_now(self, _message: TimeoutNow) -> None:
        self.raft.campaign(transfer=True)

    # --- reads ---

    def _ask(self) -> None:
        raft = self.raft
        raft.read_rounds += 1
        number = raft.read_rounds
        self.reads.ask(number, raft.ticks)
        raft.messages.append(ReadRequest(raft.id, raft.leader, raft.term, number))

    def _on_read_response(self, response: ReadResponse) -> None:
        if not self.reads.asked or response.round != self.reads.round:
            return  # of a round that was given up
        for read_id in self.reads.answered():
            self.raft.reads_ready.append(ReadReady(read_id, response.index))
