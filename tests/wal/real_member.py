"""A real member in this process, to be recorded, and what it finds when it starts on an image.

`python -m tests.wal.real_member write FOLDER CLIENT_PORT PEER_PORT PUTS [BUG]` puts keys one after
the other and prints `putting N` and `put N`. BUG plants one of `BUGS`.
`python -m tests.wal.real_member read CLIENT_PORT PEER_PORT` opens the data directories that stdin
names, as a start of the member does, applies what the log holds beyond the store, and answers.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import lmdb

from kvstore.apply.ops import PUT
from kvstore.pb import kv_pb2, rpc_pb2
from kvstore.raft.messages import NORMAL, AppendWork
from kvstore.server import platform, storage
from kvstore.server.config import ServerConfig
from kvstore.server.disk import DiskThread
from kvstore.server.member import Member
from kvstore.server.startup import StartError
from kvstore.wal import Options, disk
from tests.wal.small_member import unsynced
from tests.wal.store_reader import answer

KEY, VALUE = b"key/%06d", b"value %d."


def config(folder: str, client_port: int, peer_port: int) -> ServerConfig:
    # Small everything, so that segments, commits and releases come often.
    platform.Options = partial(Options, segment_bytes=4096, zero_ahead_bytes=0)  # type: ignore[misc,assignment]
    storage.BUFFER_RECORDS = 6
    return ServerConfig(
        name="m1",
        data_dir=folder,
        listen_client_urls=f"http://127.0.0.1:{client_port}",
        listen_peer_urls=f"http://127.0.0.1:{peer_port}",
        snapshot_count=5,
        quota_backend_bytes=16 << 20,
        log_level="error",
    ).check()


def value(number: int) -> bytes:
    return VALUE % number * 40


# --- planted bugs ------------------------------------------------------------------------------


def _no_fdatasync() -> None:
    disk._sync_data = lambda fd: None


def _no_folder_fsync() -> None:
    disk._sync_all = lambda fd: None


def _acknowledge_before_fsync() -> None:
    def save(self: DiskThread, works: list[AppendWork]) -> None:
        self._post(lambda: self._saved(works, 0.0))
        self._wal.save(works)

    DiskThread._save = save  # type: ignore[method-assign]


def _release_ahead_of_store() -> None:
    real = Member._applied

    def applied(self: Member, result: Any) -> None:
        real(self, result)
        self.disk.release(result.index)

    Member._applied = applied  # type: ignore[method-assign]


def _lmdb_without_sync() -> None:
    real: Callable[..., Any] = lmdb.open
    lmdb.open = unsynced(real)  # type: ignore[misc]


BUGS: dict[str, Callable[[], None]] = {
    "no fdatasync": _no_fdatasync,
    "no folder fsync": _no_folder_fsync,
    "acknowledge before fsync": _acknowledge_before_fsync,
    "log released ahead of the store": _release_ahead_of_store,
    "lmdb without sync": _lmdb_without_sync,
}


# --- the two programs --------------------------------------------------------------------------


async def write(settings: ServerConfig, puts: int) -> None:
    member = Member(settings)
    await member.start()
    loop = asyncio.get_running_loop()
    for number in range(1, puts + 1):
        say(f"putting {number}")
        done: asyncio.Future[Any] = loop.create_future()
        put = rpc_pb2.PutRequest(key=KEY % number, value=value(number))
        member.node.propose(PUT, put.SerializeToString(), done.set_result)
        result = await done
        assert not isinstance(result, Exception), result
        say(f"put {number}")
    await member.stop()


def read(folder: str, client_port: int, peer_port: int) -> tuple[int, dict[bytes, bytes], str]:
    member = Member(config(folder, client_port, peer_port))
    try:
        member._open_data(asyncio.run(member._begin()))
    except StartError as error:
        return 0, {}, str(error)
    applied = member.replica.applied.index
    for entry in member.recovered.entries:
        if entry.index > applied and entry.kind == NORMAL:
            member.replica.applier.apply(entry)
    found = member.store.range(rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0"))
    pairs = [kv_pb2.KeyValue.FromString(one) for one in found.kvs]
    member.wal.close()
    member.replica.backend.close()
    return applied, {pair.key: pair.value for pair in pairs}, ""


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


if __name__ == "__main__":
    if sys.argv[1] == "write":
        if bug := sys.argv[6:]:
            BUGS[bug[0]]()
        settings = config(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
        asyncio.run(write(settings, int(sys.argv[5])))
    else:
        # What the reader writes is thrown away.
        _no_fdatasync()
        _no_folder_fsync()
        answer(partial(read, client_port=int(sys.argv[2]), peer_port=int(sys.argv[3])))
