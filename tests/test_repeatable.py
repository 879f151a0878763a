"""What `make test` draws is the same in every run, so that what it says is about the change."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DRAWS = """
from hypothesis import given, settings, strategies as st

@settings(max_examples=20)
@given(st.integers(), st.binary())
def test_draws(number, data):
    with open({path!r}, "a") as out:
        print(number, data, file=out)
"""


FRESH = ("--hypothesis-profile=fresh",)


@pytest.mark.parametrize(("arguments", "is_same"), [((), True), (FRESH, False)])
def test_hypothesis_draws(tmp_path: Path, arguments: tuple[str, ...], *, is_same: bool) -> None:
    drawn = []
    for _ in range(2):
        out = tmp_path / "drawn"
        out.unlink(missing_ok=True)
        (tmp_path / "test_drawing.py").write_text(DRAWS.format(path=str(out)))
        (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
            cwd=tmp_path,
            check=True,
            capture_output=True,
            # As at a desk: what the conftest asks for in CI is about the whole suite.
            env={name: value for name, value in os.environ.items() if name != "CI"}
            | {"PYTHONPATH": str(ROOT)},
        )
        drawn.append(out.read_text())
    assert (drawn[0] == drawn[1]) is is_same
