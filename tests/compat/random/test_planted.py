"""The comparison sees what it must see: each change of one of our answers is reported.

A change stands between our member and the comparison, as a defect of the product would. If one of
these fails the product is fine, the comparison has gone blind.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from kvstore.pb import rpc_pb2
from tests.compat.random import side as side_module
from tests.compat.random.run import ProgramError
from tests.compat.random.search import search
from tests.compat.random.side import Failure
from tests.compat.random.steps import load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.compat.random.members import Members

pytestmark = [pytest.mark.etcd, pytest.mark.cluster]

STORY = r"""
call 0 LeaseGrantRequest ID: 7 TTL: 100
call 0 LeaseGrantRequest ID: 8 TTL: 1000
watch 0 create_request { key: "a" range_end: "c" prev_kv: true }
watch 0 create_request { key: "a" range_end: "c" filters: NOPUT }
call 0 PutRequest key: "a" value: "v" lease: 7
call 0 PutRequest key: "a" value: "w" prev_kv: true lease: 7
call 0 PutRequest key: "b" value: "v" lease: 7
call 0 RangeRequest key: "a" range_end: "c" limit: 1
call 0 RangeRequest key: "a" range_end: "c"
call 0 TxnRequest success { request_put { key: "a" prev_kv: true } } \
    success { request_txn { success { request_range { key: "b" } } } }
