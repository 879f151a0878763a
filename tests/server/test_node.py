"""The node around a real core: what counts as sent in which term, and what it does on failure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kvstore.apply.ops import PUT, decode_batch
from kvstore.peer.codec import decode, encode
from kvstore.peer.link import Channel
from kvstore.raft.config import Config, Restored
from kvstore.raft.messages import (
    AppendRequest,
    AppendResponse,
    AppendWork,
    CommitNotice,
    Configuration,
    Entry,
    Forward,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Message,
    PreVoteResponse,
    Role,
    SnapshotMeta,
    VoteResponse,
)
from kvstore.raft.raft import Raft
from kvstore.server.node import Node, NodeHooks
from kvstore.server.proposals import Proposals

SELF, OLD, NEW = 1, 2, 3
INCARNATION = 1

pytestmark = pytest.mark.pure_python  # its applier is a stand-in


class Result:
    """What an applier returns."""

    def __init__(self, origin: int, incarnation: int, first: int, results: list[Any]) -> None:
        self.origin = origin
        self.incarnation = incarnation
        self.first_sequence = first
        self.results = results


class Applier:
    """Applies nothing; entries of our own batches answer with their index."""

    def __init__(self) -> None:
        self.batches: dict[bytes, int] = {}

    def apply(self, entry: Entry) -> Result:
        if entry.data == b"bad":
            raise RuntimeError("the state is wrong")
        first = self.batches.get(entry.data, 0)
        return Result(SELF if first else 0, INCARNATION, first, [entry.index] if first else [])


class World:
    """A node of three members; loop, disk, wires and clock are lists to look at."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], object]] = []
        self.works: list[AppendWork] = []
        self.sent: list[Message] = []
        self.down: set[int] = set()
        self.inflight = 0
        self.now_ns = 0
        self.fatal: list[BaseException] = []
        self.applier = Applier()
        nothing: Callable[..., None] = lambda *_: None  # noqa: E731
        self.node = Node(
            Raft(
                Config(id=SELF, draw_timeout=lambda start, stop: stop - 1),
                Restored(configuration=Configuration(voters=(SELF, OLD, NEW))),
            ),
            self.applier,  # type: ignore[arg-type]
            Proposals(SELF, INCARNATION, 7_000_000_000),
            self,
            self,
            self,
            self,
            NodeHooks(
                applied=nothing, changed=nothing, reconfigured=nothing, role=nothing, led=nothing,
                snapshot=nothing, fatal=self.fatal.append,
            ),
            7_000_000_000,
        )  # fmt: skip

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        self.soon.append(lambda: callback(*args))

    def submit(self, work: AppendWork) -> None:
        self.works.append(work)

    def send(self, peer: int, channel: Channel, payload: bytes) -> bool:
        if peer in self.down:
            return False
        self.sent.append(decode(payload))
        return True

    def monotonic_ns(self) -> int:
        return self.now_ns

    def wall_ns(self) -> int:
        return 0

    def turn(self) -> None:
        """Run what waits for the next loop turn, and let the disk finish."""
        while self.soon or self.works:
            soon, self.soon = self.soon, []
            for callback in soon:
                callback()
            works, self.works = self.works, []
            if works:
                self.node.saved(works)

    def hear(self, *messages: Message) -> None:
        for message in messages:
            self.node.receive(message.sender, [encode(message)])

    def forwards(self) -> list[Forward]:
        return [message for message in self.sent if isinstance(message, Forward)]


def heartbeat(leader: int, term: int) -> Heartbeat:
    return Heartbeat(leader, SELF, term, 0, 0)


def append(leader: int, term: int, index: int, prev_term: int, data: bytes) -> AppendRequest:
    return AppendRequest(
        leader, SELF, term, index - 1, prev_term, index, [Entry(index, term, 0, data)]
    )


def following(leader: int, term: int) -> World:
    world = World()
    world.hear(heartbeat(leader, term))
    world.turn()
    assert world.node.leader == leader
    return world


