from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.mvcc.harness import Member

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=["memory", "lmdb"])
def member(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Member]:
    member = Member(request.param, tmp_path)
    yield member
    member.close()
