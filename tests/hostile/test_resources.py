"""Requests at the limits, many watchers, readers that stop, connections that drip or churn."""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import grpc
import pytest

from bench.process import memory
from kvstore.client import Client, Op
from kvstore.pb import rpc_pb2
from tests.hostile import LINE
from tests.hostile.attacks import CHUNK_BYTES, KIB, MIB, PUT, RANGE, WATCH, headers
from tests.hostile.bystander import CALM_S, Bystander, judge
from tests.hostile.test_floods import ROOT, port_of
from tests.rpc import wire as w
from tests.rpc.wire import PREFACE, Wire, frame, message, settings, window_update
from tests.server.raw import Raw
from tests.servers import Kvstore

pytestmark = [pytest.mark.cluster]

REQUEST_BYTES_MAX = 1536 * KIB
Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def member() -> Iterator[Kvstore]:
    with Kvstore(1, flags=("--quota-backend-bytes", str(8 << 30))) as server:
        yield server


def pid_of(member: Kvstore) -> int:
    return member._processes[0].pid


# Requests at the limits


def test_a_request_of_the_largest_size_and_one_byte_more(member: Kvstore) -> None:
    overhead = rpc_pb2.PutRequest(key=b"k", value=bytes(REQUEST_BYTES_MAX)).ByteSize()
    largest = 2 * REQUEST_BYTES_MAX - overhead
    with Raw(member.endpoints[0]) as raw:
        put = rpc_pb2.PutRequest(key=b"k", value=bytes(largest))
        assert put.ByteSize() == REQUEST_BYTES_MAX
        raw.call("Put", put)
        [found] = raw.call("Range", rpc_pb2.RangeRequest(key=b"k")).kvs
        assert len(found.value) == largest
        put.value += b"x"
        code, text = raw.refused("Put", put)
        assert (code, text) == ("INVALID_ARGUMENT", "etcdserver: request is too large")
        put.value = bytes(3 * MIB)  # not even read to its end
        code, text = raw.refused("Put", put)
        assert code == "RESOURCE_EXHAUSTED"
        assert "larger than max" in text
        raw.call("Put", rpc_pb2.PutRequest(key=b"k", value=b"small"))


def test_a_transaction_of_the_most_operations_and_one_more(member: Kvstore) -> None:
    def txn(count: int) -> rpc_pb2.TxnRequest:
        puts = [rpc_pb2.PutRequest(key=b"txn%d" % n, value=b"v") for n in range(count)]
        return rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_put=put) for put in puts])

    with Raw(member.endpoints[0]) as raw:
        assert len(raw.call("Txn", txn(128)).responses) == 128
        code, text = raw.refused("Txn", txn(129))
        assert (code, text) == (
            "INVALID_ARGUMENT",
            "etcdserver: too many operations in txn request",
        )


@pytest.mark.alone  # it judges latency
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_range_over_a_million_keys(member: Kvstore, record_property: Record) -> None:
    keys = 1_000_000
    with Client(member.endpoints, timeout_s=60) as client:
        for start in range(0, keys, 12_800):
            pipeline = client.pipeline()
            for first in range(start, min(keys, start + 12_800), 128):
                last = min(keys, first + 128)
                pipeline = pipeline.then(
                    *[Op.put(b"million/%07d" % number, b"v") for number in range(first, last)]
                )
            pipeline.commit()
    pid = pid_of(member)
    options = [("grpc.max_receive_message_length", -1)]
    with (
        Bystander(port_of(member), pid) as bystander,
        grpc.insecure_channel(member.endpoints[0], options=options) as channel,
    ):
        calm = bystander.watch(CALM_S)
        before_bytes = memory(pid).anonymous_bytes
        get = channel.unary_unary(
            "/etcdserverpb.KV/Range", response_deserializer=rpc_pb2.RangeResponse.FromString
        )
        request = rpc_pb2.RangeRequest(key=b"million/", range_end=b"million0")
        reply = get(request.SerializeToString(), timeout=120)
        grown_bytes = bystander.peak_bytes - before_bytes
        attacked = bystander.phase()
    assert (reply.count, len(reply.kvs), reply.more) == (keys, keys, False)
    assert reply.kvs[-1].key == b"million/%07d" % (keys - 1)
    size = reply.ByteSize()
    record_property(
        LINE,
        f"{'range of 1,000,000 keys':28} {calm!s:>14} {attacked!s:>14}"
        f" {max(attacked.taken_s) * 1e3:5.0f} ms {max(attacked.writes_s) * 1e3:5.0f} ms"
        f" {grown_bytes >> 20:5} MiB  a reply of {size >> 20} MiB",
    )
    judge(calm, attacked, 0)
    assert grown_bytes <= 4 * size


# Watching