def test_a_batch_counts_as_sent_in_the_term_it_travels_in() -> None:
    # The new leader is heard and an operation arrives in one turn. Were the batch counted to the
    # old term, the new leader's first entry would make us send it a second time, and the store
    # would apply it twice.
    world = following(OLD, term=1)
    ended: list[Any] = []
    world.hear(heartbeat(NEW, 2))
    world.node.propose(PUT, b"x", ended.append)
    world.turn()
    [forward] = world.forwards()
    assert (forward.target, forward.term) == (NEW, 2)
    world.hear(append(NEW, 2, 1, 0, b""))
    world.turn()
    assert len(world.forwards()) == 1
    world.applier.batches[forward.data] = forward.forward_id
    world.hear(append(NEW, 2, 2, 2, forward.data))
    world.turn()
    assert ended == [2]


def test_a_batch_that_a_new_term_overtook_is_sent_again() -> None:
    world = following(OLD, term=1)
    ended: list[Any] = []
    world.node.propose(PUT, b"x", ended.append)
    world.turn()
    world.hear(heartbeat(NEW, 2))
    world.turn()
    assert len(world.forwards()) == 1  # not before it is certain that it is lost
    world.hear(append(NEW, 2, 1, 0, b""))
    world.turn()
    first, again = world.forwards()
    assert (again.target, again.term) == (NEW, 2)
    assert again.forward_id > first.forward_id
    assert ended == []


def test_an_unreachable_leader_does_not_make_the_loop_spin() -> None:
    # A member whose leader was killed tried to forward for ever and never held an election.
    world = following(OLD, term=1)
    world.down.add(OLD)
    world.node.propose(PUT, b"x", lambda _: None)
    world.turn()
    assert world.forwards() == []
    world.down.clear()
    world.node.tick()
    assert len(world.forwards()) == 1


def test_operations_wait_for_a_leader() -> None:
    world = World()
    world.node.propose(PUT, b"x", lambda _: None)
    world.turn()
    assert world.sent == []
    world.hear(heartbeat(NEW, 1))
    world.turn()
    world.node.tick()
    assert [forward.target for forward in world.forwards()] == [NEW]


def test_a_failed_application_ends_the_member() -> None:
    # To go on after half an entry would make this member differ from the others.
    world = following(OLD, term=1)
    world.hear(append(OLD, 1, 1, 0, b"bad"))
    with pytest.raises(RuntimeError):
        world.turn()
    assert [str(error) for error in world.fatal] == ["the state is wrong"]


def test_a_broken_rule_of_the_core_ends_the_member() -> None:
    # The event loop would report the exception and go on with a core in an unknown state.
    world = following(OLD, term=1)
    with pytest.raises(AssertionError):
        world.node.saved([AppendWork([], None, None, False, [])])
    assert len(world.fatal) == 1


async def test_a_snapshot_of_a_leader_of_the_past_is_turned_away() -> None:
    # It arrived whole while another member was elected. The node asserted that the core takes
    # what would bring it forward, and then waited for ever for it: nothing was applied any more.
    world = following(OLD, term=1)
    world.hear(heartbeat(NEW, 2))
    world.turn()
    meta = SnapshotMeta(50, 1, Configuration(voters=(SELF, OLD, NEW)))
    assert world.node.raft.wants_snapshot(meta)
    assert not await world.node.install(InstallSnapshot(OLD, SELF, 1, meta))
    assert not world.node.installing
    world.hear(append(NEW, 2, 1, 0, b""))
    world.turn()
    world.hear(heartbeat(NEW, 2), append(NEW, 2, 2, 2, b""))
    world.turn()
    assert world.node.applied_index >= 1


def test_messages_in_another_members_name_are_dropped() -> None:
    world = following(OLD, term=1)
    world.node.receive(NEW, [encode(heartbeat(OLD, 9))])
    world.node.receive(NEW, [b"\xff\xff"])
    world.turn()
    assert world.node.term == 1


