"""A removed member goes when most of the others know of its removal for good, or it waited long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from kvstore.peer.calls import PeerCalls
from kvstore.raft.messages import CHANGE, Entry
from kvstore.server.cluster import Cluster, Member
from kvstore.server.farewell import FAREWELL_MAX_S, GOODBYE_S, Farewell

REMOVAL = Entry(7, 3, CHANGE, b"")
GONE = 9


class Clock:
    def monotonic_ns(self) -> int:
        return 0


@dataclass
class Rig:
    """One member as its farewell sees it, on a network that carries at once."""

    id: int
    rigs: dict[int, Rig]
    voters: int
    is_up: bool = True
    stored: int = 0
    heard: list[tuple[int, int]] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)
    timers: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    now_s: float = 0.0
    ended: int = 0

    def __post_init__(self) -> None:
        self.rigs[self.id] = self
        members = {
            one: Member(one, "", ("http://x",), (), is_learner=False)
            for one in range(1, self.voters + 1)
        }
        self.calls = PeerCalls(self._send, self.id)
        self.farewell = Farewell(
            self,  # type: ignore[arg-type]
            Cluster(1, members, removed=()),
            self.calls,
            stored_index=lambda: self.stored,
            later=lambda after_s, run: self.timers.append((self.now_s + after_s, run)),
        )

    def _send(self, peer: int, payload: bytes) -> bool:
        if not self.rigs[peer].is_up:
            return False
        self.rigs[peer].calls.receive(self.id, payload)
        return True

    def hear_committed(self, index: int, term: int) -> None:
        self.heard.append((index, term))

    def end(self) -> None:
        self.ended += 1

    def wait(self, seconds: float) -> None:
        until_s = self.now_s + seconds
        while self.timers and min(self.timers, key=lambda timer: timer[0])[0] <= until_s:
            timer = min(self.timers, key=lambda each: each[0])
            self.timers.remove(timer)
            self.now_s = timer[0]
            timer[1]()
        self.now_s = until_s


def removed_of(voters: int) -> tuple[Rig, list[Rig]]:
    """A member that applies its removal, and the voters that stay."""
    rigs: dict[int, Rig] = {}
    others = [Rig(one, rigs, voters) for one in range(1, voters + 1)]
    gone = Rig(GONE, rigs, voters)
    gone.farewell.begin(REMOVAL, gone.end)
    return gone, others


def test_it_tells_and_goes_when_the_others_have_it_on_disk() -> None:
    gone, others = removed_of(2)
    assert [other.heard for other in others] == [[(7, 3)]] * 2
    for other in others:
        other.stored = 6
    gone.wait(5)
    assert not gone.ended  # after a crash they would not know it any more
    for other in others:
        other.stored = 7
    gone.wait(1)
    assert gone.ended == 1
    gone.wait(2 * FAREWELL_MAX_S)
    assert gone.ended == 1


def test_a_client_gets_its_answer_first() -> None:
    gone, others = removed_of(1)
    others[0].stored = 7
    gone.wait(GOODBYE_S - 0.01)
    assert not gone.ended


@pytest.mark.parametrize(("voters", "needed"), [(1, 1), (2, 2), (3, 2), (4, 3)])
def test_a_majority_of_those_that_stay_is_needed(voters: int, needed: int) -> None:
    gone, others = removed_of(voters)
    for other in others:
        other.is_up = False
    for count, other in enumerate(others, start=1):
        gone.wait(5)
        assert not gone.ended
        other.is_up = True
        other.stored = 7
        if count == needed:
            break
    gone.wait(1)
    assert gone.ended == 1


def test_who_refuses_it_knows() -> None:
    gone, others = removed_of(1)
    others[0].is_up = False
    assert not gone.farewell.refused_by(1)  # it waits until most have said so
    gone.wait(GOODBYE_S)
    assert gone.ended == 1


def test_who_has_not_applied_its_removal_goes_at_once_when_it_is_refused() -> None:
    assert Rig(1, {}, 2).farewell.refused_by(2)


def test_it_does_not_wait_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    gone, others = removed_of(2)
    others[1].is_up = False
    others[0].stored = 7
    gone.wait(FAREWELL_MAX_S - 1)
    assert not gone.ended
    gone.wait(3)
    assert gone.ended == 1
    assert "stops though 2 may not know of its removal" in caplog.text


@pytest.mark.parametrize("body", [None, 7, "text", (), (7,), (7, "3"), (1.0, 2), (7, 3, 1), {}])
def test_a_malformed_farewell_is_answered_and_not_heard(body: Any) -> None:
    rigs: dict[int, Rig] = {}
    one, other = Rig(1, rigs, 2), Rig(2, rigs, 2)
    answers: list[Any] = []
    one.calls.call(2, "farewell", body, answers.append, 10)
    assert answers == [None]
    assert other.heard == []
