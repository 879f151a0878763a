"""Names of hosts: whoever keeps silent about one holds nobody up."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from kvstore.client import AsyncClient, channel
from kvstore.client.errors import UnreachableError
from kvstore.client.names import Name
from tests.servers import free_ports

SILENT = """
import asyncio, socket, threading
from kvstore.client import AsyncClient, KvError
socket.getaddrinfo = lambda *_, **__: threading.Event().wait(120)
async def main():
    async with AsyncClient(["registry.example:2379"], timeout_s=0.2) as client:
        try:
            await client.get(b"k")
        except KvError as error:
            print(error)
asyncio.run(main())
"""


class Resolver:
    """Answers when it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.answers = threading.Event()
        self.found: list[str] | OSError = ["127.0.0.1"]
        monkeypatch.setattr(socket, "getaddrinfo", self._look_up)

    def _look_up(self, host: str, port: Any, *_: Any, **__: Any) -> list[Any]:
        if host.startswith("127."):
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]
        self.asked.append(host)
        self.answers.wait(20)
        if isinstance(self.found, OSError):
            raise self.found
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 0)) for each in self.found]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    made = Resolver(monkeypatch)
    yield made
    made.answers.set()


def test_a_program_ends_while_a_name_is_looked_up() -> None:
    begun_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", SILENT], capture_output=True, text=True, timeout=60, check=True
    )
    assert "registry.example:2379: no connection within 0.2 s" in done.stdout
    assert done.stderr == ""
    assert time.monotonic() - begun_s < 30


async def test_attempts_share_one_look_up_that_outlives_those_who_gave_up(
    resolver: Resolver,
) -> None:
    name = Name("registry.example")
    first = asyncio.create_task(name.addresses())
    second = asyncio.create_task(name.addresses())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})
    assert name.is_asking
    resolver.found = ["127.0.0.2", "127.0.0.1", "127.0.0.2"]
    resolver.answers.set()
    assert await second == ["127.0.0.2", "127.0.0.1"]
    assert resolver.asked == ["registry.example"]
    # What is known is not kept: a name may lead elsewhere the next time.
    assert not name.is_asking
    resolver.found = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    with pytest.raises(socket.gaierror, match="not known"):
        await name.addresses()
    assert len(resolver.asked) == 2


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "fe80::1%eth0"])
async def test_addresses_are_not_looked_up(resolver: Resolver, host: str) -> None:
    assert await Name(host).addresses() == [host]
    assert resolver.asked == []


async def test_what_is_no_name_is_refused() -> None:
    with pytest.raises(OSError, match=r"is no name: .*too long"):
        await Name("x" * 64 + ".example").addresses()


async def test_what_is_unknown_or_slow_is_said(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "CONNECT_TIMEOUT_S", 0.2)
    async with AsyncClient(["registry.example:2379"], timeout_s=1.5) as client:
        with pytest.raises(UnreachableError, match=r"its name was not found within 0\.2 s"):
            await client.get(b"k")
        resolver.found = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        resolver.answers.set()
        with pytest.raises(UnreachableError, match="Name or service not known"):
            await client.get(b"k")


async def test_every_address_of_a_name_is_tried(resolver: Resolver) -> None:
    [port] = free_ports(1)
    resolver.found = ["127.0.0.2", "127.0.0.1"]
    resolver.answers.set()
    async with AsyncClient([f"registry.example:{port}"], timeout_s=1) as client:
        with pytest.raises(UnreachableError) as caught:
            await client.get(b"k")
    assert f"('127.0.0.2', {port})" in str(caught.value)
    assert f"('127.0.0.1', {port})" in str(caught.value)

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with (
        await asyncio.start_server(greet, "127.0.0.1", port),
        AsyncClient([f"registry.example:{port}"], timeout_s=1) as client,
    ):
        with pytest.raises(UnreachableError, match=r"hung up|closed|reset"):
            await client.get(b"k")
