"""What keeps a member from starting, or ends it, and what it says then."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import lmdb
import pytest

from kvstore.cli.wall import WallClock, check_against
from kvstore.client import Client, KvError
from kvstore.mvcc.backend_lmdb import LmdbBackend
from kvstore.mvcc.errors import CorruptStore
from kvstore.server.replica import INCARNATION_NAME, next_incarnation
from kvstore.server.startup import StartError, check_folder, explain_folder, is_full
from kvstore.wal import RealDisk
from tests.servers import Kvstore, free_ports, is_healthy

SERVE = [sys.executable, "-m", "kvstore.cli.kvstore", "serve", "--log-level", "error"]
FULL_S = 60.0


class Clock:
    """A clock to set."""

    def __init__(self) -> None:
        self.monotonic = 0
        self.wall = 1_000_000_000_000_000_000

    def monotonic_ns(self) -> int:
        return self.monotonic

    def wall_ns(self) -> int:
        return self.wall

    def pass_s(self, seconds: float, jump_s: float = 0.0) -> None:
        self.monotonic += int(seconds * 1e9)
        self.wall += int((seconds + jump_s) * 1e9)


# the data directory


def test_the_data_directory_of_etcd_is_not_taken(tmp_path: Path) -> None:
    # It would look like an empty cluster, and etcd could not use the folder any more.
    check_folder(RealDisk(), str(tmp_path))
    (tmp_path / "member" / "wal").mkdir(parents=True)
    with pytest.raises(StartError, match="data directory of an etcd member"):
        check_folder(RealDisk(), str(tmp_path))


def test_starts_are_counted(tmp_path: Path) -> None:
    disk = RealDisk()
    assert next_incarnation(disk, str(tmp_path), first=True) == 1
    assert next_incarnation(disk, str(tmp_path), first=False) == 2
    assert next_incarnation(disk, str(tmp_path), first=True) == 3


@pytest.mark.parametrize("content", [None, b"", b"x", b"-1", b"1 2"])
def test_a_lost_count_of_starts_is_not_begun_again(tmp_path: Path, content: bytes | None) -> None:
    # Under a number used before, an old entry of the log would answer a new client's request.
    path = tmp_path / INCARNATION_NAME
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StartError, match="write a number into the file"):
        next_incarnation(RealDisk(), str(tmp_path), first=False)
    path.write_bytes(b"1000000\n".strip())
    assert next_incarnation(RealDisk(), str(tmp_path), first=False) == 1_000_001


@pytest.fixture
def store(tmp_path: Path) -> str:
    path = str(tmp_path / "store.lmdb")
    backend = LmdbBackend(path, map_size_bytes=1 << 28)
    backend.commit([("key", b"k%06d" % number, bytes(3000)) for number in range(300)])
    backend.close()
    return path


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_a_store_that_was_cut_is_refused(store: str, kept: float) -> None:
    # Else the first look behind the end of the file kills the process with SIGBUS.
    os.truncate(store, int(os.path.getsize(store) * kept))
    with pytest.raises(CorruptStore, match="was cut or copied in part"):
        LmdbBackend(store, map_size_bytes=1 << 28)


def test_a_store_that_ends_early_by_right_is_opened(store: str) -> None:
    # A transaction that takes pages and gives them back leaves the file shorter than its count.
    backend = LmdbBackend(store, map_size_bytes=1 << 28)
    backend.commit([("key", b"k%06d" % number, None) for number in range(299, 30, -1)])
    backend.close()
    environment = lmdb.open(store, subdir=False, max_dbs=8)
    pages = environment.info()["last_pgno"] + 1
    page_bytes = environment.stat()["psize"]
    environment.close()
    os.truncate(store, (pages - 20) * page_bytes)
    backend = LmdbBackend(store, map_size_bytes=1 << 28)
    assert len(list(backend.scan("key"))) == 31
    backend.close()


@pytest.mark.cluster
def test_a_damaged_log_is_refused_with_advice() -> None:
    with Kvstore(1) as cluster:
        with Client(cluster.endpoints) as client:
            client.put(b"k", b"v")
        cluster.terminate(0)
        [segment] = (cluster.folder / "e1" / "wal").glob("*.wal")
        with segment.open("r+b") as file:
            file.write(b"garbage")
        with pytest.raises(AssertionError) as refused:
            cluster.restart(0)
    assert "the header of the segment is damaged" in str(refused.value)
    assert "restore the last backup" in str(refused.value)
    assert "Traceback" not in str(refused.value)


# another cluster


@pytest.mark.cluster
def test_the_data_of_another_cluster_is_refused() -> None:
    with Kvstore(1) as cluster:
        cluster.terminate(0)
        cluster.flags = ("--initial-cluster-token", "other")
        with pytest.raises(AssertionError) as refused:
            cluster.restart(0)
    assert "belongs to cluster" in str(refused.value)
    assert "check name, initial cluster and cluster token" in str(refused.value)


@pytest.mark.cluster
def test_a_member_of_another_cluster_is_told_so(tmp_path: Path) -> None:
    # Two clusters that took each other's ports must not mix, and the log must say why nothing
    # happens.
    with Kvstore(1) as cluster:
        client, peer = free_ports(2)
        ours = f"http://127.0.0.1:{peer}"
        process = subprocess.Popen(
            [
                *SERVE, "--log-level", "warn", "--name", "b", "--data-dir", str(tmp_path / "b"),
                "--listen-client-urls", f"http://127.0.0.1:{client}", "--listen-peer-urls", ours,
                "--initial-cluster", f"b={ours},e1={cluster.peer_urls[0]}",
            ],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            assert "cluster ID mismatch" in line
            assert "compare --initial-cluster and --initial-cluster-token" in line
            assert is_healthy(cluster.endpoints[0])
        finally:
            process.terminate()
            process.communicate(timeout=20)


# the clock


def test_a_jump_of_the_clock_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    wall = WallClock(clock)
    caplog.set_level(logging.WARNING)
    for _ in range(100):
        clock.pass_s(0.1, jump_s=0.02)  # slewed: 2 s in all, but never a jump
        assert wall.check() == 0.0
    assert not caplog.records
    clock.pass_s(0.1, jump_s=-3600)
    assert wall.check() == -3600.0
    assert "jumped by -3600.0 s" in caplog.text
    assert wall.check() == 0.0
    assert len(caplog.records) == 1


def test_a_clock_behind_the_last_start_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    clock = Clock()
    path = tmp_path / "incarnation"
    assert check_against(str(path), clock) == 0.0
    path.write_bytes(b"1")
    for written_s, behind_s in ((clock.wall // 10**9 + 30, 0.0), (clock.wall // 10**9 + 300, 300)):
        os.utime(path, (written_s, written_s))
        assert check_against(str(path), clock) == behind_s
    assert "the system clock is 300 s behind this member's last start" in caplog.text


# the disk


def test_a_full_disk_is_told_apart_from_a_broken_one(tmp_path: Path) -> None:
    folder = str(tmp_path)
    assert is_full(folder, OSError(errno.ENOSPC, "x"))
    assert is_full(folder, OSError(errno.EDQUOT, "x"))
    assert not is_full(folder, OSError(errno.EIO, "x"))
    assert not is_full(folder, lmdb.Error("x"))  # this disk has room
    assert "free space" in str(explain_folder(folder, OSError(errno.EDQUOT, "x")))


@pytest.fixture
def small_disk(tmp_path: Path) -> list[str]:
    """Return a command's beginning that runs it with 160 MiB of room in tmp_path/small.

    The file system exists only for that command, in a mount namespace of its own.
    """
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("mounting a small file system needs root and unshare")
    folder = tmp_path / "small"
    folder.mkdir()
    script = f"mount -t tmpfs -o size=$0 none '{folder}' && exec \"$@\""
    return ["unshare", "-m", "sh", "-c", script]


@pytest.mark.root
def test_a_member_without_room_does_not_start(tmp_path: Path, small_disk: list[str]) -> None:
    client, peer = free_ports(2)
    ended = subprocess.run(
        [
            *small_disk, "3m", *SERVE, "--data-dir", str(tmp_path / "small" / "d"),
            "--listen-client-urls", f"http://127.0.0.1:{client}",
            "--listen-peer-urls", f"http://127.0.0.1:{peer}",
        ],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert "the disk is full; free space and start again" in ended.stderr


@pytest.mark.root
@pytest.mark.cluster
def test_a_member_whose_disk_fills_ends_with_one_clear_line(
    tmp_path: Path, small_disk: list[str]
) -> None:
    # LMDB calls it an input/output error, which sends people to look for a broken disk.
    client, peer = free_ports(2)
    process = subprocess.Popen(
        [
            *small_disk, "160m", *SERVE, "--data-dir", str(tmp_path / "small" / "d"),
            "--listen-client-urls", f"http://127.0.0.1:{client}",
            "--listen-peer-urls", f"http://127.0.0.1:{peer}",
        ],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        with Client([f"127.0.0.1:{client}"], timeout_s=5) as connection:
            for number in range(150):
                try:
                    connection.put(b"k%d" % number, bytes(1_000_000))
                except KvError:
                    if process.poll() is not None:
                        break
        output = process.communicate(timeout=FULL_S)[1]
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == 74
    [line] = output.splitlines()
    assert re.match(r"kvstore: fatal: the disk is full \(free space and", line)
