"""A process that writes a log until it is killed: `python -m tests.wal.writer FOLDER SEED`.

Prints one line per acknowledged batch, `saved INDEX`, and `released INDEX` before each release.
"""

from __future__ import annotations

import random
import sys

from kvstore.raft.messages import HardState
from kvstore.wal import RealDisk, Wal
from tests.wal.building import ME, TINY, entries, work

KEPT = 30
"""Entries that stay behind the last one when the log is released."""


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(folder: str, seed: int) -> None:
    rng = random.Random(seed)
    disk = RealDisk()
    if Wal.exists(disk, folder):
        wal, found = Wal.open(disk, folder, ME, TINY)
        last, term = found.last_index, found.hard_state.term + 1
    else:
        wal, last, term = Wal.create(disk, folder, ME, TINY), 0, 1
    while True:
        # Entries keep term 1, so that any process can say what each index must hold.
        count = rng.randint(1, 4)
        new = entries(last + 1, count, size=rng.choice((10, 200, 2_000)))
        wal.save([work(new, state=HardState(term, 0xA, last))])
        last += count
        say(f"saved {last}")
        if rng.random() < 0.1:
            say(f"released {last - KEPT}")
            wal.release(last - KEPT)
        if rng.random() < 0.3:
            wal.prepare()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
