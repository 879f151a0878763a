"""The replicated book of leases: etcd-semantics 2.7."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgpack
import pytest

from kvstore.lease.errors import LeaseExists, LeaseNotFound, LeaseTTLTooLarge
from kvstore.lease.lessor import TTL_MAX_S, Lessor, minimum_ttl_s

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Table:
    """Table `lease` as the store's buffer would hold it."""

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}

    def write(self, table: str, key: bytes, value: bytes | None) -> None:
        assert table == "lease"
        if value is None:
            del self.records[key]
        else:
            self.records[key] = value

    def scan(
        self, table: str, start: bytes = b"", end: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        return iter(sorted(self.records.items()))

    def get(self, table: str, key: bytes) -> bytes | None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def lessor(table: Table) -> Lessor:
    lessor = Lessor(2)
    lessor.write = table.write
    return lessor


class Deleter:
    """`Store.delete_keys`: detaches each key, as the store does."""

    def __init__(self, lessor: Lessor, lease: int) -> None:
        self.lessor, self.lease = lessor, lease
        self.deleted: list[bytes] = []

    def __call__(self, keys: Iterable[bytes]) -> int:
        for key in keys:
            self.lessor.detach(self.lease, key)
            self.deleted.append(key)
        return 77


@pytest.mark.parametrize(
    ("election_ms", "seconds"), [(1000, 2), (100, 1), (2000, 3), (1333, 2), (1334, 3), (500, 1)]
)
def test_the_minimum_is_one_and_a_half_election_timeouts_rounded_up(
    election_ms: int, seconds: int
) -> None:
    assert minimum_ttl_s(election_ms) == seconds


@pytest.mark.parametrize(
    ("asked", "granted"), [(-5, 2), (0, 2), (1, 2), (2, 2), (3, 3), (TTL_MAX_S, TTL_MAX_S)]
)
def test_a_grant_gets_what_it_asks_but_not_less_than_the_minimum(
    lessor: Lessor, asked: int, granted: int
) -> None:
    assert lessor.grant(1, asked).ttl_s == granted
    assert lessor.exists(1)


def test_grants_that_are_refused_change_nothing(lessor: Lessor, table: Table) -> None:
    lessor.grant(1, 10)
    before = dict(table.records)

    with pytest.raises(LeaseExists) as caught:
        lessor.grant(1, 20)
    with pytest.raises(LeaseTTLTooLarge):
        lessor.grant(2, TTL_MAX_S + 1)
    with pytest.raises(LeaseTTLTooLarge):  # etcd looks at the TTL first
        lessor.grant(1, TTL_MAX_S + 1)
    with pytest.raises(LeaseNotFound):
        lessor.grant(0, 10)

    assert caught.value.lease == 1
    assert table.records == before
    assert lessor.leases[1].ttl_s == 10


def test_a_revoke_deletes_the_keys_in_sorted_order_at_once(lessor: Lessor, table: Table) -> None:
    lessor.grant(1, 10)
    for key in (b"b", b"a\xff", b"a", b"c"):
        lessor.attach(1, key)
    lessor.detach(1, b"c")
    deleter = Deleter(lessor, 1)

    assert lessor.revoke(1, deleter) == 77
    assert deleter.deleted == [b"a", b"a\xff", b"b"]
    assert not lessor.exists(1)
    assert table.records == {}
    with pytest.raises(LeaseNotFound):
        lessor.revoke(1, deleter)


def test_a_revoke_without_keys_makes_no_revision(lessor: Lessor) -> None:
    lessor.grant(1, 10)
    lessor.grant(2, 10)
    lessor.attach(2, b"k")
    lessor.detach(2, b"k")

    for lease in (1, 2):
        assert lessor.revoke(lease, Deleter(lessor, lease)) is None


def test_checkpoints_are_kept_within_the_grant(lessor: Lessor) -> None:
    lessor.grant(1, 10)
    for asked, kept in ((4, 4), (11, 10), (-1, 0), (9, 9), (0, 0)):
        lessor.checkpoint(1, asked)
        assert lessor.leases[1].remaining_s == kept

    lessor.checkpoint(99, 5)  # its lease has ended meanwhile
    assert not lessor.exists(99)


def test_what_is_stored_comes_back(lessor: Lessor, table: Table) -> None:
    lessor.grant(5, 10)
    lessor.grant(-5, TTL_MAX_S)
    lessor.grant(2**63 - 1, 3)
    lessor.grant(-(2**63), 3)
    lessor.checkpoint(5, 4)

    other = Lessor(2)
    other.restore(table)

    assert {lease.id: (lease.ttl_s, lease.remaining_s) for lease in other.leases.values()} == {
        5: (10, 4),
        -5: (TTL_MAX_S, 0),
        2**63 - 1: (3, 0),
        -(2**63): (3, 0),
    }
    assert other.keys(5) == []
    other.restore(Table())
    assert other.leases == {}


@pytest.mark.parametrize("record", [msgpack.packb([2, 1, 0]), msgpack.packb(7), b"\xc1"])
def test_a_record_of_another_format_is_refused(table: Table, record: bytes) -> None:
    table.records[b"\x00" * 8] = record

    with pytest.raises(ValueError, match="damaged or not of format 1"):
        Lessor(2).restore(table)


def test_keys_are_listed_in_order(lessor: Lessor) -> None:
    lessor.grant(1, 10)
    assert lessor.keys(1) == []
    for key in (b"b", b"a", b"b"):
        lessor.attach(1, key)
    assert lessor.keys(1) == [b"a", b"b"]
    assert lessor.keys(9) == []


def test_a_lessor_without_a_store_says_so() -> None:
    with pytest.raises(RuntimeError, match=r"set Lessor\.write"):
        Lessor(2).grant(1, 10)
