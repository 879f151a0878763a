"""One contract, two backends; and what only LMDB has: a file, its format, its accounts."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import lmdb
import pytest

from kvstore.mvcc.backend_lmdb import FORMAT_KEY, LmdbBackend
from kvstore.mvcc.backend_memory import MemoryBackend
from kvstore.mvcc.errors import NewerFormat, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=["memory", "lmdb"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    if request.param == "memory":
        backend: Any = MemoryBackend()
    else:
        backend = open_lmdb(tmp_path)
    yield backend
    backend.close()


def open_lmdb(folder: Path) -> LmdbBackend:
    return LmdbBackend(str(folder / "db"), map_size_bytes=64 << 20)


def test_a_commit_is_applied_in_order(backend: Any) -> None:
    backend.commit(
        [
            ("key", b"b", b"1"),
            ("key", b"a", b"1"),
            ("meta", b"a", b"m"),
            ("key", b"b", b"2"),
            ("key", b"a", None),
            ("key", b"c", b""),
            ("lease", b"gone", None),
        ]
    )
    assert list(backend.scan("key")) == [(b"b", b"2"), (b"c", b"")]
    assert backend.get("key", b"a") is None
    assert backend.get("key", b"c") == b""
    assert backend.get("meta", b"a") == b"m"


def test_runs_that_are_out_of_order_are_stored_all_the_same(backend: Any) -> None:
    # LMDB's append mode drops such records silently.
    backend.commit([("key", b"m", b"0")])
    backend.commit([("key", key, key) for key in (b"n", b"z", b"o", b"p")])
    backend.commit([("key", key, b"again") for key in (b"q", b"p")])
    found = dict(backend.scan("key"))
    assert found == {b"m": b"0", b"n": b"n", b"o": b"o", b"p": b"again", b"q": b"again", b"z": b"z"}


def test_scans_are_half_open(backend: Any) -> None:
    backend.commit([("key", bytes((n,)), b"") for n in range(10)])
    keys = [key for key, _ in backend.scan("key", b"\x03", b"\x06")]
    assert keys == [b"\x03", b"\x04", b"\x05"]
    assert [key for key, _ in backend.scan("key", b"\x08")] == [b"\x08", b"\x09"]
    assert list(backend.scan("key", b"\x06", b"\x03")) == []
    assert list(backend.scan("key", b"\x20")) == []
    assert list(backend.scan("auth")) == []


def test_a_view_does_not_move(backend: Any) -> None:
    backend.commit([("key", b"a", b"1")])
    view = backend.view()
    backend.commit([("key", b"a", b"2"), ("key", b"b", b"1")])
    assert view.get("key", b"a") == b"1"
    assert list(view.scan("key")) == [(b"a", b"1")]
    view.close()
    assert backend.get("key", b"a") == b"2"


def test_a_scan_does_not_move_either(backend: Any) -> None:
    backend.commit([("key", bytes((n,)), b"1") for n in range(5)])
    scan = backend.scan("key")
    assert next(scan) == (b"\0", b"1")
    backend.commit([("key", bytes((n,)), b"2") for n in range(9)])
    assert list(scan) == [(bytes((n,)), b"1") for n in range(1, 5)]


def test_commits_on_another_thread_are_seen_here(backend: Any) -> None:
    assert backend.get("key", b"a") is None
    thread = threading.Thread(target=backend.commit, args=([("key", b"a", b"1")],))
    thread.start()
    thread.join()
    assert backend.get("key", b"a") == b"1"


def test_a_view_may_be_read_on_another_thread(backend: Any) -> None:
    backend.commit([("key", b"a", b"1")])
    view = backend.view()
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(view.scan("key")))
    thread.start()
    thread.join()
    view.close()
    assert found == [(b"a", b"1")]


def test_accounts_follow_the_data(backend: Any) -> None:
    before = backend.used_bytes()
    backend.commit([("key", n.to_bytes(4, "big"), bytes(1000)) for n in range(1000)])
    full = backend.used_bytes()
    assert 1_000_000 <= full - before < 1_600_000
    assert backend.size_bytes() >= full
    backend.commit([("key", n.to_bytes(4, "big"), None) for n in range(900)])
    assert backend.used_bytes() - before < 0.3 * (full - before)


# LMDB alone


def test_the_file_survives_and_grows_into_freed_pages(tmp_path: Path) -> None:
    backend = open_lmdb(tmp_path)
    for round_ in range(5):
        rows = [n.to_bytes(4, "big") for n in range(round_ * 1000, round_ * 1000 + 1000)]
        backend.commit([("key", row, bytes(1000)) for row in rows])
        backend.commit([("key", row, None) for row in rows[:-1]])
        # As the store does after a commit: a read transaction left behind would pin the pages.
        backend.get("meta", b"x")
        if round_ == 1:
            size = backend.size_bytes()
    assert backend.size_bytes() <= 1.5 * size
    backend.close()
    backend = open_lmdb(tmp_path)
    assert len(list(backend.scan("key"))) == 5
    assert (tmp_path / "db").stat().st_size >= backend.size_bytes()
    backend.close()


def test_a_full_map_refuses_the_whole_commit(tmp_path: Path) -> None:
    backend = open_lmdb(tmp_path)
    backend.commit([("key", b"a", b"1")])
    with pytest.raises(lmdb.MapFullError):
        backend.commit([("key", b"b%d" % n, bytes(1 << 20)) for n in range(70)])
    assert list(backend.scan("key")) == [(b"a", b"1")]
    backend.close()


def test_a_newer_format_is_refused_with_advice(tmp_path: Path) -> None:
    backend = open_lmdb(tmp_path)
    backend.commit([("meta", FORMAT_KEY, b"99")])
    backend.close()
    with pytest.raises(NewerFormat, match="Start the release that wrote it"):
        open_lmdb(tmp_path)


def test_a_file_without_a_format_mark_is_refused(tmp_path: Path) -> None:
    backend = open_lmdb(tmp_path)
    backend.commit([("meta", FORMAT_KEY, None), ("key", b"a", b"1")])
    backend.close()
    with pytest.raises(StorageError, match="no format mark"):
        open_lmdb(tmp_path)
