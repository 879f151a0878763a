"""Planted bugs of the store, its snapshots and compaction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvstore.mvcc import store as store_module
from kvstore.mvcc.index import Index
from kvstore.mvcc.marks import AppliedMark
from kvstore.mvcc.rebuild import rebuild
from kvstore.server import member as server_member
from kvstore.server import snapshots
from kvstore.server.member import Member
from kvstore.server.node import Node
from kvstore.server.storage import Storage
from tests.sim.full.cluster import REOPENED
from tests.sim.full.planted.bug import FullBug


async def commits_ahead(self: Storage) -> None:
    """Commit the store without waiting for the own log."""
    index, self._durable_index = self._durable_index, lambda: 1 << 62
    try:
        await real_commit(self)
    finally:
        self._durable_index = index


real_commit = Storage._commit


def mark_of_yesterday(self: Member) -> AppliedMark:
    """Store the applied index of the entry before."""
    mark = real_mark(self)
    earlier = max(mark.index - 1, self.store.applied.index)
    return AppliedMark(earlier, mark.term)


real_mark = Member._mark


def settles_nothing(disk: Any, config: Any, marked: Any) -> None:
    """Throw away a received snapshot at the start, though the log has marked it."""
    real_settle(disk, config, None)


real_settle = snapshots.settle


def adopts_half(self: Member, replica: Any) -> None:
    """Install a snapshot and leave the key-value service on the store before it."""
    store = self.kv.store
    real_adopt(self, replica)
    self.kv.store = store


real_adopt = Member._adopt


def keeps_old_lessor(self: Member, replica: Any) -> None:
    """Install a snapshot and leave the lease book before it in charge."""
    lessor, clock = self.leases.lessor, self.leases.clock
    real_adopt(self, replica)
    self.leases.lessor, self.leases.clock, self.lease_clock = lessor, clock, clock


def swaps_before_the_log(real: Callable[..., Any]) -> Callable[..., Any]:
    """Put a received snapshot in place before the log knows of it."""

    async def install(self: Node, message: Any) -> bool:
        member = self.hooks.snapshot.__self__  # type: ignore[attr-defined]
        index = message.snapshot.index
        disk = member.platform.disk
        folder = member.config.data_dir
        path = snapshots.received_path(folder, index)
        disk.rename(path, f"{folder}/{snapshots.STORE_NAME}")
        disk.sync_folder(folder)
        taken: bool = await real(self, message)
        disk.rename(f"{folder}/{snapshots.STORE_NAME}", path)
        return taken

    return install


def tombstone_goes_early(
    self: Index, key: bytes, revision: int, limit: int
) -> tuple[list[bytes], bool]:
    """Remove a deletion at the compacted revision itself, which is still readable."""
    return real_obsolete(self, key, revision + 1, limit)


real_obsolete = Index.obsolete


def forgets_tombstones(records: Any) -> Any:
    """Rebuild the index without the deletions."""
    return real_rebuild((key, record) for key, record in records if len(key) != 18)


real_rebuild = rebuild


BUGS = (
    FullBug(
        "the store commits ahead of the log",
        "store",
        "raft-rs apply-unpersisted: applied beyond the log after a restart",
        ((Storage, "_commit", commits_ahead),),
        "crash",
        550_000,
        slow=True,
    ),
    FullBug(
        "the applied index lags behind the data",
        "store",
        "etcd 3.5.0 to 3.5.2: applied index and data stored apart (#13766, #14685)",
        ((Member, "_mark", mark_of_yesterday),),
        "crash",
        20_000,
    ),
    FullBug(
        "a restart forgets deletions",
        "store",
        "etcd #18089: tombstones and restart",
        ((store_module, "rebuild", forgets_tombstones),),
        "crash",
        20_000,
        frozenset((REOPENED,)),
    ),
    FullBug(
        "an interrupted installation is forgotten",
        "snapshot",
        "etcd #10219: order of snapshot, log mark and store",
        ((server_member, "settle", settles_nothing),),
        "snapshot",
        90_000,
    ),
    FullBug(
        "the store is swapped before the log marks it",
        "snapshot",
        "etcd #10219 and #18055: the steps of an installation out of order",
        ((Node, "install", swaps_before_the_log(Node.install)),),
        "snapshot",
        580_000,
        slow=True,
    ),
    FullBug(
        "a service keeps the store before the snapshot",
        "snapshot",
        "etcd #15271: members that answer from before a snapshot",
        ((Member, "_adopt", adopts_half),),
        "snapshot",
        120_000,
    ),
    FullBug(
        "a compaction removes a readable deletion",
        "compaction",
        "etcd #19179: deletions lost at the compacted revision",
        ((Index, "obsolete", tombstone_goes_early),),
        "watch",
        50_000,
    ),
)
