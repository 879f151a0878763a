"""Programs that once showed a difference, and those that chance would draw too seldom."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.compat.random.differences import EXPECTED
from tests.compat.random.members import Members
from tests.compat.random.steps import dump, load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.compat.random.steps import Step

pytestmark = [pytest.mark.etcd, pytest.mark.cluster]

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.txt"))


def program(path: Path) -> Sequence[Step]:
    return load(path.read_text())


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_both_answer_alike(path: Path, members: Members) -> None:
    members.run(program(path))


def test_every_known_difference_is_met(members: Members) -> None:
    # One that is gone must leave the table, or it would excuse the next one.
    members.met.counts.clear()

    members.run(program(CORPUS[0].with_name("known_differences.txt")))

    assert set(members.met.counts) == set(EXPECTED)


def test_new_members_agree() -> None:
    # Before anything was ever written or compacted.
    text = """
        call 0 RangeRequest key: "\\000" range_end: "\\000"
        call 0 HashKVRequest
        call 0 CompactionRequest revision: 1000001
        call 0 CompactionRequest
        call 0 CompactionRequest
        watch 0 create_request { key: "a" }
        call 0 PutRequest key: "a"
        call 0 CompactionRequest revision: 1
        call 0 CompactionRequest revision: 1
        call 0 HashKVRequest revision: 2
    """
    with Members() as members:
        members.run(load(text), reset=False)
        members.restart()


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_a_program_survives_its_text(path: Path) -> None:
    steps = program(path)

    assert load(dump(steps)) == steps
