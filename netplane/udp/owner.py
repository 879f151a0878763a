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
from collections.abc import Callable
from pathlib import Path
from typing import Self

from netplane.udp.control import bound_name
from netplane.udp.sockets import open_sockets, socket_in

_CREDENTIALS = struct.Struct("3i")
"""Process, user, group: of who called listen()."""

# linux/netlink.h, linux/sock_diag.h, linux/unix_diag.h
NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY = 4, 20
NLM_F_REQUEST, NLM_F_DUMP, NLMSG_ERROR, NLMSG_DONE = 1, 0x300, 2, 3
LISTENING = 1 << 10
UDIAG_SHOW_NAME, UDIAG_SHOW_VFS = 1, 2
UNIX_DIAG_NAME, UNIX_DIAG_VFS = 0, 1
_MESSAGE = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=B3xII I8x")
_SOCKET = struct.Struct("=4xI8x")
"""Its inode."""
_ATTRIBUTE = struct.Struct("=HH")
"""Length, type."""
_FILE = struct.Struct("=II")
"""Inode and device: UNIX_DIAG_VFS."""
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

        That is who has the socket open that is bound to this file; where the file is gone, to the
        name that a process of ours has bound it to. Looks at the descriptors of all processes: that
        may take some hundredths of a second.

        Raises OSError as above, and where nobody or more than one has it.
        """
        if os.readlink("/proc/self") != str(os.getpid()):
            raise ProcessLookupError(errno.ESRCH, "/proc is of another PID namespace")
        inodes = _listening_at(path)
        if not inodes:
            raise ProcessLookupError(errno.ESRCH, f"0 processes listen at {path}")
        found = {pid: place for pid, place, inode in open_sockets() if inode in inodes}
        if len(found) != 1:
            raise ProcessLookupError(errno.ESRCH, f"{len(found)} processes listen at {path}")
        [(pid, place)] = found.items()
        _check_user(pid, os.stat(f"/proc/{pid}").st_uid)
        return cls(pid, lambda: socket_in(place) in inodes)

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


def _listening_at(path: Path) -> set[int]:
    """Return the inodes of the sockets that listen at a path. Raises OSError."""
    attribute, wanted = UNIX_DIAG_NAME, os.fsencode(bound_name(os.path.abspath(path)))
    with contextlib.suppress(FileNotFoundError):
        file = os.stat(path)
        device = os.major(file.st_dev) << MINOR_BITS | os.minor(file.st_dev)
        attribute, wanted = UNIX_DIAG_VFS, _FILE.pack(file.st_ino & 0xFFFFFFFF, device)
    request = _REQUEST.pack(socket.AF_UNIX, LISTENING, 0, UDIAG_SHOW_NAME | UDIAG_SHOW_VFS)
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
                # A socket without a name has neither.
                if _attributes(told[_SOCKET.size :]).get(attribute) == wanted:
                    found.add(_SOCKET.unpack_from(told)[0])
                data = data[length + 3 & ~3 :]


def _attributes(data: memoryview) -> dict[int, bytes]:
    found = {}
    while data:
        length, kind = _ATTRIBUTE.unpack_from(data)
        # The kernel ends a path with a zero, or not.
        value = bytes(data[_ATTRIBUTE.size : length])
        found[kind] = value.rstrip(b"\0") if kind == UNIX_DIAG_NAME else value
        data = data[length + 3 & ~3 :]
    return found
