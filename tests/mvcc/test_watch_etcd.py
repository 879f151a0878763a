"""The same watch requests and changes to a real etcd and to the hub: every response agrees.

Known differences between Debian's etcd 3.4 and the 3.6 that we follow, which the steps avoid: a
negative start (3.6.6 refuses it) and a deletion exactly at the compaction revision (3.4 forgets
it). etcd also takes up to 100 ms to find that a watcher misses nothing, and a compaction meanwhile
cancels it; the steps do not compact above the start of a watcher that has got nothing yet. And it
still knows the ids of watchers that a compaction has canceled, which the steps do not use again.
The order among watchers is open in both, so responses are compared by watcher.
"""

from __future__ import annotations

import queue
import random
from typing import TYPE_CHECKING, Any

import pytest

from kvstore.pb import rpc_pb2
from tests.mvcc.etcd import EXECUTABLE, Etcd
from tests.mvcc.watch_rig import Client, Rig, show, txn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.etcd,
    pytest.mark.skipif(EXECUTABLE is None, reason="needs etcd (Debian package etcd-server)"),
]

KEYS = [b"a", b"b", b"ba", b"c", b"d"]
ENDS = [b"", b"", b"b", b"c", b"e", b"\x00"]


class Wire:
    """A raw Watch stream to etcd."""

    def __init__(self, etcd: Etcd) -> None:
        self._requests: queue.SimpleQueue[rpc_pb2.WatchRequest | None] = queue.SimpleQueue()
        call = etcd._channel.stream_stream(
            "/etcdserverpb.Watch/Watch",
            request_serializer=rpc_pb2.WatchRequest.SerializeToString,
            response_deserializer=rpc_pb2.WatchResponse.FromString,
        )
        self._call = call(iter(self._requests.get, None), timeout=60)

    def request(self, message: rpc_pb2.WatchRequest) -> None:
        self._requests.put(message)

    def take(self, count: int) -> list[str]:
        """Wait for this many responses; the call's deadline bounds it."""
        return [show(next(self._call)) for _ in range(count)]

    def half_close(self) -> None:
        self._requests.put(None)

    def close(self) -> None:
        self._call.cancel()


class Both:
    """Etcd with a stream, and a hub with one; each step goes to both."""

    def __init__(self, etcd: Etcd) -> None:
        self.etcd, self.wire = etcd, Wire(etcd)
        self.rig = Rig()
        self.client: Client = self.rig.open()

    def change(self, request: Any) -> None:
        answer = self.etcd.call(request)
        assert not isinstance(answer, tuple), answer
        if isinstance(request, rpc_pb2.PutRequest):
            self.rig.store.put(request)
        elif isinstance(request, rpc_pb2.DeleteRangeRequest):
            self.rig.store.delete_range(request)
        elif isinstance(request, rpc_pb2.TxnRequest):
            self.rig.store.txn(request)
        else:
            self.rig.compact(request.revision)
        self.rig.notify()
        assert answer.header.revision == self.rig.store.revision
        self.agree()

    def watch(self, **fields: Any) -> None:
        self._send(rpc_pb2.WatchRequest(**fields))

    def create(self, key: bytes, end: bytes = b"", **fields: Any) -> None:
        request = rpc_pb2.WatchCreateRequest(key=key, range_end=end, **fields)
        self.watch(create_request=request)

    def cancel(self, watch_id: int) -> None:
        self.watch(cancel_request=rpc_pb2.WatchCancelRequest(watch_id=watch_id))

    def _send(self, request: rpc_pb2.WatchRequest) -> None:
        self.wire.request(request)
        self.client.stream.request(request)
        self.agree()

    def agree(self) -> None:
        self.rig.catch_up()
        ours = self.client.shown()
        assert sorted(self.wire.take(len(ours))) == sorted(ours)


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Both]:
    etcd = Etcd(tmp_path)
    both = Both(etcd)
    try:
        yield both
    finally:
        both.wire.close()
        etcd.close()


