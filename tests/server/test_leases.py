"""Whose clock a renewal counts on: what happens when leadership moves while a round runs."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from kvstore.lease.clock import LeaseClock
from kvstore.lease.lessor import TTL_MAX_S, Lessor
from kvstore.raft.messages import Role
from kvstore.server.errors import TimedOutError
from kvstore.server.leases import Leases

S = 1_000_000_000


class Leader:
    """A `Leases` on a node that leads term 5; its rounds end when the test says so."""

    term = 5
    role = Role.LEADER
    leader = 1

    def __init__(self) -> None:
        self.now_ns = 0
        self.clock = self
        self.rounds: list[Callable[[Exception | None], None]] = []
        self.answers: list[int | Exception] = []
        lessor = Lessor(2)
        lessor.write = lambda table, key, value: None
        lessor.grant(7, 10)
        calls: Any = SimpleNamespace(handlers={})
        node: Any = self
        self.leases = Leases(
            node, lessor, LeaseClock(lessor), calls,
            election_timeout_ns=S, timeout_ns=5 * S, later=lambda delay, call: None,
        )  # fmt: skip
        self.leases.led()

    def monotonic_ns(self) -> int:
        return self.now_ns

    def linearizable(self, done: Callable[[Exception | None], None]) -> None:
        self.rounds.append(done)

    def becomes(self, role: Role, term: int) -> None:
        self.role, self.term = role, term
        self.leases.role(role)

    def renew(self) -> None:
        self.leases.renew(7, self.answers.append)


@pytest.fixture
def leader() -> Leader:
    return Leader()


def test_a_round_of_the_same_leadership_confirms_a_renewal(leader: Leader) -> None:
    leader.renew()
    assert leader.answers == []
    leader.rounds.pop()(None)
    assert leader.answers == [10]


def test_another_leaders_round_confirms_no_renewal(leader: Leader) -> None:
    # A round outlives the leadership in which it began: it is asked again, and the successor
    # answers. The successor's clock never saw this renewal and would end the lease early.
    leader.renew()
    leader.becomes(Role.FOLLOWER, 6)
    leader.rounds.pop()(None)
    [answer] = leader.answers
    assert isinstance(answer, TimedOutError)


def test_a_later_leadership_renews_on_its_own_clock(leader: Leader) -> None:
    leader.renew()
    leader.becomes(Role.FOLLOWER, 6)
    leader.becomes(Role.LEADER, 7)
    leader.now_ns = 2 * S
    leader.leases.led()
    leader.now_ns = 4 * S
    leader.rounds.pop()(None)
    assert leader.answers == []  # not by the round of term 5
    leader.rounds.pop()(None)
    assert leader.answers == [10]
    assert leader.leases.clock.remaining_s(7, leader.now_ns) == 10


@pytest.mark.parametrize("answer", [None, "10", 10.0, [], {}, -2, 2**63, TTL_MAX_S + 1])
def test_what_is_no_life_is_no_answer(leader: Leader, answer: Any) -> None:
    # It could not be encoded for the client, who would never be answered.
    leader.role = Role.FOLLOWER
    leader.leader = 2
    leader.leases._calls.call = lambda _peer, _kind, _body, done, _deadline: done(answer)  # type: ignore[method-assign]
    leader.renew()
    leader.leases.remaining(7, leader.answers.append)
    assert [type(one) for one in leader.answers] == [TimedOutError] * 2
