"""Saving one batch durably: what every commit waits for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore.raft.messages import NORMAL, AppendWork, Entry, HardState
from kvstore.wal import Identity, Options, RealDisk, Wal


@pytest.fixture
def wal(tmp_path: Path) -> Iterator[Wal]:
    """Yield an empty log on the disk of the temporary folder."""
    wal = Wal.create(RealDisk(), str(tmp_path / "wal"), Identity(1, 2), Options())
    yield wal
    wal.close()


@pytest.mark.parametrize(
    "size_bytes", [320, 20_000, 320_000], ids=["1 put", "64 puts", "1000 puts"]
)
def test_save(size_bytes: int, wal: Wal, per_operation: Callable[..., Any]) -> None:
    """One write and one fdatasync for an entry of that size."""
    index = 0

    def setup() -> tuple[list[AppendWork]]:
        nonlocal index
        index += 1
        entry = Entry(index, 1, NORMAL, b"x" * size_bytes)
        return ([AppendWork([entry], HardState(1, 2, index - 1), None, True, [])],)

    per_operation(wal.save, 1, setup)
