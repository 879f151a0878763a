"""Log and store together through power cuts: LMDB's own file calls are recorded with strace."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from kvstore.wal import Wal, WalError
from tests.wal.building import ME, Model, entries, work
from tests.wal.crash_images import Image, Trace, crash_images
from tests.wal.memory_disk import MemoryDisk
from tests.wal.small_member import BUGS, OPTIONS, STORE_EVERY, stored_value
from tests.wal.store_reader import StoreReader, UnreadableError
from tests.wal.strace import needs_strace, record
from tests.wal.test_power_cut import BrokenPromiseError

pytestmark = needs_strace

ENTRIES = 60


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def run(folder: Path, *bug: str) -> Trace:
    command = [sys.executable, "-m", "tests.wal.small_member", str(folder), str(ENTRIES), *bug]
    return record(command, folder)


def judge(image: Image, folder: Path, reader: StoreReader) -> str:
    """Check log and store of one image; return what was found, raise if a promise is broken."""
    last: Counter[str] = Counter()
    for line in image.notes:
        kind, _, number = line.partition(" ")
        last[kind] = int(number or 1)
    disk = MemoryDisk(image.files)
    log = f"{folder}/wal"
    if not last["ready"]:
        # The first start: nothing was promised yet, and what is there must not be in the way.
        return judge_first_start(image, disk, folder, reader)
    try:
        wal, found = Wal.open(disk, log, ME, OPTIONS)
        applied, keys = read_store(image, folder, reader)
    except (WalError, UnreadableError) as error:
        raise BrokenPromiseError(f"{image.story}\nrefused: {error}") from error
    wal.close()
    complaints = []
    if applied < last["stored"]:
        complaints.append(f"the store is at {applied}, {last['stored']} was reported durable")
    if found.last_index < last["saved"]:
        complaints.append(f"the log ends at {found.last_index}, {last['saved']} was acknowledged")
    if not found.compacted[0] <= applied <= found.last_index:
        complaints.append(
            f"the store is at {applied}, the log holds {found.compacted[0]} to {found.last_index}"
        )
    whole = Model().after([work(entries(1, found.last_index, size=300))])
    if found.entries != whole.entries[found.compacted[0] :]:
        complaints.append("the log holds other entries")
    expected = {
        b"%08d" % number: stored_value(number)
        for number in range(1, applied + 1)
        # `small_member.commit` removes one old key per commit.
        if number not in {at - 8 for at in range(STORE_EVERY - 1, applied, STORE_EVERY) if at > 8}
    }
    if keys != expected:
        complaints.append(f"the store at {applied} holds {sorted(keys)}, not {sorted(expected)}")
    if complaints:
        raise BrokenPromiseError("\n".join([image.story, *complaints]))
    return f"at {applied}"


def judge_first_start(image: Image, disk: MemoryDisk, folder: Path, reader: StoreReader) -> str:
    log = f"{folder}/wal"
    if Wal.exists(disk, log):
        Wal.open(disk, log, ME, OPTIONS)[0].close()
    try:
        read_store(image, folder, reader)
    except UnreadableError as error:
        return f"unreadable at the first start: {error}"
    return "first start"


def read_store(image: Image, folder: Path, reader: StoreReader) -> tuple[int, dict[bytes, bytes]]:
    """Open the store of an image as a member would; return its applied index and its keys."""
    copy = folder.with_name("image")
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    if (data := image.files.get(f"{folder}/store.lmdb")) is not None:
        (copy / "store.lmdb").write_bytes(data)
    return reader.read(str(copy / "store.lmdb"))


def judge_all(trace: Trace, folder: Path) -> Counter[str]:
    images = crash_images(trace, sector_bytes=4096, per_cut_max=24)
    with StoreReader() as reader:
        return Counter(judge(image, folder, reader) for image in images)


def test_log_and_store_belong_together_after_every_power_cut(folder: Path) -> None:
    trace = run(folder)
    outcomes = judge_all(trace, folder)

    applied = [outcome for outcome in outcomes if outcome.startswith("at ")]
    assert len(applied) == ENTRIES // STORE_EVERY + 1  # each commit was seen, and the empty store
    # LMDB syncs its first pages only with its first commit. Nothing is lost, but the operator has
    # to remove the file; so the member gives a new store its name when it is whole.
    assert all("MDB_INVALID" in outcome for outcome in outcomes if outcome.startswith("unread"))
    kinds = Counter(call.kind for call in trace.calls)
    assert kinds["sync_range"] > ENTRIES // STORE_EVERY  # LMDB's meta page, with O_DSYNC
    assert kinds["remove"] > 3  # the log was released


@pytest.mark.parametrize("bug", BUGS)
def test_the_crash_images_find(bug: str, folder: Path) -> None:
    # If this fails the product is fine, the test above has gone blind.
    trace = run(folder, bug)
    with pytest.raises(BrokenPromiseError, match="power cut after call"):
        judge_all(trace, folder)
