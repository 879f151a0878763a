"""nft in this process: libnftables by ctypes, in one thread that never blocks the loop.

What is said to it is not decided here. Where there is no libnftables, the program nft is started.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from netplane.netlink import decode
from netplane.netlink.connection import READ_MAX_BYTES
from netplane.netlink.messages import REQUEST, Request, Type
from netplane.netlink.namespace import enter
from netplane.nft.monitor import NETLINK_NETFILTER, SUBSYSTEM, opening
from netplane.nft.rules import NftError

LIBRARY, PROGRAM = "libnftables.so.1", "nft"
SEARCHED = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where programs of root's are, beside PATH."""

PROGRAM_TIMEOUT_S = 30.0
UNKNOWN_PORT = -1

# nftables/libnftables.h
STATELESS, HANDLE, JSON, TERSE = 1 << 2, 1 << 3, 1 << 4, 1 << 11
NUMERIC = 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10
OPTIONS = {STATELESS: "-s", HANDLE: "-a", JSON: "-j", TERSE: "-t", NUMERIC: "-n"}
"""The same for the program."""

# linux/netfilter/nfnetlink.h: of no family, version and resource; NFT_MSG_GETGEN
GET_GENERATION = Request(SUBSYSTEM << 8 | 16, REQUEST, bytes(4)).encode(0)

INSTALL = "install nftables (Debian: apt-get install nftables)"
ALLOW = "run this as root, or with CAP_NET_ADMIN"
LOAD = "this kernel lacks nf_tables: modprobe nf_tables"
REMEDIES = {
    os.strerror(errno.EPERM): ALLOW,
    os.strerror(errno.EACCES): ALLOW,
    os.strerror(errno.EOPNOTSUPP): LOAD,
    os.strerror(errno.EPROTONOSUPPORT): LOAD,
    os.strerror(errno.EAFNOSUPPORT): LOAD,
}

OWN_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}

Result = TypeVar("Result")

_turn = threading.Lock()
"""libnftables promises nothing to threads that use it at the same time."""


class Engine(Protocol):
    """What carries out commands, in the thread that made it."""

    port: int

    def say(self, commands: str, flags: int) -> str:
        """Carry out one transaction and return what is printed. Raises NftError."""

    def close(self) -> None:
        """Give back what it holds."""


