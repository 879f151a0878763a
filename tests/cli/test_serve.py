"""`kvstore serve` and `kvstore up` as an operator meets them: starting, refusing, stopping."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore.client import Client
from tests.servers import Kvstore, free_base_port, free_ports

pytestmark = pytest.mark.cluster

COMMAND = [sys.executable, "-m", "kvstore.cli.kvstore"]


def serve(folder: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a member that is expected to refuse, and return how it ended."""
    client, peer = free_ports(2)
    return run(
        "--data-dir",
        str(folder / "m"),
        "--listen-client-urls",
        f"http://127.0.0.1:{client}",
        "--listen-peer-urls",
        f"http://127.0.0.1:{peer}",
        *flags,
        **environment,
    )


def run(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a member with these flags alone, which is expected to refuse."""
    return subprocess.run(
        [*COMMAND, "serve", *flags],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={"PATH": "/usr/bin:/bin", **environment},
    )


@pytest.mark.parametrize(
    ("flags", "advice"),
    [
        (["--data-dri", "x"], "--data-dir"),
        (["--heartbeat-interval", "soon"], "not a valid integer"),
        (["--election-timeout", "100"], "at least 5 times"),
        (["--initial-cluster-state", "old"], "'new', 'existing'"),
        (["--log-level", "loud"], "debug"),
        (["--listen-client-urls", "127.0.0.1:2379"], "http://HOST:PORT"),
        (["--listen-client-urls", "https://127.0.0.1:2379"], "--cert-file"),
        (["--client-cert-auth"], "--trusted-ca-file"),
        (["--initial-cluster", "a=http://127.0.0.1:1"], "add default="),
        (["--max-txn-ops", "0"], "at least 1"),
        (["--advertise-client-urls", "http://0.0.0.0:1"], "cannot be reached"),
        (["--cert-file", "no"], "go together"),
    ],
)
def test_a_wrong_flag_is_refused_with_advice(tmp_path: Path, flags: list[str], advice: str) -> None:
    # A flag that is silently ignored is found out in production.
    ended = serve(tmp_path, *flags)
    assert ended.returncode == 2, ended.stderr
    assert advice in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_environment_is_read_as_etcd_reads_it(tmp_path: Path) -> None:
    ended = serve(tmp_path, ETCD_ELECTION_TIMEOUT="100")
    assert ended.returncode == 2
    assert "--election-timeout (100)" in ended.stderr


def test_a_config_file_with_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("data-dri: /tmp/x\n")
    ended = run("--config-file", str(config))
    assert ended.returncode == 1
    assert "did you mean data-dir?" in ended.stderr


def test_a_taken_port_is_named_with_its_holder(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        ended = serve(tmp_path, "--listen-client-urls", f"http://127.0.0.1:{port}")
    assert ended.returncode == 1
    assert f"127.0.0.1:{port} is taken by pid" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_data_directory_of_another_member_is_refused(tmp_path: Path) -> None:
    # Two members with one identity would vote twice.
    with Kvstore(1) as cluster:
        cluster.terminate(0)
        ended = serve(tmp_path, "--data-dir", str(cluster.folder / "e1"))
    assert ended.returncode == 1
    assert "member" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_data_directory_in_use_is_refused(tmp_path: Path) -> None:
    with Kvstore(1) as cluster:
        other = serve(
            tmp_path,
            "--data-dir",
            str(cluster.folder / "e1"),
            "--name",
            "e1",
            "--listen-peer-urls",
            cluster.peer_urls[0],
            "--initial-cluster",
            f"e1={cluster.peer_urls[0]}",
        )
    assert other.returncode == 1
    assert "Traceback" not in other.stderr


def test_a_data_directory_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    blocker = tmp_path / "m"
    blocker.write_text("a file")
    ended = serve(tmp_path)
    assert ended.returncode == 1
    assert "a file is in the way" in ended.stderr


def test_a_store_without_its_log_is_refused(tmp_path: Path) -> None:
    # Starting over with an empty log would forget the vote of this term.
    with Kvstore(1) as cluster:
        cluster.terminate(0)
        folder = cluster.folder / "e1"
        (folder / "wal").rename(folder / "gone")
        ended = serve(
            tmp_path,
            "--data-dir",
            str(folder),
            "--name",
            "e1",
            "--listen-peer-urls",
            cluster.peer_urls[0],
            "--initial-cluster",
            f"e1={cluster.peer_urls[0]}",
        )
    assert ended.returncode == 1
    assert "there is a store but no log" in ended.stderr


def test_sigterm_stops_a_member_cleanly_and_keeps_its_data() -> None:
    with Kvstore(1) as cluster:
        with Client(cluster.endpoints) as client:
            client.put(b"k", b"v")
        assert cluster.terminate(0) == 0
        cluster.restart(0)
        with Client(cluster.endpoints) as client:
            kv = client.get(b"k")
        assert kv is not None
        assert kv.value == b"v"


@pytest.fixture
def local_cluster(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    port = free_base_port()
    process = subprocess.Popen(
        [
            *COMMAND,
            "up",
            "--data-dir",
            str(tmp_path / "data"),
            "--client-port",
            str(port),
            "--no-ui",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process, port
    process.kill()
    process.communicate()


def test_up_says_ready_serves_and_stops_on_ctrl_c(
    local_cluster: tuple[subprocess.Popen[str], int],
) -> None:
    # The first thing a new user does.
    process, port = local_cluster
    assert process.stdout is not None
    lines = []
    while not lines or lines[-1] != "ready\n":
        lines.append(process.stdout.readline())
        assert lines[-1], f"ended before it was ready: {lines}"
    endpoints = [f"127.0.0.1:{port + offset}" for offset in (0, 20_000, 30_000)]
    for endpoint in endpoints:
        with Client([endpoint]) as client:
            client.put(b"from", endpoint.encode())
            assert len(client.member_list()) == 3
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 0
    for endpoint in endpoints:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(endpoint.split(":")[1]))) != 0


def test_up_refuses_ports_that_do_not_fit() -> None:
    ended = subprocess.run(
        [*COMMAND, "up", "--client-port", "60000"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 2
    assert "choose at most" in ended.stderr


def test_failpoints_in_the_environment_need_the_flag(tmp_path: Path) -> None:
    # Ignored in silence, a test that sets them would test nothing.
    refused = serve(tmp_path, KVSTORE_FAILPOINTS="wal.sync.before=panic")
    assert refused.returncode == 1
    assert "--enable-failpoints" in refused.stderr
    misspelt = serve(tmp_path, "--enable-failpoints", KVSTORE_FAILPOINTS="wal.sink=panic")
    assert misspelt.returncode == 1
    assert "no point 'wal.sink'" in misspelt.stderr
