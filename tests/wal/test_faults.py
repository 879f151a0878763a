"""A disk that refuses: nothing is acknowledged, the object refuses, the log stays good."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvstore.raft.messages import HardState
from kvstore.wal import EXIT_DISK, BrokenError, RealDisk, Wal
from tests.wal.building import FOLDER, ME, TINY, Model, commit, entries, open_log, work
from tests.wal.faults import IO_ERROR, NO_SPACE, FailingDisk
from tests.wal.memory_disk import MemoryDisk

WORKS = [work(entries(i, size=700), state=HardState(1, 0xA, i - 1)) for i in range(1, 31)]


def run_until_refused(disk: FailingDisk) -> tuple[Wal | None, int, OSError]:
    """Return the log, None if it could not be created; the works acknowledged; the error."""
    wal, saved = None, 0
    try:
        wal = Wal.create(disk, FOLDER, ME, TINY)
        for one in WORKS:
            wal.save([one])
            saved += 1
    except OSError as error:
        return wal, saved, error
    pytest.fail("the run never met the call that fails")


@pytest.mark.parametrize("code", [NO_SPACE, IO_ERROR])
@pytest.mark.parametrize("number", range(1, 8))
@pytest.mark.parametrize("kind", ["write", "sync", "allocate", "sync_folder", "create", "rename"])
def test_after_a_refused_call_the_log_refuses_and_keeps_what_it_acknowledged(
    kind: str, number: int, code: int
) -> None:
    memory = MemoryDisk()
    disk = FailingDisk(memory, kind, number, code)
    wal, saved, error = run_until_refused(disk)
    assert error.errno == code
    if wal is None:
        # What is left is no log, or a whole and empty one.
        if Wal.exists(memory, FOLDER):
            assert Model().differs(open_log(memory)[1]) is None
        else:
            Wal.create(memory, FOLDER, ME, TINY).close()
        return
    calls = disk.calls_after
    for attempt in (
        lambda: wal.save([WORKS[saved]]),
        lambda: wal.save([commit(1)]),
        lambda: wal.release(1),
        wal.prepare,
    ):
        with pytest.raises(BrokenError, match="save failed earlier"):
            attempt()
    wal.close()
    assert disk.calls_after == calls  # nothing touched the disk after the failure

    _, found = open_log(memory)
    acknowledged = Model().after(WORKS[:saved])
    in_flight = Model().after(WORKS[: saved + 1])
    assert acknowledged.differs(found) is None or in_flight.differs(found) is None


def test_a_refused_removal_breaks_the_log_too() -> None:
    memory = MemoryDisk()
    disk = FailingDisk(memory, "remove", 2, IO_ERROR)
    wal = Wal.create(disk, FOLDER, ME, TINY)
    for one in WORKS:
        wal.save([one])
    with pytest.raises(OSError, match="Input/output error"):
        wal.release(12)
    with pytest.raises(BrokenError, match="release failed earlier"):
        wal.save([])
    wal.close()

    _, found = open_log(memory)
    assert Model().after(WORKS).differs(found, released=12) is None


def test_an_error_while_opening_gives_the_lock_back() -> None:
    memory = MemoryDisk()
    wal = Wal.create(memory, FOLDER, ME, TINY)
    wal.save(WORKS[:1])
    wal.close()
    with pytest.raises(OSError, match="Input/output error"):
        Wal.open(FailingDisk(memory, "sync", 1, IO_ERROR), FOLDER, ME, TINY)
    _, found = open_log(memory)
    assert Model().after(WORKS[:1]).differs(found) is None


def test_a_batch_that_was_written_when_its_fsync_failed_is_written_again_by_recovery() -> None:
    # Linux marks the pages clean after a failed fsync: the page cache shows the batch, the disk has
    # nothing, and another fsync alone "succeeds". Recovery must dirty the pages.
    memory = MemoryDisk()
    disk = FailingDisk(memory, "sync", 3, IO_ERROR)
    wal = Wal.create(disk, FOLDER, ME, TINY)
    with pytest.raises(OSError, match="Input/output"):
        wal.save(WORKS[:1])
    wal.close()

    class Watching(FailingDisk):
        written = b""

        def on_write(self, file, offset, parts):  # type: ignore[no-untyped-def]
            self.written += b"".join(parts)
            super().on_write(file, offset, parts)

    watching = Watching(memory, "none", 1, IO_ERROR)
    _, found = Wal.open(watching, FOLDER, ME, TINY)
    assert Model().after(WORKS[:1]).differs(found) is None
    assert WORKS[0].entries[0].data in watching.written


def test_a_real_disk_that_is_full(tmp_path: Path) -> None:
    # RLIMIT_FSIZE makes the system refuse for real, with EFBIG, in the allocation of a segment.
    script = f"""
import resource, signal, sys
from kvstore.wal import Options, RealDisk, Wal, fatal
from tests.wal.building import ME, entries, work
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
wal = Wal.create(RealDisk(), {str(tmp_path / "wal")!r}, ME, Options(segment_bytes=8192))
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    for index in range(1, 1000):
        wal.save([work(entries(index))])
        print(index, flush=True)
except OSError as error:
    fatal(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == EXIT_DISK
    assert done.stderr.count("\n") == 1
    assert "File too large" in done.stderr
    acknowledged = int(done.stdout.split()[-1])
    assert acknowledged > 10

    wal, found = Wal.open(RealDisk(), str(tmp_path / "wal"), ME, TINY)
    wal.close()
    assert acknowledged <= found.last_index <= acknowledged + 1


def test_fatal_ends_at_once_with_one_line() -> None:
    # No handler may run: it could answer a client.
    script = """
import atexit
from kvstore.wal import fatal
atexit.register(print, "handler ran")
try:
    fatal(OSError(5, "Input/output error", "/data/wal/x"))
finally:
    print("finally ran")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == EXIT_DISK == os.EX_IOERR
    assert done.stdout == ""
    assert done.stderr == (
        "kvstore: fatal: the disk failed, ending now: "
        "OSError: [Errno 5] Input/output error: '/data/wal/x'\n"
    )
