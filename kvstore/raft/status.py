"""A snapshot of a core for metrics and operators. Reads everything, changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvstore.raft.leader import Leader
from kvstore.raft.messages import NOBODY, Configuration, Index, MemberId, Role, Term

if TYPE_CHECKING:
    from kvstore.raft.raft import Raft


@dataclass(slots=True)
class PeerStatus:
    """The leader's view of one member."""

    member: MemberId
    match: Index
    next: Index
    state: str
    active: bool
    silent_ticks: int
    """Ticks since its last answer."""

    inflight_messages: int
    inflight_bytes: int


@dataclass(slots=True)
class Status:
    """A snapshot of the core for metrics and operators."""

    id: MemberId
    role: Role
    term: Term
    vote: MemberId
    leader: MemberId
    configuration: Configuration
    first_index: Index
    last_index: Index
    committed: Index
    applied: Index
    durable: Index
    log_bytes: int
    uncommitted_bytes: int
    reads_pending: int
    disk_jobs: int
    transfer_target: MemberId
    peers: list[PeerStatus]


def status_of(raft: Raft) -> Status:
    """Return how the core stands now."""
    log = raft.log
    leader = raft.state if isinstance(raft.state, Leader) else None
    return Status(
        id=raft.id,
        role=raft.role,
        term=raft.term,
        vote=raft.vote,
        leader=raft.leader,
        configuration=raft.configuration,
        first_index=log.offset + 1,
        last_index=log.last_index,
        committed=log.committed,
        applied=log.applied,
        durable=log.durable,
        log_bytes=log.size_bytes,
        uncommitted_bytes=leader.uncommitted_bytes if leader else 0,
        reads_pending=raft.state.reads_pending(),
        disk_jobs=len(log.outstanding),
        transfer_target=leader.transfer_target if leader else NOBODY,
        peers=[
            PeerStatus(
                member,
                progress.match,
                progress.next,
                progress.state.name,
                progress.active,
                raft.ticks - progress.heard_tick,
                len(progress.inflight),
                progress.inflight_bytes,
            )
            for member, progress in (leader.peers if leader else {}).items()
        ],
    )
