"""One agent for one instance, and one for one device: locks that end with their process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network
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
                "stop it, or name another with --instance",
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
        name: of the device, or of what else there can be one keeper of.
        what: the same in words; empty: it is a device.
    """

    def __init__(self, name: str, what: str = "") -> None:
        """Take it, or raise LockedError."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.bind(f"\0netplane/{name}")
        except OSError as error:
            self._socket.close()
            raise _locked(what or f"the device {name}") from error

    def close(self) -> None:
        """Let the next one in."""
        self._socket.close()


Network = IPv4Network | IPv6Network

_ROUTES = "routes/"


class RoutesLock(LinkLock):
    """One agent for the routes into a network, and into every other that overlaps it.

    Args:
        network: of which subnets are routed.
        but: networks that this process keeps, such as what was configured before.
    """

    def __init__(self, network: Network, but: Iterable[Network] = ()) -> None:
        """Take it, or raise LockedError."""
        super().__init__(f"{_ROUTES}{network}", f"routes into {network}")
        # After ours is taken: of two that start at a time at least one sees the other.
        for other in _kept_networks() - {network, *but}:
            if _overlap(other, network):
                self.close()
                raise _locked(f"routes into {other}, which overlaps {network}")


def _kept_networks() -> set[Network]:
    """Return the networks whose routes an agent of this network namespace keeps."""
    mark = f"@netplane/{_ROUTES}"
    found = set()
    for line in Path("/proc/thread-self/net/unix").read_text(errors="replace").splitlines():
        _, is_kept, text = line.partition(mark)
        with contextlib.suppress(ValueError):  # whoever writes no network there is none of us
            found |= {ip_network(text)} if is_kept else set()
    return found


def _overlap(one: Network, other: Network) -> bool:
    return (
        one.version == other.version
        and int(one.network_address) <= int(other.broadcast_address)
        and int(other.network_address) <= int(one.broadcast_address)
    )


def _locked(what: str) -> LockedError:
    return LockedError(
        f"another agent of this host keeps {what}",
        "stop it, or give each instance a network of its own (Network, VNI and prefix)",
    )
