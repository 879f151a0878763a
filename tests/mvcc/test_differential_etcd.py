"""The same random requests to a real etcd and to the store: every field, error and hash agrees.

Known differences between Debian's etcd 3.4 and the 3.6 that we follow, which the requests avoid:

- HashKV at exactly the compaction revision: 3.4 refuses it as compacted, 3.6 answers.
- Unknown sort orders and targets: 3.6 refuses them, 3.4 does what it likes.
- 3.4 removes a tombstone exactly at the compaction revision, 3.6 keeps it; HashKV skips it for
  that reason, so the hash agrees all the same.
- `hash_revision` is not in 3.4's answer.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from kvstore.mvcc import errors, results
from kvstore.pb import rpc_pb2
from tests.mvcc.etcd import EXECUTABLE, Etcd
from tests.mvcc.harness import Member
from tests.mvcc.requests import LEASES, Source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.etcd,
    pytest.mark.skipif(EXECUTABLE is None, reason="needs etcd (Debian package etcd-server)"),
]

WIRE_ERRORS: dict[type[Exception], tuple[str, str]] = {
    errors.KeyNotProvided: ("INVALID_ARGUMENT", "key is not provided"),
    errors.KeyNotFound: ("INVALID_ARGUMENT", "key not found"),
    errors.ValueProvided: ("INVALID_ARGUMENT", "value is provided"),
    errors.LeaseProvided: ("INVALID_ARGUMENT", "lease is provided"),
    errors.TooManyOps: ("INVALID_ARGUMENT", "too many operations in txn request"),
    errors.DuplicateKey: ("INVALID_ARGUMENT", "duplicate key given in txn request"),
    errors.LeaseNotFound: ("NOT_FOUND", "requested lease not found"),
    errors.Compacted: ("OUT_OF_RANGE", "mvcc: required revision has been compacted"),
    errors.FutureRevision: ("OUT_OF_RANGE", "mvcc: required revision is a future revision"),
}


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    etcd = Etcd(tmp_path)
    for lease_id in LEASES:
        etcd.call(rpc_pb2.LeaseGrantRequest(ID=lease_id, TTL=1_000_000))
    yield etcd
    etcd.close()


def answer(member: Member, request: Any) -> Any:
    """What our member would put on the wire, with a header of the revision alone."""
    store = member.store

    def header() -> bytes:
        return rpc_pb2.ResponseHeader(revision=store.revision).SerializeToString()

    try:
        if isinstance(request, rpc_pb2.PutRequest):
            revision, prev_kv = store.put(request)
            assert revision == store.revision
            return rpc_pb2.PutResponse.FromString(results.encode_put_response(header(), prev_kv))
        if isinstance(request, rpc_pb2.DeleteRangeRequest):
            _, deleted, prev_kvs = store.delete_range(request)
            return rpc_pb2.DeleteRangeResponse.FromString(
                results.encode_delete_range_response(header(), deleted, prev_kvs)
            )
        if isinstance(request, rpc_pb2.RangeRequest):
            found = store.range(request)
            return rpc_pb2.RangeResponse.FromString(results.encode_range_response(header(), found))
        if isinstance(request, rpc_pb2.TxnRequest):
            result = store.txn(request)
            return rpc_pb2.TxnResponse.FromString(results.encode_txn_response(header(), result))
        if isinstance(request, rpc_pb2.CompactionRequest):
            store.compact(request.revision)
            return rpc_pb2.CompactionResponse.FromString(
                results.encode_put_response(header(), None)
            )
        if isinstance(request, rpc_pb2.HashKVRequest):
            hash_, compacted, _ = store.hash_kv(request.revision)
            return rpc_pb2.HashKVResponse(
                header=rpc_pb2.ResponseHeader(revision=store.revision),
                hash=hash_,
                compact_revision=compacted,
            )
    except errors.RequestError as error:
        return WIRE_ERRORS[type(error)]
    raise TypeError(type(request))


def normal(response: Any) -> Any:
    """Leave the header's revision only; everything else must agree."""
    if not isinstance(response, tuple):
        for name in ("cluster_id", "member_id", "raft_term"):
            response.header.ClearField(name)
    return response


def draw(source: Source) -> Any:
    chance = source.random.random()
    if chance < 0.3:
        return source.put()
    if chance < 0.4:
        return source.delete()
    if chance < 0.65:
        return source.range()
    if chance < 0.93:
        return source.txn()
    if chance < 0.95:
        return source.compaction()
    revision = source.random.choice((0, source.current, source.revision()))
    if revision == source.compacted:
        revision = 0
    return rpc_pb2.HashKVRequest(revision=revision)


def run(etcd: Etcd, member: Member, seed: int, requests: int) -> None:
    member.leases.keys = {lease_id: set() for lease_id in LEASES}
    source = Source(random.Random(seed))
    for number in range(requests):
        request = draw(source)
        theirs = normal(etcd.call(request))
        ours = normal(answer(member, request))
        assert ours == theirs, f"request {number} of seed {seed}: {type(request)} {request}"
        source.current = member.store.revision
        source.compacted = member.store.compacted
        # What a node does in between must never be visible.
        step = source.random.random()
        if step < 0.05:
            member.commit()
        elif step < 0.1:
            member.store.purge(source.random.randint(1, 5))
        elif step < 0.11:
            member.commit()
            member.restart()


@pytest.mark.parametrize("seed", [1, 2])
def test_the_store_answers_as_etcd_does(etcd: Etcd, tmp_path: Path, seed: int) -> None:
    member = Member("lmdb", tmp_path)
    run(etcd, member, seed, 1500)
    member.close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 20))
def test_the_store_answers_as_etcd_does_at_length(etcd: Etcd, tmp_path: Path, seed: int) -> None:
    member = Member("memory", tmp_path)
    run(etcd, member, seed, 6000)
    member.close()
