"""The process at the other end of a unix socket: that one is ended if it must, and no other."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

_CREDENTIALS = struct.Struct("3i")
"""Process, user, group: of who called listen()."""

# linux/netlink.h, linux/sock_diag.h, linux/unix_diag.h
NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY = 4, 20
NLM_F_REQUEST, NLM_F_DUMP, NLMSG_ERROR, NLMSG_DONE = 1, 0x300, 2, 3
LISTENING = 1 << 10
UDIAG_SHOW_VFS, UNIX_DIAG_VFS = 2, 1
_MESSAGE = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=B3xII I8x")
_SOCKET = struct.Struct("=4xI8x")
"""Its inode."""
_ATTRIBUTE = struct.Struct("=HHII")
"""Length, type; of UNIX_DIAG_VFS, the only one asked for: inode and device of a socket's file."""
MINOR_BITS = 20
ANSWER_BYTES = 1 << 16
ANSWER_S = 5.0


class Owner:
    """A process whose socket somebody wants an answer of.

    Args:
        pid: its number.
        is_meant: whether the process of that number is the one that is meant; asked when it is
            held, as the number can be of another process by then.

    Raises:
        OSError: It has ended, runs as somebody else, or in a PID namespace that is not seen here.
    """

    def __init__(self, pid: int, is_meant: Callable[[], bool]) -> None:
        self.pid = pid
        self._number = os.pidfd_open(pid)
        if not is_meant():
            self.close()
            raise ConnectionResetError(errno.ECONNRESET, f"process {pid} has ended")

    @classmethod
    def connected_to(cls, connection: socket.socket) -> Self:
        """Return who is at the other end of a connection. Raises OSError as above."""
        told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, user, _ = _CREDENTIALS.unpack(told)
        _check_user(pid, user)
        poll = select.poll()
        poll.register(connection, select.POLLHUP)
        # As long as it lives the socket has its other end.
        return cls(pid, lambda: not poll.poll(0))

    @classmethod
    def listening_at(cls, path: Path) -> Self:
        """Return who listens at a path, and takes no connection that would tell it.

        That is who has the socket open that is bound to this file. Looks at the descriptors of all
        processes: that may take some hundredths of a second.

        Raises OSError as above, and where nobody or more than one has it.
        """
        if os.readlink("/proc/self") != str(os.getpid()):
            raise ProcessLookupError(errno.ESRCH, "/proc is of another PID namespace")
        inodes = _listening_at(os.stat(path))
        found = {pid: place for pid, place, inode in _open_sockets() if inode in inodes}
        if len(found) != 1:
            raise ProcessLookupError(errno.ESRCH, f"{len(found)} processes listen at {path}")
        [(pid, place)] = found.items()
        _check_user(pid, os.stat(f"/proc/{pid}").st_uid)
        return cls(pid, lambda: _socket_in(place) in inodes)

    async def kill(self, timeout_s: float) -> None:
        """End it. Raises TimeoutError: the kernel does not let it go in this time."""
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._number, over.set)
        try:
            signal.pidfd_send_signal(self._number, signal.SIGKILL)
            async with asyncio.timeout(timeout_s):
                await over.wait()
        except ProcessLookupError:
            pass  # that is what was wanted
        finally:
            loop.remove_reader(self._number)

    def close(self) -> None:
        """Forget it."""
        os.close(self._number)


def _check_user(pid: int, user: int) -> None:
    if user != os.geteuid():
        raise PermissionError(errno.EPERM, f"process {pid} runs as user {user}")


def _listening_at(file: os.stat_result) -> set[int]:
    """Return the inodes of the sockets that listen and are bound to a file. Raises OSError."""
    device = os.major(file.st_dev) << MINOR_BITS | os.minor(file.st_dev)
    wanted = file.st_ino & 0xFFFFFFFF, device
    request = _REQUEST.pack(socket.AF_UNIX, LISTENING, 0, UDIAG_SHOW_VFS)
    flags = NLM_F_REQUEST | NLM_F_DUMP
    head = _MESSAGE.pack(_MESSAGE.size + len(request), SOCK_DIAG_BY_FAMILY, flags, 0, 0)
    found: set[int] = set()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as asking:
        asking.settimeout(ANSWER_S)
        asking.send(head + request)
        while True:
            data = memoryview(asking.recv(ANSWER_BYTES))
            while data:
                length, kind, *_ = _MESSAGE.unpack_from(data)
                if kind == NLMSG_DONE:
                    return found
                if kind == NLMSG_ERROR:
                    raise OSError(errno.EOPNOTSUPP, "this kernel has no unix_diag")
                told = data[_MESSAGE.size : length]
                # A socket without a name has no file.
                if len(told) >= _SOCKET.size + _ATTRIBUTE.size:
                    _, attribute, *bound_to = _ATTRIBUTE.unpack_from(told, _SOCKET.size)
                    if attribute == UNIX_DIAG_VFS and tuple(bound_to) == wanted:
                        found.add(_SOCKET.unpack_from(told)[0])
                data = data[length + 3 & ~3 :]


def _open_sockets() -> Iterator[tuple[int, str, int]]:
    """Yield process, descriptor (a path) and inode of all sockets that somebody has open."""
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        folder = f"/proc/{name}/fd"
        with contextlib.suppress(OSError):  # it has just ended
            for number in os.listdir(folder):
                place = f"{folder}/{number}"
                yield int(name), place, _socket_in(place)


def _socket_in(place: str) -> int:
    """Return the inode of the socket that a descriptor is of; -1: none."""
    try:
        kind, _, inode = os.readlink(place).partition(":")
    except OSError:
        return -1
    return int(inode[1:-1]) if kind == "socket" else -1