call 0 DeleteRangeRequest key: "b" prev_kv: true
call 0 PutRequest key: "c" lease: 7
watch 1 create_request { key: "a" range_end: "z" start_revision: 2 prev_kv: true }
watch 1 progress_request { }
call 0 PutRequest
call 0 RangeRequest key: "a" revision: 1000001
call 0 PutRequest key: "a" lease: 99
watch 0 cancel_request { watch_id: 1 }
keepalive 7
keepalive 99
call 0 LeaseTimeToLiveRequest ID: 7 keys: true
call 0 LeaseLeasesRequest
call 0 HashKVRequest
call 0 MemberListRequest
call 0 AlarmRequest
call 0 CompactionRequest revision: 1000000
watch 1 create_request { key: "a" start_revision: 2 }
watch 1 create_request { key: "b" range_end: "a" }
chosen-lease 100
raw /etcdserverpb.KV/Absent b''
"""


@dataclass
class Plant:
    """Changes the first answer of a kind for which `applies` holds; or all of them."""

    kind: type
    change: Callable[[Any], Any]
    applies: Callable[[Any], bool] = lambda message: True
    always: bool = False
    done: int = field(default=0, init=False)

    def __call__(self, message: Any) -> list[Any]:
        if type(message) is not self.kind or (self.done and not self.always):
            return [message]
        if not self.applies(message):
            return [message]
        self.done += 1
        changed = copy.deepcopy(message)
        result = self.change(changed)
        if isinstance(result, (list, Failure)):
            return result if isinstance(result, list) else [result]
        assert changed != message, "the planted difference changes nothing"
        return [changed]


def more(path: str, by: int = 1) -> Callable[[Any], None]:
    """Return a change that adds to a number of a message."""

    def change(message: Any) -> None:
        *outer, name = path.split(".")
        for part in outer:
            message = message[int(part)] if part.isdigit() else getattr(message, part)
        setattr(message, name, getattr(message, name) + by)

    return change


def clear(name: str) -> Callable[[Any], None]:
    return lambda message: message.ClearField(name)


def turn(name: str) -> Callable[[Any], None]:
    return lambda message: setattr(message, name, not getattr(message, name))


def swap(name: str) -> Callable[[Any], None]:
    def change(message: Any) -> None:
        items = list(getattr(message, name))[::-1]
        message.ClearField(name)
        getattr(message, name).extend(items)

    return change


def several(name: str) -> Callable[[Any], bool]:
    return lambda message: len(getattr(message, name)) > 1


def with_text(part: str) -> Callable[[Any], bool]:
    return lambda failure: part in failure.text


def has_event(message: Any) -> bool:
    return len(message.events) == 1


def is_history(message: Any) -> bool:
    return len(message.events) > 1


def split_in_a_revision(message: Any) -> list[Any]:
    """Return the message and its last event once more."""
    again = copy.deepcopy(message)
    del again.events[:-1]
    return [message, again]


def in_two(message: Any) -> list[Any]:
    """Return two messages, the later events first."""
    first, second = copy.deepcopy(message), copy.deepcopy(message)
    del first.events[1:]
    del second.events[:1]
    return [second, first]


Put, Range, Txn, Delete = (
    rpc_pb2.PutResponse,
    rpc_pb2.RangeResponse,
    rpc_pb2.TxnResponse,
    rpc_pb2.DeleteRangeResponse,
)
Watch, Life = rpc_pb2.WatchResponse, rpc_pb2.LeaseTimeToLiveResponse
LOST = "a lost event"

PLANTED: dict[str, Plant] = {
    "a put's revision": Plant(Put, more("header.revision")),
    "another member id": Plant(Put, more("header.member_id")),
    "another cluster id": Plant(Range, more("header.cluster_id", -1)),
    "a term that moves": Plant(Put, more("header.raft_term")),
    "no prev_kv of a put": Plant(Put, clear("prev_kv"), lambda m: m.HasField("prev_kv")),
    "another value": Plant(Range, more("kvs.0.value", b"x"), several("kvs")),
    "another version": Plant(Range, more("kvs.0.version"), several("kvs")),
    "another create_revision": Plant(Range, more("kvs.1.create_revision"), several("kvs")),
    "another mod_revision": Plant(Range, more("kvs.1.mod_revision", -1), several("kvs")),
    "another lease of a key": Plant(Range, more("kvs.1.lease"), several("kvs")),
    "another order of keys": Plant(Range, swap("kvs"), several("kvs")),
    "`more` lost": Plant(Range, clear("more"), lambda m: m.more),
    "the count of a page": Plant(Range, more("count", -1), lambda m: m.more),
    "another branch": Plant(Txn, turn("succeeded")),
    "a response of a transaction lost": Plant(Txn, clear("responses")),
    "the inner header of a transaction": Plant(
        Txn, more("responses.0.response_put.header.revision", -1)
    ),
    "an inner header of a nested transaction": Plant(
        Txn, more("responses.1.response_txn.responses.0.response_range.header.raft_term")
    ),
    "the number deleted": Plant(Delete, more("deleted"), lambda m: m.deleted == 1),
    "no prev_kvs of a deletion": Plant(Delete, clear("prev_kvs"), lambda m: len(m.prev_kvs) == 1),
    "another error text": Plant(
        Failure, lambda f: Failure(f.code, f.text.replace("is", "was")), with_text("key is not")
    ),
    "another error code": Plant(
        Failure, lambda f: Failure("NOT_FOUND", f.text), with_text("future revision")
    ),
    "an error that is none": Plant(Failure, lambda f: [Put()], with_text("lease not found")),
    "no answer": Plant(Put, lambda m: Failure("UNAVAILABLE", "")),
    "a granted life": Plant(rpc_pb2.LeaseGrantResponse, more("TTL")),
    "another lease id": Plant(rpc_pb2.LeaseGrantResponse, more("ID")),
    "a chosen lease id below zero": Plant(
        rpc_pb2.LeaseGrantResponse, lambda m: setattr(m, "ID", -m.ID), lambda m: m.ID > 1000
    ),
    "a life too short": Plant(Life, more("TTL", -9)),
    "a life longer than granted": Plant(Life, more("TTL", 2)),
    "another granted life": Plant(Life, more("grantedTTL")),
    "a key not attached": Plant(Life, lambda m: m.keys.pop(), lambda m: m.keys),
    "leases in another order": Plant(
        rpc_pb2.LeaseLeasesResponse, swap("leases"), several("leases")
    ),
    "a renewed life": Plant(rpc_pb2.LeaseKeepAliveResponse, more("TTL")),
    "a renewal of nothing": Plant(
        rpc_pb2.LeaseKeepAliveResponse, more("TTL"), lambda m: m.ID == 99
    ),
    "a renewal answered twice": Plant(rpc_pb2.LeaseKeepAliveResponse, lambda m: [m, m]),
    "another hash": Plant(rpc_pb2.HashKVResponse, more("hash")),
    "another compaction in a hash": Plant(rpc_pb2.HashKVResponse, more("compact_revision")),
    "another revision hashed": Plant(rpc_pb2.HashKVResponse, more("hash_revision")),
    "another member": Plant(rpc_pb2.MemberListResponse, more("members.0.name", "x")),
    "an alarm": Plant(rpc_pb2.AlarmResponse, lambda m: m.alarms.add(alarm=1)),
    "a compaction's revision": Plant(rpc_pb2.CompactionResponse, more("header.revision", -1)),
    "another watch id": Plant(Watch, more("watch_id", 5), lambda m: m.created and m.watch_id == 1),
    LOST: Plant(Watch, lambda m: [], has_event),
    "an event twice": Plant(Watch, lambda m: [m, m], has_event),
    "an event without prev_kv": Plant(
        Watch,
        lambda m: m.events[0].ClearField("prev_kv"),
        lambda m: m.events and m.watch_id == 0 and m.events[0].HasField("prev_kv"),
    ),
    "an event for who filtered it": Plant(
        Watch, lambda m: [m, with_id(m, 1)], lambda m: has_event(m) and not m.events[0].type
    ),
    "a put that is a deletion": Plant(Watch, more("events.0.type"), has_event),
    "the header of an event": Plant(Watch, more("header.revision"), has_event),
    "an event's version": Plant(Watch, more("events.0.kv.version"), has_event),
    "history in another order": Plant(Watch, swap("events"), is_history),
    "history in two halves, the later first": Plant(Watch, in_two, is_history),
    "a revision twice in history": Plant(Watch, split_in_a_revision, is_history),
    "a fragment that never ends": Plant(Watch, turn("fragment"), is_history),
    "a header below the history": Plant(
        Watch, lambda m: setattr(m.header, "revision", m.events[0].kv.mod_revision), is_history
    ),
    "a message after the cancellation": Plant(Watch, lambda m: [m, m], lambda m: m.canceled),
    "another compact_revision": Plant(
        Watch, more("compact_revision"), lambda m: m.compact_revision
    ),
    "another cancel_reason": Plant(Watch, more("cancel_reason", "."), lambda m: m.cancel_reason),
    "the header of a compacted watcher": Plant(
        Watch, more("header.revision"), lambda m: m.compact_revision
    ),
    "a progress too far": Plant(
        Watch, more("header.revision"), lambda m: m.watch_id == -1 and not m.created
    ),
    "a progress not asked for": Plant(
        Watch, lambda m: [m, Watch(header=m.header, watch_id=-1)], has_event
    ),
    "a cancellation not answered": Plant(
        Watch, lambda m: [], lambda m: m.canceled and not m.created and not m.compact_revision
    ),
}


def with_id(message: Any, watch_id: int) -> Any:
    """Return a copy for another watcher."""
    other = copy.deepcopy(message)
    other.watch_id = watch_id
    return other


@pytest.fixture
def tampered(members: Members, monkeypatch: pytest.MonkeyPatch) -> Iterator[Members]:
    # What is lost on purpose need not be waited for as long as what a busy machine delays.
    monkeypatch.setattr(side_module, "ANSWER_S", 2.0)
    members.run([])  # what the last test has left must not see the change
    yield members
    members.plant(None)


def test_without_a_change_there_is_no_difference(members: Members) -> None:
    members.run(load(STORY.replace("\\\n", "")))


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_difference_is_reported(name: str, tampered: Members) -> None:
    plant = PLANTED[name]
    tampered.plant(plant)

    with pytest.raises(ProgramError):
        tampered.run(load(STORY.replace("\\\n", "")))

    assert plant.done, "the story has no answer that this would change"


RARE: dict[str, tuple[int, Plant]] = {
    # Steps that the smallest program needs at most, and a defect that takes a certain state.
    "the lease of a key that is read": (
        6,
        Plant(
            Range,
            lambda m: setattr(m.kvs[0], "lease", 0),
            lambda m: len(m.kvs) > 0 and m.kvs[0].lease,
            always=True,
        ),
    ),
    "the version in prev_kv": (
        4,
        Plant(Put, more("prev_kv.version"), lambda m: m.prev_kv.version > 1, always=True),
    ),
}


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", RARE)
def test_a_rare_difference_is_found_and_made_small(name: str, tampered: Members) -> None:
    steps_max, plant = RARE[name]
    tampered.plant(plant)

    found = search(tampered, 15_000, 1)

    assert found is not None
    assert not found.flaky
    assert len(found.program) <= steps_max, found.program
