"""Receiving a snapshot: every crash point between its steps, and streams that go wrong."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NoReturn

import google_crc32c
import msgpack
import pytest

from kvstore.mvcc.backend_lmdb import LmdbBackend
from kvstore.mvcc.marks import AppliedMark, Marks
from kvstore.mvcc.snapshot import snapshot_chunks
from kvstore.peer.codec import decode, encode
from kvstore.peer.link import Endpoint, Links
from kvstore.raft.messages import Configuration, InstallSnapshot, SnapshotMeta
from kvstore.server.cluster import Cluster
from kvstore.server.config import ServerConfig
from kvstore.server.identity import Member as Identity
from kvstore.server.member import Member
from kvstore.server.platform import RealPlatform
from kvstore.server.replica import map_size_bytes
from kvstore.server.snapshots import (
    STORE_NAME,
    Incoming,
    SnapshotRefused,
    received_path,
    send,
    settle,
)
from kvstore.wal import RealDisk
from tests.servers import free_ports

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
    """Takes what is installed; `wants` is the core's opinion, `refusal` what stands against it."""

    def __init__(
        self, *, wants: bool = True, takes: bool = True, refusal: Exception | None = None
    ) -> None:
        self.installed: list[int] = []
        self.receiving: set[int] = set()
        self.saved_s = (0.0, 0.0)
        self._wants = wants
        self._takes = takes
        self._refusal = refusal

    def wants_snapshot(self, meta: SnapshotMeta) -> bool:
        return self._wants

    def snapshot_saved(self, save_s: float, fsync_s: float) -> None:
        self.saved_s = (save_s, fsync_s)

    async def install(self, message: InstallSnapshot) -> bool:
        if self._refusal is not None:
            raise self._refusal
        if self._takes:
            self.installed.append(message.snapshot.index)
        return self._takes


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
    save_s, fsync_s = installer.saved_s
    assert save_s > fsync_s > 0
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


async def test_a_snapshot_that_is_turned_away_leaves_no_file(
    config: ServerConfig, chunks: list[bytes]
) -> None:
    # As large as the store, it stayed until the next start, and every attempt left another.
    other = InstallSnapshot(1, 2, 3, SnapshotMeta(NEW + 1, 3, META.configuration))
    for message, installer in (
        (MESSAGE, Installer(takes=False)),
        (MESSAGE, Installer(refusal=SnapshotRefused("it is from a leader of an earlier term"))),
        (other, Installer()),
    ):
        transfer = Transfer(config, installer)
        for payload in (encode(message), *chunks, b""):
            transfer.incoming.frame(payload)
        await transfer.ended()
        assert installer.installed == []
        assert names(config) == {STORE_NAME}


async def test_one_snapshot_of_an_entry_is_received_at_a_time(
    config: ServerConfig, chunks: list[bytes]
) -> None:
    # Both were built in one file: the second removed it, and neither could be used.
    installer = Installer()
    first, second = Transfer(config, installer), Transfer(config, installer)
    for transfer in (first, second):
        for payload in (encode(MESSAGE), *chunks, b""):
            transfer.incoming.frame(payload)
    assert "being received already" in await second.ended()
    assert await first.ended() == ""
    assert installer.installed == [NEW]
    third = Transfer(config, installer)
    for payload in (encode(MESSAGE), *chunks, b""):
        third.incoming.frame(payload)
    assert await third.ended() == ""


async def test_what_the_store_cannot_take_is_a_refusal(config: ServerConfig) -> None:
    # The checksum is right and the chunk is not: a sender's bug is no reason to end.
    for fields in ([1, "key", [b"odd"]], [1, "key", [1, 2]], [0], {}, [2, 1], [7]):
        payload = msgpack.packb(fields)
        chunk = google_crc32c.value(payload).to_bytes(4, "big") + payload
        head = msgpack.packb([0, 1])
        transfer = Transfer(config, Installer())
        transfer.incoming.frame(encode(MESSAGE))
        transfer.incoming.frame(google_crc32c.value(head).to_bytes(4, "big") + head)
        transfer.incoming.frame(chunk)
        assert "snapshot chunk" in await transfer.ended()
        assert names(config) == {STORE_NAME}


