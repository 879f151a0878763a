"""Makes the first corpus: python -m tests.fuzz.seeds. Right inputs that mutation bends.

What fuzzing found is added to the corpus by hand, under any name.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack

from kvstore.http2 import frames
from kvstore.mvcc.snapshot import snapshot_chunks
from kvstore.pb import rpc_pb2, session_pb2
from kvstore.peer.codec import encode
from kvstore.peer.describe import Described, Description, encode_description
from kvstore.peer.link import Channel, Hello, encode_hello
from kvstore.raft.messages import (
    AppendRequest,
    AppendResponse,
    CommitNotice,
    Configuration,
    Entry,
    Forward,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    ReadRequest,
    ReadResponse,
    SnapshotMeta,
    TimeoutNow,
    VoteRequest,
)
from kvstore.wal import codec as wal_codec
from netplane.udp.control import Config
from netplane.udp.control import encode as encode_message
from tests.fuzz.mutate import joined
from tests.fuzz.oddities import (
    ANSWER,
    AS_IT_IS,
    ELECTED,
    LOST,
    OF_NEXT,
    OF_NOW,
    QUESTION,
    WHILE,
    asked,
    core,
)  # fmt: skip
from tests.fuzz.overlay_rig import sealed_ones
from tests.fuzz.targets import fingerprint
from tests.mvcc.harness import Member
from tests.netplane.udp.packets import SOURCE, TARGET, packet
from tests.rpc import wire as w
from tests.rpc.test_floods import FLOODS
from tests.rpc.test_fuzz import SESSION

CORPUS = Path(__file__).parent / "corpus"
pb = session_pb2


class Unsent(w.Wire):
    """Encodes frames as `Wire` does, without a connection."""

    def __init__(self) -> None:
        self.encoder = w.hpack.Encoder()
        self.own_stream = 100_001


def rpc() -> Iterator[bytes]:
    session = b"".join(SESSION[1:])
    for chunk_bytes in (0, 1, 7, 100):
        yield bytes((chunk_bytes,)) + session
    for flood in FLOODS.values():
        yield b"\0" + w.settings() + flood(Unsent())[:900]
    wire = Unsent()
    body = w.message(b"z" * 300)
    yield b"\x10" + w.settings(window=0) + wire.headers(1) + w.frame(w.DATA, 0, 1, body[:99])
    plain = [(":method", "POST"), *w.request_fields("/x")[1:4]]
    yield (
        b"\0" + w.settings() + Unsent().headers(1, plain) + w.frame(w.DATA, 0, 1, b"half a body")
    )


def hpack() -> Iterator[bytes]:
    encoder = w.hpack.Encoder()
    blocks = [
        encoder.encode([*w.request_fields(path), ("token", "t" * size)])
        for path, size in (("/a.B/C", 1), ("/a.B/D", 40), ("/a.B/C", 1))
    ]
    yield joined(*blocks)
    yield joined(blocks[0], b"\x20\x3f\xe1\x1f" + blocks[0], blocks[1])
    yield joined(b"\x40\x01a\x01b" * 40, b"\xbe\xbf\xc0", b"\x20", b"\x82")


def messages() -> Iterator[bytes]:
    body = w.message(b"one") + w.message(b"") + w.message(b"three" * 50)
    yield b"\0" + joined(body)
    yield b"\0" + joined(*[body[at : at + 7] for at in range(0, len(body), 7)])
    yield b"\xff" + joined(w.message(gzip.compress(b"x" * 500, mtime=0), 1) + w.message(b"plain"))


def requests() -> Iterator[bytes]:
    range_, put, delete, txn, compact, watch, grant, revoke, alarm = range(9)

    def part(method: int, message: object) -> bytes:
        return bytes((method,)) + message.SerializeToString()  # type: ignore[attr-defined]

    a, b = (rpc_pb2.PutRequest(key=key, value=b"v", prev_kv=True) for key in (b"a", b"b"))
    everything = rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0")
    nested = rpc_pb2.TxnRequest(
        compare=[
            rpc_pb2.Compare(key=b"a", target=rpc_pb2.Compare.VERSION, version=1),
            rpc_pb2.Compare(key=b"a", range_end=b"c", target=rpc_pb2.Compare.VALUE, value=b"v"),
        ],
        success=[
            rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"c", ignore_lease=True)),
            rpc_pb2.RequestOp(request_range=everything),
            rpc_pb2.RequestOp(
                request_txn=rpc_pb2.TxnRequest(
                    failure=[
                        rpc_pb2.RequestOp(
                            request_delete_range=rpc_pb2.DeleteRangeRequest(key=b"a", prev_kv=True)
                        )
                    ]
                )
            ),
        ],
        failure=[rpc_pb2.RequestOp(request_range=everything)],
    )
    create = rpc_pb2.WatchCreateRequest(
        key=b"a", range_end=b"z", start_revision=1, prev_kv=True, fragment=True,
        filters=[rpc_pb2.WatchCreateRequest.NOPUT], watch_id=3, progress_notify=True,
    )  # fmt: skip
    watches = [
        part(watch, rpc_pb2.WatchRequest(create_request=create)),
        part(watch, rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest())),
        part(watch, rpc_pb2.WatchRequest(cancel_request=rpc_pb2.WatchCancelRequest(watch_id=3))),
    ]
    sorted_ = rpc_pb2.RangeRequest(
        key=b"a", range_end=b"z", limit=1, sort_order=2, sort_target=4, min_mod_revision=1,
        max_create_revision=9, keys_only=True,
    )  # fmt: skip
    yield joined(part(put, a), part(put, b), part(range_, everything), part(range_, sorted_))
    yield joined(part(put, a), part(txn, nested), part(put, b), part(txn, nested))
    yield joined(watches[0], part(put, a), *watches[1:], part(put, b))
    yield joined(
        part(put, a),
        part(delete, rpc_pb2.DeleteRangeRequest(key=b"\0", range_end=b"\0", prev_kv=True)),
        part(put, a),
        part(compact, rpc_pb2.CompactionRequest(revision=3, physical=True)),
        watches[0],
        part(range_, rpc_pb2.RangeRequest(key=b"a", revision=2)),
    )
    yield joined(
        part(grant, rpc_pb2.LeaseGrantRequest(ID=7, TTL=60)),
        part(put, rpc_pb2.PutRequest(key=b"l", lease=7)),
        part(put, rpc_pb2.PutRequest(key=b"l", ignore_value=True, ignore_lease=True)),
        part(revoke, rpc_pb2.LeaseRevokeRequest(ID=7)),
        part(alarm, rpc_pb2.AlarmRequest(action=1, memberID=1, alarm=1)),
        part(put, a),
    )
    lease = part(grant, rpc_pb2.LeaseGrantRequest(ID=7, TTL=60))
    yield joined(
        lease,
        part(put, rpc_pb2.PutRequest(key=b"l", lease=7)),
        part(9, rpc_pb2.LeaseKeepAliveRequest(ID=7)),
        part(10, rpc_pb2.LeaseTimeToLiveRequest(ID=7, keys=True)),
        part(11, rpc_pb2.LeaseLeasesRequest()),
        part(9, rpc_pb2.LeaseKeepAliveRequest(ID=8)),
    )
    yield joined(
        part(12, rpc_pb2.MemberListRequest(linearizable=True)),
        part(13, rpc_pb2.MemberAddRequest(peerURLs=["http://m4:2380"], isLearner=True)),
        part(15, rpc_pb2.MemberUpdateRequest(ID=1, peerURLs=["http://m5:2380"])),
        part(16, rpc_pb2.MemberPromoteRequest(ID=2)),
        part(14, rpc_pb2.MemberRemoveRequest(ID=1)),
    )
    yield joined(
        part(17, rpc_pb2.StatusRequest()),
        part(put, a),
        part(18, rpc_pb2.HashKVRequest(revision=2)),
        part(19, rpc_pb2.MoveLeaderRequest(targetID=1)),
    )


def peer() -> Iterator[bytes]:
    configuration = Configuration((1, 2), (1,), (3,), (4,))
    entries = [Entry(11, 3, 0, b"ab"), Entry(12, 4, 1, b"")]
    for message in (
        AppendRequest(1, 2, 4, 10, 3, 9, entries),
        AppendResponse(1, 2, 3, 4, (5, 6)),
        VoteRequest(1, 2, 3, 4, 5, transfer=False),
        InstallSnapshot(1, 2, 3, SnapshotMeta(9, 2, configuration)),
        Forward(1, 2, 3, 4, 0, b"data"),
        ReadResponse(1, 2, 3, 4, None),
    ):
        yield encode(message)
    yield encode_hello(Hello(1, 2, 3, Channel.CONTROL))
    member = Described(1, ("http://a:1",), is_learner=False, is_started=True)
    yield encode_description(Description(1, 2, (member,), (3,)))
    yield b"\xc1" + msgpack.packb([True, 1 << 32, "", [1, 2]])
    yield b"\xc1" + msgpack.packb([True, {}, {}, None])


def member() -> Iterator[bytes]:
    def call(kind: str, body: object) -> bytes:
        return bytes((QUESTION + 1,)) + msgpack.packb([False, 9, kind, body])

    def told(body: object) -> bytes:
        return bytes((ANSWER,)) + msgpack.packb(body)

    wait = bytes((WHILE,)) + bytes(11)
    entries = [Entry(1, 1, 0, b""), Entry(2, 1, 1, b"")]
    follows = core(OF_NEXT, AppendRequest(2, 1, 1, 0, 0, 1, entries))
    add = rpc_pb2.MemberAddRequest(peerURLs=["http://m4:2380"])
    remove = rpc_pb2.MemberRemoveRequest(ID=3)
    left = rpc_pb2.LeaseTimeToLiveRequest(ID=7)
    yield joined(
        *ELECTED,
        call("renew", 7),
        call("remaining", 7),
        core(OF_NOW, HeartbeatResponse(2, 1, 1, 1)),
        asked(2, add),
        call("member", [1, 0, ["http://m4:2380"]]),
        core(OF_NOW, HeartbeatResponse(2, 1, 1, 2)),
        core(OF_NOW, AppendResponse(2, 1, 1, 2, None)),
        wait,
    )
    yield joined(
        follows,
        asked(0, left),
        core(OF_NOW, ReadResponse(2, 1, 1, (1 << 32) + 1, 1)),
        asked(1, remove),
        told(["refused", 9, "etcdserver: unhealthy cluster"]),
        asked(2, add),
        told(["applied", 2, 4]),
        core(OF_NOW, Heartbeat(2, 1, 1, 1, 3)),
        call("farewell", [1, 1]),
        bytes((LOST,)),
        core(AS_IT_IS, CommitNotice(2, 1, 1, 2)),
    )
    yield joined(follows, asked(1, remove), told(["elsewhere"]), wait, told(["refused", 99, "x"]))
    yield joined(
        *ELECTED,
        core(OF_NOW, Forward(3, 1, 1, 1 << 32, 0, b"data"), other=True),
        core(OF_NOW, ReadRequest(3, 1, 1, 5), other=True),
        core(OF_NOW, InstallSnapshot(2, 1, 1, SnapshotMeta(9, 1, Configuration((1, 2, 3))))),
        asked(5, rpc_pb2.MoveLeaderRequest(targetID=2)),
        core(OF_NOW, TimeoutNow(2, 1, 1)),
    )


def wal() -> Iterator[bytes]:
    for records in ([[2, 12, 1, 0, b"data"]], [[1, 5, 6, 7]], [[2, 5, 1, 0, b"x"], [9]], "text"):
        yield b"\0" + wal_codec.encode_records(records)  # type: ignore[arg-type]
    yield b"\x80" + bytes((0x10, 0x10, 1, 0, 0x40, 7))
    yield b"\xff" + bytes(100)


def snapshot() -> Iterator[bytes]:
    member = Member("memory", Path())
    for number in range(3):
        member.put(b"k%d" % number, b"v")
    member.commit()
    yield joined(*[chunk[4:] for chunk in snapshot_chunks(member.backend)])


def session() -> Iterator[bytes]:
    frames = [
        [1, [pb.CALL, 1, 0, 0, 0, b"payload"], [pb.CALL, 2, 1, 50, 1, b"3 10"]],
        [1, [pb.OPEN, 3, 7, 0, 1000], [pb.MESSAGE, 3, b"text"], [pb.CREDIT, 3, 50]],
        [1, [pb.METADATA, {"token": "x"}], [pb.HALF_CLOSE, 3], [pb.CANCEL, 2]],
        [1, [pb.PIPELINE, 4, 0, 0, [[9, b"a"], [10, b"b"]]]],
    ]
    yield joined(*map(msgpack.packb, frames))
    for frame in frames:
        yield joined(msgpack.packb(frame))


def client() -> Iterator[bytes]:
    from tests.fuzz.session_rig import HELLO  # noqa: PLC0415

    frames = [
        [1, [pb.HELLO, HELLO]],
        [1, [pb.REPLY, 1, b"answer"], [pb.REPLY, 9, b"unknown"]],
        [1, [pb.MESSAGE, 3, b""], [pb.END, 2, 5, "text"], [pb.END, 3, 0, ""]],
        [1, [pb.GOAWAY]],
    ]
    yield joined(*map(msgpack.packb, frames))
    for frame in frames:
        yield joined(msgpack.packb(frame))


def channel() -> Iterator[bytes]:
    """Answers of a server, and all else that it may say."""
    head = b"\x88\x5f\x10application/grpc"
    trailer = b"\x00\x0bgrpc-status\x010"
    answer = b"\0\0\0\0\x04good"
    begins = frames.headers(1, head, 16_384, end_stream=False)
    data = frames.head(frames.DATA, 0, 1, len(answer)) + answer
    ends = frames.headers(1, trailer, 16_384, end_stream=True)
    yield joined(begins + data + ends)
    yield joined(begins, data[:12], data[12:], data, ends)
    yield joined(
        frames.settings(((3, 2), (4, 1), (5, 20_000))), frames.ping(bytes(8), ack=False),
        frames.window_update(3, 1000), frames.window_update(0, 100_000),
        frames.rst_stream(3, frames.REFUSED_STREAM), frames.goaway(1, 0, b"bye"),
        begins, data, ends,
    )  # fmt: skip
    yield joined(
        frames.head(frames.HEADERS, frames.END_STREAM, 5, 5) + head[:5],
        frames.head(frames.CONTINUATION, frames.END_HEADERS, 5, len(head) - 5) + head[5:],
    )
    yield joined(begins, *[frames.head(frames.DATA, frames.PADDED, 1, 100) + b"\x09" * 100] * 3)


def packets() -> Iterator[bytes]:
    def between(source: bytes, target: bytes, **more: Any) -> bytes:
        return packet(source, target, b"payload", **more)

    # By turns from the device and from the network.
    yield joined(between(SOURCE, TARGET), between(TARGET, SOURCE))
    yield joined(
        *(between(SOURCE, TARGET, ttl=1), between(SOURCE, SOURCE)),
        *(between(SOURCE, bytes([10, 5, 9, 9])), between(TARGET, TARGET)),
        *(between(SOURCE, TARGET, options=bytes(8)), b""),
        *(b"\x60" + bytes(47), between(TARGET, SOURCE, fragment=1)),
    )


def sealed() -> Iterator[bytes]:
    for one in sealed_ones():
        yield joined(one)
    yield joined(*sealed_ones(), *sealed_ones())


def control() -> Iterator[bytes]:
    told = ["10.5.2.0/24", "192.0.2.2", 8285, "00" * 32]
    config = Config("npu.8285", 1472, "192.0.2.1", 8285, "10.5.1.0/24")
    hello = {"protocol": 1, "version": "1", "pid": 1, "config": config.told(), "key": ""}
    for message in {"ask": "peers", "peers": [told], "add": True}, hello, {"error": "text"}:
        yield encode_message(message)


def main() -> None:
    """Write every seed that is not there yet."""
    made = (
        rpc, hpack, messages, requests, peer, member, wal, snapshot, session, client, channel,
        packets, sealed, control,
    )  # fmt: skip
    for make in made:
        folder = CORPUS / make.__name__
        folder.mkdir(parents=True, exist_ok=True)
        for data in make():
            (folder / fingerprint(data)).write_bytes(data)


if __name__ == "__main__":
    main()
