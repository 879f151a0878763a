"""A real process is killed in the middle of its writes, again and again, on one log."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from kvstore.wal import RealDisk, Wal
from tests.wal.building import ME, TINY
from tests.wal.writer import KEPT


@pytest.mark.parametrize("lives", [12, pytest.param(150, marks=pytest.mark.slow)])
def test_nothing_acknowledged_is_lost_when_the_process_is_killed(
    tmp_path: Path, lives: int
) -> None:
    folder = str(tmp_path / "wal")
    rng = random.Random(lives)
    saved = released = terms = 0
    for life in range(lives):
        command = [sys.executable, "-m", "tests.wal.writer", folder, str(life)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(rng.randint(1, 120))]
            process.kill()
            lines += process.stdout.readlines()
        for line in lines:
            match line.split():
                case ["saved", number]:
                    saved = int(number)
                case ["released", number]:
                    released = max(released, int(number))
                case _:
                    pytest.fail(f"life {life} ended early: {line!r}")

        wal, found = Wal.open(RealDisk(), folder, ME, TINY)
        wal.close()
        assert saved <= found.last_index <= saved + 4, life
        assert found.compacted[0] <= max(released, 0)
        assert found.last_index - found.compacted[0] >= min(KEPT, saved)
        assert found.hard_state.term > terms
        terms = found.hard_state.term
        first = found.compacted[0] + 1
        for index, entry in enumerate(found.entries, first):
            piece = b"<%d.1>" % index
            assert (entry.index, entry.term) == (index, 1)
            assert entry.data == piece * (len(entry.data) // len(piece))
        saved = found.last_index
    assert saved > 10 * lives
    assert released > 0
