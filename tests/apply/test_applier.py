"""What each operation does and answers, what alarms forbid, and that members come out the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.apply import ops, responses
from kvstore.apply.applier import Result
from kvstore.apply.errors import (
    ApplyFailed,
    BadEntry,
    Corrupt,
    MalformedRequest,
    NoSpace,
    StaleTerm,
)
from kvstore.apply.state import State, open_state
from kvstore.lease.errors import LeaseExists, LeaseNotFound, LeaseTTLTooLarge
from kvstore.mvcc import errors as mvcc_errors
from kvstore.mvcc.backend_memory import MemoryBackend
from kvstore.mvcc.marks import AppliedMark
from kvstore.pb import kv_pb2, rpc_pb2

NOSPACE, CORRUPT = rpc_pb2.NOSPACE, rpc_pb2.CORRUPT
ACTIVATE, DEACTIVATE = rpc_pb2.AlarmRequest.ACTIVATE, rpc_pb2.AlarmRequest.DEACTIVATE


@dataclass
class Entry:
    index: int
    data: bytes
    term: int = 4


class Member:
    """A state over a memory backend, and a log position."""

    def __init__(self) -> None:
        self.backend = MemoryBackend()
        self.index = 0
        self.state: State = open_state(self.backend, minimum_ttl_s=2)

    def apply(self, *batch: ops.Op) -> list[Result]:
        self.index += 1
        entry = Entry(self.index, ops.encode_batch(7, 8, 100, batch))
        applied = self.state.applier.apply(entry)
        assert (applied.index, applied.origin, applied.incarnation) == (self.index, 7, 8)
        assert applied.first_sequence == 100
        assert len(applied.results) == len(batch)
        return applied.results

    def one(self, kind: int, payload: object) -> Result:
        data = payload if isinstance(payload, bytes) else payload.SerializeToString()  # type: ignore[attr-defined]
        [result] = self.apply((kind, data))
        return result

    def put(self, key: bytes, value: bytes = b"v", **fields: object) -> Result:
        return self.one(ops.PUT, rpc_pb2.PutRequest(key=key, value=value, **fields))  # type: ignore[arg-type]

    def alarm(self, action: int, alarm: int, member: int = 1) -> Result:
        return self.one(
            ops.ALARM,
            rpc_pb2.AlarmRequest(action=action, alarm=alarm, memberID=member),  # type: ignore[arg-type]
        )

    def restart(self) -> None:
        batch = self.state.store.seal(AppliedMark(self.index, 1, b""))
        assert batch is not None
        self.backend.commit(batch.changes(), batch.puts)
        self.state.store.committed(batch)
        self.state = open_state(self.backend, minimum_ttl_s=2)


@pytest.fixture
def member() -> Member:
    return Member()


def txn(*success: rpc_pb2.RequestOp, failure: tuple[rpc_pb2.RequestOp, ...] = ()) -> bytes:
    return rpc_pb2.TxnRequest(success=success, failure=failure).SerializeToString()


def put_op(key: bytes, lease: int = 0) -> rpc_pb2.RequestOp:
    return rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, lease=lease))


def delete_op(key: bytes) -> rpc_pb2.RequestOp:
    return rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=key))


def range_op(key: bytes) -> rpc_pb2.RequestOp:
    return rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=key))


# results


def test_results_answer_their_own_position(member: Member) -> None:
    # One entry carries many clients' requests: each gets its own revision, and a refused one
    # does not move the others.
    bad = rpc_pb2.PutRequest(key=b"k", lease=5).SerializeToString()
    good = rpc_pb2.PutRequest(key=b"k").SerializeToString()

    first, refused, second = member.apply((ops.PUT, good), (ops.PUT, bad), (ops.PUT, good))

    assert first == (2, None)
    assert isinstance(refused, mvcc_errors.LeaseNotFound)
    assert refused.__traceback__ is None
    assert second == (3, None)


def test_an_elections_entry_has_no_results(member: Member) -> None:
    assert member.state.applier.apply(Entry(1, b"")).results == []


def test_an_entry_with_user_and_auth_revision_is_read(member: Member) -> None:
    payload = rpc_pb2.PutRequest(key=b"k").SerializeToString()

    assert member.apply((ops.PUT, payload, "ann", 3)) == [(2, None)]


def test_a_payload_that_does_not_parse_is_a_result(member: Member) -> None:
    # Clients choose these bytes. If they got past the edge, every member would end at once.
    junk = b"\x0a\xff"

    for kind in (ops.PUT, ops.TXN, ops.DELETE_RANGE, ops.LEASE_GRANT):
        assert isinstance(member.one(kind, junk), MalformedRequest)
    assert member.state.store.revision == 1


def test_an_unknown_kind_ends_the_member_naming_the_place(member: Member) -> None:
    put = rpc_pb2.PutRequest(key=b"k").SerializeToString()

    with pytest.raises(ApplyFailed, match=r"entry 1, operation 1 \(kind 99\).*upgrade") as caught:
        member.apply((ops.PUT, put), (99, b""))

    assert (caught.value.index, caught.value.position, caught.value.kind) == (1, 1, 99)


@pytest.mark.pure_python
def test_an_unexpected_exception_ends_the_member(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(requests: object, start: int) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(member.state.store, "put_run", broken)

    with pytest.raises(ApplyFailed, match="ZeroDivisionError: a bug"):
        member.put(b"k")


@pytest.mark.pure_python
def test_damaged_stored_data_ends_the_member(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    # StorageError is of the store's error tree, but no client's fault: it must not be a result.
    def damaged(requests: object, start: int) -> None:
        raise mvcc_errors.CorruptStore("a record is missing")

    monkeypatch.setattr(member.state.store, "put_run", damaged)

    with pytest.raises(ApplyFailed, match="a record is missing"):
        member.put(b"k")


@pytest.mark.parametrize(
    "op", [5, (), None, (ops.IN_TERM, bytes(8)), (ops.IN_TERM, bytes(7) + b"\1")]
)
def test_what_is_no_operation_ends_the_member_naming_the_place(member: Member, op: Any) -> None:
    with pytest.raises((ApplyFailed, BadEntry), match="entry 1, operation 0"):
        member.apply(op)


def test_an_entry_that_is_no_batch_ends_the_member(member: Member) -> None:
    with pytest.raises(BadEntry):
        member.state.applier.apply(Entry(1, b"\x00"))


# leases


def test_lease_results(member: Member) -> None:
    def grant(lease: int, ttl: int) -> Result:
        return member.one(ops.LEASE_GRANT, rpc_pb2.LeaseGrantRequest(ID=lease, TTL=ttl))

    assert grant(5, 1) == (1, 5, 2)
    assert isinstance(grant(5, 1), LeaseExists)
    assert isinstance(grant(6, 9_000_000_001), LeaseTTLTooLarge)
    assert isinstance(grant(0, 10), LeaseNotFound)
    assert member.put(b"b", lease=5) == (2, None)
    assert member.put(b"a", lease=5) == (3, None)
    assert member.state.lessor.keys(5) == [b"a", b"b"]
    member.state.store.take_events()

    revoke = rpc_pb2.LeaseRevokeRequest(ID=5)
    assert member.one(ops.LEASE_REVOKE, revoke) == (4,)
    assert isinstance(member.one(ops.LEASE_REVOKE, revoke), LeaseNotFound)

    [(revision, events)] = member.state.store.take_events()
    assert (revision, [event.key for event in events]) == (4, [b"a", b"b"])


def test_a_lease_without_keys_ends_without_a_revision(member: Member) -> None:
    member.one(ops.LEASE_GRANT, rpc_pb2.LeaseGrantRequest(ID=5, TTL=10))

    assert member.one(ops.LEASE_REVOKE, rpc_pb2.LeaseRevokeRequest(ID=5)) == (1,)


def test_checkpoints_apply_to_those_that_still_live(member: Member) -> None:
    member.one(ops.LEASE_GRANT, rpc_pb2.LeaseGrantRequest(ID=5, TTL=100))
    points = [
        rpc_pb2.LeaseCheckpoint(ID=4, remaining_TTL=1),
        rpc_pb2.LeaseCheckpoint(ID=5, remaining_TTL=40),
    ]

    result = member.one(ops.LEASE_CHECKPOINT, rpc_pb2.LeaseCheckpointRequest(checkpoints=points))

    assert result == (1,)
    assert member.state.lessor.leases[5].remaining_s == 40


def test_a_leaders_decision_counts_in_its_own_term_only(member: Member) -> None:
    # A revoke for an expired lease that reached the log in a later term must not end a lease that
    # another leader has renewed meanwhile.
    member.one(ops.LEASE_GRANT, rpc_pb2.LeaseGrantRequest(ID=5, TTL=100))
    member.put(b"k", lease=5)
    revoke = rpc_pb2.LeaseRevokeRequest(ID=5).SerializeToString()

    [stale] = member.apply(ops.in_term(3, ops.LEASE_REVOKE, revoke))
    assert isinstance(stale, StaleTerm)
    assert member.state.lessor.keys(5) == [b"k"]
    [result, again] = member.apply(*[ops.in_term(4, ops.LEASE_REVOKE, revoke)] * 2)
    assert result == (3,)
    assert isinstance(again, LeaseNotFound)


def test_an_alarm_holds_for_a_leaders_decision_too(member: Member) -> None:
    member.alarm(ACTIVATE, CORRUPT)
    revoke = rpc_pb2.LeaseRevokeRequest(ID=5).SerializeToString()

    [result] = member.apply(ops.in_term(4, ops.LEASE_REVOKE, revoke))

    assert isinstance(result, Corrupt)


# alarms


def test_nospace_refuses_what_stores_more_and_nothing_else(member: Member) -> None:
    member.put(b"old")
    member.put(b"old")
    member.one(ops.LEASE_GRANT, rpc_pb2.LeaseGrantRequest(ID=5, TTL=10))
    assert member.alarm(ACTIVATE, NOSPACE) == (3, [(NOSPACE, 1)])

    nested = rpc_pb2.RequestOp(request_txn=rpc_pb2.TxnRequest(failure=[put_op(b"k")]))
    assert isinstance(member.put(b"k"), NoSpace)
    assert isinstance(member.one(ops.TXN, txn(put_op(b"k"))), NoSpace)
    assert isinstance(member.one(ops.TXN, txn(failure=(put_op(b"k"),))), NoSpace)
    assert isinstance(member.one(ops.TXN, txn(nested)), NoSpace)
    grant = rpc_pb2.LeaseGrantRequest(ID=6, TTL=10)
    assert isinstance(member.one(ops.LEASE_GRANT, grant), NoSpace)
    assert member.state.store.revision == 3

    result = member.one(ops.TXN, txn(range_op(b"old"), delete_op(b"old")))
    assert not isinstance(result, Exception)
    assert result[0] == 4
    delete = rpc_pb2.DeleteRangeRequest(key=b"old")
    assert member.one(ops.DELETE_RANGE, delete) == (4, 0, [])
    assert member.one(ops.COMPACT, rpc_pb2.CompactionRequest(revision=3)) == (4,)
    assert member.one(ops.LEASE_REVOKE, rpc_pb2.LeaseRevokeRequest(ID=5)) == (4,)

    assert member.alarm(DEACTIVATE, NOSPACE) == (4, [(NOSPACE, 1)])
    assert member.put(b"k") == (5, None)


def test_an_alarm_counts_from_its_position_in_the_entry(member: Member) -> None:
    # Members must agree on each operation: the alarm is not a matter of the entry as a whole.
    put = (ops.PUT, rpc_pb2.PutRequest(key=b"k").SerializeToString())
    on = rpc_pb2.AlarmRequest(action=ACTIVATE, alarm=NOSPACE, memberID=1).SerializeToString()
    off = rpc_pb2.AlarmRequest(action=DEACTIVATE, alarm=NOSPACE, memberID=1).SerializeToString()

    results = member.apply(put, (ops.ALARM, on), put, (ops.ALARM, off), put)

    assert [isinstance(result, NoSpace) for result in results] == [False, False, True, False, False]
    assert results[4] == (3, None)


def test_corrupt_refuses_everything_but_alarms(member: Member) -> None:
    member.alarm(ACTIVATE, CORRUPT)

    assert isinstance(member.put(b"k"), Corrupt)
    for kind in (
        ops.TXN,
        ops.DELETE_RANGE,
        ops.COMPACT,
        ops.LEASE_GRANT,
        ops.LEASE_REVOKE,
    ):
        assert isinstance(member.one(kind, b""), Corrupt)

    assert member.alarm(DEACTIVATE, CORRUPT) == (1, [(CORRUPT, 1)])
    assert member.put(b"k") == (2, None)


def test_alarm_requests(member: Member) -> None:
    assert member.alarm(ACTIVATE, rpc_pb2.NONE) == (1, [])
    member.alarm(ACTIVATE, NOSPACE, member=2)
    member.alarm(ACTIVATE, NOSPACE, member=1)
    assert member.alarm(ACTIVATE, NOSPACE, member=1) == (1, [(NOSPACE, 1)])
    member.alarm(ACTIVATE, CORRUPT, member=3)
    get = rpc_pb2.AlarmRequest.GET
    assert member.alarm(get, rpc_pb2.NONE) == (1, [(NOSPACE, 1), (NOSPACE, 2), (CORRUPT, 3)])
    assert member.alarm(get, CORRUPT) == (1, [(CORRUPT, 3)])

    assert member.alarm(DEACTIVATE, NOSPACE, member=9) == (1, [])
    assert member.alarm(DEACTIVATE, NOSPACE, member=2) == (1, [(NOSPACE, 2)])
    assert member.state.alarms.nospace  # member 1's is still active
    assert member.alarm(DEACTIVATE, rpc_pb2.NONE, member=0) == (1, [(NOSPACE, 1), (CORRUPT, 3)])
    assert not member.state.alarms.nospace


def test_everything_outlives_a_restart(member: Member) -> None:
    member.one(ops.LEASE_GRANT, rpc_pb2.LeaseGrantRequest(ID=5, TTL=100))
    member.one(ops.LEASE_GRANT, rpc_pb2.LeaseGrantRequest(ID=-6, TTL=7))
    member.one(ops.LEASE_GRANT, rpc_pb2.LeaseGrantRequest(ID=7, TTL=7))
    member.one(ops.LEASE_REVOKE, rpc_pb2.LeaseRevokeRequest(ID=7))
    point = rpc_pb2.LeaseCheckpoint(ID=5, remaining_TTL=40)
    member.one(ops.LEASE_CHECKPOINT, rpc_pb2.LeaseCheckpointRequest(checkpoints=[point]))
    member.put(b"a", lease=5)
    member.put(b"b", lease=5)
    member.put(b"b", lease=-6)
    member.alarm(ACTIVATE, CORRUPT, member=2**64 - 1)
    attributes = rpc_pb2.Member(ID=9, name="n", clientURLs=["http://127.0.0.1:1"])
    assert member.one(ops.MEMBER_ATTRIBUTES, attributes) == (4,)
    assert member.one(ops.CLUSTER_VERSION, b"3.6.0") == (4,)

    member.restart()

    leases = {
        lease.id: (lease.ttl_s, lease.remaining_s) for lease in member.state.lessor.leases.values()
    }
    assert leases == {5: (100, 40), -6: (7, 0)}
    assert member.state.lessor.keys(5) == [b"a"]
    assert member.state.lessor.keys(-6) == [b"b"]
    assert member.state.alarms.get(rpc_pb2.NONE) == [(CORRUPT, 2**64 - 1)]
    assert member.state.alarms.corrupt
    assert member.state.members.attributes == {9: ("n", ("http://127.0.0.1:1",))}
    assert member.state.members.cluster_version == "3.6.0"

    member.state.members.forget(9)
    member.alarm(DEACTIVATE, CORRUPT, member=0)
    member.restart()
    assert member.state.members.attributes == {}
    assert not member.state.alarms.corrupt


# responses


def test_responses_are_what_protobuf_would_write(member: Member) -> None:
    header = rpc_pb2.ResponseHeader(
        cluster_id=2**64 - 1, member_id=2**63, revision=2**62, raft_term=2**64 - 1
    )
    data = header.SerializeToString()
    previous = kv_pb2.KeyValue(key=b"k", create_revision=2, mod_revision=2, version=1, value=b"v")

    def encoded(kind: int, payload: object) -> bytes:
        return responses.encode(kind, member.one(kind, payload), data)

    put = rpc_pb2.PutRequest(key=b"k", value=b"v", prev_kv=True)
    assert encoded(ops.PUT, put) == rpc_pb2.PutResponse(header=header).SerializeToString()
    with_previous = rpc_pb2.PutResponse(header=header, prev_kv=previous)
    assert encoded(ops.PUT, put) == with_previous.SerializeToString()
    previous.mod_revision, previous.version = 3, 2
    delete = rpc_pb2.DeleteRangeRequest(key=b"k", prev_kv=True)
    deleted = rpc_pb2.DeleteRangeResponse(header=header, deleted=1, prev_kvs=[previous])
    assert encoded(ops.DELETE_RANGE, delete) == deleted.SerializeToString()
    branch = rpc_pb2.TxnResponse.FromString(encoded(ops.TXN, txn(put_op(b"k"), range_op(b"k"))))
    assert branch.header == header
    assert branch.succeeded
    assert branch.responses[0].response_put.header == rpc_pb2.ResponseHeader(revision=5)
    assert branch.responses[1].response_range.kvs[0].mod_revision == 5
    grant = rpc_pb2.LeaseGrantRequest(ID=-3, TTL=9)
    granted = rpc_pb2.LeaseGrantResponse(header=header, ID=-3, TTL=9)
    assert encoded(ops.LEASE_GRANT, grant) == granted.SerializeToString()
    revoked = rpc_pb2.LeaseRevokeResponse(header=header).SerializeToString()
    assert encoded(ops.LEASE_REVOKE, rpc_pb2.LeaseRevokeRequest(ID=-3)) == revoked
    compacted = rpc_pb2.CompactionResponse(header=header).SerializeToString()
    assert encoded(ops.COMPACT, rpc_pb2.CompactionRequest(revision=4)) == compacted
    alarm = rpc_pb2.AlarmRequest(action=ACTIVATE, alarm=NOSPACE, memberID=4)
    alarms = [rpc_pb2.AlarmMember(alarm=NOSPACE, memberID=4)]
    raised = rpc_pb2.AlarmResponse(header=header, alarms=alarms)
    assert encoded(ops.ALARM, alarm) == raised.SerializeToString()
    with pytest.raises(ValueError, match="no response message"):
        encoded(ops.CLUSTER_VERSION, b"3.6.0")


# determinism

KEYS = st.sampled_from([b"a", b"b", b"c", b"d"])
LEASES = st.integers(0, 3)
PUTS = st.builds(
    rpc_pb2.PutRequest,
    key=KEYS,
    value=st.binary(max_size=3),
    lease=LEASES,
    prev_kv=st.booleans(),
    ignore_value=st.booleans(),
)
DELETES = st.builds(
    rpc_pb2.DeleteRangeRequest, key=KEYS, range_end=st.sampled_from([b"", b"d", b"\x00"])
)
TXN_OPS = st.one_of(
    st.builds(rpc_pb2.RequestOp, request_put=PUTS),
    st.builds(rpc_pb2.RequestOp, request_delete_range=DELETES),
)
OPS = st.one_of(
    st.tuples(st.just(ops.PUT), PUTS),
    st.tuples(st.just(ops.DELETE_RANGE), DELETES),
    st.tuples(
        st.just(ops.TXN),
        st.builds(rpc_pb2.TxnRequest, success=st.lists(TXN_OPS, max_size=3)),
    ),
    st.tuples(
        st.just(ops.COMPACT), st.builds(rpc_pb2.CompactionRequest, revision=st.integers(0, 20))
    ),
    st.tuples(
        st.just(ops.LEASE_GRANT),
        st.builds(rpc_pb2.LeaseGrantRequest, ID=LEASES, TTL=st.integers(-1, 9)),
    ),
    st.tuples(st.just(ops.LEASE_REVOKE), st.builds(rpc_pb2.LeaseRevokeRequest, ID=LEASES)),
    st.tuples(
        st.just(ops.ALARM),
        st.builds(
            rpc_pb2.AlarmRequest,
            action=st.integers(0, 2),
            alarm=st.sampled_from([0, 1]),
            memberID=st.integers(0, 2),
        ),
    ),
).map(lambda op: (op[0], op[1].SerializeToString()))


def shown(results: list[Result]) -> list[object]:
    return [
        str(result)
        if isinstance(result, Exception)
        else [
            part if not hasattr(part, "responses") else responses.encode(ops.TXN, (0, part), b"")
            for part in result
        ]
        for result in results
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(OPS, min_size=1, max_size=6), max_size=12), st.integers(0, 12))
def test_members_that_apply_the_same_entries_are_equal(
    batches: list[list[ops.Op]], restart_at: int
) -> None:
    # One of them restarts on the way, from what it has stored.
    one, other = Member(), Member()
    for position, batch in enumerate(batches):
        if position == restart_at and position:
            other.restart()
        assert shown(one.apply(*batch)) == shown(other.apply(*batch))
        one_events, other_events = (m.state.store.take_events() for m in (one, other))
        assert one_events == other_events

    assert one.state.store.revision == other.state.store.revision
    assert one.state.store.compacted == other.state.store.compacted
    assert one.state.store.hash_kv(0) == other.state.store.hash_kv(0)
    assert one.state.alarms.get(0) == other.state.alarms.get(0)
    leases = [
        {
            lease.id: (lease.ttl_s, lease.remaining_s, member.state.lessor.keys(lease.id))
            for lease in member.state.lessor.leases.values()
        }
        for member in (one, other)
    ]
    assert leases[0] == leases[1]
    # An attached key is a key that exists, and the other way round.
    for lease_id, (_, _, keys) in leases[0].items():
        for key in keys:
            [record] = one.state.store.range(rpc_pb2.RangeRequest(key=key)).kvs
            assert kv_pb2.KeyValue.FromString(record).lease == lease_id
