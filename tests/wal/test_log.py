"""The log does what its interface says, on the real disk and in memory."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from kvstore.ports import Disk
from kvstore.raft.messages import HardState
from kvstore.wal import (
    BrokenError,
    CorruptError,
    FormatError,
    Identity,
    IdentityError,
    LockedError,
    LogExistsError,
    NoLogError,
    Options,
    RealDisk,
    Wal,
    codec,
)
from tests.wal.building import (
    FOLDER,
    ME,
    TINY,
    Model,
    commit,
    entries,
    new_log,
    open_log,
    snapshot,
    work,
)
from tests.wal.memory_disk import MemoryDisk


@pytest.fixture(params=["real", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Disk, str]:
    if request.param == "real":
        return RealDisk(), str(tmp_path / "data" / "wal")
    return MemoryDisk(), FOLDER


def test_what_was_saved_is_there_after_a_restart(place: tuple[Disk, str]) -> None:
    disk, folder = place
    wal = Wal.create(disk, folder, ME, TINY)
    works = [
        work(entries(1, 3), state=HardState(1, 0xA, 0)),
        work(entries(4, 2, size=500), state=HardState(1, 0xA, 3)),
        work(entries(4, 1, term=2), state=HardState(2, 0xB, 3)),  # a new leader replaced 4 and 5
    ]
    for one in works:
        wal.save([one])
    wal.close()

    wal, found = Wal.open(disk, folder, ME, TINY)
    wal.close()

    assert Model().after(works).differs(found) is None
    assert found.hard_state == HardState(2, 0xB, 3)
    assert found.identity == ME
    assert found.dropped_bytes == 0


def test_a_log_of_many_segments_reads_back_whole(place: tuple[Disk, str]) -> None:
    disk, folder = place
    wal = Wal.create(disk, folder, ME, TINY)
    works = [work(entries(i, 2, size=300), state=HardState(1, 0xA, i - 1)) for i in range(1, 80, 2)]
    for count, one in enumerate(works):
        wal.save([one])
        if count % 3 == 0:
            wal.prepare()
    segments = wal.segment_count
    wal.close()

    wal, found = Wal.open(disk, folder, ME, TINY)
    wal.close()

    assert segments > 5
    assert Model().after(works).differs(found) is None


def test_several_works_of_one_save_are_one_batch(place: tuple[Disk, str]) -> None:
    # Group commit: what gathered while the last fsync ran costs one frame.
    disk, folder = place
    wal = Wal.create(disk, folder, ME, TINY)
    works = [work(entries(1, 2)), work(entries(2, 2, term=2)), work(state=HardState(2, 0xB, 1))]
    before = wal._sequence
    wal.save(works)
    assert wal._sequence == before + 1
    wal.close()

    wal, found = Wal.open(disk, folder, ME, TINY)
    wal.close()
    assert Model().after(works).differs(found) is None


def test_a_moved_commit_index_alone_costs_no_write_and_goes_out_with_the_next_batch() -> None:
    disk = MemoryDisk()
    wal = new_log(disk)
    wal.save([work(entries(1, 5), state=HardState(1, 0xA, 0))])
    before = disk.image()
    wal.save([commit(4)])
    assert disk.image() == before

    wal.save([work(entries(6))])
    disk.locked.clear()  # the process was killed

    wal, found = open_log(disk)
    assert found.hard_state.commit == 4


def test_close_writes_the_commit_index_that_waits() -> None:
    disk = MemoryDisk()
    wal = new_log(disk)
    wal.save([work(entries(1, 5), state=HardState(1, 0xA, 0)), commit(4)])
    wal.save([commit(5)])
    wal.close()
    wal.close()  # once more is allowed

    _, found = open_log(disk)
    assert found.hard_state.commit == 5


def test_a_vote_is_written_even_when_the_caller_forgets_to_ask_for_the_fsync() -> None:
    disk = MemoryDisk()
    wal = new_log(disk)
    wal.save([work(state=HardState(7, 0xB, 0), sync=False)])
    disk.locked.clear()

    _, found = open_log(disk)
    assert found.hard_state == HardState(7, 0xB, 0)


def test_a_commit_beyond_the_log_is_clamped() -> None:
    # PySyncObj #197: a commit index without its entries blocked the start for ever.
    disk = MemoryDisk()
    wal = new_log(disk)
    wal.save([work(entries(1, 3), state=HardState(1, 0xA, 9))])
    wal.close()

    _, found = open_log(disk)
    assert found.hard_state == HardState(1, 0xA, 3)


def test_release_frees_only_segments_that_nothing_needs(place: tuple[Disk, str]) -> None:
    disk, folder = place
    wal = Wal.create(disk, folder, ME, TINY)
    works = [work(entries(i, size=300), state=HardState(3, 0xB, i - 1)) for i in range(1, 101)]
    for one in works:
        wal.save([one])
    model = Model().after(works)
    segments = wal.segment_count

    wal.release(0)
    assert wal.segment_count == segments
    wal.release(50)
    assert 1 < wal.segment_count < segments
    wal.close()
    wal, found = Wal.open(disk, folder, ME, TINY)
    assert model.differs(found, released=50) is None
    assert found.compacted[0] > 25

    wal.release(1_000)  # the segment in use stays, with term and vote
    assert wal.segment_count == 1
    wal.close()
    wal, found = Wal.open(disk, folder, ME, TINY)
    wal.close()
    assert model.differs(found, released=1_000) is None


def test_a_tail_replaced_across_a_released_segment_reads_back() -> None:
    # Segment 1 holds 1..9 of term 1. A new leader replaces 5..9, by chance in a later segment. When
    # segment 1 is gone, the later one starts with entries below the mark that it opens with.
    disk = MemoryDisk()
    wal = new_log(disk)
    works = [work(entries(1, 9, size=350)), work(entries(5, 5, term=2, size=350))]
    works += [work(entries(i, term=2, size=350)) for i in range(10, 40)]
    for one in works:
        wal.save([one])
    wal.release(9)
    assert wal._segments[0].id == 2
    wal.close()

    wal, found = open_log(disk)
    assert Model().after(works).differs(found, released=9) is None
    assert found.compacted == (9, 2)


def test_a_snapshot_voids_the_log_before_it() -> None:
    disk = MemoryDisk()
    wal = new_log(disk)
    mark = snapshot(100, 4)
    works = [
        work(entries(1, 9), state=HardState(1, 0xA, 5)),
        work(snapshot=mark, state=HardState(4, 0, 100)),
        *(work(entries(i, term=4, size=200)) for i in range(101, 160)),
    ]
    for one in works:
        wal.save([one])
    model = Model().after(works)
    wal.close()

    wal, found = open_log(disk)
    assert model.differs(found) is None
    assert found.snapshot == mark
    assert found.compacted == (100, 4)

    # The mark outlives the segment that it was written in.
    wal.release(159)
    wal.close()
    _, found = open_log(disk)
    assert found.snapshot == mark


def test_a_snapshot_and_the_entries_after_it_may_come_in_one_work() -> None:
    disk = MemoryDisk()
    wal = new_log(disk)
    one = work(entries(8, 2, term=3), snapshot=snapshot(7, 2), state=HardState(3, 0, 7))
    wal.save([work(entries(1, 20)), one])
    wal.close()

    _, found = open_log(disk)
    assert Model().after([one]).differs(found) is None


def test_a_batch_larger_than_a_segment_gets_a_larger_segment(place: tuple[Disk, str]) -> None:
    disk, folder = place
    wal = Wal.create(disk, folder, ME, TINY)
    works = [work(entries(1)), work(entries(2, 3, size=9_000)), work(entries(5, 1))]
    for one in works:
        wal.save([one])
    wal.close()

    wal, found = Wal.open(disk, folder, ME, TINY)
    wal.close()
    assert Model().after(works).differs(found) is None


def test_a_gap_is_a_bug_of_the_caller() -> None:
    wal = new_log(MemoryDisk())
    with pytest.raises(AssertionError, match="gap"):
        wal.save([work(entries(2))])


def test_missing_and_present_logs_are_told_apart(place: tuple[Disk, str]) -> None:
    disk, folder = place
    assert not Wal.exists(disk, folder)
    with pytest.raises(NoLogError):
        Wal.open(disk, folder, ME, TINY)

    Wal.create(disk, folder, ME, TINY).close()

    assert Wal.exists(disk, folder)
    with pytest.raises(LogExistsError, match="open it"):
        Wal.create(disk, folder, ME, TINY)
    Wal.open(disk, folder, ME, TINY)[0].close()  # the refusals gave the lock back


def test_the_log_of_another_member_or_cluster_is_refused(place: tuple[Disk, str]) -> None:
    disk, folder = place
    Wal.create(disk, folder, ME, TINY).close()

    with pytest.raises(IdentityError, match="belongs to member a, this process is member b"):
        Wal.open(disk, folder, Identity(ME.cluster, 0xB), TINY)
    with pytest.raises(IdentityError, match="belongs to cluster c1, this process is cluster c2"):
        Wal.open(disk, folder, Identity(0xC2, ME.member), TINY)

    wal, found = Wal.open(disk, folder, None, TINY)  # tools do not know
    assert found.identity == ME
    wal.close()


def test_one_process_at_a_time(place: tuple[Disk, str]) -> None:
    disk, folder = place
    wal = Wal.create(disk, folder, ME, TINY)
    with pytest.raises(LockedError, match=f"locked by process {os.getpid()}"):
        Wal.open(disk, folder, ME, TINY)
    wal.close()
    Wal.open(disk, folder, ME, TINY)[0].close()


def test_the_lock_names_the_process_that_holds_it(tmp_path: Path) -> None:
    path = str(tmp_path / "LOCK")
    script = (
        "import sys; from kvstore.wal import RealDisk; lock = RealDisk().lock(sys.argv[1]);"
        "print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(LockedError) as caught:
            RealDisk().lock(path)
        assert caught.value.holder_pid == holder.pid
        holder.stdin.close()
        holder.wait()
    RealDisk().lock(path).release()  # the system dropped it with the process


def test_a_lock_by_a_program_that_wrote_no_pid_is_still_refused(tmp_path: Path) -> None:
    path = tmp_path / "LOCK"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(LockedError, match="another process"):
            RealDisk().lock(str(path))


def test_an_unknown_newer_format_is_refused_with_advice() -> None:
    disk = MemoryDisk()
    new_log(disk).close()
    [path] = [path for path in disk.files if path.endswith(".wal")]
    data = disk.files[path]
    newer = bytes(data[:8]) + (2).to_bytes(4, "little") + (80).to_bytes(4, "little") + bytes(60)
    data[:80] = newer + zlib.crc32(newer).to_bytes(4, "little")

    with pytest.raises(FormatError, match="format 2; this version reads formats up to 1") as caught:
        open_log(disk)
    assert "newer version" in str(caught.value)
    assert caught.value.found == 2


@pytest.mark.parametrize("gone", [0, 1, 2, -2, -1])
def test_a_missing_segment_is_noticed(gone: int) -> None:
    disk = MemoryDisk()
    wal = new_log(disk)
    for index in range(1, 60):
        wal.save([work(entries(index, size=300))])
    wal.close()
    paths = sorted(path for path in disk.files if path.endswith(".wal"))
    assert len(paths) > 5
    disk.remove(paths[gone])

    if gone == 0:
        # As after `release`. The node compares with what its store holds.
        assert open_log(disk)[1].compacted[0] > 0
        return
    with pytest.raises(CorruptError, match="missing") as caught:
        open_log(disk)
    assert "add it again" in str(caught.value)


def test_a_renamed_segment_is_noticed() -> None:
    disk = MemoryDisk()
    wal = new_log(disk)
    wal.save([work(entries(1))])
    wal.close()
    [path] = [path for path in disk.files if path.endswith(".wal")]
    disk.rename(path, path.replace("-0", "-7"))
    with pytest.raises(CorruptError, match="renamed"):
        open_log(disk)


def test_a_closed_log_refuses() -> None:
    wal = new_log(MemoryDisk())
    wal.close()
    with pytest.raises(BrokenError, match="closed"):
        wal.save([work(entries(1))])


def test_options_have_a_lower_bound() -> None:
    with pytest.raises(ValueError, match="at least"):
        Options(segment_bytes=codec.HEADER_BYTES)
