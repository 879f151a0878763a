"""ReadIndex rounds as the node drives them: who may be served by which round."""

from __future__ import annotations

from kvstore.server.errors import StoppedError, TimedOutError
from kvstore.server.reads import RETRY_NS, Reads

TIMEOUT_NS = 10 * RETRY_NS


class Desk:
    """A Reads on a clock of its own; `rounds` are the ids asked of the core."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.rounds: list[int] = []
        self.served: dict[str, Exception | None] = {}
        self.reads = Reads(self.rounds.append, TIMEOUT_NS, self)

    def monotonic_ns(self) -> int:
        return self.now_ns

    def wall_ns(self) -> int:
        raise AssertionError("rounds must not depend on the date")

    def add(self, name: str) -> None:
        self.reads.add(lambda error: self.served.__setitem__(name, error))
        self.reads.start()


def test_a_read_that_comes_during_a_round_waits_for_the_next() -> None:
    # The round under way may have fixed its index before a write that this read must see.
    desk = Desk()
    desk.add("early")
    desk.add("late")
    assert desk.rounds == [1]
    desk.reads.ready(1, 7, applied=7)
    assert desk.served == {"early": None}
    desk.reads.start()
    assert desk.rounds == [1, 2]
    desk.reads.ready(2, 7, applied=7)
    assert "late" in desk.served


def test_a_read_waits_until_the_store_has_the_index() -> None:
    desk = Desk()
    desk.add("a")
    desk.reads.ready(1, 9, applied=8)
    assert desk.served == {}
    desk.reads.applied(8)
    assert desk.served == {}
    desk.reads.applied(9)
    assert desk.served == {"a": None}


def test_an_answer_to_a_given_up_round_proves_nothing() -> None:
    # etcd #20418: a reused round id let a delayed answer release reads that came after it.
    desk = Desk()
    desk.add("a")
    desk.now_ns = RETRY_NS
    desk.reads.expire(desk.now_ns)
    desk.reads.start()
    assert desk.rounds == [1, 2]
    desk.reads.ready(1, 5, applied=5)
    assert desk.served == {}
    desk.reads.ready(2, 5, applied=5)
    assert desk.served == {"a": None}


def test_a_refused_round_is_asked_again_under_a_new_id() -> None:
    desk = Desk()
    desk.add("a")
    desk.reads.ready(1, None, applied=5)
    desk.reads.start()
    assert desk.rounds == [1, 2]
    assert desk.served == {}


def test_a_read_that_nobody_can_confirm_ends_with_an_error() -> None:
    desk = Desk()
    desk.add("a")
    desk.reads.ready(1, None, applied=0)
    desk.reads.expire(TIMEOUT_NS - 1)
    assert desk.served == {}
    desk.reads.expire(TIMEOUT_NS)
    assert isinstance(desk.served["a"], TimedOutError)


def test_a_confirmed_read_whose_index_never_comes_ends_with_an_error() -> None:
    desk = Desk()
    desk.add("a")
    desk.reads.ready(1, 9, applied=8)
    desk.reads.expire(TIMEOUT_NS)
    assert isinstance(desk.served["a"], TimedOutError)


def test_stopping_ends_all_reads_wherever_they_wait() -> None:
    desk = Desk()
    desk.add("confirmed")
    desk.reads.ready(1, 9, applied=8)
    desk.add("round")
    desk.add("waiting")
    desk.reads.stop()
    assert {name: type(error) for name, error in desk.served.items()} == {
        "confirmed": StoppedError, "round": StoppedError, "waiting": StoppedError,
    }  # fmt: skip
