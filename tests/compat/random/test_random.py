"""Random programs on etcd and on us; `make compat` compares many more, with a fresh seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.compat.random.search import search

if TYPE_CHECKING:
    from tests.compat.random.members import Members

pytestmark = [pytest.mark.etcd, pytest.mark.cluster]


def test_both_answer_alike(members: Members) -> None:
    check(members, 300, 1)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_both_answer_alike_at_length(members: Members) -> None:
    check(members, 5_000, 2)


def check(members: Members, operations: int, seed: int) -> None:
    found = search(members, operations, seed)

    assert found is None, f"{found.text}\nreplay: {found.replay()}"
