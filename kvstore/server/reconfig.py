"""Which membership changes are allowed: etcd's guards, as pure functions of what the leader sees.

Source: etcd-semantics 2.14. Quorum here means the voters that would decide after the change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from kvstore.raft.membership import Change, ChangeKind
from kvstore.server.cluster import Cluster, encode_urls
from kvstore.server.config import parse_url
from kvstore.server.errors import (
    LEARNER_NOT_READY,
    MEMBER_EXISTS,
    MEMBER_NOT_FOUND,
    MEMBER_NOT_LEARNER,
    NOT_ENOUGH_STARTED,
    PEER_URL_EXISTS,
    TOO_MANY_LEARNERS,
    UNHEALTHY,
    RefusedRequestError,
)
from kvstore.server.identity import member_id

READY_RATIO = 0.9
"""Of the leader's log that a learner must hold to be promoted, as etcd."""


class Action(IntEnum):
    """What a client asks for. The numbers travel between members."""

    ADD = 1
    ADD_LEARNER = 2
    REMOVE = 3
    UPDATE = 4
    PROMOTE = 5


_WITH_URLS = frozenset((Action.ADD, Action.ADD_LEARNER, Action.UPDATE))


@dataclass(frozen=True, slots=True)
class Request:
    """One membership change as a client asks for it."""

    action: Action
    member: int = 0
    """Whom it is about; 0 for additions."""

    peer_urls: tuple[str, ...] = ()
    """Of additions and updates."""

    def pack(self) -> list[Any]:
        """Return the body of a call to the leader."""
        return [int(self.action), self.member, list(self.peer_urls)]

    @classmethod
    def unpack(cls, body: Any) -> Request:
        """Return what `pack` made. Raises ValueError for anything else."""
        match body:
            case [int(action), int(member), [*urls]] if all(isinstance(url, str) for url in urls):
                request = cls(Action(action), member, tuple(urls))
            case _:
                raise ValueError("not an action, a member and a list of URLs")
        # In the log they would be for every member to dial.
        for url in request.peer_urls:
            parse_url("peer URL", url)
        if not request.peer_urls and request.action in _WITH_URLS:
            raise ValueError("no peer URLs")
        return request


@dataclass(frozen=True, slots=True)
class Sight:
    """How the leader sees the members now."""

    self_id: int
    is_strict: bool
    """--strict-reconfig-check."""

    learners_max: int
    is_active: Callable[[int], bool]
    """Connected, and heard within an election timeout."""

    is_settled: Callable[[int], bool]
    """Active, and connected for some seconds already."""

    progress: Callable[[int], float]
    """The part of the leader's log that a member is known to hold, 0 to 1."""

    now_s: int
    """Unix seconds: part of a new member's id."""


def plan(request: Request, cluster: Cluster, sight: Sight) -> Change:
    """Return the change that does what is asked.

    Raises:
        RefusedRequestError: With etcd's text. Nothing was changed.
    """
    if request.action in (Action.ADD, Action.ADD_LEARNER):
        return _plan_addition(request, cluster, sight)
    member = cluster.members.get(request.member)
    if member is None:
        raise RefusedRequestError(*MEMBER_NOT_FOUND)
    if request.action is Action.UPDATE:
        _check_urls(request, cluster)
        return Change(ChangeKind.UPDATE, member.id, encode_urls(request.peer_urls))
    if request.action is Action.PROMOTE:
        if sight.progress(member.id) < READY_RATIO:
            raise RefusedRequestError(*LEARNER_NOT_READY)
        if not member.is_learner:
            raise RefusedRequestError(*MEMBER_NOT_LEARNER)
        if sight.is_strict:
            _check_started(cluster, extra_voters=1, extra_started=1)
        return Change(ChangeKind.ADD_VOTER, member.id)
    if not member.is_learner:
        _check_removal(member.id, cluster, sight)
    return Change(ChangeKind.REMOVE, member.id)


def _plan_addition(request: Request, cluster: Cluster, sight: Sight) -> Change:
    is_learner = request.action is Action.ADD_LEARNER
    voters = [each for each in cluster.list() if not each.is_learner]
    if sight.is_strict:
        # One more than the only member is always allowed, or nothing could ever grow.
        if not is_learner and len(voters) > 1:
            _check_started(cluster, extra_voters=1)
        if not all(each.id == sight.self_id or sight.is_settled(each.id) for each in voters):
            raise RefusedRequestError(*UNHEALTHY)
    added_at_s = sight.now_s
    # Removed within this second: the id must be another one.
    while (number := member_id(request.peer_urls, "", added_at_s=added_at_s)) in cluster.removed:
        added_at_s += 1
    _check_urls(request, cluster)
    if number in cluster.members:
        raise RefusedRequestError(*MEMBER_EXISTS)
    if is_learner:
        learners = len(cluster.members) - len(voters)
        if learners >= sight.learners_max:
            raise RefusedRequestError(*TOO_MANY_LEARNERS)
    kind = ChangeKind.ADD_LEARNER if is_learner else ChangeKind.ADD_VOTER
    return Change(kind, number, encode_urls(request.peer_urls))


def _check_urls(request: Request, cluster: Cluster) -> None:
    for other in cluster.members.values():
        if other.id != request.member and set(other.peer_urls) & set(request.peer_urls):
            raise RefusedRequestError(*PEER_URL_EXISTS)


def _check_started(
    cluster: Cluster, *, without: int = 0, extra_voters: int = 0, extra_started: int = 0
) -> None:
    voters = [each for each in cluster.list() if not each.is_learner and each.id != without]
    started = sum(1 for each in voters if each.name) + extra_started
    if started < (len(voters) + extra_voters) // 2 + 1:
        raise RefusedRequestError(*NOT_ENOUGH_STARTED)


def _check_removal(member: int, cluster: Cluster, sight: Sight) -> None:
    voters = [each.id for each in cluster.list_plain() if not each.is_learner]
    if voters == [member]:
        raise RefusedRequestError(*NOT_ENOUGH_STARTED)  # strict or not: nobody could decide
    if not sight.is_strict:
        return
    _check_started(cluster, without=member)
    if member != sight.self_id and not sight.is_active(member):
        return  # it is no part of the quorum that works now
    settled = sum(1 for each in voters if each == sight.self_id or sight.is_settled(each))
    if settled - 1 < 1 + (len(voters) - 1) // 2:
        raise RefusedRequestError(*UNHEALTHY)
