"""kvctl bench as a command, on our server and on etcd."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore.cli.bench import workloads
from kvstore.cli.bench.plan import WORKLOADS
from kvstore.client import AsyncClient, Client
from tests.cli.running import run_kvctl, spawn_kvctl
from tests.servers import SERVERS, Cluster, free_ports

KINDS = {
    "put": {"put"},
    "range": {"get"},
    "mixed": {"get", "put"},
    "txn": {"txn"},
    "watch-latency": {"event"},
    "watch-fanout": {"all events"},
    "lease-keepalive": {"keepalive"},
    "lock": {"acquire"},
    "hot-key": {"put"},
    "sequential": {"get", "put"},
}
SMALL = "--clients 5 --connections 2 --keys 50 --watchers 6 --leases 7 --total 60"
NUMBER = (int, float)
SUMMARY = {
    "count": int,
    **dict.fromkeys(
        ("mean_ms", "min_ms", "p50_ms", "p90_ms", "p99_ms", "p99_9_ms", "max_ms"), NUMBER
    ),
    "buckets": list,
}
SCHEMA: dict[str, Any] = {
    "schema": str,
    "workload": str,
    "started_at": str,
    "duration_s": NUMBER,
    "interrupted": bool,
    "operations": int,
    "operations_per_s": NUMBER,
    "errors": dict,
    "error_texts": dict,
    "unsent": int,
    "latency": dict,
    "service": dict,
    "notes": dict,
    "all": SUMMARY,
    "timeline": list,
    "settings": dict,
    "server": {"endpoints": list, "version": str, "session": bool},
    "client": {
        "kvctl": str,
        "python": str,
        "system": str,
        "cpus": int,
        "cpu_percent": NUMBER,
    },
}
SECOND = dict.fromkeys(("at_s", "operations_per_s", "p50_ms", "p99_ms"), NUMBER) | {"errors": int}


def check(value: Any, schema: Any) -> None:
    if isinstance(schema, dict):
        assert value.keys() == schema.keys()
        for name, each in schema.items():
            check(value[name], each)
    else:
        assert isinstance(value, schema), (value, schema)


def bench(server: Cluster, arguments: str) -> dict[str, Any]:
    done = run_kvctl(
        ["--endpoints", ",".join(server.endpoints), "-w", "json", "bench", *arguments.split()]
    )
    assert (done.code, done.err) == (0, b""), done.err.decode()
    report: dict[str, Any] = json.loads(done.out)
    return report


def left(server: Cluster) -> tuple[int, int]:
    with Client(server.endpoints) as client:
        client.get(b"k")
        keys = client.range(b"kvctl-bench/", prefix=True, count_only=True).count
        return keys, len(client.lease_list())


@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_workload_measures_and_leaves_nothing(server: Cluster, workload: str) -> None:
    before = left(server)
    report = bench(server, f"{workload} {SMALL}")
    check(report, SCHEMA)
    assert report["schema"] == "kvctl-bench/1"
    assert report["operations"] == 60
    assert report["errors"] == {}
    assert report["latency"].keys() == KINDS[workload]
    for group in ("latency", "service", "notes"):
        for each in report[group].values():
            check(each, SUMMARY)
            assert sum(count for _, count in each["buckets"]) == each["count"] > 0
            assert 0 < each["min_ms"] <= each["p50_ms"] <= each["p99_ms"] <= each["max_ms"]
    for second in report["timeline"]:
        check(second, SECOND)
    if workload == "watch-fanout":
        assert report["notes"]["delivery"]["count"] == 6 * 60
    assert left(server) == before


def test_every_workload_is_described() -> None:
    assert list(WORKLOADS) == list(workloads.WORKLOADS) == list(KINDS)


def test_the_data_of_others_stays(server: Cluster) -> None:
    # Even below the same prefix: another run may be using it at this moment.
    with Client(server.endpoints) as client:
        client.put(b"bench-mine/0", b"v")
        bench(server, f"put {SMALL} --prefix bench-mine/")
        assert [kv.key for kv in client.range(b"bench-mine/", prefix=True).kvs] == [b"bench-mine/0"]


def test_keep_keeps_and_says_where(server: Cluster) -> None:
    done = run_kvctl(
        ["--endpoints", server.endpoints[0], "bench", "hot-key", "--total", "3", "--keep"]
    )
    assert done.code == 0
    prefix = done.err.decode().removeprefix("kept: ").strip()
    with Client(server.endpoints) as client:
        [kv] = client.range(prefix.encode(), prefix=True).kvs
        assert kv.version == 3
        client.delete(prefix.encode(), prefix=True)


def test_the_sizes_are_what_was_asked_for(server: Cluster) -> None:
    done = run_kvctl(
        [
            *("--endpoints", server.endpoints[0], "bench", "put", "--total", "20", "--keep"),
            *("--key-size", "40", "--value-size", "77", "--keys", "3", "--prefix", "sizes/"),
        ]
    )
    prefix = done.err.removeprefix(b"kept: ").strip()
    with Client(server.endpoints) as client:
        kvs = client.range(prefix, prefix=True).kvs
        client.delete(b"sizes/", prefix=True)
    assert {(len(kv.key) - len(prefix), len(kv.value)) for kv in kvs} == {(40, 77)}
    assert len(kvs) == 3


def test_transports(server: Cluster) -> None:
    report = bench(server, f"put {SMALL} --transport unary")
    assert report["server"]["session"] is False
    offered = type(server).__name__ != "EtcdCluster" and "etcd" not in server.command[0]
    assert bench(server, f"put {SMALL}")["server"]["session"] is offered
    if not offered:
        done = run_kvctl(
            ["--endpoints", server.endpoints[0], "bench", "put", "--transport", "session"]
        )
        assert done.code == 2
        assert b"Error: " in done.err


def test_a_rate_and_its_service_times(server: Cluster) -> None:
    report = bench(server, "put --clients 20 --rate 100 --duration 500ms")
    # It may go on for some milliseconds more on a busy machine.
    assert 50 <= report["operations"] + report["unsent"] <= 100 * report["duration_s"] + 1.1
    assert report["service"]["put"]["count"] == report["operations"]
    assert report["settings"]["rate"] == 100


class Page:
    """An HTML report, read as a browser reads it: what it shows and what it would fetch."""

    def __init__(self, text: str) -> None:
        self.text = text
        start = text.index("<body>")
        body = text[start : text.index("</html>")].replace("<br>", "<br/>")
        self.root = ET.fromstring(body)

    def plots(self) -> list[ET.Element]:
        return list(self.root.iter("svg"))


def test_the_files(server: Cluster, tmp_path: Path) -> None:
    done = run_kvctl(
        [
            *("--endpoints", server.endpoints[0], "bench", "mixed", "--duration", "300ms"),
            *("--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html")),
            *("--prefix", "<b>&'\""),
        ]
    )
    assert done.code == 0
    report = json.loads((tmp_path / "r.json").read_text())
    check(report, SCHEMA)
    assert f"{report['operations']} operations in".encode() in done.out
    page = Page((tmp_path / "r.html").read_text())
    assert len(page.plots()) == 4
    assert all(len(list(plot.iter())) > 8 for plot in page.plots())
    # Complete in itself: it may be opened where there is no network.
    for word in ("http://", "https://", "src=", "href=", "url(", "@import", "<script"):
        assert word not in page.text.replace(f"http://{server.endpoints[0]}", "")
    assert "<b>&'" not in page.text


BAD = {
    "": (1, "missing argument"),
    "nonsense": (1, "'nonsense' is not one of"),
    "put --clients 0": (1, "0 is not in the range x>=1"),
    "put --total 0": (1, "0 is not in the range x>=1"),
    "put --rate 0": (1, "is not in the range x>0"),
    "put --rate x": (1, "'x' is not a valid float"),
    "put --duration 0s": (128, "--duration must be longer than 0"),
    "put --duration soon": (1, "invalid argument"),
    "put --key-size 3": (1, "3 is not in the range 8<=x<=32768"),
    "put --value-size -1": (1, "-1 is not in the range"),
    "put --keys 1000000000": (128, "--keys must be at most 100000000"),
    "put --transport pigeon": (1, "'pigeon' is not one of"),
    "watch-latency --value-size 3": (128, "--value-size 3 is too small for watch-latency"),
    "txn --txn-ops 5 --keys 4": (128, "--txn-ops 5 is more than --keys 4"),
    "range --limit 5 --keys 4": (128, "--limit 5 is more than --keys 4"),
    "put --json /no/such/folder/x.json": (128, "there is no such folder"),
    "put -w table": (4, "bench writes simple or json"),
    "put --bogus": (1, "unknown flag: --bogus"),
    "mixed --reads 101": (1, "is not in the range 0<=x<=100"),
}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_is_refused_before_anything_is_sent(arguments: str) -> None:
    code, text = BAD[arguments]
    # Nobody listens there: whoever connected first would say so instead.
    [port] = free_ports(1)
    done = run_kvctl(["--endpoints", f"127.0.0.1:{port}", "bench", *arguments.split()])
    assert text in done.err.decode().replace("Missing", "missing")
    assert done.code == code
    assert done.out == b""


def test_nobody_there_is_said_at_once() -> None:
    [port] = free_ports(1)
    done = run_kvctl(
        ["--endpoints", f"127.0.0.1:{port}", "--command-timeout", "500ms", "bench", "put"]
    )
    assert done.code == 2
    assert b"check the endpoints" in done.err


def test_requests_that_all_fail_are_a_failure(server: Cluster) -> None:
    # Values beyond what a request may hold: each is refused, none is written.
    done = run_kvctl(
        [
            *("--endpoints", server.endpoints[0], "bench", "put", "--total", "4"),
            *("--value-size", str(3 << 20), "--clients", "2"),
        ]
    )
    assert done.code == 1
    assert b"4 failed with RequestTooLargeError" in done.out


@contextlib.contextmanager
def on_a_terminal(arguments: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "kvstore.cli.kvctl", *arguments],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={"PATH": os.environ["PATH"], "TERM": "xterm", "COLUMNS": "150"},
    ) as process:
        os.close(theirs)
        try:
            yield process, ours
        finally:
            process.kill()
            os.close(ours)


def read_until(terminal: int, wanted: bytes) -> bytes:
    seen = b""
    while wanted not in seen:
        seen += os.read(terminal, 4096)
    return seen


def test_ctrl_c_reports_what_ran_and_cleans_up(server: Cluster) -> None:
    before = left(server)
    arguments = ["--endpoints", server.endpoints[0], "bench", "put", "--duration", "1000s"]
    with on_a_terminal(arguments) as (process, terminal):
        seen = read_until(terminal, b"p99")  # a second has passed
        assert b"put" in seen
        assert b"/s" in seen
        process.send_signal(signal.SIGINT)
        read_until(terminal, b"once more Ctrl-C")
        out, _ = process.communicate(timeout=30)
        assert process.returncode == 0
    assert b"interrupted: this is what ran until then" in out
    assert b"operations in" in out
    assert left(server) == before


def test_ctrl_c_while_preparing_cleans_up(server: Cluster) -> None:
    before = left(server)
    arguments = ["--endpoints", server.endpoints[0], "bench", "range", "--keys", "90000000"]

    watching = asyncio.Event()

    async def first_key() -> None:
        async with (
            AsyncClient(server.endpoints) as client,
            client.watch(b"kvctl-bench/", prefix=True) as watcher,
        ):
            watching.set()
            await anext(watcher)

    async def main() -> None:
        waiting = asyncio.create_task(first_key())
        await watching.wait()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "kvstore.cli.kvctl", *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            await asyncio.wait_for(waiting, 60)
            process.send_signal(signal.SIGINT)
            out, error = await asyncio.wait_for(process.communicate(), 60)
        finally:
            if process.returncode is None:
                process.kill()
        assert process.returncode == 5
        assert out == b""
        assert b"Error: interrupted" in error

    asyncio.run(main())
    assert left(server) == before


def test_help_stands_alone_and_is_quick() -> None:
    done = spawn_kvctl(["bench", "--help"])
    text = done.out.decode()
    for workload, description in WORKLOADS.items():
        assert workload in text
        assert description in text
    assert "--rate" in text
    assert "counts from when it was" in text
    code = (
        "import sys, kvstore.cli.kvctl as kvctl; kvctl.run(['bench', '--help']);"
        "assert 'grpc' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.cluster
def test_a_server_that_goes_away_is_reported() -> None:
    with SERVERS["kvstore"](1) as own:
        arguments = ["--command-timeout", "500ms", "--endpoints", own.endpoints[0], "bench", "put"]
        with on_a_terminal([*arguments, "--duration", "4s"]) as (process, terminal):
            read_until(terminal, b"p99")
            own.kill(0)
            said = read_until(terminal, b"kvctl del --prefix kvctl-bench/")
            out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert b"(session)" in out
    assert re.search(rb"\d+ failed with (OutcomeUnknown|Unreachable)Error", out)
    assert b"not cleaned up" in said
