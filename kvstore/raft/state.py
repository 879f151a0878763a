"""What every role has in common: the base of follower, candidate and leader, and the voter's part.

A role object lives as long as the role does; leaving the role drops everything it knew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kvstore.raft.messages import (
    NOBODY,
    Forward,
    ForwardRefused,
    HardState,
    PreVoteRequest,
    PreVoteResponse,
    ReadReady,
    ReadRequest,
    ReadResponse,
    VoteRequest,
    VoteResponse,
)

if TYPE_CHECKING:
    from kvstore.raft.raft import Raft


class State:
    """Behaviour of one role. The defaults are those of a member that does not lead."""

    def __init__(self, raft: Raft) -> None:
        self.raft = raft
        self.handlers: dict[type, Callable[[Any], None]] = {
            PreVoteRequest: self._on_pre_vote_request,
            VoteRequest: self._on_vote_request,
            Forward: self._on_forward,
            ForwardRefused: self._on_forward_refused,
            ReadRequest: self._on_read_request,
        }
        """What to do with a message of our own term; a kind that is absent is ignored."""

    # --- inputs ---

    def tick(self) -> bool:
        """One tick passed. Return False if nothing came of it, as nearly always in a follower."""
        raise NotImplementedError

    def read(self, read_id: int) -> None:
        """The node wants a linearizable read."""
        self.raft.reads_ready.append(ReadReady(read_id, None))

    def flush(self) -> None:
        """Turn what the inputs of this turn amount to into messages."""

    def leave(self) -> None:
        """The role ends."""

    def hard_state_durable(self, hard_state: HardState) -> None:
        """A term and vote are on disk."""

    def log_durable(self) -> None:
        """The durable mark of the log moved."""

    def reconfigured(self) -> None:
        """`raft.configuration` was replaced."""

    def reads_pending(self) -> int:
        """Return how many reads wait here."""
        return 0

    # --- the voter ---

    def _on_pre_vote_request(self, request: PreVoteRequest) -> None:
        """Tell whether we would vote. Changes nothing here, whatever the answer."""
        raft = self.raft
        if request.term > raft.term and raft.is_leased():
            return  # the leader is alive, a candidate gets no help against it
        free = (
            request.term > raft.term
            or raft.vote == request.sender
            or (raft.vote == NOBODY and raft.leader == NOBODY)
        )
        granted = free and raft.log.is_up_to_date(request.last_index, request.last_term)
        # A grant answers in the term that was asked about, else it would look outdated.
        term = request.term if granted else raft.term
        raft.messages.append(PreVoteResponse(raft.id, request.sender, term, granted))

    def _on_vote_request(self, request: VoteRequest) -> None:
        """Vote for the first candidate of the term whose log is not older (paper 5.2, 5.4.1).

        Learners vote too: they may have been promoted without knowing it yet.
        """
        raft = self.raft
        free = raft.vote == request.sender or (raft.vote == NOBODY and raft.leader == NOBODY)
        granted = free and raft.log.is_up_to_date(request.last_index, request.last_term)
        response = VoteResponse(raft.id, request.sender, raft.term, granted)
        if granted:
            raft.vote = request.sender
            raft.elapsed = 0
            raft.promises.append(response)  # after term and vote are on disk
        else:
            raft.messages.append(response)

    # --- forwarded work ---

    def _on_forward(self, forward: Forward) -> None:
        if self.raft.is_first_delivery(forward):
            self._refuse_forward(forward)

    def _refuse_forward(self, forward: Forward) -> None:
        raft = self.raft
        raft.messages.append(ForwardRefused(raft.id, forward.sender, raft.term, forward.forward_id))

    def _on_forward_refused(self, refused: ForwardRefused) -> None:
        self.raft.refused.append(refused.forward_id)

    def _on_read_request(self, request: ReadRequest) -> None:
        raft = self.raft
        raft.messages.append(ReadResponse(raft.id, request.sender, raft.term, request.round, None))
