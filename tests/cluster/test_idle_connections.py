"""Ten thousand clients that are connected and say nothing: they cost memory only, and little."""

from __future__ import annotations

import contextlib
import re
import resource
import ssl
from collections.abc import Iterator

import pytest

from bench.process import memory
from kvstore.client import Client
from tests.certificates import Authority
from tests.rpc.wire import ACK, PING, SETTINGS, Wire, frame
from tests.servers import Kvstore

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(300)]

COUNT = 10_000
TLS_COUNT = 2_000
SPARE_FILES = 500
KIB = 1024


@pytest.fixture
def files() -> Iterator[None]:
    """A usual soft limit while the member starts: it must help itself. Then enough for us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < COUNT + SPARE_FILES:
        pytest.skip(f"only {hard} open files are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def measure(member: Kvstore, count: int, tls: ssl.SSLContext | None = None) -> float:
    """Open that many connections, prove that each is alive; returns the member's bytes for each."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    port = int(member.endpoints[0].partition(":")[2])
    process = member._processes[0].pid
    with contextlib.ExitStack() as stack:
        for _ in range(50):  # what the first ones load and set up is not theirs
            stack.enter_context(Wire(port, tls)).hello()
        before = memory(process).anonymous_bytes
        wires = []
        for _ in range(count):
            wire = stack.enter_context(Wire(port, tls))
            wire.hello()
            wire.send(frame(SETTINGS, ACK))
            wires.append(wire)
        per_connection = (memory(process).anonymous_bytes - before) / count
        for wire in wires:
            wire.send(frame(PING, 0, 0, b"12345678"))
        for wire in wires:
            assert wire.until(PING).payload == b"12345678"
    return per_connection


def test_plain(files: None) -> None:
    with Kvstore(1) as member:
        assert measure(member, COUNT) <= 16 * KIB
        with Client(member.endpoints) as client:
            client.put(b"k", b"v")
            assert client.status(member.endpoints[0]).raft_term == 1
        assert not re.search("too many open files", member.log_of(0), re.IGNORECASE)


def test_tls(files: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    authority = Authority(tmp_path_factory.mktemp("certificates"))
    certificate, key = authority.issue("server")
    context = ssl.create_default_context(cafile=authority.file)
    context.set_alpn_protocols(["h2"])
    flags = ("--cert-file", certificate, "--key-file", key)
    with Kvstore(1, flags=flags, scheme="https") as member:
        assert measure(member, TLS_COUNT, context) <= 64 * KIB
