"""The commit loop: what it must not survive."""

from __future__ import annotations

import subprocess
import sys

FAILING = """
import asyncio
from kvstore.apply.state import open_state
from kvstore.mvcc.backend_memory import MemoryBackend
from kvstore.mvcc.marks import AppliedMark
from kvstore.pb import rpc_pb2
from kvstore.server.storage import Storage
from kvstore.wal import fatal


def committed(mark, duration_s):
    raise ValueError("a bug behind the commit")


async def main():
    backend = MemoryBackend()
    store = open_state(backend, minimum_ttl_s=1).store
    storage = Storage(
        store, backend, mark=lambda: AppliedMark(1, 1), durable_index=lambda: 1,
        committed=committed, purged=lambda held_s, total_s: None, fatal=fatal,
    )
    storage.start()
    store.put(rpc_pb2.PutRequest(key=b"k", value=b"v"))
    await asyncio.sleep(30)
    print("still running")


asyncio.run(main())
"""


def test_a_commit_loop_that_fails_ends_the_process() -> None:
    # A task that dies alone is noticed by nobody: the member would serve on, and never again
    # commit or release the log.
    done = subprocess.run(
        [sys.executable, "-c", FAILING], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (74, "")
    assert "a bug behind the commit" in done.stderr
