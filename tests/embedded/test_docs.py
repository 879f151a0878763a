"""The examples of docs/embed.md run as they stand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

TEXT = (Path(__file__).parents[2] / "docs/embed.md").read_text()
BLOCKS = [part.partition("```")[0] for part in TEXT.split("```python\n")[1:]]
PROGRAMS = [block for block in BLOCKS if "def test_" not in block]
TESTS = [block for block in BLOCKS if "def test_" in block]


@pytest.mark.parametrize("code", PROGRAMS, ids=["thread", "loop"])
def test_a_program(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "b'hello'" in done.stdout or "b'10'" in done.stdout


@pytest.mark.cluster
def test_the_fixtures(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\naddopts = -p no:asyncio\n")
    pytester.makepyfile(test_it=TESTS[0])
    pytester.runpytest_subprocess("-q", timeout=120).assert_outcomes(passed=2)
