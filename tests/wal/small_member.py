"""A log and a store that live together as in a member, reduced to what durability depends on.

`python -m tests.wal.small_member FOLDER ENTRIES [BUG]` prints `ready`, then `saved INDEX` and
`stored INDEX` as each becomes durable. BUG plants one of `BUGS`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import lmdb

from kvstore.mvcc.backend_lmdb import LmdbBackend
from kvstore.mvcc.marks import AppliedMark, Marks
from kvstore.ports import Change
from kvstore.raft.messages import HardState
from kvstore.wal import Options, RealDisk, Wal
from tests.wal.building import ME, entries, work
from tests.wal.store_reader import MAP_BYTES

BUGS = ("store ahead of the log", "log released ahead of the store", "lmdb without sync")
OPTIONS = Options(segment_bytes=4096, zero_ahead_bytes=0)
STORE_EVERY = 4


def stored_value(index: int) -> bytes:
    """Return what the store holds for an entry; large enough that pages split."""
    return b"%d." % index * 200


def unsynced(real: Callable[..., Any]) -> Callable[..., Any]:
    """Return `lmdb.open` without its fsyncs, whatever its caller asks for."""
    return lambda *arguments, **options: real(
        *arguments, **{**options, "sync": False, "metasync": False}
    )


def main(folder: str, count: int, bug: str = "") -> None:
    assert not bug or bug in BUGS
    if bug == "lmdb without sync":
        real: Callable[..., Any] = lmdb.open
        lmdb.open = unsynced(real)  # type: ignore[misc]
    disk = RealDisk()
    wal = Wal.create(disk, f"{folder}/wal", ME, OPTIONS)
    store = LmdbBackend(f"{folder}/store.lmdb", map_size_bytes=MAP_BYTES)
    # LMDB does not make the name of its new file durable.
    disk.sync_folder(folder)
    marks = Marks.load(store)
    say("ready")
    stored = 0
    for index in range(1, count + 1):
        due = index % STORE_EVERY == 0
        if due and bug == "store ahead of the log":
            stored = commit(store, marks, stored, index)
        if due and bug == "log released ahead of the store":
            wal.release(index - 1)
        wal.save([work(entries(index, size=300), state=HardState(1, 0xA, index - 1))])
        say(f"saved {index}")
        if due and bug != "store ahead of the log":
            # Committed one entry behind, as in a member that waits for its quorum.
            stored = commit(store, marks, stored, index - 1)
            wal.release(index - 1)
    wal.close()
    store.close()


def commit(store: LmdbBackend, marks: Marks, stored: int, index: int) -> int:
    """Apply entries up to `index` to the store in one transaction; return it."""
    changes: list[Change] = [
        ("key", b"%08d" % number, stored_value(number)) for number in range(stored + 1, index + 1)
    ]
    if stored > 8:  # compaction frees pages, so that they are used again
        changes.append(("key", b"%08d" % (stored - 8), None))
    store.commit([*changes, *marks.advance(AppliedMark(index, 1))])
    say(f"stored {index}")
    return index


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
