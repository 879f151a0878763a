"""Independent clients besides grpcio and curl: the h2 library, h2load, and grpc-go as etcdctl."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Self

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import pytest

from kvstore.pb import kv_pb2, rpc_pb2
from kvstore.rpc import Call
from tests.certificates import Authority
from tests.rpc.conftest import Running, running, server_tls
from tests.rpc.wire import PING, frame, message, request_fields

MIB = 1024 * 1024


class H2:
    """The h2 library on a socket. It checks every frame that we send against its own state."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.protocol = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.events: list[h2.events.Event] = []
        self.protocol.initiate_connection()
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def flush(self) -> None:
        self.socket.sendall(self.protocol.data_to_send())

    def call(self, path: str, body: bytes, *, end: bool = True) -> int:
        stream = self.protocol.get_next_available_stream_id()
        self.protocol.send_headers(stream, request_fields(path))
        self.send(stream, body, end=end)
        return int(stream)

    def send(self, stream: int, body: bytes, *, end: bool) -> None:
        """Send as the windows allow, reading meanwhile."""
        rest = memoryview(body)
        while rest:
            room = min(
                self.protocol.local_flow_control_window(stream),
                self.protocol.max_outbound_frame_size,
            )
            if room:
                self.protocol.send_data(stream, bytes(rest[:room]))
                rest = rest[room:]
                self.flush()
            else:
                self.receive()
        if end:
            self.protocol.end_stream(stream)
        self.flush()

    def receive(self) -> None:
        data = self.socket.recv(65536)
        assert data, f"closed; the last events are {self.events[-3:]}"
        for event in self.protocol.receive_data(data):
            self.events.append(event)
            if isinstance(event, h2.events.DataReceived):
                self.protocol.acknowledge_received_data(
                    event.flow_controlled_length, event.stream_id
                )
        self.flush()

    def until(self, kind: type[h2.events.Event], **values: object) -> h2.events.Event:
        """Receive until such an event has come; returns it."""
        seen = 0
        while True:
            for event in self.events[seen:]:
                if isinstance(event, kind) and all(
                    getattr(event, name) == value for name, value in values.items()
                ):
                    return event
            seen = len(self.events)
            self.receive()

    def response(self, stream: int) -> tuple[bytes, dict[str, str]]:
        """Return the body and the last header section of a whole response."""
        self.until(h2.events.StreamEnded, stream_id=stream)
        ours = [event for event in self.events if getattr(event, "stream_id", None) == stream]
        body = b"".join(e.data for e in ours if isinstance(e, h2.events.DataReceived))
        sections = [
            event.headers
            for event in ours
            if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived)
        ]
        fields = sections[-1]
        return body, {_text(name): _text(value) for name, value in fields}


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode()


def test_h2_calls_of_all_kinds(served: Running) -> None:
    with H2(served.port) as client:
        for _ in range(3):  # the second reply refers to the library's table
            unary = client.call("/t.Test/Echo", message(b"hello"))
            assert client.response(unary) == (message(b"hello"), {"grpc-status": "0"})
        produced = client.call("/t.Test/Produce", message(b"300 5000"))
        assert client.response(produced)[0] == message(b"x" * 5000) * 300
        collected = client.call("/t.Test/Collect", message(bytes(MIB)) * 5)
        assert client.response(collected)[0] == message(b",".join([b"1048576"] * 5))
        chat = client.call("/t.Test/Chat", message(b"one"), end=False)
        client.until(h2.events.DataReceived, stream_id=chat)
        client.send(chat, message(b"two"), end=True)
        assert client.response(chat)[0] == message(b"one") + message(b"two")
        failed = client.call("/t.Test/Fail", message(b"no"))
        body, fields = client.response(failed)
        assert (body, fields[":status"], fields["grpc-status"]) == (b"", "200", "5")


def test_h2_many_streams_at_once(served: Running) -> None:
    with H2(served.port) as client:
        client.until(h2.events.RemoteSettingsChanged)
        streams = [client.call("/t.Test/Big", message(b"20000")) for _ in range(100)]
        for stream in streams:
            assert len(client.response(stream)[0]) == 20005


