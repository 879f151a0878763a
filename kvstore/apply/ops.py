"""Operation kinds and the bytes of an entry that carries a batch of them; no semantics here.

msgpack array `[format, origin_member_id, origin_incarnation, first_sequence, ops]`, each op
`[kind, payload]` or `[kind, payload, user, auth_revision]`. The i-th operation has the sequence
`first_sequence + i`. One msgpack call encodes or decodes a whole batch: the cost per operation is
what limits a Python member.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import msgpack

from kvstore.apply.errors import BadEntry, NewerFormat

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FORMAT: Final = 1
"""Bump it when the shape of a batch changes; a reader refuses what is newer."""

# Kinds are stored in logs: numbers are never reused or renumbered.
PUT: Final = 1
DELETE_RANGE: Final = 2
TXN: Final = 3
COMPACT: Final = 4
LEASE_GRANT: Final = 5
LEASE_REVOKE: Final = 6
LEASE_CHECKPOINT: Final = 7
ALARM: Final = 8
CLUSTER_VERSION: Final = 9
MEMBER_ATTRIBUTES: Final = 10
IN_TERM: Final = 11
IN_TERM_HEAD_BYTES: Final = 9

KIND_NAMES: Final = {
    PUT: "put",
    DELETE_RANGE: "delete_range",
    TXN: "txn",
    COMPACT: "compact",
    LEASE_GRANT: "lease_grant",
    LEASE_REVOKE: "lease_revoke",
    LEASE_CHECKPOINT: "lease_checkpoint",
    ALARM: "alarm",
    CLUSTER_VERSION: "cluster_version",
    MEMBER_ATTRIBUTES: "member_attributes",
    IN_TERM: "in_term",
}
"""Payloads: the etcdserverpb request of that name; CLUSTER_VERSION the version as UTF-8 text;
MEMBER_ATTRIBUTES an etcdserverpb.Member with ID, name, clientURLs; IN_TERM what `in_term` makes."""

ENTRY_BYTES_MAX: Final = 1 << 20
ENTRY_OPS_MAX: Final = 1024

BATCH_BYTES: Final = 34
"""Upper bound of what a batch takes around its operations: array heads and three 64-bit numbers."""

Op: TypeAlias = tuple[int, bytes] | tuple[int, bytes, str, int]
"""Kind and payload; with user and auth revision when authentication is on."""


class Batch(NamedTuple):
    """What one entry carries."""

    origin: int
    """Member that took the requests; it answers them when it applies the entry itself."""

    incarnation: int
    """Tells the origin's restarts apart."""

    first_sequence: int
    """Sequence of the first operation; the others follow one by one."""

    ops: tuple[Op, ...]


_pack = msgpack.Packer(autoreset=True).pack
_unpack = msgpack.unpackb


def encode_batch(origin: int, incarnation: int, first_sequence: int, ops: Sequence[Op]) -> bytes:
    """Return the entry data of a batch.

    Args:
        origin: Member id of the sender, 0 to 2**64 - 1.
        incarnation: The sender's incarnation, 0 to 2**64 - 1.
        first_sequence: Sequence of the first operation, 0 to 2**64 - 1.
        ops: Operations in order. The caller keeps within `ENTRY_OPS_MAX` and
            `ENTRY_BYTES_MAX` (`op_size_bytes`, `split`); one larger operation travels alone.
    """
    return _pack((FORMAT, origin, incarnation, first_sequence, ops))  # type: ignore[no-any-return]


def decode_batch(data: bytes) -> Batch:
    """Return the batch that `encode_batch` made.

    Raises:
        NewerFormat: A later release wrote it.
        BadEntry: It is no batch.
    """
    try:
        items = _unpack(data, use_list=False)
    except ValueError as error:  # msgpack's own errors derive from it
        raise BadEntry(f"entry data of {len(data)} bytes is no msgpack value: {error}") from error
    if type(items) is not tuple or not items or type(items[0]) is not int:
        raise BadEntry("entry data is not an operation batch")
    if items[0] > FORMAT:
        raise NewerFormat(items[0], FORMAT)
    if items[0] != FORMAT or len(items) != 5 or type(items[4]) is not tuple:
        raise BadEntry(f"entry data is no batch of format {FORMAT}")
    return Batch._make(items[1:])


def in_term(term: int, kind: int, payload: bytes) -> Op:
    """Return an operation that applies only if its entry is of this term.

    For what a leader decides by its own clock, the end of a lease and its checkpoints. A proposal
    that waited while leadership changed is forwarded, or proposed again in a later term of the
    same member; by then another leader may have renewed the lease, and the client counts on that.
    """
    return (IN_TERM, term.to_bytes(8, "big") + bytes((kind,)) + payload)


def op_size_bytes(op: Op) -> int:
    """Return an upper bound of the bytes that an operation takes in a batch."""
    if len(op) == 2:
        return 7 + len(op[1])  # array head 1, kind 1, binary head at most 5
    return 21 + len(op[1]) + 4 * len(op[2])  # and text head 5, number 9; UTF-8 takes at most 4


def split(ops: Sequence[Op]) -> Iterator[Sequence[Op]]:
    """Yield consecutive runs of operations that each fit an entry; a larger one comes alone."""
    start = 0
    size_bytes = BATCH_BYTES
    for position, op in enumerate(ops):
        op_bytes = op_size_bytes(op)
        if position > start and (
            size_bytes + op_bytes > ENTRY_BYTES_MAX or position - start == ENTRY_OPS_MAX
        ):
            yield ops[start:position]
            start = position
            size_bytes = BATCH_BYTES
        size_bytes += op_bytes
    if start < len(ops):
        yield ops[start:]