class Nft:
    """Speaks to nf_tables in one network namespace. Opens nothing before the first command.

    Commands are carried out one after the other. One whose caller is cancelled is carried out all
    the same.

    Args:
        namespace: a path, as `/run/netns/a`; None is the one we are in.
    """

    def __init__(self, namespace: str | None = None) -> None:
        self._namespace = namespace
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="nft")
        self._engine: Engine | None = None

    @property
    def port(self) -> int:
        """Notifications about what we wrote carry it; -1: not known, or not always the same."""
        return UNKNOWN_PORT if self._engine is None else self._engine.port

    async def run(self, commands: str) -> None:
        """Carry out commands in nft's syntax: all of them, or none.

        Raises:
            NftError: Nothing was written.
        """
        await self._within(self._say, commands, 0)

    async def show(self, command: str, *, terse: bool = False) -> str:
        """Return the answer to a command that lists, as text with handles and without counts.

        With `terse` also without the elements of sets.

        Raises:
            NftError: There is no such thing, or it cannot be had.
        """
        flags = STATELESS | HANDLE | NUMERIC | (TERSE if terse else 0)
        return await self._within(self._say, command, flags)

    async def ask(self, command: str) -> dict[str, Any]:
        """Return the answer to a command that lists, as nft's JSON.

        Raises:
            NftError: There is no such thing, or it cannot be had.
        """
        answer = await self._within(self._say, command, JSON | NUMERIC)
        try:
            found: dict[str, Any] = json.loads(answer)
        except ValueError as error:
            raise NftError(f"no JSON in the answer: {answer[:200]!r}", command) from error
        return found

    def close(self) -> None:
        """End thread and context, after what is being carried out. The kernel stays as it is."""
        self._thread.submit(self._end)
        self._thread.shutdown()

    async def _within(self, action: Callable[..., Result], *arguments: Any) -> Result:
        call = functools.partial(action, *arguments)
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    # in the thread

    def _say(self, commands: str, flags: int) -> str:
        if self._engine is None:
            self._engine = self._begin()
        try:
            return self._engine.say(commands, flags)
        except NftError as error:
            for said, remedy in REMEDIES.items():
                if said in error.text:
                    raise NftError(f"{error.text}: {remedy}", error.asked) from None
            raise

    def _begin(self) -> Engine:
        # A signal that this thread were to handle would break off what libnftables waits for.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - OWN_FAULTS)
        if self._namespace is not None:
            try:
                enter(self._namespace)
            except OSError as error:
                raise NftError(f"cannot enter {self._namespace}: {error.strerror}") from error
        library = load()
        if library is not None:
            return _Library(library)
        program = shutil.which(PROGRAM) or shutil.which(PROGRAM, path=SEARCHED)
        if program is not None:
            return _Program(program)
        raise NftError(f"there is neither {LIBRARY} nor {PROGRAM} on this host: {INSTALL}")

    def _end(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None


class _Library:
    """A context of libnftables, with the socket that it has."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self.port = UNKNOWN_PORT
        with _turn:
            try:
                # Where it cannot have one, libnftables ends the process.
                probe = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
            except OSError as error:
                raise NftError(f"no netlink socket: {error.strerror}: {LOAD}") from error
            with probe:
                # Of what it may not list it complains on standard error, past its buffer.
                if not _is_allowed(probe):
                    raise NftError(f"{os.strerror(errno.EPERM)}: {ALLOW}")
            with opening:
                before = _sockets()
                self._context = library.nft_ctx_new(0)
                new = _sockets() - before
                # libnftables does not tell it; where it is not clear, nothing is guessed.
                self._socket = new.pop() if len(new) == 1 else None
            if not self._context:
                raise NftError("libnftables gives no context: out of memory")
            library.nft_ctx_buffer_output(self._context)
            library.nft_ctx_buffer_error(self._context)

    def say(self, commands: str, flags: int) -> str:
        library, context = self._library, self._context
        with _turn:
            library.nft_ctx_output_set_flags(context, flags)
            failed = library.nft_run_cmd_from_buffer(context, commands.encode())
            # Both, always: what is not taken would come with the next.
            said: bytes = library.nft_ctx_get_output_buffer(context)
            complaint: bytes = library.nft_ctx_get_error_buffer(context)
            if self.port == UNKNOWN_PORT and self._socket is not None:
                # It gets one when it is first used.
                self.port = _port(self._socket) or UNKNOWN_PORT
        if failed:
            raise NftError(complaint.decode(errors="replace"), commands)
        return said.decode(errors="replace")

    def close(self) -> None:
        with _turn:
            self._library.nft_ctx_free(self._context)


class _Program:
    """The program, started for each transaction."""

    port = UNKNOWN_PORT

    def __init__(self, path: str) -> None:
        self._path = path

    def say(self, commands: str, flags: int) -> str:
        command = [self._path, *(text for flag, text in OPTIONS.items() if flags & flag)]
        # What it reads it would take for JSON, with -j.
        command += [commands] if flags else ["-f", "-"]
        try:
            done = subprocess.run(  # noqa: S603  the program that was looked up
                command,
                input=commands,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=PROGRAM_TIMEOUT_S,
                env={**os.environ, "LC_ALL": "C"},  # its words are read
            )
        except subprocess.TimeoutExpired as error:
            raise NftError(f"no answer within {PROGRAM_TIMEOUT_S:g} s", commands) from error
        except OSError as error:
            raise NftError(f"cannot start {self._path}: {error.strerror}", commands) from error
        if done.returncode:
            raise NftError(done.stderr or f"it ended with {done.returncode}", commands)
        return done.stdout

    def close(self) -> None:
        """Nothing is held."""


def load() -> ctypes.CDLL | None:
    """Return libnftables; None: there is none. Called ahead, the first command waits for less."""
    try:
        return _open(LIBRARY)
    except OSError:
        return None


@functools.cache
def _open(name: str) -> ctypes.CDLL:
    library = ctypes.CDLL(name)
    context, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    for called, result, *arguments in (
        ("nft_ctx_new", context, ctypes.c_uint32),
        ("nft_ctx_free", None, context),
        ("nft_ctx_output_set_flags", None, context, ctypes.c_uint),
        ("nft_ctx_buffer_output", number, context),
        ("nft_ctx_buffer_error", number, context),
        ("nft_ctx_get_output_buffer", text, context),
        ("nft_ctx_get_error_buffer", text, context),
        ("nft_run_cmd_from_buffer", number, context, text),
    ):
        function = getattr(library, called)
        function.restype, function.argtypes = result, arguments
    return library


def _is_allowed(probe: socket.socket) -> bool:
    """Tell whether the kernel lets this thread ask for anything of nf_tables."""
    try:
        probe.send(GET_GENERATION)
        data = probe.recv(READ_MAX_BYTES, socket.MSG_DONTWAIT)  # there when `send` returns
    except OSError:
        return True  # then libnftables is to say what is wrong
    answer = next(decode.messages(data))
    return answer.type != Type.ERROR or decode.outcome(answer).code != errno.EPERM


def _sockets() -> set[int]:
    """Return the netfilter sockets of this process.

    The loop is let in once only: to read each descriptor's link took 8 ms while it was busy, which
    has its turn at each.
    """
    return {number for name in os.listdir("/proc/self/fd") if _is_netfilter(number := int(name))}


def _is_netfilter(descriptor: int) -> bool:
    # Most are no sockets, and other threads close theirs.
    with contextlib.suppress(OSError), _looked_at(descriptor) as found:
        return (found.family, found.proto) == (socket.AF_NETLINK, NETLINK_NETFILTER)
    return False


def _port(descriptor: int) -> int:
    """Return the port of a netlink socket; 0 before it has one."""
    with _looked_at(descriptor) as found:
        port: int = found.getsockname()[0]
        return port


@contextlib.contextmanager
def _looked_at(descriptor: int) -> Iterator[socket.socket]:
    """Look at the socket of a descriptor, which stays open. Raises OSError where it is none."""
    found = socket.socket(fileno=descriptor)
    try:
        yield found
    finally:
        found.detach()
