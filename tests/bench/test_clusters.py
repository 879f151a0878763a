"""The starter of local clusters, on a real etcd."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from bench.clusters import (
    COMPILED,
    ETCD,
    KINDS,
    Cluster,
    choose_ports,
    python,
    shown,
    unary,
    wait_until,
)
from bench.messages import PUT, RANGE, put, range_, range_reply
from tests.compat.conftest import need

pytestmark = [pytest.mark.etcd, pytest.mark.cluster]

STARTS_AND_WAITS = """
import sys
from bench.clusters import Cluster
with Cluster("etcd", data_root=sys.argv[1]) as cluster:
    print(*[member.pid for member in cluster.members], flush=True)
    sys.stdin.read()
"""


def test_a_cluster_serves_freezes_and_loses_a_leader() -> None:
    need("etcd")
    with Cluster(ETCD, ports=choose_ports(3)) as cluster:
        leader = cluster.leader()
        unary(leader.target, PUT, put(b"k", b"v"))
        revision = cluster.revision()

        cluster.freeze()
        states = {psutil.Process(member.pid).status() for member in cluster.members}
        cluster.thaw()
        assert states == {psutil.STATUS_STOPPED}

        leader = cluster.leader()
        term = cluster.term()
        leader.kill()
        other = cluster.leader()
        assert other is not leader
        assert cluster.term() > term

        cluster.freeze()  # one that is dead does not hold it up
        leader.start()
        cluster.thaw()
        reply = range_reply(unary(leader.target, RANGE, range_(b"k")))
        assert reply.pairs == [(b"k", b"v")]
        assert reply.revision == revision
        folder = cluster.folder
    assert not folder.exists()


def test_members_do_not_outlive_a_benchmark_that_is_killed(tmp_path: object) -> None:
    # Orphans would take processor time from every later measurement on the machine.
    need("etcd")
    owner = subprocess.Popen(
        [sys.executable, "-c", STARTS_AND_WAITS, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert owner.stdout is not None
    assert owner.stdin is not None
    pids = [int(word) for word in owner.stdout.readline().split()]
    assert len(pids) == 3
    try:
        owner.kill()
        owner.wait()
        wait_until(lambda: not any(map(running, pids)), 10.0, "the end of the members")
    finally:
        owner.stdin.close()
        owner.stdout.close()
        for pid in filter(running, pids):
            os.kill(pid, signal.SIGKILL)


def running(pid: int) -> bool:
    """Tell whether the process exists and has not ended."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("kind", [*KINDS, COMPILED])
def test_commands_are_shown_without_the_paths_of_this_machine(kind: str) -> None:
    text = shown([*python(kind), "-m", "bench.program"])

    assert text.endswith("-m bench.program")
    assert not [word for word in text.split() if word.startswith("/") or "=/" in word]
    assert ("PYTHONPATH=build/compiled python" in text) is (kind == COMPILED)
