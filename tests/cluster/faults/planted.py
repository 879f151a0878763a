"""Bugs that the runs must find, and a member that has one: `python -m ... BUG serve FLAGS`.

Each is put over the product's own method when the member starts; nothing of this is in the product.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kvstore.cli.kvstore import main
from kvstore.lease.clock import LeaseClock
from kvstore.mvcc.watch import WatchHub
from kvstore.peer.codec import decode
from kvstore.peer.link import Channel, Links
from kvstore.raft.messages import Forward, Role
from kvstore.raft.raft import Raft
from kvstore.server.disk import DiskThread
from kvstore.server.member import Member
from kvstore.server.node import Node
from kvstore.server.replica import Replica
from kvstore.wal import Wal
from tests.pure import demand_pure_python


def acknowledge_before_the_write() -> None:
    def save(self: Any, works: Any) -> None:
        self._post(lambda: self._saved(works, 0.0))
        self._wal.save(works)

    DiskThread._save = save  # type: ignore[method-assign]


def read_at_the_leader_without_a_round() -> None:
    proper = Node.linearizable

    def linearizable(self: Node, done: Callable[[Exception | None], None]) -> None:
        if self.role is Role.LEADER:
            done(None)
        else:
            proper(self, done)

    Node.linearizable = linearizable  # type: ignore[method-assign]


def resume_watches_one_late() -> None:
    proper: Any = WatchHub._become_behind

    def become_behind(self: Any, watcher: Any) -> None:
        watcher.next += 1
        proper(self, watcher)

    WatchHub._become_behind = become_behind  # type: ignore[method-assign]


def forget_what_a_snapshot_jumps_over() -> None:
    def restored(self: Any, store: Any) -> None:
        self.store = store
        self.revision = store.revision

    WatchHub.restored = restored  # type: ignore[method-assign]


def end_leases_a_second_early() -> None:
    proper = LeaseClock.expired

    def expired(self: LeaseClock, now_ns: int, limit: int) -> list[int]:
        return proper(self, now_ns + 1_000_000_000, limit)

    LeaseClock.expired = expired  # type: ignore[method-assign]


def keep_the_leases_of_before_a_snapshot() -> None:
    proper = Member._adopt

    def adopt(self: Member, replica: Replica) -> None:
        clock, lessor = self.leases.clock, self.leases.lessor
        proper(self, replica)
        self.leases.clock, self.leases.lessor = clock, lessor

    Member._adopt = adopt  # type: ignore[method-assign]


def stay_although_removed() -> None:
    Member._was_removed = lambda self: None  # type: ignore[method-assign]


def forward_twice() -> None:
    proper = Links.send

    def send(self: Links, peer: int, channel: Channel, payload: bytes) -> bool:
        if channel is Channel.BULK and isinstance(decode(payload), Forward):
            proper(self, peer, channel, payload)
        return proper(self, peer, channel, payload)

    Links.send = send  # type: ignore[method-assign]
    Raft.is_first_delivery = lambda self, forward: True  # type: ignore[method-assign]


def go_on_after_a_disk_error() -> None:
    proper = Wal._put

    def put(self: Wal, payload: bytes) -> None:
        with contextlib.suppress(OSError):
            proper(self, payload)

    Wal._put = put  # type: ignore[method-assign]


@dataclass(frozen=True, slots=True)
class Bug:
    """One bug, the cell that must show it, and what the verdict says."""

    plant: Callable[[], None]
    cell: str
    shows: str


BUGS: dict[str, Bug] = {
    "acknowledge-before-the-write": Bug(
        # PySyncObj 84: what all had acknowledged was gone when all died.
        acknowledge_before_the_write, "kill-all-slow-disks", "does not serve|Violation",
    ),
    "read-without-a-round": Bug(
        # etcd 20418: stale reads after a process was paused.
        read_at_the_leader_without_a_round, "cut-leader", "back in time",
    ),
    "read-without-a-round-paused": Bug(
        read_at_the_leader_without_a_round, "pause-leader", "back in time",
    ),
    "resume-watches-one-late": Bug(
        # etcd 15271 and 18089: events lost to a watch that moved.
        resume_watches_one_late, "kill-follower", "never heard of",
    ),
    "forget-what-a-snapshot-jumps-over": Bug(
        forget_what_a_snapshot_jumps_over, "snapshot-to-paused", "never heard of|come to rest",
    ),
    "end-leases-early": Bug(end_leases_a_second_early, "kill-follower", "s early"),
    "keep-leases-of-before-a-snapshot": Bug(
        keep_the_leases_of_before_a_snapshot, "replace-each", "early|come to rest|overdue",
    ),
    "stay-although-removed": Bug(
        # etcd 6114 and others: removed members that go on to disturb.
        stay_although_removed, "remove-leader", "should have ended",
    ),
    "forward-twice": Bug(
        # FoundationDB's layers: increments executed twice.
        forward_twice, "kill-follower", "two writes at|made at another|should be|nobody",
    ),
    "go-on-after-a-disk-error": Bug(
        # fsyncgate: the next fsync succeeds with the data gone.
        go_on_after_a_disk_error, "disk-errors", "should have ended",
    ),
}  # fmt: skip


if __name__ == "__main__":
    demand_pure_python()
    BUGS[sys.argv.pop(1)].plant()
    main()
