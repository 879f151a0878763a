"""Requests and the (hash, compact revision) that etcd 3.4.23 gave for them.

`python -m tests.mvcc.hash_script` runs the requests against the installed etcd and prints the
numbers.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from kvstore.pb import rpc_pb2


def _put(key: bytes, value: bytes = b"", **options: Any) -> tuple[str, Any]:
    return "put", rpc_pb2.PutRequest(key=key, value=value, **options)


def _delete(key: bytes, end: bytes = b"") -> tuple[str, Any]:
    return "delete_range", rpc_pb2.DeleteRangeRequest(key=key, range_end=end)


def _hash(revision: int = 0) -> tuple[str, Any]:
    return "hash", revision


REQUESTS: list[tuple[str, Any]] = [
    _hash(),
    _put(b"a", b"1"),  # 2
    _hash(),
    _put(b"a", b"2"),  # 3
    _put(b"b", b"x" * 300),  # 4
    _put(b"k" * 200, b""),  # 5
    _hash(),
    _hash(3),
    _delete(b"a", b"c"),  # 6
    _hash(),
    (
        "txn",
        rpc_pb2.TxnRequest(
            success=[
                rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"t%d" % n, value=b"v"))
                for n in range(3)
            ]
        ),
    ),  # 7
    _put(b"a", b"again"),  # 8
    _hash(),
    ("compact", 6),  # two tombstones exactly there
    _hash(),
    _hash(7),
    _put(b"t1", b"w"),  # 9: a survivor of the compaction is superseded above it
    _delete(b"k" * 200),  # 10
    _hash(),
    _hash(8),
    ("compact", 8),
    _hash(),
    *[_put(b"hot", b"%d" % n) for n in range(20)],  # 11 to 30
    ("compact", 25),
    _hash(),
    _hash(28),
    _delete(b"\0", b"\0"),  # 31: no key lives
    _hash(),
    ("compact", 30),
    _hash(),
    ("compact", 31),
    _hash(0),
    _put(b"new", b"life"),
    _hash(),
]

VECTORS: list[tuple[int, int]] = [
    (1084519789, -1),
    (2587454935, -1),
    (2534922276, -1),
    (535221974, -1),
    (526228341, -1),
    (3934208053, -1),
    (1558285272, 6),
    (2328747088, 6),
    (4098213841, 6),
    (1558285272, 6),
    (2890153664, 8),
    (2947298659, 25),
    (525209792, 25),
    (2163525198, 25),
    (1631466551, 30),
    (1084519789, 31),
    (426629131, 31),
]


def main() -> None:
    """Print the vectors of the installed etcd."""
    from tests.mvcc.etcd import Etcd  # noqa: PLC0415 - grpc is needed for this alone

    with tempfile.TemporaryDirectory() as folder:
        etcd = Etcd(Path(folder))
        for name, request in REQUESTS:
            if name == "hash":
                found = etcd.call(rpc_pb2.HashKVRequest(revision=request))
                print(f"    ({found.hash}, {found.compact_revision}),")  # noqa: T201 - its output
            elif name == "compact":
                etcd.call(rpc_pb2.CompactionRequest(revision=request, physical=True))
            else:
                etcd.call(request)
        etcd.close()


if __name__ == "__main__":
    main()
