"""Damage: the log recovers exactly what was acknowledged before it, or refuses."""

from __future__ import annotations

import pytest

from kvstore.raft.messages import HardState
from kvstore.wal import CorruptError, Recovered, WalError, codec, recovery
from tests.wal.building import (
    FOLDER,
    Model,
    entries,
    new_log,
    open_log,
    work,
)
from tests.wal.memory_disk import MemoryDisk


class Written:
    """A log of some segments; what it holds after each batch; where each batch stands."""

    def __init__(self) -> None:
        disk = MemoryDisk()
        wal = new_log(disk)
        self.models = [Model()]
        works = [work(entries(i, size=900), state=HardState(1, 0xA, i - 1)) for i in range(1, 12)]
        works += [work(entries(12, 2, size=60)), work(entries(13, 2, term=2, size=600))]
        works += [work(state=HardState(2, 0xB, 11)), work(entries(15, term=2, size=30))]
        works += [work(entries(16, 3, term=2, size=200)), work(entries(19, term=2, size=300))]
        self.places: list[tuple[str, int, int]] = []
        for one in works:
            wal.save([one])
            self.models.append(self.models[-1].after([one]))
            sequence, path = wal._sequence, wal._segments[-1].path
            header = codec.decode_header(bytes(disk.files[path][:4096]))
            assert isinstance(header, codec.Header)
            at = codec.HEADER_BYTES
            while frame := codec.decode_frame(memoryview(disk.files[path]), at, header.crc):
                at = frame.end
                if frame.sequence == sequence:
                    self.places.append((path, frame.offset, frame.end))
        disk.locked.clear()  # killed; a close would write
        self.files = disk.image()
        self.paths = recovery.list_segments(disk, FOLDER)
        self.data = self.files[self.paths[-1]]
        self.end = wal._end
        self.last = [n for n, place in enumerate(self.places, 1) if place[0] == self.paths[-1]]
        """Numbers of the batches in the last segment; model n is the log after batch n."""

    def with_last(self, data: bytes, path: str | None = None) -> MemoryDisk:
        return MemoryDisk({**self.files, path or self.paths[-1]: data})


@pytest.fixture(scope="module")
def written() -> Written:
    found = Written()
    assert len(found.paths) > 2
    assert len(found.last) > 4
    return found


def outcome(disk: MemoryDisk) -> Recovered | WalError:
    try:
        wal, found = open_log(disk)
    except WalError as error:
        return error
    wal.close()
    return found


def test_a_write_that_stopped_at_any_byte_leaves_exactly_the_batches_before(
    written: Written,
) -> None:
    data = written.data
    begin = written.places[written.last[0] - 1][
        1
    ]  # before it: durable before the file had its name
    for length in range(begin, written.end + 1):
        torn = data[:length].ljust(len(data), b"\0")
        number, end = written.last[0] - 1, begin
        for n in written.last:
            # Compared by content: a batch that ends in padding is whole before its last byte.
            if torn[: written.places[n - 1][2]] == data[: written.places[n - 1][2]]:
                number, end = n, written.places[n - 1][2]
        found = outcome(written.with_last(torn))
        assert isinstance(found, Recovered), (length, found)
        assert written.models[number].differs(found) is None, length
        assert (found.dropped_bytes > 0) == any(torn[end:]), length


def test_a_segment_torn_before_its_first_batch_is_refused(written: Written) -> None:
    # Header and first frame are durable before the file gets its name.
    begin = written.places[written.last[0] - 1][1]
    whole = len(written.data[:begin].rstrip(b"\0"))
    for length in range(whole):
        torn = written.data[:length].ljust(len(written.data), b"\0")
        assert isinstance(outcome(written.with_last(torn)), CorruptError), length


def test_a_file_cut_at_any_byte_is_refused(written: Written) -> None:
    # Its length was durable before it got its name, so no crash cuts it: a bad copy does.
    for path in written.paths:
        data = written.files[path]
        for length in range(len(data)):
            found = outcome(written.with_last(data[:length], path))
            assert isinstance(found, CorruptError), (path, length)
            assert "cut or copied" in str(found) or "header" in str(found)


def test_every_single_bit_flip_is_refused_or_changes_nothing(written: Written) -> None:
    # In the last batch, too: one wrong bit in a batch that is otherwise whole is not a torn write.
    data = bytearray(written.data)
    refused = 0
    for position in range(written.end + 64):
        for bit in range(8):
            data[position] ^= 1 << bit
            found = outcome(written.with_last(bytes(data)))
            data[position] ^= 1 << bit
            if isinstance(found, Recovered):
                # Only zeros behind the last batch may change: they look like an unfinished write.
                assert position >= written.end, (position, bit)
                assert written.models[-1].differs(found) is None
                assert found.dropped_bytes > 0
            else:
                assert isinstance(found, CorruptError), (position, bit, found)
                refused += 1
    assert refused == written.end * 8


def test_every_damaged_byte_of_an_older_segment_is_refused(written: Written) -> None:
    path = written.paths[0]
    data = bytearray(written.files[path])
    end = len(bytes(data).rstrip(b"\0"))
    for position in range(end):
        old = data[position]
        for new in (old ^ 0xFF, 0, old ^ 0x10):
            if new == old:
                continue
            data[position] = new
            found = outcome(written.with_last(bytes(data), path))
            assert isinstance(found, CorruptError), (position, new)
        data[position] = old


