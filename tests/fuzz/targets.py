"""What is fuzzed: each target takes any bytes and raises when a promise is broken.

A target keeps nothing between inputs, so that an input alone shows its defect again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import zlib
from collections.abc import Callable
from typing import Any

import google_crc32c
import hpack as library

from kvstore.http2.hpack import BombError, Decoder, HeaderListTooLargeError, HpackError
from kvstore.mvcc.backend_memory import MemoryBackend
from kvstore.mvcc.errors import StorageError
from kvstore.mvcc.snapshot import SnapshotReceiver
from kvstore.peer import codec as peer_codec
from kvstore.peer.describe import decode_description
from kvstore.peer.link import HelloError, decode_hello
from kvstore.rpc import grpc
from kvstore.wal import WalError, recovery
from tests.fuzz import channel_rig
from tests.fuzz.engine_rig import EngineRig
from tests.fuzz.mutate import pieces
from tests.fuzz.overlay_rig import control, packets, sealed
from tests.fuzz.running import member, requests
from tests.fuzz.session_rig import ClientRig
from tests.server.test_session_fuzz import Machine
from tests.wal.building import FOLDER, entries, new_log, open_log, work
from tests.wal.memory_disk import MemoryDisk

Target = Callable[[bytes], None]

LIST_BYTES_MAX = 65536
MESSAGE_BYTES_MAX = 65536


# rpc


def rpc(data: bytes) -> None:
    """Bytes of a client, behind the preface, in chunks of a size that the first byte says."""
    if data:
        engine_rig().attack(data[1:], data[0])


@functools.cache
def engine_rig() -> EngineRig:
    return EngineRig()


def hpack(data: bytes) -> None:
    """Header blocks of one connection: no other error, bounded tables, the fields of the oracle."""
    decoder = Decoder(LIST_BYTES_MAX)
    oracle: Any = library.Decoder(max_header_list_size=1 << 20)
    for block in pieces(data):
        try:
            fields = decoder.decode(block)
        except HeaderListTooLargeError:
            oracle = None
            continue
        except (HpackError, BombError):
            return
        finally:
            assert decoder._size == sum(decoder._sizes) <= decoder._size_max <= 4096
            assert len(decoder._entries) == len(decoder._sizes)
        if oracle is not None:
            try:
                expected = oracle.decode(block, raw=True)
            except library.HPACKError:
                oracle = None  # it is stricter here and there
                continue
            assert fields == [(bytes(name), bytes(value)) for name, value in expected]


def messages(data: bytes) -> None:
    """A gRPC body in pieces: whole messages, in order, however it is cut."""
    encoding = b"gzip" if data[:1] > b"\x7f" else b""
    whole: list[bytes] = []
    taken: list[bytes] = []

    def take(parts: list[bytes], into: list[bytes]) -> bool:
        buffer = bytearray()
        for part in parts:
            buffer += part
            while True:
                try:
                    message = grpc.take_message(buffer, encoding, MESSAGE_BYTES_MAX)
                except grpc.GrpcError:
                    return False
                if message is None:
                    break
                assert len(message) <= MESSAGE_BYTES_MAX
                into.append(message)
        return True

    cut = pieces(data[1:])
    assert take([b"".join(cut)], whole) == take(cut, taken)
    assert whole == taken
    with contextlib.suppress(grpc.GrpcError):
        assert len(grpc.take_unary(b"".join(cut), encoding, MESSAGE_BYTES_MAX)) <= MESSAGE_BYTES_MAX


# members among themselves, and their files


def peer(data: bytes) -> None:
    """Frames between members: a message that survives its encoding, or the codec's error."""
    try:
        message = peer_codec.decode(data)
    except peer_codec.CodecError:
        pass
    else:
        assert peer_codec.decode(peer_codec.encode(message)) == message
    for decode in (decode_hello, decode_description):
        with contextlib.suppress(HelloError):
            decode(data)


@functools.cache
def good_log() -> dict[str, bytes]:
    disk = MemoryDisk()
    log = new_log(disk)
    for index in range(1, 12):
        log.save([work(entries(index, size=500))])
    disk.locked.clear()
    return disk.image()


def wal(data: bytes) -> None:
    """A log with records, bytes or a whole file of the fuzzer's: recovered, or refused untouched.

    What was recovered once is recovered again, and can be written to.
    """
    mode, rest = data[:1], data[1:]
    disk = MemoryDisk(good_log())
    [*_, last] = recovery.list_segments(disk, FOLDER)
    if mode < b"\x40":  # records behind a good checksum
        log, _ = open_log(disk)
        log._put(rest)
        disk.locked.clear()
    elif mode < b"\xc0":  # single bytes changed, three for each
        for at in range(0, len(rest) - 2, 3):
            disk.files[last][int.from_bytes(rest[at : at + 2], "big") % len(disk.files[last])] = (
                rest[at + 2]
            )
    else:  # a file of any bytes
        disk.files[last][: len(rest)] = rest
    before = disk.image()
    try:
        log, found = open_log(disk)
    except WalError:
        assert disk.image() == before
        assert not disk.locked
        return
    log.save([work(entries(found.last_index + 1, term=max(1, found.hard_state.term)))])
    log.close()
    disk.locked.clear()
    _, again = open_log(disk)
    assert again.entries[: len(found.entries)] == found.entries
    assert again.last_index == found.last_index + 1


def snapshot(data: bytes) -> None:
    """Chunks of a snapshot, their checksums made right: taken, or refused as a bad snapshot."""
    disk = MemoryDisk({"/s/x": b""})

    def open_backend(path: str, **_: Any) -> MemoryBackend:
        disk.files.setdefault(path, bytearray())
        return MemoryBackend()

    receiver = SnapshotReceiver(
        "/s/new", map_size_bytes=1 << 20, disk=disk, open_backend=open_backend
    )
    try:
        for part in pieces(data):
            receiver.write(google_crc32c.value(part).to_bytes(4, "big") + part)
        receiver.finish()
    except StorageError:
        receiver.abort()
        assert "/s/new" not in disk.files


def session(data: bytes) -> None:
    """Frames of a client's session: every operation ends once, or the session does."""
    machine = Machine()
    for part in pieces(data):
        machine.take(part)
    if machine.wire.ended is None:
        machine.session.cancelled()
        machine.turns.run()
        assert not machine.session.calls


def client(data: bytes) -> None:
    """Frames of a server's session at the client: no operation is left without an outcome."""
    loop = client_loop()
    loop.run_until_complete(ClientRig().run(pieces(data)))


def channel(data: bytes) -> None:
    """Bytes of a server at the client's connection: every call ends, and frames go out."""
    client_loop().run_until_complete(channel_rig.run(pieces(data)))


@functools.cache
def client_loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


TARGETS: dict[str, Target] = {
    function.__name__: function
    for function in (
        rpc,
        hpack,
        messages,
        requests,
        peer,
        member,
        wal,
        snapshot,
        session,
        client,
        channel,
        packets,
        sealed,
        control,
    )
}


def fingerprint(data: bytes) -> str:
    """Return a short name for an input."""
    return f"{zlib.crc32(data):08x}"
