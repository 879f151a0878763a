"""The pytest plugin as its users meet it: pytest runs of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]


@pytest.fixture
def inner(pytester: pytest.Pytester) -> pytest.Pytester:
    """A user's folder: pytest is a process of its own there, as its plugins are loaded anew."""
    pytester.makeini(
        "[pytest]\naddopts = -p no:cacheprovider -p no:asyncio\nfilterwarnings = error\n"
    )
    return pytester


def run(inner: pytest.Pytester, code: str, *arguments: str) -> pytest.RunResult:
    inner.makepyfile(test_it=code)
    return inner.runpytest_subprocess("-q", *arguments, timeout=120)


def test_each_test_has_an_empty_member(inner: pytest.Pytester) -> None:
    code = """
        import pytest
        from kvstore.client import AsyncClient

        @pytest.mark.parametrize("number", [1, 2])
        def test_alone(kvstore, number):
            client = kvstore.client()
            assert client.get(b"k") is None
            assert client.put(b"k", b"v").revision == 2

        def test_async_clients_reach_it(kvstore):
            import asyncio

            async def main():
                async with AsyncClient([kvstore.endpoint]) as client:
                    return await client.put(b"k", b"v")

            assert asyncio.run(main()).revision == 2

        def test_session_one(kvstore_session):
            kvstore_session.client().put(b"k", b"v")

        def test_session_two(kvstore_session, kvstore):
            assert kvstore_session.client().get(b"k").value == b"v"
            assert kvstore.client().get(b"k") is None
    """
    run(inner, code).assert_outcomes(passed=5)


def test_the_marker_sets_options_and_the_closest_wins(inner: pytest.Pytester) -> None:
    code = """
        import pytest
        from kvstore.client import Op, RequestError

        @pytest.mark.kvstore(max_txn_ops=3)
        class TestSmall:
            @pytest.mark.kvstore(max_txn_ops=2)
            def test_closest(self, kvstore):
                self.commit(kvstore, 2)
                with pytest.raises(RequestError):
                    self.commit(kvstore, 3)

            def test_of_the_class(self, kvstore):
                self.commit(kvstore, 3)

            def commit(self, kvstore, count):
                puts = [Op.put(b"%d" % number, b"") for number in range(count)]
                kvstore.client().txn().then(*puts).commit()
    """
    run(inner, code, "--strict-markers").assert_outcomes(passed=2)


def test_a_failing_member_fails_its_test(inner: pytest.Pytester) -> None:
    # The test body may never notice: the end of the fixture must say it.
    code = """
        import errno
        from kvstore.wal import disk

        def test_disk(kvstore, monkeypatch):
            kvstore.client().put(b"k", b"v")
            kvstore._running._member._note_failure(OSError(errno.EIO, "gone"), what="the disk")

        def test_next(kvstore):
            kvstore.client().put(b"k", b"v")
    """
    result = run(inner, code)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*MemberFailedError: the disk: OSError: [[]Errno 5[]] gone"])


@pytest.mark.cluster
def test_the_cluster_is_whole_and_empty_for_each_test(inner: pytest.Pytester) -> None:
    code = """
        def test_kill(kvstore_cluster):
            client = kvstore_cluster.client(timeout_s=20)
            lease = client.lease_grant(60)
            client.put(b"k", b"v", lease=lease.lease_id)
            client.put(b"other", b"v")
            client.lease_grant(60)
            leader = kvstore_cluster.leader()
            kvstore_cluster.kill(leader)
            assert not kvstore_cluster.runs(leader)
            assert kvstore_cluster.leader() != leader
            assert client.get(b"k").value == b"v"

        def test_whole_again(kvstore_cluster):
            assert all(kvstore_cluster.runs(number) for number in range(3))
            client = kvstore_cluster.client()
            assert client.range(b"", prefix=True).count == 0
            assert client.lease_list() == ()
            kvstore_cluster.kill(0)
            kvstore_cluster.start(0)
            client.put(b"k", b"v")
    """
    run(inner, code).assert_outcomes(passed=2)


@pytest.mark.cluster
def test_the_number_of_members(inner: pytest.Pytester) -> None:
    code = """
        def test_one(kvstore_cluster):
            assert len(kvstore_cluster.endpoints) == 1
            kvstore_cluster.client().put(b"k", b"v")
    """
    run(inner, code, "--kvstore-nodes=1").assert_outcomes(passed=1)
    result = run(inner, code, "--kvstore-nodes=8")
    result.stdout.fnmatch_lines(["*kvstore_nodes must be 1 to 7, not '8'*"])
    assert result.ret != 0


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.cluster
def test_no_member_outlives_pytest(inner: pytest.Pytester) -> None:
    # Not even a pytest that is killed: its members would hold memory and ports unseen.
    inner.makepyfile(
        test_it="""
        from pathlib import Path

        def test_sleep(kvstore_cluster):
            pids = [str(member.process.pid) for member in kvstore_cluster._local.members]
            Path("pids.new").write_text(" ".join(pids))
            Path("pids.new").rename("pids")
            import time; time.sleep(100)
        """
    )
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q"], cwd=inner.path, stdout=subprocess.DEVNULL
    ) as pytest_process:
        try:
            wait_for((inner.path / "pids").exists)
            pids = [int(pid) for pid in (inner.path / "pids").read_text().split()]
            assert all(map(runs, pids))
        finally:
            os.kill(pytest_process.pid, signal.SIGKILL)
    wait_for(lambda: not any(map(runs, pids)))


def wait_for(condition: Callable[[], bool]) -> None:
    # Of another process, which tells nothing.
    deadline_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_pytest_does_not_pay_for_fixtures_that_nobody_uses(inner: pytest.Pytester) -> None:
    code = """
        import sys

        def test_light():
            ours = {name for name in sys.modules if name.split(".")[0] == "kvstore"}
            assert ours == {"kvstore", "kvstore.testing", "kvstore.testing.plugin"}
            assert not {"grpc", "aiohttp", "lmdb", "google.protobuf"} & set(sys.modules)
    """
    run(inner, code).assert_outcomes(passed=1)


def test_the_package_does_not_need_pytest() -> None:
    code = """
import sys
sys.modules["pytest"] = None  # an import raises ImportError
import kvstore.testing.cluster
with __import__("kvstore").embed(fsync=False) as member:
    member.client().put(b"k", b"v")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
