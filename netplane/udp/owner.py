"""The process at the other end of a unix socket: that one is ended if it must, and no other."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import signal
import socket
import struct

_CREDENTIALS = struct.Struct("3i")
"""Process, user, group: of who called listen()."""


class Owner:
    """A process whose socket somebody is connected to.

    Raises:
        OSError: It has ended, runs as somebody else, or in a PID namespace that is not seen here.
    """

    def __init__(self, connection: socket.socket) -> None:
        told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        self.pid, user, _ = _CREDENTIALS.unpack(told)
        if user != os.geteuid():
            raise PermissionError(errno.EPERM, f"process {self.pid} runs as user {user}")
        self._number = os.pidfd_open(self.pid)
        # A number can be of another process by now; not while the socket has its other end.
        poll = select.poll()
        poll.register(connection, select.POLLHUP)
        if poll.poll(0):
            self.close()
            raise ConnectionResetError(errno.ECONNRESET, f"process {self.pid} has ended")

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
