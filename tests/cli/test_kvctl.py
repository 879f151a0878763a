"""kvctl beside etcdctl on one server: refusals, formats, exit codes, environment, alarms, signals.

What changes the store is compared in test_as_etcdctl, with a fresh cluster for each tool.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from kvstore.cli.ctl import go
from kvstore.client import AsyncClient
from kvstore.client.methods import ALARM
from tests.cli.running import Done, run_kvctl, spawn_etcdctl, spawn_kvctl

if TYPE_CHECKING:
    from tests.servers import Cluster

pytestmark = pytest.mark.etcdctl

REFUSALS = [
    "put",
    "put a --ignore-value x",
    "put a 1 --lease=zz",
    "put a 1 --lease=fffffffffffffffff",
    "get",
    "get a b --prefix",
    "get a b --from-key",
    "get a --sort-by=X",
    "get a --order=X",
    "get a --consistency=x",
    "get a --prefix --from-key",
    "get a --limit=x",
    "get a --rev=1.5",
    "get a --rev=99999999999999999999",
    "get a --bogus",
    "get a --print-value-only -w json",
    "get a -w bogus",
    "del",
    "del a b c",
    "del a b --prefix",
    "del --prefix --from-key a",
    "nonsense",
    "lease grant",
    "lease grant x",
    "lease revoke",
    "lease revoke zz",
    "lease timetolive",
    "lease timetolive zz",
    "lease keep-alive",
    "lease keep-alive zz",
    "compaction",
    "compaction x",
    "compaction 1 2",
    "alarm list x",
    "alarm disarm x",
    "watch",
    "watch a b --prefix",
    "watch a --",
    "txn x",
]


def both(server: Cluster, line: str, stdin: bytes = b"") -> tuple[Done, Done]:
    args = ["--endpoints", server.endpoints[0], *line.split()]
    return run_kvctl(args, stdin), spawn_etcdctl(args, stdin)


def first_error(done: Done) -> bytes:
    # Cobra prints some refusals twice, and a usage page; etcdctl names itself.
    lines = [line for line in done.err.splitlines() if line.startswith(b"Error: ")]
    return lines[0].replace(b'for "etcdctl"', b'for "kvctl"')


@pytest.mark.parametrize("line", REFUSALS)
def test_a_wrong_command_line_is_refused_as_by_etcdctl(
    server: Cluster, etcdctl: str, line: str
) -> None:
    ours, theirs = both(server, line)

    assert ours.code == theirs.code != 0
    assert ours.out == b""
    assert first_error(ours) == first_error(theirs)


TXN_REFUSALS = [
    b"",
    b"\n\n",
    b'value("a") = "1"\n',
    b'value(a) = "1"\n',
    b'foo("a") = "1"\n',
    b'mod("a") = "x"\n',
    b"junk\n",
    b"\nfrob a\n",
    b"\nput\n",
    b"\nput a\n",
]


@pytest.mark.parametrize("stdin", TXN_REFUSALS)
def test_a_wrong_transaction_is_refused_as_by_etcdctl(
    server: Cluster, etcdctl: str, stdin: bytes
) -> None:
    ours, theirs = both(server, "txn", stdin)

    assert ours.code == theirs.code != 0
    assert first_error(ours) == first_error(theirs)


def test_txn_compares_leases_and_refuses_unknown_relations(server: Cluster) -> None:
    # etcdctl 3.4 panics on both.
    endpoint = ["--endpoints", server.endpoints[0]]
    granted = run_kvctl([*endpoint, "lease", "grant", "60"]).out.split()[1].decode()
    run_kvctl([*endpoint, "put", "leased", "v", "--lease", granted])
    stdin = f'lease("leased") = "{granted}"\n\nget leased\n\n\n'.encode()

    assert run_kvctl([*endpoint, "txn"], stdin).out == b"SUCCESS\n\nleased\nv\n"
    wrong = run_kvctl([*endpoint, "txn"], b'mod("a") ? "1"\n')
    assert (wrong.code, wrong.err.splitlines()[0]) == (
        3,
        b'Error: malformed comparison: mod("a") ? "1"',
    )


READS = [
    "get f/ --prefix",
    "get absent",
    "lease list",
    "lease timetolive 7b",
    "alarm list",
    "member list",
    "endpoint hashkv",
    "endpoint status",
]


NEW_FIELDS = re.compile(
    rb',"(hash_revision|storageVersion|dbSizeQuota|downgradeInfo)":("[^"]*"|[0-9]+|{})'
)
"""What servers from 3.5 on say and kvctl shows; etcdctl 3.4 does not know it."""

LEFT_OUT = {
    ("alarm list", "fields"),  # etcdctl panics
    ("lease list", "protobuf"),  # etcdctl prints the header alone ...
    ("lease timetolive 7b", "protobuf"),  # ... of these two
}


@pytest.mark.parametrize("output", ["simple", "json", "fields", "table", "protobuf"])
def test_every_format_of_every_read(server: Cluster, etcdctl: str, output: str) -> None:
    endpoint = ["--endpoints", server.endpoints[0]]
    for key, value in (
        (b"f/a", b"1"),
        (b"f/bin", bytes(range(256))),
        (b"f/u", '"é😀\u2028'.encode()),
    ):
        assert run_kvctl([*endpoint, "put", key.decode()], value).code == 0
    for line in READS:
        if (line, output) in LEFT_OUT:
            continue
        # Sizes and indexes move by themselves: our answer is etcdctl's from before or after.
        command = f"{line} -w {output}"
        before = both(server, command)[1]
        ours, after = both(server, command)
        shown = ours.out
        if output == "json":
            shown = NEW_FIELDS.sub(b"", shown)
        elif output == "protobuf" and b"%" in before.out + after.out + shown:
            continue  # etcdctl prints the bytes as a format: a % among them comes out wrong
        assert (line, shown) in [(line, before.out), (line, after.out)]
        assert ours.code == after.code
        assert first_line(ours.err) == first_line(after.err)


def first_line(text: bytes) -> bytes:
    return text.split(b"\n")[0]


@pytest.mark.parametrize(
    "line", ["get h/ --prefix", "get h/ --prefix --keys-only", "get h/ --prefix -w json"]
)
def test_hex(server: Cluster, etcdctl: str, line: str) -> None:
    run_kvctl(["--endpoints", server.endpoints[0], "put", "h/key"], b"\x00\xff text")
    ours, theirs = both(server, f"--hex {line}")
    assert ours.out == theirs.out != b""


def test_bytes_of_the_command_line_arrive_as_they_are(server: Cluster) -> None:
    endpoint = ["--endpoints", server.endpoints[0]]
    key = os.fsdecode(b"raw/\xff\xc3\xa9")  # as the interpreter hands such an argument over
    assert run_kvctl([*endpoint, "put", key, key]).out == b"OK\n"
    assert run_kvctl([*endpoint, "get", key]).out == b"raw/\xff\xc3\xa9\nraw/\xff\xc3\xa9\n"


def test_global_flags_stand_anywhere_and_switches_take_values(server: Cluster) -> None:
    endpoint = server.endpoints[0]
    run_kvctl(["--endpoints", endpoint, "put", "g/a", "1"])
    plain = run_kvctl(["--endpoints", endpoint, "get", "g/", "--prefix"])
    for line in (
        f"get g/ --prefix=true --endpoints={endpoint}",
        f"get --endpoints {endpoint} g/ --prefix --keys-only=false",
        f"get g/ -w simple --prefix --endpoints http://{endpoint}",
        f"-wsimple get g/ --hex=false --prefix --endpoints {endpoint}",
    ):
        assert run_kvctl(line.split()) == plain
    assert run_kvctl(["--endpoints", endpoint, "get", "g/", "--prefix=perhaps"]).code == 1


def test_flags_that_are_not_honoured_are_refused(server: Cluster) -> None:
    for flag in (
        "--insecure-skip-tls-verify",
        "--debug",
        "--keepalive-time=3s",
        "--discovery-srv=x",
    ):
        done = run_kvctl(["get", "a", flag])
        assert done.code == 4
        assert b"is not supported by kvctl" in done.err
        assert b"Hint: " in done.err


def test_a_misspelt_flag_is_answered_with_the_nearest(server: Cluster) -> None:
    assert b"did you mean --prefix?" in run_kvctl(["get", "a", "--prefx"]).err


def test_the_environment_gives_global_flags(server: Cluster, etcdctl: str) -> None:
    environment = {"ETCDCTL_ENDPOINTS": server.endpoints[0], "ETCDCTL_WRITE_OUT": "json"}
    spawn_kvctl(["put", "env/a", "1"], **environment)
    ours = spawn_kvctl(["get", "env/a"], **environment)
    theirs = spawn_etcdctl(["get", "env/a"], **environment)
    assert ours.out == theirs.out
    assert json.loads(ours.out)["count"] == 1
    # A flag wins over the environment.
    assert spawn_kvctl(["get", "env/a", "-w", "simple"], **environment).out == b"env/a\n1\n"


UNREACHABLE = [
    "get a",
    "member list",
    "endpoint health",
    "endpoint status",
    "endpoint hashkv",
    "lease grant 3",
    "endpoint status --cluster",
]


@pytest.mark.parametrize("line", UNREACHABLE)
def test_without_a_server(etcdctl: str, line: str) -> None:
    args = ["--endpoints", "127.0.0.1:1", "--command-timeout", "200ms", *line.split()]
    ours, theirs = run_kvctl(args), spawn_etcdctl(args)
    said = [text for text in ours.err.splitlines() if not text.startswith(b"Hint: ")]
    assert (ours.code, ours.out, said) == (theirs.code, theirs.out, theirs.err.splitlines())
    assert b"Hint: " in ours.err


def test_help_needs_no_server_and_no_grpc() -> None:
    script = (
        "import sys; from kvstore.cli import kvctl; code = kvctl.run(sys.argv[1:]);"
        "assert 'grpc' not in sys.modules; assert 'asyncio' not in sys.modules; sys.exit(code)"
    )
    for args in (["--help"], ["version"], ["nonsense"], []):
        done = subprocess.run(
            [sys.executable, "-c", script, *args], capture_output=True, check=False, text=True
        )
        assert "AssertionError" not in done.stderr
        assert done.returncode == (1 if args == ["nonsense"] else 0)
    for command in ("put", "get", "lease grant", "endpoint status", "watch", "txn"):
        done = run_kvctl([*command.split(), "--help"])
        assert done.code == 0
        assert b"Usage: kvctl" in done.out


async def raise_alarm(endpoint: str, member: int) -> None:
    async with AsyncClient([endpoint]) as client:
        request = ALARM.request(action="ACTIVATE", memberID=member, alarm="NOSPACE")
        await client.call(ALARM, request, write=True)


def test_alarms(server: Cluster, etcdctl: str) -> None:
    member = int(json.loads(both(server, "member list -w json")[0].out)["members"][0]["ID"])
    asyncio.run(raise_alarm(server.endpoints[0], member))

    for line in ("alarm list", "alarm list -w json"):
        ours, theirs = both(server, line)
        assert ours == theirs
        assert ours.out
    full = run_kvctl(["--endpoints", server.endpoints[0], "put", "a", "1"])
    assert full.code == 1
    assert full.err.splitlines() == [
        b"Error: etcdserver: mvcc: database space exceeded",
        b"Hint: delete or compact, then disarm the NOSPACE alarm",
    ]
    health = run_kvctl(["--endpoints", server.endpoints[0], "endpoint", "health"])
    assert (health.code, b"Active Alarm(s): NOSPACE" in health.err) == (1, True)
    shown = b"memberID:%d alarm:NOSPACE \n" % member
    assert run_kvctl(["--endpoints", server.endpoints[0], "alarm", "disarm"]).out == shown
    assert both(server, "alarm list")[1].out == b""
    assert run_kvctl(["--endpoints", server.endpoints[0], "put", "a", "1"]).code == 0


def start(server: Cluster, *args: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "kvstore.cli.kvctl", "--endpoints", server.endpoints[0], *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def stop(process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    return process.returncode, err


def test_keep_alive_renews_until_the_lease_ends(server: Cluster) -> None:
    endpoint = ["--endpoints", server.endpoints[0]]
    granted = run_kvctl([*endpoint, "lease", "grant", "2"]).out.split()[1].decode()
    process = start(server, "lease", "keep-alive", granted)
    assert process.stdout is not None
    begun_s = time.monotonic()
    lines = [process.stdout.readline() for _ in range(5)]  # 4 thirds of 2 s: past its life
    assert time.monotonic() - begun_s > 2
    assert set(lines) == {f"lease {granted} keepalived with TTL(2)\n".encode()}
    assert run_kvctl([*endpoint, "lease", "revoke", granted]).code == 0
    out, _ = process.communicate(timeout=10)
    assert out.splitlines()[-1] == f"lease {granted} expired or revoked.".encode()
    assert process.returncode == 0


def test_an_interrupt_ends_it_without_a_traceback(server: Cluster) -> None:
    process = start(server, "watch", "i/", "--prefix", "--rev", "1")
    run_kvctl(["--endpoints", server.endpoints[0], "put", "i/a", "1"])
    assert process.stdout is not None
    assert process.stdout.readline() == b"PUT\n"
    assert stop(process) == (-signal.SIGINT, b"")


def test_a_failing_command_ends_the_watch(server: Cluster) -> None:
    process = start(server, "watch", "x/", "--prefix", "--rev", "1", "--", "false")
    run_kvctl(["--endpoints", server.endpoints[0], "put", "x/a", "1"])
    out, err = process.communicate(timeout=20)
    assert out == b"PUT\nx/a\n1\n"
    assert err.startswith(b"Error: command ['false'] error (exit status 1)")
    assert process.returncode == 1


def test_the_command_of_a_watch_is_told_the_event(server: Cluster) -> None:
    script = 'echo "$ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_KEY $ETCD_WATCH_VALUE"'
    process = start(server, "watch", "e/", "--prefix", "--rev", "1", "--", "sh", "-c", script)
    run_kvctl(["--endpoints", server.endpoints[0], "put", "e/a", 'with "quotes"'])
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(4)]
    assert lines[3] == b'"PUT" "e/a" "with \\"quotes\\""\n'
    stop(process)


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0s"),
        (999, "999ns"),
        (1_000, "1µs"),
        (1_132_982, "1.132982ms"),
        (2_030_000, "2.03ms"),
        (1_001_397_728, "1.001397728s"),
        (61_500_000_000, "1m1.5s"),
    ],
)
def test_durations_are_written_as_in_go(nanoseconds: int, text: str) -> None:
    assert go.duration(nanoseconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (9, "9 B"),
        (20480, "20 kB"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (3117056, "3.1 MB"),
    ],
)
def test_sizes_are_written_as_in_go(size: int, text: str) -> None:
    assert go.human_bytes(size) == text


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("put a b", ["put", "a", "b"]),
        ('put a "two words"', ["put", "a", "two words"]),
        ("put a 'two words'", ["put", "a", "two words"]),
        ('put "tab\\t" ""', ["put", "tab\t", ""]),
        ("put a ''", ["put", "a", ""]),
        ('put "\\u00e9\\xc3\\xa9" x', ["put", "éé", "x"]),
    ],
)
def test_lines_are_split_as_in_etcdctl(line: str, words: list[str]) -> None:
    assert go.split_words(line) == words


def test_quoting_reads_back(server: Cluster) -> None:
    for data in (bytes(range(256)), "é\u0080😀\u2028\U000e0001".encode(), b'\\"'):
        assert go.unquote(go.quote(data)).encode("utf-8", "surrogateescape") == data
