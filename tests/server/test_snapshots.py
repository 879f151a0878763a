"""Receiving a snapshot: every crash point between its steps, and streams that go wrong."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from kvstore.mvcc.backend_lmdb import LmdbBackend
from kvstore.mvcc.marks import AppliedMark, Marks
from kvstore.mvcc.snapshot import snapshot_chunks
from kvstore.peer.codec import decode, encode
from kvstore.peer.link import Endpoint, Links
from kvstore.raft.messages import Configuration, InstallSnapshot, SnapshotMeta
from kvstore.server.cluster import Cluster
from kvstore.server.config import ServerConfig
from kvstore.server.identity import Member
from kvstore.server.platform import RealPlatform
from kvstore.server.replica import map_size_bytes
from kvstore.server.snapshots import STORE_NAME, Incoming, received_path, send, settle
from kvstore.wal import RealDisk

NEW, OLD = 50, 7
META = SnapshotMeta(NEW, 3, Configuration(voters=(1, 2, 3)))
MESSAGE = InstallSnapshot(1, 2, 3, META)


def write_store(path: str, config: ServerConfig, index: int) -> None:
    backend = LmdbBackend(path, map_size_bytes=map_size_bytes(config))
    marks = Marks(AppliedMark(0, 0), -1, -1)
    backend.commit(
        [*marks.advance(AppliedMark(index, 3)), ("key", b"\0" * 17, b"value of %d" % index)]
    )
    backend.close()


def stored_index(path: str, config: ServerConfig) -> int:
    backend = LmdbBackend(path, map_size_bytes=map_size_bytes(config))
    try:
        return Marks.applied_in(backend).index
    finally:
        backend.close()


@pytest.fixture
def config(tmp_path: Path) -> ServerConfig:
    config = ServerConfig(data_dir=str(tmp_path), quota_backend_bytes=1 << 20)
    write_store(f"{tmp_path}/{STORE_NAME}", config, OLD)
    return config


def names(config: ServerConfig) -> set[str]:
    return {name for name in RealDisk().list(config.data_dir) if not name.endswith("-lock")}


def test_a_crash_while_it_arrives_leaves_the_old_store(config: ServerConfig) -> None:
    Path(received_path(config.data_dir, NEW) + ".part").write_bytes(b"half")
    settle(RealDisk(), config, None)
    assert names(config) == {STORE_NAME}
    assert stored_index(f"{config.data_dir}/{STORE_NAME}", config) == OLD


def test_a_crash_before_the_log_marks_it_leaves_the_old_store(config: ServerConfig) -> None:
    # The log still leads from the old store to now; with the new store it would not fit.
    write_store(received_path(config.data_dir, NEW), config, NEW)
    settle(RealDisk(), config, None)
    assert names(config) == {STORE_NAME}
    assert stored_index(f"{config.data_dir}/{STORE_NAME}", config) == OLD


def test_a_crash_after_the_log_marked_it_finishes_the_exchange(config: ServerConfig) -> None:
    # The log begins behind the snapshot now: the old store would have a gap before it.
    write_store(received_path(config.data_dir, NEW), config, NEW)
    settle(RealDisk(), config, META)
    assert names(config) == {STORE_NAME}
    assert stored_index(f"{config.data_dir}/{STORE_NAME}", config) == NEW


def test_a_snapshot_of_another_index_than_the_marked_is_dropped(config: ServerConfig) -> None:
    # A second snapshot had arrived and was not marked when the member died.
    write_store(f"{config.data_dir}/{STORE_NAME}", config, NEW)
    write_store(received_path(config.data_dir, NEW + 9), config, NEW + 9)
    settle(RealDisk(), config, META)
    assert names(config) == {STORE_NAME}
    assert stored_index(f"{config.data_dir}/{STORE_NAME}", config) == NEW


def test_a_start_long_after_changes_nothing(config: ServerConfig) -> None:
    write_store(f"{config.data_dir}/{STORE_NAME}", config, NEW + 100)
    settle(RealDisk(), config, META)
    assert stored_index(f"{config.data_dir}/{STORE_NAME}", config) == NEW + 100


class Installer:
    """Takes what is installed; `wants` is the core's opinion."""

    def __init__(self, *, wants: bool = True) -> None:
        self.installed: list[int] = []
        self._wants = wants

    def wants_snapshot(self, meta: SnapshotMeta) -> bool:
        return self._wants

    async def install(self, message: InstallSnapshot) -> None:
        self.installed.append(message.snapshot.index)


class Transfer:
    """An Incoming fed by hand, and how it answered."""

    def __init__(self, config: ServerConfig, installer: Installer) -> None:
        self.answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.paused: list[bool] = []
        self.incoming = Incoming(
            installer,
            RealPlatform(),
            config,
            pause=self.paused.append,
            answer=self.answer.set_result,
        )

    async def ended(self) -> str:
        async with asyncio.timeout(10):
            return await self.answer


