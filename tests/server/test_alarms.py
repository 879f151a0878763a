"""Maintenance.Alarm and what alarms stop; the quota's own alarm is in tests/cluster."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvstore.pb import rpc_pb2
from tests.server.raw import Raw, get
from tests.servers import Kvstore

pytestmark = pytest.mark.cluster

GET, ACTIVATE, DEACTIVATE = 0, 1, 2
NO_SPACE = ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded")
CORRUPT = ("DATA_LOSS", "etcdserver: corrupt cluster")
PUT = rpc_pb2.PutRequest(key=b"alarm", value=b"1")
READ = rpc_pb2.RangeRequest(key=b"alarm")


def alarm(raw: Raw, action: int, kind: int, member: int = 5) -> list[tuple[int, int]]:
    request = rpc_pb2.AlarmRequest(action=action, memberID=member, alarm=kind)
    return [(item.memberID, item.alarm) for item in raw.call("Alarm", request).alarms]


@pytest.fixture(autouse=True)
def quiet(raw: Raw) -> Iterator[None]:
    raw.call("Put", PUT)
    yield
    for member, kind in alarm(raw, GET, 0):
        alarm(raw, DEACTIVATE, kind, member)


def test_alarms_are_listed_by_type_and_cleared_one_by_one(raw: Raw) -> None:
    assert alarm(raw, ACTIVATE, rpc_pb2.NOSPACE) == [(5, rpc_pb2.NOSPACE)]
    assert alarm(raw, ACTIVATE, rpc_pb2.CORRUPT, 6) == [(6, rpc_pb2.CORRUPT)]
    assert alarm(raw, GET, rpc_pb2.NONE) == [(5, rpc_pb2.NOSPACE), (6, rpc_pb2.CORRUPT)]
    assert alarm(raw, GET, rpc_pb2.CORRUPT) == [(6, rpc_pb2.CORRUPT)]
    assert alarm(raw, DEACTIVATE, rpc_pb2.NOSPACE, 9) == []
    assert alarm(raw, DEACTIVATE, rpc_pb2.NOSPACE) == [(5, rpc_pb2.NOSPACE)]
    assert alarm(raw, GET, rpc_pb2.NONE) == [(6, rpc_pb2.CORRUPT)]


def test_no_space_stops_what_grows_the_store(raw: Raw) -> None:
    alarm(raw, ACTIVATE, rpc_pb2.NOSPACE)
    put = rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_put=PUT)])
    for method, request in (
        ("Put", PUT),
        ("Txn", put),
        ("LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=10)),
    ):
        assert raw.refused(method, request) == NO_SPACE, method
    raw.call("Range", READ)
    assert raw.call("DeleteRange", rpc_pb2.DeleteRangeRequest(key=b"alarm")).deleted == 1
    delete = rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=b"alarm"))
    raw.call("Txn", rpc_pb2.TxnRequest(success=[delete]))
    revision = raw.call("Range", READ).header.revision
    raw.call("Compact", rpc_pb2.CompactionRequest(revision=revision))


def test_corrupt_stops_every_change_but_no_read(raw: Raw) -> None:
    # As etcd 3.4 and 3.6 do: reads go on, so that the data can be compared and saved.
    alarm(raw, ACTIVATE, rpc_pb2.CORRUPT)
    for method, request in (
        ("Put", PUT),
        ("DeleteRange", rpc_pb2.DeleteRangeRequest(key=b"alarm")),
        ("Txn", rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_put=PUT)])),
        ("Compact", rpc_pb2.CompactionRequest(revision=1)),
        ("LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=10)),
        ("LeaseRevoke", rpc_pb2.LeaseRevokeRequest(ID=1)),
    ):
        assert raw.refused(method, request) == CORRUPT, method
    assert raw.call("Range", READ).count == 1
    read = rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_range=READ)])
    assert raw.call("Txn", read).succeeded
    raw.call("HashKV", rpc_pb2.HashKVRequest())


def test_status_names_the_alarms(raw: Raw) -> None:
    alarm(raw, ACTIVATE, rpc_pb2.NOSPACE, 0xAB)
    alarm(raw, ACTIVATE, rpc_pb2.CORRUPT, 0xAB)
    assert list(raw.call("Status").errors) == [
        f"memberID:{0xAB} alarm:NOSPACE ", f"memberID:{0xAB} alarm:CORRUPT ",
    ]  # fmt: skip


def test_an_alarm_of_a_type_to_come_breaks_nothing(member: Kvstore, raw: Raw) -> None:
    # A newer client may raise one: for etcd too, and Status must still be answered.
    assert alarm(raw, ACTIVATE, 7) == [(5, 7)]
    assert list(raw.call("Status").errors) == ["memberID:5 alarm:7 "]
    assert '"ALARM 7"' in get(member.endpoints[0], "/health").text
    raw.call("Put", PUT)


def test_an_unknown_action_changes_nothing(raw: Raw) -> None:
    # etcd 3.4's members end over this one.
    alarm(raw, ACTIVATE, rpc_pb2.NOSPACE)
    assert alarm(raw, 9, rpc_pb2.NOSPACE) == [(5, rpc_pb2.NOSPACE)]
    assert alarm(raw, GET, 0) == [(5, rpc_pb2.NOSPACE)]
