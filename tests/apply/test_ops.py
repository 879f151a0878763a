"""The bytes of an entry: round trips, bounds, and refusal of what this release cannot read."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.apply import ops
from kvstore.apply.errors import BadEntry, NewerFormat

U64 = st.integers(0, 2**64 - 1)
OP = st.one_of(
    st.tuples(st.integers(1, 127), st.binary(max_size=70_000)),
    st.tuples(st.integers(1, 127), st.binary(max_size=300), st.text(max_size=300), U64),
)


@given(U64, U64, U64, st.lists(OP, max_size=20))
def test_a_batch_comes_back_as_it_was(
    origin: int, incarnation: int, sequence: int, batch: list[ops.Op]
) -> None:
    data = ops.encode_batch(origin, incarnation, sequence, batch)

    assert ops.decode_batch(data) == (origin, incarnation, sequence, tuple(batch))
    # The node packs entries by this bound; were it too low, entries would exceed 1 MiB.
    assert len(data) <= ops.BATCH_BYTES + sum(map(ops.op_size_bytes, batch))


def test_kinds_in_logs_keep_their_numbers() -> None:
    # A log written by one release is read by the next.
    assert ops.KIND_NAMES == {
        1: "put",
        2: "delete_range",
        3: "txn",
        4: "compact",
        5: "lease_grant",
        6: "lease_revoke",
        7: "lease_checkpoint",
        8: "alarm",
        9: "cluster_version",
        10: "member_attributes",
        11: "in_term",
    }


def test_the_format_is_fixed() -> None:
    data = ops.encode_batch(1, 2, 3, [(ops.PUT, b"x"), (ops.TXN, b"", "ann", 7)])

    assert data.hex() == "95010102039292" + "01c40178" + "9403c400" + "a3616e6e" + "07"


def test_a_newer_format_is_refused_with_advice() -> None:
    newer = msgpack.packb([ops.FORMAT + 1, "whatever", {"shape": "it has"}])

    with pytest.raises(NewerFormat, match=r"reads formats up to 1\. Start the release"):
        ops.decode_batch(newer)


@pytest.mark.parametrize(
    "data",
    [
        b"\x00",
        b"\xc1",
        b"\x95\x01",
        msgpack.packb([]),
        msgpack.packb([0, 1, 1, 1, []]),
        msgpack.packb([1, 1, 1, 1]),
        msgpack.packb([1, 1, 1, 1, b"ops"]),
        msgpack.packb(["1", 1, 1, 1, []]),
        msgpack.packb([1, 1, 1, 1, []]) + b"x",
    ],
    ids=bytes.hex,
)
def test_what_is_no_batch_is_refused(data: bytes) -> None:
    with pytest.raises(BadEntry):
        ops.decode_batch(data)


def test_split_keeps_entries_within_their_bounds_and_order() -> None:
    big = (ops.PUT, bytes(ops.ENTRY_BYTES_MAX * 2))
    half = (ops.PUT, bytes(ops.ENTRY_BYTES_MAX // 2))
    small = (ops.PUT, b"k")

    assert [len(run) for run in ops.split([small, big, small])] == [1, 1, 1]
    assert [len(run) for run in ops.split([half, half, small])] == [1, 2]
    assert [len(run) for run in ops.split([small] * 2500)] == [1024, 1024, 452]
    assert list(ops.split([])) == []


@given(st.lists(st.integers(0, ops.ENTRY_BYTES_MAX), max_size=30))
def test_split_loses_nothing(sizes: list[int]) -> None:
    batch: list[ops.Op] = [(ops.PUT, bytes(size)) for size in sizes]

    runs = list(ops.split(batch))

    assert [op for run in runs for op in run] == batch
    for run in runs:
        assert len(run) == 1 or len(ops.encode_batch(2**64 - 1, 2**64 - 1, 2**64 - 1, run)) <= (
            ops.ENTRY_BYTES_MAX
        )
