"""Who listens is found by the kernel's word, and killed; who does not answer in time is silent."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from netplane.udp import client
from netplane.udp.client import Client
from netplane.udp.control import Hello, SilentError, bound_name, encode, make_socket
from netplane.udp.owner import Owner
from netplane.udp.path import open_socket
from netplane.udp.sockets import port_text

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="the queues are larger than others may have"),
]
MUTE = """
import socket, sys
one = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
one.bind(sys.argv[1])
one.listen(2)
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def mute(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A process that listens, and does nothing else."""
    path = str(tmp_path / "socket")
    command = [sys.executable, "-c", MUTE, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield path, process
        process.kill()


async def test_who_listens_is_killed_and_nobody_else(
    mute: tuple[str, subprocess.Popen[bytes]],
) -> None:
    path, process = mute
    with make_socket() as connection:
        connection.connect(path)
        owner = Owner.connected_to(connection)
        assert owner.pid == process.pid
        await owner.kill(10)
        assert process.wait(10) == -9
        await owner.kill(10)  # whoever has the number now is not meant
        owner.close()
        # The number is nobody's, or somebody else's.
        with pytest.raises(OSError, match=r"ended|No such process"):
            Owner.connected_to(connection)


async def test_a_number_that_another_process_has_by_now_is_refused() -> None:
    # We stand for who got the number: the kernel names us, and the other end is closed.
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here:
        there.close()
        with pytest.raises(ConnectionResetError, match="has ended"):
            Owner.connected_to(here)


async def test_who_takes_no_connection_is_found_by_the_file_that_it_listens_at(
    mute: tuple[str, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    bound_to, process = mute
    path = tmp_path / "shown"
    os.rename(bound_to, path)  # as a process does
    with ExitStack() as stack:
        # One of ours at the name that the other has had, and as many connections as it takes.
        ours, *waiting = [stack.enter_context(make_socket()) for _ in range(4)]
        ours.bind(bound_to)
        ours.listen()
        for one in waiting:
            one.setblocking(False)
            one.connect(str(path))
        full = stack.enter_context(make_socket())
        full.setblocking(False)
        with pytest.raises(BlockingIOError):
            full.connect(str(path))
        owner = Owner.listening_at(path)
        assert owner.pid == process.pid
        await owner.kill(10)
        owner.close()
        assert process.wait(10) == -9
        # The file is still there, and nobody's.
        with pytest.raises(ProcessLookupError, match="0 processes listen"):
            Owner.listening_at(path)
        owner = Owner.listening_at(Path(bound_to))
        owner.close()
        assert owner.pid == os.getpid()


async def test_whose_file_is_gone_is_found_by_the_name_that_it_has_bound(
    tmp_path: Path, mute: tuple[str, subprocess.Popen[bytes]]
) -> None:
    other, process = mute
    path = tmp_path / "default.udp"
    with make_socket() as ours:
        ours.bind(bound_name(str(path)))
        ours.listen()
        os.rename(bound_name(str(path)), path)
        path.unlink()
        owner = Owner.listening_at(path)
        owner.close()
        assert owner.pid == os.getpid()
        # Somebody else's file is there: who listens at that is meant.
        os.rename(other, path)
        owner = Owner.listening_at(path)
        owner.close()
        assert owner.pid == process.pid
        path.unlink()
    with pytest.raises(ProcessLookupError, match="0 processes listen"):
        Owner.listening_at(path)


def test_who_has_a_port_is_named() -> None:
    # We have it, and so does a child whose command line is that of a process of ours.
    with open_socket("127.0.0.1", 0) as udp:
        port = udp.getsockname()[1]
        assert port_text("127.0.0.1", port).startswith("stop ")
        assert f"(process {os.getpid()})" in port_text("127.0.0.1", port)
    code = (
        "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
        " s.bind(('', 0)); print(s.getsockname()[1], flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, "netplane.udp", "--socket", "/run/a.udp"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        # It has the port of all addresses, so of this one, too.
        text = port_text("127.0.0.1", port)
        assert text == (
            f"process {process.pid}, a netplane-udp that agents find at /run/a.udp, has it:"
            f" kill {process.pid}"
        )
        process.communicate()
    assert port_text("127.0.0.1", port) == "stop flanneld, or whatever else has it"


def test_of_two_who_listen_nobody_is_meant(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with make_socket() as ours:
        ours.bind(str(path))
        ours.listen()
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[ours.fileno()]) as second:
            with pytest.raises(ProcessLookupError, match="2 processes listen"):
                Owner.listening_at(path)
            second.communicate()
        owner = Owner.listening_at(path)
        owner.close()
        assert owner.pid == os.getpid()


def test_who_has_the_number_of_one_that_was_found_and_has_ended_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # We stand for who got the number: between the search and our hold of the process it closes.
    with make_socket() as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        hold = os.pidfd_open

        def hold_late(pid: int) -> int:
            listener.close()
            return hold(pid)

        monkeypatch.setattr(os, "pidfd_open", hold_late)
        with pytest.raises(ConnectionResetError, match="has ended"):
            Owner.listening_at(tmp_path / "socket")


async def test_who_keeps_silent_or_takes_nobody_is_told_apart_from_who_has_ended(
    mute: tuple[str, subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, process = mute
    monkeypatch.setattr(client, "ANSWER_S", 0.05)
    async with Client() as one, Client() as two, Client() as three, Client() as four:
        await one.connect(path)
        with pytest.raises(SilentError, match="no answer within"):
            await one.hello()
        assert one.is_silent
        assert one.lost.is_set()
        await two.connect(path)
        await three.connect(path)
        with pytest.raises(SilentError, match="takes no connections"):
            await four.connect(path)
        process.kill()
        await asyncio.wait_for(two.lost.wait(), 10)
        assert not two.is_silent
    async with Client() as five:
        with pytest.raises(ConnectionRefusedError):
            await five.connect(path)


HELLO = {
    "protocol": 1, "version": "1", "key": "",
    "config": {
        "device": "npu.1", "mtu": 1, "address": "", "port": 1, "subnet": "", "sealed": False,
    },
}  # fmt: skip


async def test_who_was_stopped_himself_does_not_call_others_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The loop stands still for longer than an answer may take: the time is over when it goes on,
    # and the answer is there and unread.
    monkeypatch.setattr(client, "ANSWER_S", 0.5)
    path = str(tmp_path / "socket")
    with make_socket() as listener:
        listener.bind(path)
        listener.listen()
        async with Client() as one:
            await one.connect(path)
            asking = asyncio.create_task(one.hello())
            with listener.accept()[0] as process:
                await asyncio.sleep(0)
                assert process.recv(100)
                process.send(encode(HELLO))
                process.settimeout(0.6)
                with pytest.raises(TimeoutError):
                    process.recv(1)  # stands still, and the loop with it
                assert await asking == Hello.parse(HELLO)