class EndedError(Exception):
    """The member would have ended its process."""


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[tuple[Member, list[BaseException]]]:
    """A member of three that hears nobody, and the errors that would have ended it."""
    platform = RealPlatform()
    fatal: list[BaseException] = []

    def end(error: BaseException, *, what: str = "") -> NoReturn:
        fatal.append(error)
        raise EndedError(what) from error

    platform.fatal = end
    ports = free_ports(4)
    own = f"http://127.0.0.1:{ports[1]}"
    member = Member(
        ServerConfig(
            name="a",
            data_dir=str(tmp_path / "member"),
            listen_client_urls=f"http://127.0.0.1:{ports[0]}",
            listen_peer_urls=own,
            initial_advertise_peer_urls=own,
            initial_cluster=f"a={own},b=http://127.0.0.1:{ports[2]},c=http://127.0.0.1:{ports[3]}",
            quota_backend_bytes=1 << 20,
        ).check(),
        platform,
    )
    await member.start()
    try:
        yield member, fatal
    finally:
        try:
            await member.stop()
        except EndedError:
            # Part of it follows the new state: its store refuses to commit, and the rest of
            # `stop` did not run.
            await member.links.close()
            member.disk.close()


async def receive(member: Member, tmp_path: Path) -> tuple[Incoming, asyncio.Future[str]]:
    """Let the member receive a snapshot of its own members, further in the log."""
    path = str(tmp_path / "source")
    backend = LmdbBackend(path, map_size_bytes=map_size_bytes(member.config))
    marks = Marks(AppliedMark(0, 0), -1, -1)
    backend.commit([*marks.advance(AppliedMark(NEW, 3)), member.cluster.change()])
    view = backend.view()
    answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    peer = next(each.id for each in member.cluster.list_plain() if each.id != member.id)
    sink = member.snapshot_opened(peer, lambda _: None, answer.set_result)
    assert isinstance(sink, Incoming)
    meta = SnapshotMeta(NEW, 3, member.cluster.configuration())
    sink.frame(encode(InstallSnapshot(peer, member.id, 3, meta)))
    for chunk in snapshot_chunks(view):
        sink.frame(chunk)
    sink.frame(b"")
    view.close()
    backend.close()
    return sink, answer


async def test_a_member_goes_on_from_a_snapshot(
    real: tuple[Member, list[BaseException]], tmp_path: Path
) -> None:
    member, fatal = real
    _, answer = await receive(member, tmp_path)
    async with asyncio.timeout(10):
        assert await answer == ""
    assert member.node.applied_index == NEW
    assert member.snapshots_installed == 1
    assert fatal == []


@pytest.mark.parametrize(
    ("part", "method"),
    [
        (None, "wants_snapshot"),  # in the task that receives
        pytest.param("raft", "step", marks=pytest.mark.pure_python),  # in the core
        ("peers", "refresh"),  # between the old state and the new one
        pytest.param("node", "installed", marks=pytest.mark.pure_python),
    ],
)
async def test_a_bug_while_a_snapshot_is_taken_ends_the_member(
    real: tuple[Member, list[BaseException]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: str | None,
    method: str,
) -> None:
    # The event loop reported it and the member went on with a core or a state that is wrong. A
    # ValueError was even taken for a broken stream.
    member, fatal = real
    bug = ValueError("a bug")

    def fail(*_: object) -> None:
        raise bug

    monkeypatch.setattr(member if part is None else getattr(member, part), method, fail)
    sink, answer = await receive(member, tmp_path)
    async with asyncio.timeout(10):
        await asyncio.wait([sink.task])
    await asyncio.sleep(0)  # the task's callbacks run in the next turn
    assert fatal
    assert fatal[0] is bug
    assert not answer.done()
    monkeypatch.undo()


async def test_a_member_can_stop_while_it_receives_a_snapshot(
    real: tuple[Member, list[BaseException]], tmp_path: Path
) -> None:
    member, fatal = real
    sink, answer = await receive(member, tmp_path)
    async with asyncio.timeout(10):
        while not member.receiving:  # noqa: ASYNC110 (nothing tells; it is the task's next turn)
            await asyncio.sleep(0)
    await member.stop()
    assert sink.task.done()
    assert not answer.done()
    assert fatal == []
    leftovers = {name for name in names(member.config) if name.startswith("snapshot-")}
    assert leftovers == set()


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
        9,
        member,
        receiver,
        random.Random(member),
        on_lost=lambda *_: None,
        on_removed=lambda _: None,
    )


async def test_what_is_sent_names_the_members_as_of_its_own_index(config: ServerConfig) -> None:
    # The request names an index and a configuration of the core's; what is streamed is a commit
    # of its own. A member with the configuration of another moment would count wrong majorities.
    path = f"{config.data_dir}/{STORE_NAME}"
    backend = LmdbBackend(path, map_size_bytes=map_size_bytes(config))
    members = {number: Identity(number, "", (f"http://h:{number}",)) for number in (1, 2, 4)}
    members[5] = Identity(5, "", ("http://h:5",), (), True)
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
