"""One agent for one instance, and one for one device: locks that end with their process."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path
from typing import Self

from netplane.agent.errors import LockedError, SettingsError

_PID_DIGITS = 10
"""Room for any process id."""


class InstanceLock:
    """Held from `acquire` until `close` or the end of the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number = -1

    def acquire(self) -> Self:
        """Take the lock.

        Raises:
            LockedError: Another agent has it; the error names it.
            SettingsError: The file cannot be made or written.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Close-on-exec, as Python opens everything: no child keeps the lock beyond our end.
            self._number = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Of one length and never truncated: a disk that is full takes it where one was.
            os.pwrite(self._number, f"{os.getpid():<{_PID_DIGITS}}\n".encode(), 0)
        except BlockingIOError as error:
            holder = os.pread(self._number, 32, 0).decode("ascii", "replace").strip()
            self.close()
            raise LockedError(
                f"the agent of this instance runs already (process {holder or 'unknown'}, "
                f"lock {self._path})",
                "stop it, or give this one --instance NAME",
            ) from error
        except OSError as error:
            self.close()
            raise SettingsError(
                f"cannot make the lock {self._path}: {error.strerror}",
                "run as root, free space there, or choose another --state-dir",
            ) from error
        return self

    def close(self) -> None:
        """Let the next one in. The file stays: whoever waits has it open."""
        if self._number >= 0:
            os.close(self._number)
        self._number = -1


class LinkLock:
    """One agent for one device of this network namespace, whatever instances and folders there are.

    Two that keep one device would take it from each other for ever. An abstract socket has just
    the reach of a device: the namespace.

    Args:
        name: of the device, or what else there can be one keeper of.
        what: the same in words; empty: it is a device.
    """

    def __init__(self, name: str, what: str = "") -> None:
        """Take it, or raise LockedError."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.bind(f"\0netplane/{name}")
        except OSError as error:
            self._socket.close()
            raise LockedError(
                f"another agent of this host keeps {what or f'the device {name}'}",
                "stop it, or give each instance a network of its own (Network, VNI and prefix)",
            ) from error

    def close(self) -> None:
        """Let the next one in."""
        self._socket.close()
