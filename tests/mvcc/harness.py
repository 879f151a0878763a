"""A store with its backend and leases, driven as a node drives it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvstore.mvcc.backend_lmdb import LmdbBackend
from kvstore.mvcc.backend_memory import MemoryBackend
from kvstore.mvcc.marks import AppliedMark
from kvstore.mvcc.store import Store
from kvstore.pb import kv_pb2, rpc_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kvstore.mvcc.results import RangeResult


class Leases:
    """A lease book: what `kvstore.lease` does for the store, in a dictionary."""

    def __init__(self, *ids: int) -> None:
        self.keys: dict[int, set[bytes]] = {lease_id: set() for lease_id in ids}

    def exists(self, lease_id: int) -> bool:
        return lease_id in self.keys

    def attach(self, lease_id: int, key: bytes) -> None:
        self.keys.setdefault(lease_id, set()).add(key)

    def detach(self, lease_id: int, key: bytes) -> None:
        self.keys[lease_id].remove(key)


class Member:
    def __init__(self, kind: str, folder: Path, *lease_ids: int) -> None:
        self.kind = kind
        self.path = str(folder / "store.lmdb")
        self.backend: Any = self.open_backend()
        self.leases = Leases(*lease_ids)
        self.store = Store(self.backend, leases=self.leases)
        self.applied = 0

    def open_backend(self) -> Any:
        if self.kind == "memory":
            return MemoryBackend()
        return LmdbBackend(self.path, map_size_bytes=256 << 20)

    def put(self, key: bytes, value: bytes = b"", **options: Any) -> int:
        return self.store.put(rpc_pb2.PutRequest(key=key, value=value, **options))[0]

    def delete(self, key: bytes, end: bytes = b"") -> int:
        return self.store.delete_range(rpc_pb2.DeleteRangeRequest(key=key, range_end=end))[1]

    def range(self, key: bytes, end: bytes = b"", **options: Any) -> RangeResult:
        return self.store.range(rpc_pb2.RangeRequest(key=key, range_end=end, **options))

    def get(self, key: bytes, revision: int = 0) -> kv_pb2.KeyValue | None:
        found = decoded(self.range(key, revision=revision).kvs)
        return found[0] if found else None

    def commit(self) -> None:
        """Seal, commit and release, as the node does with its storage thread."""
        self.applied += 1
        batch = self.store.seal(AppliedMark(self.applied, 1))
        assert batch is not None
        self.backend.commit(batch.changes(), batch.puts)
        self.store.committed(batch)

    def purge(self, records_max: int = 1000) -> None:
        while self.store.purge(records_max):
            pass

    def restart(self) -> None:
        """Lose what is not committed and start again on what is."""
        if self.kind == "lmdb":
            self.backend.close()
            self.backend = self.open_backend()
        self.leases = Leases(*self.leases.keys)
        self.store = Store(self.backend, leases=self.leases)
        self.applied = self.store.applied.index

    def close(self) -> None:
        self.backend.close()


def decoded(records: Sequence[bytes]) -> list[kv_pb2.KeyValue]:
    return [kv_pb2.KeyValue.FromString(record) for record in records]


def stored(member: Member) -> list[tuple[bytes, bytes]]:
    """Everything in the key table, the buffers included."""
    return list(member.store.buffer.scan(b"", b"\xff" * 18))
