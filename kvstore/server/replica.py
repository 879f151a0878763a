"""The replicated state of one member, opened from its store file: what entries are applied to."""

from __future__ import annotations

from kvstore.apply.alarms import Alarms
from kvstore.apply.applier import Applier
from kvstore.apply.members import Members
from kvstore.lease.lessor import Lessor
from kvstore.mvcc.backend_lmdb import LmdbBackend
from kvstore.mvcc.marks import AppliedMark
from kvstore.mvcc.store import Store
from kvstore.ports import Backend
from kvstore.server.config import ServerConfig

MAP_SLACK_BYTES = 64 << 20
"""Beyond twice the quota, for the rest of what the file holds."""

INCARNATION_KEY = b"incarnation"


class Replica:
    """Store, leases, alarms and published members over one backend."""

    def __init__(self, backend: Backend, config: ServerConfig) -> None:
        """Rebuild what lives in memory; about 2 s for a million keys.

        Raises:
            StorageError, ValueError: The stored data is damaged or of a newer format.
        """
        self.backend = backend
        self.lessor = Lessor(config.lease_ttl_min_s)
        self.lessor.restore(backend)
        self.store = Store(backend, leases=self.lessor, txn_ops_max=config.max_txn_ops)
        self.lessor.write = self._write
        self.published = Members(self._write)
        self.published.restore(backend)
        self.alarms = Alarms(self._write)
        self.alarms.restore(backend)
        self.applier = Applier(self.store, self.lessor, self.alarms, self.published)

    def _write(self, table: str, key: bytes, value: bytes | None) -> None:
        self.store.write(table, key, value)

    @property
    def applied(self) -> AppliedMark:
        """The log position of the last batch that was sealed; at start, of what is stored."""
        return self.store.applied

    def next_incarnation(self) -> int:
        """Count this start of the member, durably, and return its number: 1, 2, ..."""
        number = int(self.backend.get("meta", INCARNATION_KEY) or b"0") + 1
        self.backend.commit([("meta", INCARNATION_KEY, b"%d" % number)])
        return number


def open_backend(path: str, config: ServerConfig) -> LmdbBackend:
    """Open or create the store file.

    The map is at least twice the quota, so that deletes and compaction still work at the quota.
    """
    return LmdbBackend(path, map_size_bytes=2 * config.quota_bytes + MAP_SLACK_BYTES)
