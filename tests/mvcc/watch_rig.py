"""A store, a hub and streams for the watch tests: operations in, decoded responses out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvstore.mvcc.backend_memory import MemoryBackend
from kvstore.mvcc.store import Store
from kvstore.mvcc.watch import WatchHub
from kvstore.pb import rpc_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kvstore.mvcc.watch_stream import WatchStream

CLUSTER = 0xCDF818194E3A8C32


class NoLeases:
    """A lease book without leases."""

    def exists(self, lease_id: int) -> bool:
        return False

    def attach(self, lease_id: int, key: bytes) -> None:
        raise AssertionError

    def detach(self, lease_id: int, key: bytes) -> None:
        raise AssertionError


def header(revision: int) -> bytes:
    return rpc_pb2.ResponseHeader(
        cluster_id=CLUSTER, member_id=7, revision=revision, raft_term=3
    ).SerializeToString()


class Client:
    """The client's end of a stream: what arrived, and how much more it takes."""

    def __init__(self, hub: WatchHub, **options: Any) -> None:
        self.room = 1 << 62
        """Bytes until `send` says that the stream is full."""

        self.unread: list[rpc_pb2.WatchResponse] = []
        self.stream: WatchStream = hub.open(self.send, self.send_all, **options)

    def send(self, message: bytes) -> bool:
        assert type(message) is bytes
        response = rpc_pb2.WatchResponse.FromString(message)
        assert response.SerializeToString() == message, "not what protobuf would write"
        assert response.header.cluster_id == CLUSTER
        self.unread.append(response)
        self.room -= len(message)
        return self.room > 0

    def send_all(self, messages: Sequence[bytes]) -> bool:
        return [self.send(message) for message in messages][-1]

    def drained(self, room: int = 1 << 62) -> None:
        """Read everything; the stream may send again."""
        self.room = room
        self.stream.writable()

    def create(self, key: bytes, end: bytes = b"", **fields: Any) -> None:
        request = rpc_pb2.WatchCreateRequest(key=key, range_end=end, **fields)
        self.stream.request(rpc_pb2.WatchRequest(create_request=request).SerializeToString())

    def cancel(self, watch_id: int) -> None:
        request = rpc_pb2.WatchCancelRequest(watch_id=watch_id)
        self.stream.request(rpc_pb2.WatchRequest(cancel_request=request))

    def ask_progress(self) -> None:
        request = rpc_pb2.WatchProgressRequest()
        self.stream.request(rpc_pb2.WatchRequest(progress_request=request))

    def take(self) -> list[rpc_pb2.WatchResponse]:
        """Return what arrived since the last call."""
        unread, self.unread = self.unread, []
        return unread

    def shown(self) -> list[str]:
        """Return what arrived since the last call, each response as one short line."""
        return [show(response) for response in self.take()]


def show(response: rpc_pb2.WatchResponse) -> str:
    """Return `@REVISION #ID words events`, an event like `key=value<prev_kv@REVISION` or `-key`."""
    words = [f"@{response.header.revision} #{response.watch_id}"]
    words += [name for name in ("created", "canceled", "fragment") if getattr(response, name)]
    if response.compact_revision:
        words.append(f"compacted={response.compact_revision}")
    if response.cancel_reason:
        words.append(repr(response.cancel_reason))
    for event in response.events:
        key = event.kv.key.decode()
        text = f"-{key}" if event.type else f"{key}={event.kv.value.decode()}"
        if event.HasField("prev_kv"):
            text += f"<{event.prev_kv.value.decode()}"
        words.append(f"{text}@{event.kv.mod_revision}")
    return " ".join(words)


class Rig:
    """One member's store and hub; each call is an applied entry."""

    def __init__(self, **options: Any) -> None:
        self.backend = MemoryBackend()
        self.store = Store(self.backend, leases=NoLeases())
        self.hub = WatchHub(self.store, header, **options)

    def open(self, **options: Any) -> Client:
        return Client(self.hub, **options)

    def notify(self) -> None:
        self.hub.notify(self.store.take_events())

    def put(self, key: bytes, value: bytes = b"v") -> int:
        revision, _ = self.store.put(rpc_pb2.PutRequest(key=key, value=value))
        self.notify()
        return revision

    def delete(self, key: bytes, end: bytes = b"") -> int:
        revision, _, _ = self.store.delete_range(rpc_pb2.DeleteRangeRequest(key=key, range_end=end))
        self.notify()
        return revision

    def txn(self, *changes: tuple[bytes, bytes | None]) -> int:
        """Put each key, or delete it where the value is None, in one revision."""
        result = self.store.txn(txn(changes))
        self.notify()
        return result.revision

    def compact(self, revision: int) -> None:
        self.store.compact(revision)
        while self.store.purge():
            pass
        self.hub.compacted(revision)

    def catch_up(self) -> None:
        while self.hub.catch_up():
            pass


def txn(changes: Iterable[tuple[bytes, bytes | None]]) -> rpc_pb2.TxnRequest:
    """Return a transaction that puts each key, or deletes it where the value is None."""
    request = rpc_pb2.TxnRequest()
    for key, value in changes:
        if value is None:
            request.success.add().request_delete_range.key = key
        else:
            request.success.add().request_put.MergeFrom(rpc_pb2.PutRequest(key=key, value=value))
    return request
