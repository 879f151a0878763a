"""nft in a thread: its namespace, its errors with their remedies, and the program in its place."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import platform
import resource
import struct
from collections.abc import Callable, Iterator

import pytest

from netplane.nft import library
from netplane.nft.library import UNKNOWN_PORT, Nft
from netplane.nft.rules import NftError
from tests.net.kernel.hosts import Host
from tests.net.nft.ear import NETLINK_NETFILTER, Ear

pytestmark = [pytest.mark.net, pytest.mark.root]

PROGRAM = pytest.mark.parametrize("means", ["library", "program"])


@pytest.fixture
def nft(host: Host) -> Iterator[Nft]:
    with contextlib.closing(Nft(host.path)) as made:
        yield made


def tables(host: Host) -> list[str]:
    return host.run("nft", "list", "tables").splitlines()


def use(means: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if means == "program":
        monkeypatch.setattr(library, "LIBRARY", "libnothing.so.1")


@PROGRAM
async def test_commands_take_effect_in_the_namespace_and_nowhere_else(
    host: Host, nft: Nft, means: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(means, monkeypatch)
    own = os.readlink("/proc/thread-self/ns/net")
    with Ear(host.path) as ear:
        await nft.run('table ip netplane { comment "für uns"; }')
        told = ear.until("end")
    assert tables(host) == ["table ip netplane"]
    assert os.readlink("/proc/thread-self/ns/net") == own
    answer = await nft.ask("list table ip netplane")
    [table] = [entry["table"] for entry in answer["nftables"] if "table" in entry]
    assert table["name"] == "netplane"
    # By this port our own writes are known.
    assert nft.port == (told.port if means == "library" else UNKNOWN_PORT)


@PROGRAM
async def test_commands_take_effect_together_or_not_at_all(
    host: Host, nft: Nft, means: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(means, monkeypatch)
    with pytest.raises(NftError) as caught:
        await nft.run("add table ip netplane\nadd table ip other\ndelete chain ip other nothing\n")
    assert "No such file or directory" in caught.value.text
    assert "add table ip netplane ..." in str(caught.value)
    assert tables(host) == []
    with pytest.raises(NftError, match=r"syntax error.*\(no such command\)"):
        await nft.run("no such command")
    # What went wrong is not said again with the next answer.
    assert (await nft.ask("list tables"))["nftables"][1:] == []


async def test_who_gives_up_waiting_does_not_undo_what_is_carried_out(host: Host, nft: Nft) -> None:
    first = asyncio.create_task(nft.run("add table ip netplane"))
    await asyncio.sleep(0)
    first.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await first
    await nft.run("add table ip other")
    assert set(tables(host)) >= {"table ip other"}


async def test_the_loop_goes_on_while_the_kernel_works(nft: Nft) -> None:
    addresses = ", ".join(f"10.{a}.{b}.{c}" for a in range(4) for b in range(64) for c in range(64))
    big = f"table ip netplane {{ set vteps {{ type ipv4_addr; elements = {{ {addresses} }}; }}; }}"
    writing = asyncio.create_task(nft.run(big))
    turns = 0
    while not writing.done():
        turns += 1
        await asyncio.sleep(0)
    await writing
    assert turns > 100


def drop_capabilities() -> None:
    # capset(2): they belong to a thread. Version 3, this thread; effective, permitted, inheritable.
    libc = ctypes.CDLL(None)
    assert libc.prctl(24, 12, 0, 0, 0) == 0  # PR_CAPBSET_DROP: a program started is to have none
    assert libc.capset(struct.pack("=Ii", 0x20080522, 0), bytes(24)) == 0


def forbid_sockets() -> None:
    """Let this thread have no netfilter socket, as a kernel without nfnetlink."""
    number = {"x86_64": 41, "aarch64": 198}[platform.machine()]
    load, equal, give = 0x20, 0x15, 0x06
    deny, allow = 0x00050000 | 93, 0x7FFF0000  # EPROTONOSUPPORT
    # struct seccomp_data: the call's number at 0, its third argument at 32.
    lines = [
        (load, 0, 0, 0), (equal, 0, 3, number), (load, 0, 0, 32),
        (equal, 0, 1, NETLINK_NETFILTER), (give, 0, 0, deny), (give, 0, 0, allow),
    ]  # fmt: skip
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    packed = struct.pack("=HxxxxxxQ", len(lines), ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, packed, 0, 0) == 0, os.strerror(ctypes.get_errno())  # PR_SET_SECCOMP


async def in_thread(nft: Nft, action: Callable[[], None]) -> None:
    await nft._within(action)


@PROGRAM
async def test_who_may_not_is_told_what_helps(
    host: Host, nft: Nft, means: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(means, monkeypatch)
    await nft.ask("list tables")  # opens what needs root to be opened
    await in_thread(nft, drop_capabilities)
    with pytest.raises(NftError, match=r"Operation not permitted.*: run this as root"):
        await nft.run("add table ip netplane")
    with pytest.raises(NftError, match=r"Operation not permitted.*: run this as root"):
        await nft.ask("list tables")
    assert tables(host) == []


@PROGRAM
async def test_who_may_not_from_the_start_is_told_in_no_other_way(
    means: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # The library writes to standard error by itself, between the lines of the log.
    use(means, monkeypatch)
    with contextlib.closing(Nft()) as nft:
        await in_thread(nft, drop_capabilities)
        for command in ("list tables", "list chains"):
            with pytest.raises(NftError, match=r"Operation not permitted.*: run this as root"):
                await nft.ask(command)
    assert capfd.readouterr() == ("", "")


async def test_a_kernel_without_nfnetlink_is_an_error_and_not_our_end(nft: Nft) -> None:
    # libnftables ends the process when it gets no socket.
    await in_thread(nft, forbid_sockets)
    with pytest.raises(NftError, match=r"Protocol not supported: .* modprobe nf_tables"):
        await nft.run("add table ip netplane")


async def test_without_library_and_program_the_error_says_what_to_install(
    nft: Nft, monkeypatch: pytest.MonkeyPatch
) -> None:
    use("program", monkeypatch)
    monkeypatch.setattr(library, "PROGRAM", "nothing-of-this-name")
    with pytest.raises(NftError, match=r"neither libnothing\.so\.1 nor .*apt-get install nftables"):
        await nft.run("add table ip netplane")
    # Once it is installed, it is used.
    monkeypatch.undo()
    await nft.run("add table ip netplane")


async def test_a_namespace_that_is_gone_is_an_error_that_names_it() -> None:
    refusal = pytest.raises(NftError, match="cannot enter /run/netns/nothing-of-this-name: No such")
    with contextlib.closing(Nft("/run/netns/nothing-of-this-name")) as nft, refusal:
        await nft.ask("list tables")  # writes nothing, should it be carried out elsewhere


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


async def test_thousands_of_commands_leave_no_memory_behind(nft: Nft) -> None:
    # 10,000 of each were tried by hand; a byte that is lost in each would be seen here too.
    await nft.run("table ip netplane { set vteps { type ipv4_addr; }; }")
    change = (
        "add element ip netplane vteps { 10.0.0.1 }\ndelete element ip netplane vteps { 10.0.0.1 }"
    )

    async def work(times: int) -> int:
        for turn in range(times):
            await nft.run(change)
            if turn % 10 == 0:
                await nft.show("list table ip netplane")
                await nft.ask("list table ip netplane")
                with contextlib.suppress(NftError):
                    await nft.run("delete table ip nothing")
        return resident_bytes()

    before = await work(500)
    assert await work(2000) - before < 1 << 20
