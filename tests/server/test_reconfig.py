"""etcd's guards of membership changes, one by one: `kvstore.server.reconfig` is pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgpack
import pytest

from kvstore.apply.members import Members
from kvstore.pb import rpc_pb2
from kvstore.raft.errors import MalformedChange
from kvstore.raft.membership import Change, ChangeKind
from kvstore.raft.messages import Configuration
from kvstore.server.cluster import Cluster, decode_urls
from kvstore.server.errors import (
    LEARNER_NOT_READY,
    MEMBER_EXISTS,
    MEMBER_NOT_FOUND,
    MEMBER_NOT_LEARNER,
    NOT_ENOUGH_STARTED,
    PEER_URL_EXISTS,
    TOO_MANY_LEARNERS,
    UNHEALTHY,
    Code,
    RefusedRequestError,
)
from kvstore.server.identity import Member, member_id
from kvstore.server.reconfig import Action, Request, Sight, plan

LEADER = 1
NOW_S = 1_700_000_000
NEW = ("http://10.0.0.9:2380",)


def cluster_of(voters: int, *, learners: int = 0, unstarted: Iterable[int] = ()) -> Cluster:
    """Members 1, 2, ...: voters first, all started but for those named."""
    numbers = range(1, voters + learners + 1)
    published = Members(lambda *_: None)
    for number in numbers:
        if number not in set(unstarted):
            published.publish(rpc_pb2.Member(ID=number, name=f"m{number}"))
    members = {
        number: Member(number, "", (f"http://10.0.0.{number}:2380",), (), number > voters)
        for number in numbers
    }
    return Cluster(7, members, (), published)


def sight(
    *,
    down: Iterable[int] = (),
    unsettled: Iterable[int] = (),
    behind: Iterable[int] = (),
    is_strict: bool = True,
) -> Sight:
    gone, fresh, late = set(down), set(unsettled), set(behind)
    return Sight(
        self_id=LEADER,
        is_strict=is_strict,
        learners_max=1,
        is_active=lambda member: member not in gone,
        is_settled=lambda member: member not in gone | fresh,
        progress=lambda member: 0.89 if member in late else 0.9,
        now_s=NOW_S,
    )


def refusal(request: Request, cluster: Cluster, seen: Sight) -> tuple[Code, str]:
    with pytest.raises(RefusedRequestError) as caught:
        plan(request, cluster, seen)
    return caught.value.code, caught.value.text


ADD = Request(Action.ADD, peer_urls=NEW)
LEARN = Request(Action.ADD_LEARNER, peer_urls=NEW)


@pytest.mark.parametrize("voters", [1, 2, 3, 5])
def test_a_healthy_cluster_takes_one_more(voters: int) -> None:
    for request, kind in ((ADD, ChangeKind.ADD_VOTER), (LEARN, ChangeKind.ADD_LEARNER)):
        change = plan(request, cluster_of(voters), sight())
        assert change.kind is kind
        assert change.member == member_id(NEW, "", added_at_s=NOW_S)
        assert decode_urls(change.context) == NEW


@pytest.mark.parametrize(
    ("voters", "unstarted", "is_refused"),
    [
        (1, [], False),  # the only member: or nothing could ever grow
        (2, [2], True),  # one of three would have started
        (2, [], False),
        (3, [3], True),  # two of four
        (4, [4], False),  # three of five
        (4, [3, 4], True),
    ],
)
def test_a_voter_is_added_while_enough_have_started(
    voters: int, unstarted: list[int], is_refused: bool
) -> None:
    cluster = cluster_of(voters, unstarted=unstarted)
    if is_refused:
        assert refusal(ADD, cluster, sight()) == NOT_ENOUGH_STARTED
        assert plan(ADD, cluster, sight(is_strict=False)).kind is ChangeKind.ADD_VOTER
    else:
        assert plan(ADD, cluster, sight()).kind is ChangeKind.ADD_VOTER
    # A learner is no part of any quorum.
    assert plan(LEARN, cluster, sight()).kind is ChangeKind.ADD_LEARNER


@pytest.mark.parametrize("request_", [ADD, LEARN], ids=["voter", "learner"])
def test_all_voters_must_be_connected_for_an_addition(request_: Request) -> None:
    for seen in (sight(down=[3]), sight(unsettled=[3])):
        assert refusal(request_, cluster_of(3), seen) == UNHEALTHY
    assert plan(request_, cluster_of(3), sight(down=[3], is_strict=False))


def test_a_learner_that_is_down_hinders_nobody() -> None:
    assert plan(ADD, cluster_of(3, learners=1), sight(down=[4]))


def test_urls_and_ids_are_never_shared() -> None:
    cluster = cluster_of(3)
    taken = Request(Action.ADD, peer_urls=(*NEW, "http://10.0.0.2:2380"))
    assert refusal(taken, cluster, sight()) == PEER_URL_EXISTS
    number = member_id(NEW, "", added_at_s=NOW_S)
    cluster.members[number] = Member(number, "", ("http://10.0.0.8:2380",), (), True)
    assert refusal(ADD, cluster, sight()) == MEMBER_EXISTS


def test_an_id_that_was_removed_within_the_second_is_not_used_again() -> None:
    cluster = cluster_of(3)
    cluster.removed = (member_id(NEW, "", added_at_s=NOW_S),)
    assert plan(ADD, cluster, sight()).member == member_id(NEW, "", added_at_s=NOW_S + 1)


def test_there_is_one_learner_at_a_time() -> None:
    assert refusal(LEARN, cluster_of(3, learners=1), sight()) == TOO_MANY_LEARNERS
    assert plan(ADD, cluster_of(3, learners=1), sight())


@pytest.mark.parametrize(
    ("voters", "member", "down", "reason"),
    [
        (1, 1, [], NOT_ENOUGH_STARTED),  # the last one
        (2, 2, [], None),
        (2, 1, [], None),  # the leader itself
        (3, 3, [3], None),  # it is no part of the quorum that works now
        (3, 2, [3], UNHEALTHY),
        (3, 1, [3], UNHEALTHY),
        (3, 2, [], None),
        (5, 2, [5], None),
        (5, 2, [4, 5], UNHEALTHY),
        (5, 4, [4, 5], None),
    ],
)
def test_a_removal_leaves_a_quorum_that_works(
    voters: int, member: int, down: list[int], reason: tuple[Code, str] | None
) -> None:
    request = Request(Action.REMOVE, member)
    if reason is None:
        change = plan(request, cluster_of(voters), sight(down=down))
        assert change == Change(ChangeKind.REMOVE, member)
    else:
        assert refusal(request, cluster_of(voters), sight(down=down)) == reason


def test_the_last_voter_stays_also_without_strictness() -> None:
    last = Request(Action.REMOVE, 1)
    seen = sight(is_strict=False)
    assert refusal(last, cluster_of(1, learners=1), seen) == NOT_ENOUGH_STARTED
    assert plan(Request(Action.REMOVE, 2), cluster_of(3), sight(down=[3], is_strict=False))


def test_a_removal_counts_who_has_started() -> None:
    # Without 1, one of the two left has started.
    cluster = cluster_of(3, unstarted=[3])
    assert refusal(Request(Action.REMOVE, 1), cluster, sight()) == NOT_ENOUGH_STARTED
    assert plan(Request(Action.REMOVE, 3), cluster, sight(down=[3]))


def test_a_learner_goes_at_any_time() -> None:
    seen = sight(down=[2, 3, 4])
    assert plan(Request(Action.REMOVE, 4), cluster_of(3, learners=1), seen)


def test_a_learner_is_promoted_when_it_has_nine_tenths() -> None:
    cluster = cluster_of(3, learners=1)
    promote = Request(Action.PROMOTE, 4)
    assert plan(promote, cluster, sight()) == Change(ChangeKind.ADD_VOTER, 4)
    assert refusal(promote, cluster, sight(behind=[4])) == LEARNER_NOT_READY
    assert refusal(Request(Action.PROMOTE, 2), cluster, sight()) == MEMBER_NOT_LEARNER
    few = cluster_of(3, learners=1, unstarted=[2, 3])
    assert refusal(promote, few, sight()) == NOT_ENOUGH_STARTED


def test_an_update_changes_the_urls_and_nothing_else() -> None:
    # etcd before 3.6.12 made a voter of a learner by an update.
    cluster = cluster_of(3, learners=1)
    change = plan(Request(Action.UPDATE, 4, NEW), cluster, sight(down=[2, 3]))
    cluster.apply(change)
    assert cluster.members[4] == Member(4, "", NEW, (), True)
    own = Request(Action.UPDATE, 4, NEW)
    assert plan(own, cluster, sight()).kind is ChangeKind.UPDATE  # its own URLs are not taken
    taken = Request(Action.UPDATE, 4, ("http://10.0.0.1:2380",))
    assert refusal(taken, cluster, sight()) == PEER_URL_EXISTS


@pytest.mark.parametrize("action", [Action.REMOVE, Action.UPDATE, Action.PROMOTE])
def test_unknown_members_are_not_found(action: Action) -> None:
    assert refusal(Request(action, 9, NEW), cluster_of(3), sight()) == MEMBER_NOT_FOUND


def test_a_request_survives_its_way_to_the_leader() -> None:
    for request in (ADD, Request(Action.REMOVE, 2**64 - 1)):
        assert Request.unpack(request.pack()) == request


@pytest.mark.parametrize(
    "body",
    [
        None, [], [9, 0, []], [1, 0], ["x", 0, []], 3, {}, [3, float("inf"), []], [3, "4", []],
        [3, 4, None], [1, 0, "http://a:1"], [1, 0, [b"http://a:1"]],
        # Every member would fail to dial them, and at every start again.
        [1, 0, []], [4, 7, []], [1, 0, ["x"]], [2, 0, ["http://a"]], [4, 7, ["http://a:1", ""]],
    ],
)  # fmt: skip
def test_a_malformed_request_is_refused(body: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (its texts are for the log)
        Request.unpack(body)


@pytest.mark.parametrize("context", [b"", b"\xc1", b"\x01", *map(
    msgpack.packb, ([1], [1, 2, 3], [1, "x"], [1, []], [1, [7]], [1, {}]))])  # fmt: skip
def test_a_change_without_urls_says_so(context: bytes) -> None:
    with pytest.raises(MalformedChange, match="peer URLs"):
        decode_urls(context)


def test_the_record_keeps_who_is_a_member() -> None:
    cluster = cluster_of(2, learners=1)
    for change in (
        plan(ADD, cluster, sight()),
        Change(ChangeKind.ADD_VOTER, 3),
        Change(ChangeKind.REMOVE, 2),
    ):
        cluster.apply(change)
    table, key, record = cluster.change()

    class View:
        def get(self, wanted: str, name: bytes) -> bytes | None:
            return record if (wanted, name) == (table, key) else None

    loaded = Cluster.load(View(), cluster.published)  # type: ignore[arg-type]
    assert loaded == cluster
    configuration = loaded.configuration()
    assert set(configuration.voters) == {1, 3, member_id(NEW, "", added_at_s=NOW_S)}
    assert configuration.removed == (2,)
    assert [member.name for member in loaded.list() if member.id == 1] == ["m1"]


def test_a_member_that_joins_knows_the_others_and_no_configuration() -> None:
    # With the one that it was told it would replay the log from its start with wrong majorities.
    joining = cluster_of(3)
    joining.is_joining = True
    assert joining.configuration() == Configuration(voters=())
    record = joining.change()[2]

    class View:
        def get(self, table: str, key: bytes) -> bytes | None:
            return record

    loaded = Cluster.load(View(), joining.published)  # type: ignore[arg-type]
    assert loaded == joining
    assert loaded.configuration() == Configuration(voters=())
    loaded.adopt(cluster_of(2))
    assert loaded.configuration() == Configuration(voters=(1, 2))
