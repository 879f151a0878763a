"""One pair of members for all tests here; each program begins with an empty store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.compat.random.members import Members
from tests.servers import Etcd, Kvstore

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="package")
def members() -> Iterator[Members]:
    for kind in (Etcd, Kvstore):
        if reason := kind.missing():
            pytest.skip(reason)
    with Members() as members:
        yield members
