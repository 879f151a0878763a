"""Runs `scenarios/*.txt`. The whole output is the expectation.

`KVSTORE_RECORD=1 pytest tests/raft/test_scenarios.py` writes the outputs anew: read the diff.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.raft import scenario

SCRIPTS = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    script = path.read_text()
    output = scenario.run(script)
    if os.environ.get("KVSTORE_RECORD"):
        path.write_text(output)
    assert output == path.read_text()


def test_there_are_scripts() -> None:
    # An empty folder would make the test above pass by not running.
    assert len(SCRIPTS) >= 10
