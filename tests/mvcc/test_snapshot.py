"""A store streamed to another member: whole, checked, and never half installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgpack
import pytest

from kvstore.mvcc import snapshot
from kvstore.mvcc.backend_lmdb import LmdbBackend
from kvstore.mvcc.errors import BadSnapshot, NewerFormat
from kvstore.mvcc.snapshot import SnapshotReceiver, snapshot_chunks
from kvstore.mvcc.store import Store
from kvstore.wal.disk import RealDisk
from tests.mvcc.harness import Leases, Member, stored

if TYPE_CHECKING:
    from pathlib import Path

MAP_BYTES = 64 << 20


def filled(member: Member) -> Member:
    member.leases.keys = {7: set()}
    for n in range(300):
        member.put(b"key%03d" % (n % 100), b"v" * n, lease=7 if n % 9 == 0 else 0)
    member.delete(b"key01", b"key03")
    member.store.compact(200)
    member.store.write("lease", b"\0" * 8, b"lease seven")
    member.store.write("auth", b"user/root", b"...")
    member.commit()
    return member


def chunks_of(member: Member, chunk_bytes: int = 4000) -> list[bytes]:
    view = member.backend.view()
    chunks = list(snapshot_chunks(view, chunk_bytes))
    view.close()
    return chunks


def receiver(folder: Path) -> SnapshotReceiver:
    return SnapshotReceiver(str(folder / "received"), map_size_bytes=MAP_BYTES, disk=RealDisk())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("store"))


def test_the_received_store_is_the_sent_one(
    member: Member, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "COMMIT_BYTES", 10_000)
    filled(member)
    receiving = receiver(tmp_path)
    for chunk in chunks_of(member):
        receiving.write(chunk)
    assert receiving.finish() == member.store.applied
    assert names(tmp_path) == ["received"]

    backend = LmdbBackend(str(tmp_path / "received"), map_size_bytes=MAP_BYTES)
    leases = Leases(7)
    store = Store(backend, leases=leases)
    assert list(backend.scan("key")) == stored(member)
    assert backend.get("lease", b"\0" * 8) == b"lease seven"
    assert backend.get("auth", b"user/root") == b"..."
    assert (store.revision, store.compacted, store.applied) == (
        member.store.revision,
        200,
        member.store.applied,
    )
    # The purge was not finished at the sender; the receiver carries on with it.
    assert store.purging
    assert leases.keys == member.leases.keys
    assert store.hash_kv(0) == member.store.hash_kv(0)
    backend.close()


def test_the_stream_is_of_the_view_and_not_of_later_commits(member: Member) -> None:
    filled(member)
    before = chunks_of(member)
    view = member.backend.view()
    stream = snapshot_chunks(view, 4000)
    first = next(stream)
    for n in range(200):
        member.put(b"later%d" % n, b"x" * 100)
        if n % 50 == 0:
            member.commit()
    assert [first, *stream] == before
    view.close()


def test_an_empty_store_can_be_sent(member: Member, tmp_path: Path) -> None:
    member.commit()
    receiving = receiver(tmp_path)
    for chunk in chunks_of(member):
        receiving.write(chunk)
    assert receiving.finish() == member.store.applied


@pytest.mark.parametrize("position", [0, 1, 5, -1])
def test_a_flipped_bit_is_found_and_nothing_is_installed(tmp_path: Path, position: int) -> None:
    chunks = chunks_of(filled(Member("memory", tmp_path)))
    damaged = bytearray(chunks[position])
    damaged[len(damaged) // 2] ^= 1
    chunks[position] = bytes(damaged)
    receiving = receiver(tmp_path)
    with pytest.raises(BadSnapshot, match="checksum"):  # noqa: PT012 - one of the writes
        for chunk in chunks:
            receiving.write(chunk)
    receiving.abort()
    assert names(tmp_path) == []


def checked(fields: list[Any]) -> bytes:
    return snapshot._chunk(fields)


def test_missing_repeated_or_misplaced_chunks_are_found(tmp_path: Path) -> None:
    good = chunks_of(filled(Member("memory", tmp_path)))
    assert len(good) > 8
    wrong = {
        "begins late": good[1:],
        "one missing": good[:3] + good[4:],
        "one twice": good[:4] + good[3:],
        "swapped": [good[0], good[2], good[1], *good[3:]],
        "no end": good[:-1],
        "only the beginning": good[:1],
        "nothing": [],
        "goes on after the end": [*good, good[1]],
        "begins twice": [good[0], *good],
        "table unknown": [good[0], checked([1, "other", [b"a", b"b"]]), *good[1:]],
        "tables backwards": [good[0], good[-2], *good[1:]],
    }
    for what, chunks in wrong.items():
        receiving = receiver(tmp_path)
        with pytest.raises(BadSnapshot):  # noqa: PT012 - any of the calls may notice
            for chunk in chunks:
                receiving.write(chunk)
            receiving.finish()
        receiving.abort()
        assert names(tmp_path) == [], what


def test_a_stream_of_a_later_release_is_refused_with_advice(tmp_path: Path) -> None:
    receiving = receiver(tmp_path)
    with pytest.raises(NewerFormat, match="Start the release that wrote it"):
        receiving.write(checked([0, snapshot.FORMAT + 1]))
    receiving.abort()


def test_what_an_interrupted_attempt_left_does_not_matter(tmp_path: Path) -> None:
    member = filled(Member("memory", tmp_path))
    interrupted = receiver(tmp_path)
    interrupted.write(chunks_of(member)[0])
    interrupted._take("key", [b"stray", b"record"])
    interrupted._commit()
    interrupted._close()  # the process died here
    assert "received.part" in names(tmp_path)
    receiving = receiver(tmp_path)
    for chunk in chunks_of(member):
        receiving.write(chunk)
    assert receiving.finish() == member.store.applied
    assert names(tmp_path) == ["received"]


def test_the_file_is_synced_before_it_gets_its_name(tmp_path: Path) -> None:
    # A rename that survives a power cut while the data does not would install garbage.
    calls: list[str] = []

    class Recorder(RealDisk):
        def open(self, path: str, *, create: bool = False) -> Any:
            file = super().open(path, create=create)
            sync = file.sync

            class Recording:
                def sync(self) -> None:
                    calls.append("sync")
                    sync()

                def close(self) -> None:
                    file.close()

            return Recording()

        def rename(self, source: str, target: str) -> None:
            calls.append("rename")
            super().rename(source, target)

        def sync_folder(self, path: str) -> None:
            calls.append("sync folder")
            super().sync_folder(path)

    receiving = SnapshotReceiver(
        str(tmp_path / "received"), map_size_bytes=MAP_BYTES, disk=Recorder()
    )
    for chunk in chunks_of(filled(Member("memory", tmp_path))):
        receiving.write(chunk)
    receiving.finish()
    assert calls == ["sync", "rename", "sync folder"]


def test_chunks_are_bounded(tmp_path: Path) -> None:
    chunks = chunks_of(filled(Member("memory", tmp_path)), chunk_bytes=2000)
    assert max(map(len, chunks)) < 2000 + 300 + 200
    assert [msgpack.unpackb(chunk[4:])[0] for chunk in chunks] == [0, *[1] * (len(chunks) - 2), 2]
