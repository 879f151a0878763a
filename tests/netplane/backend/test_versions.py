"""A set that goes from version to version."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netplane.backend.versions import SetVersion

NUMBERS = st.frozensets(st.integers(0, 9))


@given(st.data())
def test_each_version_stays_what_it_was(data: st.DataObject) -> None:
    meant = [data.draw(NUMBERS)]
    versions = [SetVersion(meant[0])]
    for _ in range(data.draw(st.integers(0, 6))):
        last = meant[-1]
        gone = data.draw(st.frozensets(st.sampled_from(sorted(last)))) if last else frozenset()
        came = data.draw(NUMBERS) - last
        meant.append(last - gone | came)
        versions.append(versions[-1].next(came, gone))
        for version, members in zip(versions, meant, strict=True):
            assert version == members
            assert version.whole() == members
            assert (len(version), sorted(version)) == (len(members), sorted(members))
            assert all((number in version) is (number in members) for number in range(10))
            assert version - {0, 1} == members - {0, 1}
            assert isinstance(version & {0}, frozenset)


def test_two_versions_cannot_follow_one() -> None:
    first = SetVersion({1})
    first.next(frozenset({2}), frozenset())
    with pytest.raises(AssertionError):
        first.next(frozenset({3}), frozenset())