def leading() -> World:
    world = World()
    while world.node.raft.term == 0:
        world.node.tick()
        world.turn()
        if any(type(message).__name__ == "PreVoteRequest" for message in world.sent):
            world.hear(PreVoteResponse(OLD, SELF, 1, granted=True))
            world.turn()
    world.hear(VoteResponse(OLD, SELF, 1, granted=True))
    world.turn()
    world.hear(AppendResponse(OLD, SELF, 1, 1, None), AppendResponse(NEW, SELF, 1, 1, None))
    world.turn()
    assert world.node.role is Role.LEADER
    assert world.node.applied_index == 1
    world.sent.clear()
    return world


def proposed(world: World, *, answered: Callable[[Any], None]) -> None:
    """Propose one operation and let everybody but its answerer have it on disk."""
    world.node.propose(PUT, b"x", answered)
    world.turn()
    [entry] = next(m for m in world.sent if isinstance(m, AppendRequest)).entries
    world.applier.batches[entry.data] = decode_batch(entry.data).first_sequence
    world.sent.clear()


def test_a_read_that_came_during_a_round_starts_the_next_at_once() -> None:
    # When the answers of both followers come together nothing else wakes the node: such reads, and
    # renewals of leases, waited for the next request or the next tick.
    world = leading()
    served: list[str] = []
    world.node.linearizable(lambda error: served.append(f"early {error}"))
    world.turn()
    world.node.linearizable(lambda error: served.append(f"late {error}"))
    world.turn()
    for name in ("early", "late"):
        asked = [message for message in world.sent if isinstance(message, Heartbeat)]
        assert {message.target for message in asked} == {OLD, NEW}, name
        world.sent.clear()
        world.hear(*(HeartbeatResponse(m.target, SELF, 1, m.round) for m in asked))
        world.turn()
        assert served.pop() == f"{name} None"
        assert not served


def test_a_commit_notice_leaves_after_the_reply() -> None:
    # Two writes to sockets stood between the commit and its answer to the client.
    world = leading()
    seen: list[str] = []

    def answered(_: object) -> None:
        # The RPC engine writes all replies of a turn in the next one.
        world.call_soon(lambda: seen.append(f"reply after {len(world.sent)} notices"))

    proposed(world, answered=answered)
    world.hear(AppendResponse(OLD, SELF, 1, 2, None))
    world.turn()
    assert seen == ["reply after 0 notices"]
    assert [type(message) for message in world.sent] == [CommitNotice, CommitNotice]
    assert {message.target for message in world.sent} == {OLD, NEW}


def test_an_append_that_carries_the_commit_saves_the_notice() -> None:
    world = leading()
    proposed(world, answered=lambda _: world.node.propose(PUT, b"y", lambda _: None))
    world.hear(AppendResponse(OLD, SELF, 1, 2, None), AppendResponse(NEW, SELF, 1, 2, None))
    world.turn()
    assert [(type(m), m.commit) for m in world.sent if m.target == OLD][:1] == [(AppendRequest, 2)]
    assert not [message for message in world.sent if isinstance(message, CommitNotice)]


def test_a_leader_that_stops_still_tells_what_is_committed() -> None:
    world = leading()
    proposed(world, answered=lambda _: world.node.stop())
    world.hear(AppendResponse(OLD, SELF, 1, 2, None))
    world.turn()
    assert [type(message) for message in world.sent] == [CommitNotice, CommitNotice]


@pytest.mark.parametrize(
    "message",
    [
        Heartbeat(OLD, NEW, 5, 0, 0),
        InstallSnapshot(OLD, SELF, 5, SnapshotMeta(9, 5, Configuration((SELF, OLD, NEW)))),
        Forward(OLD, SELF, 5, 1 << 32, 1, b"a change that nobody has judged"),
    ],
)
def test_what_is_for_others_or_for_another_channel_is_not_taken(message: Message) -> None:
    # The first would end the member, the second leave it with an index and no data.
    world = following(OLD, 3)
    world.hear(message)
    world.turn()
    assert (world.node.raft.term, world.node.raft.log.offset) == (3, 0)
    assert world.fatal == []
