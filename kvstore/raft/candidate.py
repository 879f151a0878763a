"""The candidate: asks for pre-votes, then for votes (paper 5.2; pre-vote: Ongaro's thesis 9.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvstore.raft.messages import (
    AppendRequest,
    CommitNotice,
    HardState,
    Heartbeat,
    InstallSnapshot,
    MemberId,
    Message,
    PreVoteRequest,
    PreVoteResponse,
    VoteRequest,
    VoteResponse,
)
from kvstore.raft.quorum import Verdict, joint_verdict
from kvstore.raft.state import State

if TYPE_CHECKING:
    from kvstore.raft.raft import Raft


class Candidate(State):
    """One candidature: `pre` asks about the next term without entering it."""

    def __init__(self, raft: Raft, *, pre: bool, transfer: bool) -> None:
        super().__init__(raft)
        self.pre = pre
        self.transfer = transfer
        self.votes: dict[MemberId, bool] = {}
        self.handlers.update(
            {
                AppendRequest: self._on_leader,
                Heartbeat: self._on_leader,
                CommitNotice: self._on_leader,
                InstallSnapshot: self._on_leader,
            }
        )
        if pre:
            self.handlers[PreVoteResponse] = self._on_pre_vote_response
        else:
            self.handlers[VoteResponse] = self._on_vote_response

    def start(self) -> None:
        """Ask every other voter."""
        raft = self.raft
        log = raft.log
        configuration = raft.configuration
        for voter in sorted({*configuration.voters, *configuration.outgoing}):
            if voter == raft.id:
                continue
            if self.pre:
                raft.messages.append(
                    PreVoteRequest(raft.id, voter, raft.term + 1, log.last_index, log.last_term)
                )
            else:
                # After the fsync, unlike in the paper: were the request to leave earlier, a crash
                # could take back term and log tail, and a second candidature in the same term
                # with a shorter log could collect a vote that was given to the longer one.
                raft.promises.append(
                    VoteRequest(
                        raft.id, voter, raft.term, log.last_index, log.last_term, self.transfer
                    )
                )
        if self.pre:
            self._count(raft.id, granted=True)  # a pre-vote binds nobody, no need for the disk

    def tick(self) -> bool:
        """Start over when the election came to nothing (split vote, paper 5.2)."""
        if self.raft.elapsed < self.raft.timeout:
            return False
        self.raft.campaign()
        return True

    def hard_state_durable(self, hard_state: HardState) -> None:
        """Count the own vote, which is as good as any other only when it is on disk."""
        raft = self.raft
        if not self.pre and (hard_state.term, hard_state.vote) == (raft.term, raft.id):
            self._count(raft.id, granted=True)

    def _on_pre_vote_response(self, response: PreVoteResponse) -> None:
        if response.granted and response.term != self.raft.term + 1:
            return  # of an earlier candidature
        self._count(response.sender, granted=response.granted)

    def _on_vote_response(self, response: VoteResponse) -> None:
        self._count(response.sender, granted=response.granted)

    def _count(self, voter: MemberId, *, granted: bool) -> None:
        raft = self.raft
        self.votes.setdefault(voter, granted)
        configuration = raft.configuration
        verdict = joint_verdict(configuration.voters, configuration.outgoing, self.votes)
        if verdict is Verdict.WON:
            if self.pre:
                raft.become_candidate(transfer=self.transfer)
            else:
                raft.become_leader()
        elif verdict is Verdict.LOST:
            raft.become_follower(raft.term)

    def _on_leader(self, message: Message) -> None:
        """Somebody leads our term: follow (paper 5.2)."""
        self.raft.become_follower(self.raft.term, message.sender)
        self.raft.step(message)