class Watches:
    """One watch stream; its windows are as wide as they go."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.body = bytearray()
        wire.hello(settings(window=2**31 - 1))
        wire.send(window_update(0, 2**30), headers(1, WATCH))

    def send(self, requests: Iterator[rpc_pb2.WatchRequest]) -> None:
        data = bytearray()
        for request in requests:
            data += frame(w.DATA, 0, 1, message(request.SerializeToString()))
            if len(data) > CHUNK_BYTES:
                self.wire.send(bytes(data))
                data.clear()
        self.wire.send(bytes(data))

    def responses(self) -> Iterator[rpc_pb2.WatchResponse]:
        while True:
            while len(self.body) >= 5:
                stop = 5 + int.from_bytes(self.body[1:5], "big")
                if len(self.body) < stop:
                    break
                response = rpc_pb2.WatchResponse.FromString(bytes(self.body[5:stop]))
                del self.body[:stop]
                yield response
            got = self.wire.until(w.DATA, 1)
            self.wire.seen.clear()
            self.body += got.payload
            if got.payload:
                self.wire.send(window_update(0, len(got.payload)))


def test_ten_thousand_watchers_on_one_stream(record_property: Record) -> None:
    # A member of its own: memory that earlier tests have freed would be taken again unseen.
    count = 10_000
    with (
        Kvstore(1) as member,
        Wire(port_of(member)) as wire,
        Client(member.endpoints) as client,
    ):
        pid = pid_of(member)
        watches = Watches(wire)
        responses = watches.responses()
        before_bytes = memory(pid).anonymous_bytes
        watches.send(
            rpc_pb2.WatchRequest(
                create_request=rpc_pb2.WatchCreateRequest(key=b"watched/%d" % n, watch_id=n + 1)
            )
            for n in range(count)
        )
        assert {next(responses).watch_id for _ in range(count)} == set(range(1, count + 1))
        each_bytes = (memory(pid).anonymous_bytes - before_bytes) / count

        for first in range(0, count, 100):
            txn = client.txn().then(
                *[Op.put(b"watched/%d" % number, b"v") for number in range(first, first + 100)]
            )
            txn.commit()
        seen = {}
        while len(seen) < count:
            response = next(responses)
            [event] = response.events
            assert event.kv.key == b"watched/%d" % (response.watch_id - 1)
            assert response.watch_id not in seen
            seen[response.watch_id] = event.kv.mod_revision

        watches.send(
            rpc_pb2.WatchRequest(cancel_request=rpc_pb2.WatchCancelRequest(watch_id=n + 1))
            for n in range(count)
        )
        assert all(next(responses).canceled for _ in range(count))
        client.put(b"watched/7", b"again")
        again = rpc_pb2.WatchCreateRequest(key=b"other")
        watches.send(iter([rpc_pb2.WatchRequest(create_request=again)]))
        assert next(responses).created  # and no event of what was cancelled before it
    record_property(LINE, f"{'10,000 watchers':28} {each_bytes:8,.0f} bytes each")
    assert 100 < each_bytes <= 4 * KIB


@pytest.mark.slow
def test_a_watcher_that_stops_reading_costs_little_and_catches_up(
    member: Kvstore, record_property: Record
) -> None:
    events, value = 400, bytes(256 * KIB)  # 100 MiB
    pid = pid_of(member)
    with (
        Wire(port_of(member)) as wire,
        Bystander(port_of(member), pid) as bystander,
        Client(member.endpoints) as client,
    ):
        watches = Watches(wire)
        responses = watches.responses()
        create = rpc_pb2.WatchCreateRequest(key=b"much")
        watches.send(iter([rpc_pb2.WatchRequest(create_request=create)]))
        assert next(responses).created
        for _ in range(20):
            client.put(b"warm", value)  # buffers of the write path are not the watcher's
        calm = bystander.watch(CALM_S)
        before_bytes = memory(pid).anonymous_bytes
        for _ in range(events):
            client.put(b"much", value)
        grown_bytes = memory(pid).anonymous_bytes - before_bytes
        attacked = bystander.phase()
        versions: list[int] = []
        while len(versions) < events:
            versions += [event.kv.version for event in next(responses).events]
    record_property(
        LINE, f"{'100 MiB of unread events':28} {calm!s:>14} {attacked!s:>14}"
        f" {max(attacked.taken_s) * 1e3:5.0f} ms {max(attacked.writes_s) * 1e3:5.0f} ms"
        f" {grown_bytes >> 20:5} MiB",
    )  # fmt: skip
    assert versions == list(range(1, events + 1))
    assert grown_bytes <= 48 * MIB  # the write path's own buffers are in it


# Connections


@pytest.mark.alone  # it judges latency
@pytest.mark.slow
def test_connections_that_come_and_go(member: Kvstore, record_property: Record) -> None:
    per_s, seconds = 5000, 5.0
    pid = pid_of(member)
    with Bystander(port_of(member), pid) as bystander:
        bystander.watch(0.2)
        calm = bystander.watch(CALM_S)
        before_bytes = memory(pid).anonymous_bytes
        done = subprocess.run(
            [sys.executable, "-m", "tests.hostile.churn", str(port_of(member)), str(per_s),
             str(seconds)],
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        grown_bytes = bystander.peak_bytes - before_bytes
        attacked = bystander.phase()
    record_property(
        LINE, f"{'connections come and go':28} {calm!s:>14} {attacked!s:>14}"
        f" {max(attacked.taken_s) * 1e3:5.0f} ms {max(attacked.writes_s) * 1e3:5.0f} ms"
        f" {grown_bytes >> 20:5} MiB  {int(done.stdout) / seconds:,.0f} a second",
    )  # fmt: skip
    assert int(done.stdout) >= per_s * seconds / 2  # what a busy machine comes to
    judge(calm, attacked, seconds)
    assert grown_bytes <= 64 * MIB


class FewFiles(Kvstore):
    """A member that may open 400 files."""

    def wrapper(self, index: int) -> list[str]:
        return ["prlimit", "--nofile=400:400"]


def test_more_connections_than_files(record_property: Record) -> None:
    # A member without a file for the next segment of its log would end.
    with FewFiles(1) as member, contextlib.ExitStack() as stack:
        port = port_of(member)
        with Bystander(port, pid_of(member)) as bystander, Client(member.endpoints) as client:
            client.put(b"k", b"before")
            crowd = [
                stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                for _ in range(600)
            ]
            bystander.watch(0.5)
            client.put(b"k", b"beside")
            closed, _, _ = select.select(crowd, [], [], 0)
            held = len(crowd) - len(closed)
            assert 200 <= held <= 250
            stack.close()
            with Raw(member.endpoints[0]) as raw:  # somebody new
                assert raw.call("Range", rpc_pb2.RangeRequest(key=b"k")).kvs[0].value == b"beside"
        assert "Too many open files" not in member.log_of(0)
    record_property(LINE, f"{'600 connections, 400 files':28} held {held}")


# Slow loris

POST = b"POST /v3/kv/put HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n"
GET = b"GET /health HTTP/1.1\r\nhost: localhost\r\n"
HELLO = PREFACE + settings()
BODY = HELLO + headers(1, PUT) + frame(w.DATA, 0, 1, message(bytes(KIB))[:100])

DRIPS: dict[str, tuple[bytes, bytes, float]] = {
    "nothing": (b"", b"", 10),
    "preface": (b"", PREFACE[:20], 10),
    "http/1 request line": (b"", b"GET /" + b"x" * 200, 10),
    "http/1 headers": (GET, b"x-drip: " + b"y" * 200, 10),
    "http/1 second request": (GET + b"\r\n", GET + b"x-drip: " + b"y" * 200, 75),
    "http/1 body": (POST, b"x" * 200, 60),
    "no settings": (PREFACE, b"", 35),
    "http/2 frame": (HELLO, frame(w.HEADERS, 4, 1, RANGE), 35),
    "http/2 headers": (HELLO + headers(1, RANGE[:1], 0), b"", 35),
}
"""What is sent at once, what then byte by byte, and after how many seconds it must be over."""

DRIP_S = 1.0
LATE_S = 12.0
"""Sweeps come every few seconds, and farewells take two."""


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_slow_loris(member: Kvstore, record_property: Record) -> None:
    # All at once, for none of them keeps the member busy.
    port = port_of(member)
    began_s = time.monotonic()
    ended_s: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        sockets = {}
        left = {}
        for name, (first, drip, _) in DRIPS.items():
            one = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            one.sendall(first)
            one.setblocking(False)
            sockets[name], left[name] = one, drip
        body = stack.enter_context(Wire(port))
        body.send(BODY)
        while len(ended_s) < len(DRIPS):
            assert time.monotonic() - began_s < 120, f"still open: {set(DRIPS) - set(ended_s)}"
            select.select([one for name, one in sockets.items() if name not in ended_s], [], [], 0)
            time.sleep(DRIP_S)  # the drip itself
            for name, one in sockets.items():
                if name in ended_s:
                    continue
                try:
                    one.send(left[name][:1])
                    left[name] = left[name][1:]
                    while data := one.recv(65536):
                        pass
                except BlockingIOError:
                    continue
                except ConnectionError:
                    data = b""
                if not data:
                    ended_s[name] = time.monotonic() - began_s
            with contextlib.suppress(ConnectionError):
                body.send(frame(w.DATA, 0, 1, b"x"))
        body.send(frame(w.PING, 0, 0, b"12345678"))
        refused = next(
            got for got in iter(body.read, None) if got.kind == w.HEADERS and got.stream == 1
        )
        assert "took too long" in refused.fields["grpc-message"]
    record_property(
        LINE, "slow loris, closed after: "
        + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in ended_s.items()),
    )  # fmt: skip
    for name, (_, _, bound_s) in DRIPS.items():
        assert ended_s[name] <= bound_s + LATE_S, ended_s