def put(key: bytes, value: bytes = b"v") -> rpc_pb2.PutRequest:
    return rpc_pb2.PutRequest(key=key, value=value)


def test_each_rule_once(both: Both) -> None:
    both.create(b"k")
    both.create(b"k", prev_kv=True)
    both.change(put(b"k", b"1"))
    both.change(put(b"k", b"2"))
    both.change(rpc_pb2.DeleteRangeRequest(key=b"k"))
    both.create(b"b", b"a")
    both.create(b"b", b"b")
    both.create(b"", b"")
    both.create(b"x", watch_id=7)
    both.create(b"x", watch_id=7)
    both.create(b"k", b"\x00", start_revision=1, filters=[rpc_pb2.WatchCreateRequest.NOPUT])
    both.create(b"k", b"\x00", start_revision=2, filters=[rpc_pb2.WatchCreateRequest.NODELETE])
    both.change(txn([(b"m", b"1"), (b"k", b"2"), (b"n", b"3")]))
    both.cancel(0)
    both.cancel(0)
    both.cancel(99)
    both.watch(progress_request=rpc_pb2.WatchProgressRequest())
    for value in (b"3", b"4", b"5"):
        both.change(put(b"k", value))
    both.change(rpc_pb2.CompactionRequest(revision=7))
    both.create(b"k", start_revision=6)  # created, then canceled, header revision 0
    both.create(b"k", start_revision=7, prev_kv=True)  # at the boundary: served, prev_kv missing
    both.create(b"k", start_revision=9)
    both.change(put(b"k", b"6"))
    # The stream goes on when a client has closed its sending half, as those do that pass one
    # request and read: the differential of `WatchCall.half_closed`.
    both.wire.half_close()
    both.change(put(b"k", b"7"))


def test_fragments(both: Both) -> None:
    # One transaction may not exceed the limit, but with the values before it can.
    big = b"x" * (500 << 10)
    for number in range(5):
        both.change(put(b"f%d" % number, big))
    both.create(b"f", b"g", fragment=True, prev_kv=True)
    both.create(b"f", b"g", prev_kv=True)
    both.change(rpc_pb2.DeleteRangeRequest(key=b"f", range_end=b"g"))


@pytest.mark.parametrize("seed", range(3))
def test_random_steps(both: Both, seed: int) -> None:
    draw = random.Random(seed)
    deleted_at: set[int] = set()
    compacted = 0
    for number in range(70):
        step = draw.random()
        revision = both.rig.store.revision
        if step < 0.3:
            both.change(put(draw.choice(KEYS), draw.randbytes(2).hex().encode()))
        elif step < 0.45:
            key, end = draw.choice(KEYS), draw.choice(ENDS)
            both.change(rpc_pb2.DeleteRangeRequest(key=key, range_end=end))
            deleted_at.add(revision + 1)
        elif step < 0.6:
            keys = draw.sample(KEYS, draw.randint(1, 4))
            both.change(txn((key, draw.choice([None, b"t"])) for key in keys))
            deleted_at.add(revision + 1)
        elif step < 0.68:
            target = draw.randint(max(1, revision - 4), revision)
            watchers = both.client.stream.watchers.values()
            starts = [watcher.start for watcher in watchers if watcher.start and watcher.quiet]
            if compacted < target <= min(starts, default=target) and target not in deleted_at:
                both.change(rpc_pb2.CompactionRequest(revision=target))
                compacted = target
        elif step < 0.9:
            both.create(
                draw.choice([b"", *KEYS]),
                draw.choice(ENDS),
                start_revision=draw.choice([0, max(1, revision - draw.randint(-1, 5))]),
                filters=draw.choice([[], [], [0], [1]]),
                prev_kv=draw.random() < 0.5,
                watch_id=draw.choice([0, 0, 0, 1000 + number, *both.client.stream.watchers]),
            )
        else:
            known = list(both.client.stream.watchers)
            both.cancel(draw.choice([*known, 77]))
    both.create(b"end")