def test_h2_settings_ping_cancel_and_goaway(served: Running) -> None:
    with H2(served.port) as client:
        unary = client.call("/t.Test/Echo", message(b"fills the table"))
        client.response(unary)
        codes = h2.settings.SettingCodes
        for table, window in ((0, 100), (4096, 65535), (50, 1)):
            client.protocol.update_settings(
                {codes.HEADER_TABLE_SIZE: table, codes.INITIAL_WINDOW_SIZE: window}
            )
            client.events.clear()
            client.flush()
            client.until(h2.events.SettingsAcknowledged)
            again = client.call("/t.Test/Echo", message(b"s" * 200))
            assert client.response(again) == (message(b"s" * 200), {"grpc-status": "0"})
        client.protocol.ping(b"01234567")
        client.flush()
        client.until(h2.events.PingAckReceived, ping_data=b"01234567")
        held = client.call("/t.Test/Hold", message(b""))
        served.until(lambda: served.service.held)
        client.protocol.reset_stream(held, h2.errors.ErrorCodes.CANCEL)
        client.flush()
        served.until(lambda: served.service.log == ["cancelled"])
        client.socket.sendall(frame(PING, 0, held, b"01234567"))
        code = h2.errors.ErrorCodes.PROTOCOL_ERROR
        client.until(h2.events.ConnectionTerminated, error_code=code, last_stream_id=held)


def test_h2_upload_through_our_windows(served: Running) -> None:
    # The library raises when we give a window back wrongly, and knows no more than we told it.
    with H2(served.port) as client:
        client.until(h2.events.RemoteSettingsChanged)
        stream = client.call("/t.Test/Collect", message(bytes(MIB)) * 65, end=False)  # over 64 MiB
        client.send(stream, message(b"end"), end=True)
        body, _ = client.response(stream)
        assert body[5:] == b",".join([b"1048576"] * 65 + [b"3"])


def need(program: str, package: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed (Debian package {package})")


@pytest.mark.h2load
@pytest.mark.parametrize("secure", [False, True])
def test_h2load(loop_name: str, tmp_path: Path, secure: bool) -> None:
    need("h2load", "nghttp2-client")
    body = tmp_path / "body"
    body.write_bytes(message(b"k" * 200))
    tls = server_tls(Authority(tmp_path)) if secure else None
    with running(loop_name, tls=tls) as served:
        url = f"{'https' if secure else 'http'}://127.0.0.1:{served.port}/t.Test/Echo"
        done = subprocess.run(
            ["h2load", "-n2000", "-c10", "-m20", "-d", body, "-H", "content-type: application/grpc",
             "-H", "te: trailers", url],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        statistics = served.run(served.server.statistics)
    assert "2000 total, 2000 started, 2000 done, 2000 succeeded, 0 failed, 0 errored" in done.stdout
    assert (statistics.calls_total, statistics.connections_total) == (2000, 10)
    assert statistics.goaways_sent == {}


@pytest.mark.h2load
def test_h2load_over_http1(loop_name: str) -> None:
    need("h2load", "nghttp2-client")
    with running(loop_name) as served:
        done = subprocess.run(
            ["h2load", "--h1", "-n500", "-c5", f"http://127.0.0.1:{served.port}/x"],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
    assert re.search(r"status codes: 500 2xx", done.stdout)


@pytest.mark.etcdctl
def test_grpc_go_reads_100_mib_and_is_never_sent_away(loop_name: str) -> None:
    # grpc-go measures the bandwidth with pings while data flows: none may count as a strike.
    need("etcdctl", "etcd-client")
    count = 100
    reply = rpc_pb2.RangeResponse(
        kvs=[kv_pb2.KeyValue(key=b"k%03d" % n, value=b"v" * MIB) for n in range(count)], count=count
    ).SerializeToString()

    def answer(call: Call, request: bytes) -> None:
        assert rpc_pb2.RangeRequest.FromString(request).key == b"k"
        call.reply(reply)

    with running(loop_name) as served:
        served.server.unary("/etcdserverpb.KV/Range", answer)
        done = subprocess.run(
            ["etcdctl", "--endpoints", served.target, "--command-timeout", "60s", "get", "k"],
            capture_output=True, timeout=90, check=True, env={**os.environ, "ETCDCTL_API": "3"},
        )  # fmt: skip
        statistics = served.run(served.server.statistics)
    assert len(done.stdout) == count * (len(b"k000\n") + MIB + 1)
    assert statistics.goaways_sent == {}
    assert statistics.connections_total == 1