def test_a_damaged_batch_before_a_good_one_is_refused_however_it_is_damaged(
    written: Written,
) -> None:
    for number in written.last[:-1]:
        _, start, end = written.places[number - 1]
        for hole in (slice(start, end), slice(start, start + 24), slice(end - 16, end)):
            bad = bytearray(written.data)
            bad[hole] = bytes(hole.stop - hole.start)
            found = outcome(written.with_last(bytes(bad)))
            assert isinstance(found, CorruptError), (number, hole)
            assert found.offset == start


@pytest.mark.parametrize("content", ["random", "one bit from zero"])
def test_a_hole_in_the_last_batch_is_a_torn_write(content: str) -> None:
    # The file system wrote the end of the batch but not its middle. In the second case one bit
    # would repair it; but a sector of zeros is the mark of one that was never written.
    disk = MemoryDisk()
    wal = new_log(disk)
    wal.save([work(entries(1))])
    [path] = recovery.list_segments(disk, FOLDER)
    start = wal._end
    hole = (start // 512 + 2) * 512
    big = entries(2, size=2_500)
    if content != "random":
        data = bytearray(big[0].data)
        begin = hole - start - codec.FRAME_BYTES - 20  # some bytes before the sector
        data[begin : begin + 600] = bytes(600)
        data[begin + 100] = 0x10
        big[0].data = bytes(data)
    wal.save([work(big)])
    disk.locked.clear()
    data = disk.files[path]
    assert data[hole : hole + 512].count(0) in ({511} if content != "random" else {0})
    data[hole : hole + 512] = bytes(512)

    found = outcome(disk)
    assert isinstance(found, Recovered)
    assert found.dropped_bytes > 2_000
    assert found.last_index == 1


def test_segments_of_different_logs_do_not_mix(written: Written) -> None:
    # Restored from two backups: each file is good, together they are no log.
    other = MemoryDisk()
    wal = new_log(other)
    for index in range(1, 30):
        wal.save([work(entries(index, size=333))])
    wal.close()
    for path in recovery.list_segments(other, FOLDER):
        match = [mine for mine in written.paths if mine.split("-")[0] == path.split("-")[0]]
        if not match or path.endswith("0001.wal"):
            continue
        files = {p: d for p, d in written.files.items() if p != match[0]} | {
            path: bytes(other.files[path])
        }
        found = outcome(MemoryDisk(files))
        assert isinstance(found, CorruptError)
        assert "does not continue" in str(found)


def test_a_copy_of_the_log_stored_as_a_value_does_not_confuse_recovery() -> None:
    # The scan for good frames behind a bad one must not take a user's bytes for frames.
    disk = MemoryDisk()
    wal = new_log(disk)
    for index in range(1, 4):
        wal.save([work(entries(index, size=100))])
    [path] = recovery.list_segments(disk, FOLDER)
    copy = bytes(disk.files[path])[: wal._end]
    big = entries(4)
    big[0].data = copy + b"x" * 1_000
    model = Model().after([work(entries(i, size=100)) for i in range(1, 4)])
    end = wal._end
    wal.save([work(big)])
    torn_end = wal._end - 520
    assert torn_end > end + len(copy) + 100
    disk.locked.clear()
    data = bytes(disk.files[path])

    found = outcome(MemoryDisk({path: data[:torn_end].ljust(len(data), b"\0")}))
    assert isinstance(found, Recovered)
    assert model.differs(found) is None


def test_refusals_say_where_and_what_to_do(written: Written) -> None:
    path, start, _ = written.places[-1]
    data = bytearray(written.data)
    data[start + 30] ^= 4
    text = str(outcome(written.with_last(bytes(data))))
    assert f"{path}, byte {start}: one bit of the last batch is wrong" in text
    assert f"bit 2 of byte {start + 30}" in text
    assert "remove this member" in text


def test_a_refused_log_is_not_changed(written: Written) -> None:
    data = bytearray(written.files[written.paths[0]])
    data[200] ^= 1
    disk = written.with_last(bytes(data), written.paths[0])
    before = disk.image()
    assert isinstance(outcome(disk), CorruptError)
    assert disk.image() == before
    assert not disk.locked


def test_records_that_make_no_sense_behind_a_good_checksum_are_refused() -> None:
    # A bug or an alien writer; the chain of CRCs alone would let it pass.
    odd = ([[1, 5, 1, [7]]], [[1, 5, 1, -1]], [[2, 1, 1, 0, "text"]], [[2, 1, None, 0, b""]])
    for records in ([[9, 1]], [7], [[2, 5, 1, 0, b"gap"]], [[2, 1, 1, 0]], [[1, 5]], "text", *odd):
        disk = MemoryDisk()
        wal = new_log(disk)
        wal._put(codec.encode_records(records))  # type: ignore[arg-type]
        disk.locked.clear()
        found = outcome(disk)
        assert isinstance(found, CorruptError), records
        assert "makes no sense" in str(found)