@pytest.fixture
def chunks(tmp_path: Path, config: ServerConfig) -> list[bytes]:
    path = str(tmp_path / "source")
    write_store(path, config, NEW)
    backend = LmdbBackend(path, map_size_bytes=map_size_bytes(config))
    view = backend.view()
    found = list(snapshot_chunks(view))
    view.close()
    backend.close()
    for leftover in tmp_path.glob("source*"):
        leftover.unlink()
    return found


async def test_a_whole_stream_is_installed(config: ServerConfig, chunks: list[bytes]) -> None:
    installer = Installer()
    transfer = Transfer(config, installer)
    for payload in (encode(MESSAGE), *chunks, b""):
        transfer.incoming.frame(payload)
    assert await transfer.ended() == ""
    assert installer.installed == [NEW]
    assert stored_index(received_path(config.data_dir, NEW), config) == NEW


async def test_a_stream_that_ends_early_installs_nothing(
    config: ServerConfig, chunks: list[bytes]
) -> None:
    for count in range(len(chunks) + 1):
        installer = Installer()
        transfer = Transfer(config, installer)
        for payload in [encode(MESSAGE), *chunks][:count]:
            transfer.incoming.frame(payload)
        transfer.incoming.closed()
        assert "ended" in await transfer.ended()
        assert installer.installed == []
    assert names(config) == {STORE_NAME}


@pytest.mark.parametrize("position", [0, 1, 2])
async def test_a_damaged_stream_installs_nothing(
    config: ServerConfig, chunks: list[bytes], position: int
) -> None:
    frames = [encode(MESSAGE), *chunks, b""]
    broken = frames[position]
    frames[position] = broken[:-1] + bytes([broken[-1] ^ 1])
    installer = Installer()
    transfer = Transfer(config, installer)
    for payload in frames:
        transfer.incoming.frame(payload)
    assert await transfer.ended()
    assert installer.installed == []
    assert names(config) == {STORE_NAME}


async def test_a_missing_chunk_installs_nothing(config: ServerConfig, chunks: list[bytes]) -> None:
    installer = Installer()
    transfer = Transfer(config, installer)
    for payload in (encode(MESSAGE), *chunks[:-1], b""):
        transfer.incoming.frame(payload)
    assert await transfer.ended()
    assert installer.installed == []


async def test_an_unwanted_snapshot_is_answered_and_not_received(config: ServerConfig) -> None:
    # The member has caught up from the log meanwhile.
    transfer = Transfer(config, Installer(wants=False))
    transfer.incoming.frame(encode(MESSAGE))
    assert await transfer.ended() == ""
    assert names(config) == {STORE_NAME}


class Receiver:
    """The other end of a link; takes one snapshot."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def receive(self, sender: int, payloads: list[bytes]) -> None:
        raise AssertionError("only a snapshot is sent")

    def describe(self, answer: Callable[[bytes], None]) -> None:
        raise AssertionError("nobody asks")

    def snapshot_opened(
        self, sender: int, pause: Callable[[bool], None], answer: Callable[[str], None]
    ) -> Receiver:
        self.answer = answer
        return self

    def frame(self, payload: bytes) -> None:
        self.frames.append(payload)
        if not payload:
            self.answer("")

    def closed(self) -> None:
        pass


def links(member: int, receiver: Receiver) -> Links:
    return Links(
        9, member, receiver, random.Random(member), on_lost=lambda *_: None, on_removed=lambda: None
    )


async def test_what_is_sent_names_the_members_as_of_its_own_index(config: ServerConfig) -> None:
    # The request names an index and a configuration of the core's; what is streamed is a commit
    # of its own. A member with the configuration of another moment would count wrong majorities.
    path = f"{config.data_dir}/{STORE_NAME}"
    backend = LmdbBackend(path, map_size_bytes=map_size_bytes(config))
    members = {number: Member(number, "", (f"http://h:{number}",)) for number in (1, 2, 4)}
    members[5] = Member(5, "", ("http://h:5",), (), True)
    backend.commit([Cluster(9, members, (3,)).change()])
    receiver = Receiver()
    here, there = links(1, Receiver()), links(2, receiver)
    port = await there.listen("127.0.0.1", 0)
    here.set_peers({2: Endpoint("127.0.0.1", port)})
    try:
        await send(backend, here, MESSAGE)
    finally:
        await here.close()
        await there.close()
        backend.close()
    message = decode(receiver.frames[0])
    assert isinstance(message, InstallSnapshot)
    assert message.snapshot == SnapshotMeta(
        OLD, 3, Configuration(voters=(1, 2, 4), learners=(5,), removed=(3,))
    )
