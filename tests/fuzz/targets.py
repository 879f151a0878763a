"""What is fuzzed: each target takes any bytes and raises when a promise is broken.

A target keeps nothing between inputs, so that an input alone shows its defect again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import google_crc32c
import hpack as library

from kvstore.apply import ops, responses
from kvstore.apply.errors import RefusedError
from kvstore.apply.state import open_state
from kvstore.lease.errors import LeaseError
from kvstore.mvcc.backend_memory import MemoryBackend
from kvstore.mvcc.errors import RequestError, StorageError
from kvstore.mvcc.snapshot import SnapshotReceiver
from kvstore.mvcc.watch import WatchHub
from kvstore.pb import rpc_pb2
from kvstore.peer import codec as peer_codec
from kvstore.peer.calls import PeerCalls
from kvstore.peer.describe import decode_description
from kvstore.peer.link import HelloError, decode_hello
from kvstore.raft.messages import NORMAL, Entry
from kvstore.rpc import grpc
from kvstore.rpc.hpack import BombError, Decoder, HeaderListTooLargeError, HpackError
from kvstore.server.errors import wire_error
from kvstore.server.metrics import Metrics
from kvstore.server.services.kv import KvService
from kvstore.server.services.watch import WatchService
from kvstore.wal import WalError, recovery
from tests.fuzz.engine_rig import EngineRig
from tests.fuzz.session_rig import ClientRig
from tests.server.test_session_fuzz import Machine
from tests.wal.building import FOLDER, entries, new_log, open_log, work
from tests.wal.memory_disk import MemoryDisk

Target = Callable[[bytes], None]

LIST_BYTES_MAX = 65536
MESSAGE_BYTES_MAX = 65536


def pieces(data: bytes) -> list[bytes]:
    """Cut input into parts, each behind two bytes of length."""
    parts = []
    while len(data) >= 2:
        size = int.from_bytes(data[:2], "big") % 4096
        parts.append(data[2 : 2 + size])
        data = data[2 + size :]
    return parts


def joined(*parts: bytes) -> bytes:
    """Return the input that `pieces` cuts into these parts."""
    return b"".join(len(part).to_bytes(2, "big") + part for part in parts)


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


# the services


class FuzzCall:
    """What a handler sees of a call."""

    path = "/fuzz"
    peer = "fuzz"  # tests choose others
    peer_certificate = None
    deadline_s = None
    on_cancel = None
    cancelled = False
    unsent_bytes = 0

    def __init__(self) -> None:
        self.answers: list[Any] = []

    def metadata(self, name: bytes) -> None:
        return None

    def reply(self, message: bytes) -> None:
        self.answers.append(message)

    def reply_parts(self, parts: Sequence[bytes], size_bytes: int) -> None:
        message = b"".join(parts)
        assert len(message) == size_bytes
        self.reply(message)

    def fail(self, code: int, text: str, metadata: Any = ()) -> None:
        assert 0 < code <= 16
        text.encode()
        self.answers.append((code, text))

    def send(self, message: bytes) -> bool:
        rpc_pb2.WatchResponse.FromString(message)
        return True

    def send_all(self, messages: Sequence[bytes]) -> bool:
        return [self.send(message) for message in messages][-1]

    def finish(self, code: int = 0, text: str = "", metadata: Any = ()) -> None:
        self.answers.append((code, text))


class SmallMember:
    """The services over the real state machine, without log and network: writes apply at once."""

    def __init__(self) -> None:
        self.state = open_state(MemoryBackend(), minimum_ttl_s=1)
        self.node = self
        self.store = self.state.store
        self._index = 0
        self._later: list[Callable[[], None]] = []
        self.handlers: dict[str, Callable[..., Any]] = {}
        kv = KvService(
            self,  # type: ignore[arg-type]
            self.store,
            txn_ops_max=128,
            later=self._later.append,
            later_s=lambda _, callback, *arguments: self._later.append(
                functools.partial(callback, *arguments)
            ),
            observe=Metrics(lambda: (), lambda: ()).range.series,
        )
        kv.register(self)  # type: ignore[arg-type]
        self.hub = WatchHub(self.store, self.headers)
        self.watch = WatchService(self.hub, lambda: True, lambda callback: None)
        self.watch.register(self)  # type: ignore[arg-type]

    def unary(self, path: str, handler: Callable[..., Any]) -> None:
        self.handlers[path.rpartition("/")[2]] = handler

    stream = unary

    def headers(self, revision: int) -> bytes:
        return b"\x08\x01"

    def has_room(self, call: Any, cost: int) -> bool:
        assert cost >= 0
        return True

    def linearizable(self, done: Callable[[None], None]) -> None:
        done(None)

    def submit_put(self, call: Any, payload: bytes) -> None:
        self.submit(call, ops.PUT, payload)

    def submit(self, call: Any, kind: int, payload: bytes, reply: Any = None) -> None:
        self._index += 1
        batch = ops.encode_batch(1, 1, self._index, [(kind, payload)])
        [result] = self.state.applier.apply(Entry(self._index, 1, NORMAL, batch)).results
        self.hub.notify(self.store.take_events())
        if isinstance(result, Exception):
            assert isinstance(result, RequestError | LeaseError | RefusedError), result
            call.fail(*wire_error(result))
        else:
            (reply or call.reply)(responses.encode(kind, result, self.headers(result[0])))

    def turn(self) -> None:
        """Run what waits for the next turn."""
        later, self._later[:] = self._later[:], []
        for callback in later:
            callback()

    def settle(self) -> None:
        """Run what waits for later turns; it must come to an end."""
        for _ in range(10_000):
            self.store.purge(100) if self.store.purging else None
            if not self._later:
                break
            self.turn()
        assert not self._later, "a request that never ends"
        while self.hub.has_work and self.hub.catch_up():
            pass


REPLIES = {
    "Range": rpc_pb2.RangeResponse,
    "Put": rpc_pb2.PutResponse,
    "DeleteRange": rpc_pb2.DeleteRangeResponse,
    "Txn": rpc_pb2.TxnResponse,
    "Compact": rpc_pb2.CompactionResponse,
}
WRITES = (ops.LEASE_GRANT, ops.LEASE_REVOKE, ops.ALARM)


def requests(data: bytes) -> None:
    """Requests in order, each behind a byte that names its method: one proper answer for each."""
    member = SmallMember()
    names = [*REPLIES, "Watch", *WRITES]
    watch_call = FuzzCall()
    watch = member.handlers["Watch"](watch_call)
    for part in pieces(data):
        if not part:
            continue
        name = names[part[0] % len(names)]
        if name == "Watch":
            watch.message(part[1:])
            member.settle()
            continue
        call = FuzzCall()
        if isinstance(name, int):
            member.submit(call, name, part[1:])
        else:
            member.handlers[name](call, part[1:])
        member.settle()
        [answer] = call.answers
        if isinstance(answer, bytes) and isinstance(name, str):
            REPLIES[name].FromString(answer)
    watch.cancelled()
    assert member.hub.statistics().watchers == 0


# members among themselves, and their files


def peer(data: bytes) -> None:
    """Frames between members: a message that survives its encoding, or the codec's error."""
    try:
        message = peer_codec.decode(data)
    except peer_codec.CodecError:
        pass
    else:
        assert peer_codec.decode(peer_codec.encode(message)) == message
    calls = PeerCalls(lambda _peer, _payload: True, 1)
    calls.call(2, "kind", None, lambda _answer: None, 0)
    with contextlib.suppress(ValueError):
        calls.receive(2, data)
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


@functools.cache
def client_loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


TARGETS: dict[str, Target] = {
    function.__name__: function
    for function in (rpc, hpack, messages, requests, peer, wal, snapshot, session, client)
}


def fingerprint(data: bytes) -> str:
    """Return a short name for an input."""
    return f"{zlib.crc32(data):08x}"
