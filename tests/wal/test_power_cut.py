"""Whatever a power cut leaves, recovery finds all that was acknowledged and invents nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kvstore.ports import Disk
from kvstore.raft.messages import AppendWork, HardState
from kvstore.wal import RealDisk, Wal, WalError
from tests.wal.building import FOLDER, ME, TINY, Model, entries, snapshot, work
from tests.wal.crash_images import Image, Recorder, Trace, crash_images
from tests.wal.faults import (
    FolderSyncOnlyAtRename,
    SyncAfterAcknowledge,
    WithoutFolderSync,
    WithoutSync,
    WrappedDisk,
)
from tests.wal.memory_disk import MemoryDisk


class BrokenPromiseError(AssertionError):
    """A crash image shows that a promise of docs/durability.md does not hold."""


def script() -> list[AppendWork | int | str]:
    """Return a run that meets everything: works, releases (numbers), segments made ready."""
    run: list[AppendWork | int | str] = [work(state=HardState(1, 0xA, 0))]
    run += [work(entries(i, size=700), state=HardState(1, 0xA, i - 1)) for i in range(1, 8)]
    run += ["prepare", work(entries(8, 3, size=400)), work(entries(9, 2, term=2, size=900))]
    run += [work(entries(i, 2, term=2, size=600)) for i in range(11, 21, 2)]
    run += [7, work(state=HardState(3, 0xB, 12)), 15]
    run += [work(entries(15, 1, term=3, size=5_000)), "prepare"]
    run += [work(snapshot=snapshot(40, 3), state=HardState(3, 0xB, 40))]
    run += [work(entries(i, 2, term=3, size=500)) for i in range(41, 51, 2)]
    run += [50, work(entries(51, term=3))]
    return run


def perform(
    disk: Disk, trace: Trace, folder: str, run: list[AppendWork | int | str]
) -> list[Model]:
    """Do the run; the trace's notes say what was begun and what was acknowledged.

    Returns the models: number n is what the log holds after n works.
    """
    wal = Wal.create(disk, folder, ME, TINY)
    trace.note(("saved", 0))
    models = [Model()]
    for step in run:
        if isinstance(step, AppendWork):
            models.append(models[-1].after([step]))
            trace.note(("saving", len(models) - 1))
            wal.save([step])
            trace.note(("saved", len(models) - 1))
        elif isinstance(step, int):
            trace.note(("released", step))
            wal.release(step)
        else:
            wal.prepare()
    return models


def judge(image: Image, models: list[Model], folder: str, *, disk: Disk | None = None) -> int:
    """Recover from the image; return the number of works found, raise if a promise is broken."""
    highest = {"saved": -1, "saving": 0, "released": 0}
    for kind, number in image.notes:
        highest[kind] = max(highest[kind], number)
    saved, saving = highest["saved"], highest["saving"]
    disk = disk or MemoryDisk(image.files)
    if not Wal.exists(disk, folder):
        if saved >= 0:
            raise BrokenPromiseError(f"{image.story}\nthe whole log is gone")
        Wal.create(disk, folder, ME, TINY).close()
        return 0
    try:
        wal, found = Wal.open(disk, folder, ME, TINY)
    except WalError as error:
        raise BrokenPromiseError(f"{image.story}\nrefused: {error}") from error
    complaints = []
    for number in range(saving, max(saved, 0) - 1, -1):
        complaint = models[number].differs(found, released=highest["released"])
        if complaint is None:
            go_on(wal, disk, folder, models[number], released=highest["released"])
            return number
        complaints.append(f"not {number} works: {complaint}")
    raise BrokenPromiseError("\n".join([image.story, *complaints]))


def go_on(wal: Wal, disk: Disk, folder: str, model: Model, *, released: int) -> None:
    """A log that came back must take new batches and come back with them."""
    one = work(entries(model.last[0] + 1, 2, term=9, size=3_000), state=HardState(9, 0xB, 1))
    wal.save([one])
    wal.close()
    wal, found = Wal.open(disk, folder, ME, TINY)
    wal.close()
    assert model.after([one]).differs(found, released=released) is None


def judge_all(
    trace: Trace, models: list[Model], folder: str, *, per_cut_max: int, sector_bytes: int = 512
) -> int:
    count = 0
    for image in crash_images(trace, per_cut_max=per_cut_max, sector_bytes=sector_bytes):
        judge(image, models, folder)
        count += 1
    return count


@pytest.mark.parametrize(
    ("sector_bytes", "per_cut_max", "images_min"),
    [
        (4096, 256, 100),
        (512, 256, 500),
        (56, 48, 1_500),  # the log needs no atomic sectors
        pytest.param(56, 512, 10_000, marks=pytest.mark.slow),
    ],
)
def test_every_crash_image_of_a_real_run_recovers(
    tmp_path: Path, sector_bytes: int, per_cut_max: int, images_min: int
) -> None:
    folder = str(tmp_path / "wal")
    recorder = Recorder(RealDisk())
    models = perform(recorder, recorder.trace, folder, script())

    count = judge_all(
        recorder.trace, models, folder, per_cut_max=per_cut_max, sector_bytes=sector_bytes
    )

    # The test must not pass because it looked at little.
    assert count > images_min
    kinds = {call.kind for call in recorder.trace.calls}
    assert kinds == {
        "create",
        "allocate",
        "write",
        "sync",
        "rename",
        "remove",
        "sync_folder",
        "note",
    }
    assert sum(call.kind == "rename" for call in recorder.trace.calls) > 4


def test_a_power_cut_during_recovery_loses_nothing_either() -> None:
    # Recovery erases what is torn, writes the last batch again and finishes a half-made segment.
    recorder = Recorder(MemoryDisk())
    models = perform(recorder, recorder.trace, FOLDER, script())
    torn = sealed = 0
    for image in list(crash_images(recorder.trace, per_cut_max=8))[::4]:
        again = Recorder(MemoryDisk(image.files), image.files)
        if not Wal.exists(again, FOLDER):
            continue
        for note in image.notes:
            again.trace.note(note)
        _, found = Wal.open(again, FOLDER, ME, TINY)
        torn += found.dropped_bytes > 0
        sealed += any(call.kind == "rename" for call in again.trace.calls)
        for second in crash_images(again.trace, first_call=len(image.notes), per_cut_max=16):
            judge(second, models, FOLDER)
    assert torn > 20
    assert sealed > 2


def test_what_recovery_returned_stays() -> None:
    # A batch that was written but not fsynced is found in the page cache when only the process
    # died. The member acts on it, so a power cut after the recovery must not take it away.
    recorder = Recorder(MemoryDisk())
    models = perform(recorder, recorder.trace, FOLDER, script()[:6])
    last = len(models) - 1
    calls = recorder.trace.calls
    while calls[-1].kind != "write":
        calls.pop()  # killed before the fsync of the last batch; the page cache lives on
    written = recorder.disk
    assert isinstance(written, MemoryDisk)
    written.locked.clear()

    Wal.open(recorder, FOLDER, ME, TINY)
    recorder.trace.note(("saved", last))

    for image in crash_images(recorder.trace, first_call=len(calls) - 1):
        assert judge(image, models, FOLDER) == last


MUTANTS: dict[str, Callable[[Disk], WrappedDisk]] = {
    "no fdatasync": WithoutSync,
    "no folder fsync": WithoutFolderSync,
    "folder fsync only after renames": FolderSyncOnlyAtRename,
    "acknowledge before fsync": SyncAfterAcknowledge,
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_crash_images_find(mutant: str) -> None:
    # If this fails the log is fine, the test above has gone blind.
    recorder = Recorder(MemoryDisk())
    models = perform(MUTANTS[mutant](recorder), recorder.trace, FOLDER, script())
    with pytest.raises(BrokenPromiseError, match="power cut after call"):
        judge_all(recorder.trace, models, FOLDER, per_cut_max=128)


def test_the_run_of_the_mutants_passes_without_them() -> None:
    recorder = Recorder(MemoryDisk())
    models = perform(WrappedDisk(recorder), recorder.trace, FOLDER, script())
    judge_all(recorder.trace, models, FOLDER, per_cut_max=16)
