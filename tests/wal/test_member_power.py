"""A real member through power cuts: all file calls of its process recorded, images started."""

from __future__ import annotations

import shutil
import socket
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.wal.crash_images import Image, Trace, crash_images
from tests.wal.real_member import BUGS, KEY, value
from tests.wal.store_reader import StoreReader, UnreadableError
from tests.wal.strace import needs_strace, record
from tests.wal.test_power_cut import BrokenPromiseError

pytestmark = [needs_strace, pytest.mark.cluster]

PUTS = 40


@pytest.fixture(scope="module")
def ports() -> tuple[str, str]:
    """Two ports; the member's ids come from them, so all runs share them."""
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        return str(one.getsockname()[1]), str(other.getsockname()[1])


def run(folder: Path, ports: tuple[str, str], *bug: str) -> Trace:
    folder.mkdir()
    program = [sys.executable, "-m", "tests.wal.real_member"]
    return record([*program, "write", str(folder), *ports, str(PUTS), *bug], folder)


def judge(image: Image, folder: Path, reader: StoreReader) -> int:
    """Start on the image; return how many puts are there, raise if a promise is broken."""
    last: Counter[str] = Counter()
    for line in image.notes:
        kind, number = line.split()
        last[kind] = int(number)
    copy = folder.with_name("image")
    shutil.rmtree(copy, ignore_errors=True)
    (copy / "wal").mkdir(parents=True)
    for path, data in image.files.items():
        (copy / Path(path).relative_to(folder)).write_bytes(data)
    try:
        _, keys = reader.read(str(copy))
    except UnreadableError as error:
        raise BrokenPromiseError(f"{image.story}\nrefused: {error}") from error
    found = len(keys)
    if not last["put"] <= found <= last["putting"]:
        raise BrokenPromiseError(
            f"{image.story}\n{found} puts are there, {last['put']} were acknowledged and "
            f"{last['putting']} begun"
        )
    expected = {KEY % number: value(number) for number in range(1, found + 1)}
    if keys != expected:
        raise BrokenPromiseError(f"{image.story}\nother keys or values: {sorted(keys)}")
    return found


def judge_all(
    trace: Trace, folder: Path, ports: tuple[str, str], *, per_cut_max: int
) -> Counter[int]:
    images = crash_images(trace, sector_bytes=4096, per_cut_max=per_cut_max)
    with StoreReader("tests.wal.real_member", "read", *ports) as reader:
        return Counter(judge(image, folder, reader) for image in images)


@pytest.mark.parametrize("per_cut_max", [6, pytest.param(64, marks=pytest.mark.slow)])
def test_a_member_starts_from_every_crash_image_with_all_it_acknowledged(
    per_cut_max: int, ports: tuple[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    trace = run(folder, ports)
    found = judge_all(trace, folder, ports, per_cut_max=per_cut_max)

    assert set(found) == set(range(PUTS + 1))  # power went at every stage of the run
    kinds = Counter(call.kind for call in trace.calls)
    assert kinds["remove"] > 2, kinds  # the log was released behind the store
    assert kinds["sync_range"] > 4, kinds  # the store was committed
    assert kinds["rename"] > 4, kinds  # segments were begun


@pytest.mark.parametrize("bug", BUGS)
def test_the_crash_images_find(bug: str, ports: tuple[str, str], tmp_path: Path) -> None:
    # If this fails the product is fine, the test above has gone blind.
    folder = tmp_path / "data"
    trace = run(folder, ports, bug)
    with pytest.raises(BrokenPromiseError, match="power cut after call"):
        judge_all(trace, folder, ports, per_cut_max=24)
