"""Logs of every released format version still open, and this version still writes its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kvstore.wal import NoLogError, RealDisk, Wal, codec, inspection
from tests.wal.building import ME, TINY, Model, entries, work
from tests.wal.fixtures.generate import HERE, WORKS, generate

VERSIONS = sorted(path for path in HERE.iterdir() if path.name.startswith("v"))


def test_there_is_a_fixture_of_this_version() -> None:
    assert VERSIONS[-1].name == f"v{codec.FORMAT}"


@pytest.mark.parametrize("fixture", VERSIONS, ids=lambda path: path.name)
def test_the_log_of_a_released_version_opens_and_goes_on(fixture: Path, tmp_path: Path) -> None:
    folder = str(shutil.copytree(fixture, tmp_path / "wal"))
    model = Model().after(WORKS)

    wal, found = Wal.open(RealDisk(), folder, ME, TINY)
    assert model.differs(found) is None
    assert found.dropped_bytes == 0
    one = work(entries(27, 3, term=2**63, size=2_000))
    wal.save([one])
    wal.close()

    wal, found = Wal.open(RealDisk(), folder, ME, TINY)
    wal.close()
    assert model.after([one]).differs(found) is None


def test_this_version_writes_the_same_bytes_as_when_its_fixture_was_made(tmp_path: Path) -> None:
    # Fails when the format changed by accident. A change on purpose needs a new format number.
    generate(tmp_path / "wal")
    fixture = HERE / f"v{codec.FORMAT}"
    for path in fixture.iterdir():
        assert (tmp_path / "wal" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_log_can_be_read_by_people(tmp_path: Path) -> None:
    fixture = HERE / "v1"
    lines = list(inspection.dump(RealDisk(), str(fixture)))
    assert lines == (fixture / "dump.txt").read_text().splitlines()
    text = "\n".join(lines)
    assert "entry 22 term 3 normal 846 bytes b'<22.3><22.3>" in text
    assert "state term 2 vote ffffffffffffffff commit 4" in text
    assert "snapshot index 20 term 3 voters a,b" in text
    assert lines[-1] == "  end: clean"

    folder = shutil.copytree(fixture, tmp_path / "wal")
    last = max(folder.glob("*.wal"))
    data = bytearray(last.read_bytes())
    end = len(data.rstrip(b"\0"))
    last.write_bytes(data[: end - 20] + bytes(len(data) - end + 20))
    assert list(inspection.dump(RealDisk(), str(folder)))[-1].endswith("of an unfinished batch")

    first = min(folder.glob("*.wal"))
    data = bytearray(first.read_bytes())
    data[300] ^= 1
    first.write_bytes(data)
    lines = list(inspection.dump(RealDisk(), str(folder)))
    assert lines[0].startswith("segment 1 ")
    assert lines[-1].startswith("  DAMAGED: ")
    assert f"{first.name}, byte " in lines[-1]


def test_no_log_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(NoLogError):
        list(inspection.dump(RealDisk(), str(tmp_path)))
