"""Failpoints: what can be set, where it acts, and that a member without the flag has none."""

from __future__ import annotations

import asyncio
import errno
import random
import re
from pathlib import Path

import pytest

from kvstore.client import Client, OutcomeUnknownError
from kvstore.mvcc.backend_lmdb import LmdbBackend
from kvstore.peer.link import Links
from kvstore.rpc import HttpRequest
from kvstore.server import failpoints
from kvstore.server.config import ServerConfig
from kvstore.server.failpoints import EXIT_PANIC, POINTS, FailpointError, Failpoints
from kvstore.server.member import Member
from kvstore.wal import RealDisk
from kvstore.wal.disk import RealFile
from tests.servers import Kvstore, free_ports


def points() -> Failpoints:
    return Failpoints(random.Random(1))


@pytest.mark.parametrize(
    "action", ["panic", "sleep(5)", "error", "error(ENOSPC)", "return", "10%return", "2*error"]
)
def test_actions_that_exist_are_taken(action: str) -> None:
    points().set("wal.sync.before", action)


@pytest.mark.parametrize(
    ("point", "action"),
    [
        ("wal.sync", "panic"),
        ("wal.sync.before", "explode"),
        ("wal.sync.before", "sleep"),
        ("wal.sync.before", "sleep(soon)"),
        ("wal.sync.before", "error(ENOTHING)"),
        ("wal.sync.after", "return"),
        ("wal.sync.before", ""),
    ],
)
def test_what_does_not_exist_is_refused(point: str, action: str) -> None:
    # A misspelt point that is taken in silence makes a test that tests nothing.
    with pytest.raises(FailpointError):
        points().set(point, action)


def test_a_count_ends_the_action() -> None:
    failing = points()
    failing.set("peer.send", "2*return")
    assert [failing.hit("peer.send") for _ in range(4)] == [True, True, False, False]


def test_a_percentage_acts_in_that_share_of_cases() -> None:
    failing = points()
    failing.set("peer.send", "20%return")
    assert 150 < sum(failing.hit("peer.send") for _ in range(1000)) < 250


def test_the_log_meets_errors_at_each_step_and_other_files_do_not(tmp_path: Path) -> None:
    failing = points()
    disk = failing.disk(RealDisk())
    disk.make_folder(f"{tmp_path}/wal")
    log = disk.open(f"{tmp_path}/wal/1", create=True)
    other = disk.open(f"{tmp_path}/other", create=True)
    failing.set("wal.write.before", "error(ENOSPC)")
    with pytest.raises(OSError, match="failpoint") as caught:
        log.write(0, [b"x"])
    assert caught.value.errno == errno.ENOSPC
    assert log.size() == 0
    failing.set("wal.write.before", "return")
    log.write(0, [b"x"])
    assert log.size() == 0
    failing.clear("wal.write.before")
    failing.set("wal.write.after", "error")
    with pytest.raises(OSError, match="failpoint"):
        log.write(0, [b"x"])
    assert log.size() == 1
    failing.set("wal.sync.before", "error")
    with pytest.raises(OSError, match="failpoint"):
        log.sync()
    other.write(0, [b"y"])
    other.sync()
    failing.set("store.rename.before", "error")
    with pytest.raises(OSError, match="failpoint"):
        disk.rename(f"{tmp_path}/other", f"{tmp_path}/another")
    disk.rename(f"{tmp_path}/wal/1", f"{tmp_path}/wal/2")
    log.close()
    other.close()


def test_over_http_it_is_set_listed_and_cleared() -> None:
    failing = points()

    def ask(method: str, path: str, body: bytes = b"") -> tuple[int, str]:
        answer = failing.handle(HttpRequest(method, path, "", {}, body, ""))
        assert isinstance(answer.body, bytes)
        return answer.status, answer.body.decode()

    status, text = ask("PUT", "/failpoints/peer.send", b"5%return")
    assert status == 200
    assert "peer.send=5%return\n" in text
    assert {line.split("=")[0] for line in text.split()} == set(POINTS)
    assert "peer.send=off\n" in ask("DELETE", "/failpoints/peer.send")[1]
    assert ask("PUT", "/failpoints/nowhere", b"panic")[0] == 400
    assert ask("PUT", "/failpoints/peer.send", b"explode")[0] == 400
    assert ask("POST", "/failpoints/peer.send", b"panic")[0] == 404
    assert ask("GET", "/failpoints")[0] == 200


def config_of(folder: Path, *, enable_failpoints: bool) -> ServerConfig:
    client, peer = (f"http://127.0.0.1:{port}" for port in free_ports(2))
    return ServerConfig(
        data_dir=f"{folder}/m",
        listen_client_urls=client,
        listen_peer_urls=peer,
        enable_failpoints=enable_failpoints,
    ).check()


@pytest.mark.parametrize("enabled", [False, True])
async def test_without_the_flag_no_part_is_wrapped(tmp_path: Path, enabled: bool) -> None:
    # This is what "costs nothing when off" means: the parts' own methods are in the paths.
    member = Member(config_of(tmp_path, enable_failpoints=enabled))
    try:
        await member.start()
        own = {
            "disk": isinstance(member.platform.disk, RealDisk),
            "log file": isinstance(member.wal._file, RealFile),
            "commit": member.backend.commit.__func__ is LmdbBackend.commit
            if hasattr(member.backend.commit, "__func__")
            else False,
            "send": "send" not in vars(member.links) and Links.send is type(member.links).send,
            "receive": "receive" not in vars(member),
            "install": "install" not in vars(member),
        }
    finally:
        await member.stop()
    assert set(own.values()) == {not enabled}, own


@pytest.mark.cluster
async def test_a_member_with_the_flag_dies_at_a_point_and_comes_back(tmp_path: Path) -> None:
    with Kvstore(1, flags=("--enable-failpoints",)) as cluster:
        process = cluster._processes[0]
        with Client(cluster.endpoints) as client:
            client.put(b"k", b"1")
        host, port = cluster.endpoints[0].split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"PUT /failpoints/wal.sync.after HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\npanic"
        )
        assert b"200" in await reader.readline()
        writer.close()

        def put() -> None:
            with Client(cluster.endpoints, timeout_s=1) as client:
                client.put(b"k", b"2")

        with pytest.raises(OutcomeUnknownError):  # it dies before it answers
            await asyncio.to_thread(put)
        assert await asyncio.to_thread(process.wait, 10) == EXIT_PANIC
        cluster._processes.pop(0)
        await asyncio.to_thread(cluster.restart, 0)
        with Client(cluster.endpoints) as client:
            kv = client.get(b"k")
        assert kv is not None
        assert kv.value == b"2"  # it was durable


def test_no_decision_depends_on_the_wall_clock() -> None:
    # A date that is set, forward or back, must not matter; it can only if somebody reads it.
    # Log lines carry dates, the metrics page shows one, and the id of an added member is hashed
    # from one, as etcd's: two members that are added one after the other at the same address must
    # differ.
    sources = Path(failpoints.__file__).parent.parent
    wall = re.compile(r"\btime\.time\b|\btime_ns\b|\bwall_ns\b|\bdatetime\b|\bCLOCK_REALTIME\b")
    readers = {
        str(path.relative_to(sources))
        for part in ("raft", "wal", "mvcc", "lease", "apply", "peer", "rpc", "server", "ports.py")
        for path in ([sources / part] if part.endswith(".py") else (sources / part).rglob("*.py"))
        if wall.search(path.read_text())
    }
    known = ("platform", "peers", "logs", "metrics")
    assert readers <= {"ports.py", *(f"server/{name}.py" for name in known)}, readers
