"""The agent's HTTP: real sockets, and clients that behave badly."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client.parser import text_string_to_metric_families

from netplane.agent import health
from netplane.agent.ask import ask
from netplane.agent.errors import SettingsError
from netplane.agent.health import Page, Server, text_page, unix_listener
from netplane.agent.metrics import Counts, render
from netplane.netlink.objects import KernelObject


async def echo(query: Mapping[str, str]) -> Page:
    return text_page(f"{dict(query)}")


async def broken(query: Mapping[str, str]) -> Page:
    raise LookupError("a bug")


async def slow(query: Mapping[str, str]) -> Page:
    await asyncio.Event().wait()
    raise AssertionError


ROUTES = {
    ("GET", "/echo"): echo,
    ("POST", "/do"): echo,
    ("GET", "/broken"): broken,
    ("GET", "/slow"): slow,
}


async def talk(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer


@pytest.fixture
async def server() -> Server:
    found = Server(ROUTES)
    await found.listen_tcp("127.0.0.1", 0)
    return found


@pytest.mark.parametrize(
    ("request_line", "status", "body"),
    [
        (b"GET /echo?a=1&b=x%20y HTTP/1.1", b"200 OK", b"{'a': '1', 'b': 'x y'}"),
        (b"HEAD /echo HTTP/1.1", b"200 OK", b""),
        (b"POST /do HTTP/1.0", b"200 OK", b"{}"),
        (b"GET /do HTTP/1.1", b"405 Method Not Allowed", b""),
        (b"GET /nowhere HTTP/1.1", b"404 Not Found", b"no such page\n"),
        (b"GET /broken HTTP/1.1", b"500 Internal", b"the agent failed; its log tells more\n"),
        (b"nonsense", b"400 Bad Request", b"this is no HTTP/1.1 request\n"),
        (b"GET //[ HTTP/1.1", b"400 Bad Request", b"the request's target is no path\n"),
        (b"GET /" + b"x" * 9000 + b" ", b"431 Request", b"the request's head is too large\n"),
    ],
)  # fmt: skip
async def test_answers(server: Server, request_line: bytes, status: bytes, body: bytes) -> None:
    answer = await talk(server.port, request_line + b"\r\nhost: x\r\n\r\n")
    head, _, found = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status)
    assert found == body
    await server.close()


async def test_who_says_nothing_is_let_go_and_a_page_that_hangs_is_answered(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "HEAD_TIMEOUT_S", 0.05)
    monkeypatch.setattr(health, "ANSWER_TIMEOUT_S", 0.05)
    assert await talk(server.port, b"GET /echo HT") == b""
    assert (await talk(server.port, b"GET /slow HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 504")
    await server.close()


async def test_too_many_connections_are_closed_at_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "CONNECTIONS_MAX", 1)
    first_reader, first = await asyncio.open_connection("127.0.0.1", server.port)
    assert await talk(server.port, b"") == b""
    assert server.refused == 1
    first.write(b"GET /echo HTTP/1.1\r\n\r\n")
    assert (await first_reader.read()).startswith(b"HTTP/1.1 200")
    first.close()
    await server.close()


async def test_closing_lets_answers_out_and_waits_for_nobody_else(server: Server) -> None:
    # `ctl drain` gets its answer although the agent that gives it ends.
    asked, may_answer = asyncio.Event(), asyncio.Event()

    async def last(query: Mapping[str, str]) -> Page:
        asked.set()
        await may_answer.wait()
        return text_page("done")

    server._routes = {("POST", "/drain"): last}
    idle_reader, idle = await asyncio.open_connection("127.0.0.1", server.port)
    asking = asyncio.create_task(talk(server.port, b"POST /drain HTTP/1.1\r\n\r\n"))
    await asked.wait()
    closing = asyncio.create_task(server.close())
    may_answer.set()
    assert (await asking).endswith(b"done")
    await closing
    assert await idle_reader.read() == b""
    idle.close()


async def test_the_socket_is_private_replaces_a_dead_ones_and_goes_with_the_server(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run" / "default.sock"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(ConnectionRefusedError):
        ask(path, "GET", "/echo")
    server = Server(ROUTES)
    await server.listen_unix(path)
    assert path.stat().st_mode & 0o777 == 0o600
    page = await asyncio.to_thread(ask, path, "GET", "/echo?x=1")
    assert page[:2] == (200, b"{'x': '1'}")
    await server.close()
    assert not path.exists()


def test_a_socket_that_is_seen_takes_connections(tmp_path: Path) -> None:
    path = tmp_path / "default.sock"
    ended = threading.Event()
    refused = []

    def connect() -> None:
        while not ended.is_set():
            with socket.socket(socket.AF_UNIX) as caller:
                try:
                    caller.connect(str(path))
                except FileNotFoundError:
                    pass
                except ConnectionRefusedError as error:
                    refused.append(error)

    thread = threading.Thread(target=connect)
    thread.start()
    for _ in range(1000):
        with contextlib.closing(unix_listener(path, 1000)):
            path.unlink()
    ended.set()
    thread.join()
    assert refused == []


@pytest.mark.parametrize("part", [b"", b"HTTP/1.1 200 OK\r\n", b"200 OK", b"{}"])
def test_an_agent_that_dies_in_the_middle_of_an_answer_has_not_answered(
    part: bytes, tmp_path: Path
) -> None:
    # Half of a JSON text is no text, and half of a list of peers would be worse.
    path = tmp_path / "default.sock"
    whole = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\nconnection: close\r\n\r\n{}       "
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer(said: bytes) -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(said)

        cut = whole[: whole.index(part) + len(part)]
        for said in (cut, whole):
            thread = threading.Thread(target=answer, args=(said,))
            thread.start()
            try:
                if said == whole:
                    assert ask(path, "GET", "/v1/status").body.strip() == b"{}"
                else:
                    with pytest.raises(ConnectionError, match="went away"):
                        ask(path, "GET", "/v1/status")
            finally:
                thread.join()


async def test_a_port_in_use_says_what_to_change(server: Server) -> None:
    with pytest.raises(SettingsError, match=r"cannot serve .*--healthz-port"):
        await Server(ROUTES).listen_tcp("127.0.0.1", server.port)
    await server.close()


def test_the_metrics_page() -> None:
    counts = Counts()
    counts.healed.update(route=3, fdbentry=1)
    counts.found.update(route=4)
    counts.failed = 2
    for milliseconds in (0.5, 1.0, 1.5, 9000.0):
        counts.applied(milliseconds)
    page = render(counts, {"ready": 0.0, "peers": 4}, {"no-lease": "x"}, {"quarantined": "y"})
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }
    assert samples["netplane_peers",] == 4
    assert samples["netplane_missing", "no-lease"] == 1
    assert samples["netplane_note", "quarantined"] == 1
    assert samples["netplane_healed_total", "route"] == 3
    assert samples["netplane_drift_found_total", "route"] == 4
    # `increase()` does not see the first drift of a kind that has no sample before it.
    kinds = {kind.__name__.lower() for kind in get_args(KernelObject)} - {"uplink"}
    for kind in kinds - {"route", "fdbentry"} | {"firewall", "forward", "process", "hung-process"}:
        assert samples["netplane_healed_total", kind] == 0
        assert samples["netplane_drift_found_total", kind] == 0
    assert samples["netplane_refused_total",] == 2
    assert samples["netplane_apply_seconds_bucket", "0.001"] == 2
    assert samples["netplane_apply_seconds_bucket", "0.002"] == 3
    assert samples["netplane_apply_seconds_bucket", "5.0"] == 3
    assert samples["netplane_apply_seconds_bucket", "+Inf"] == 4
    assert samples["netplane_apply_seconds_sum",] == pytest.approx(9.003)
    assert samples["process_open_fds",] > 0
