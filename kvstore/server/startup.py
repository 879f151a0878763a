"""What can go wrong with ports, folders and disks, said so that the operator knows what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import NoReturn, Protocol

import lmdb

from kvstore.ports import Disk
from kvstore.wal.errors import FULL, FULL_ERRNOS

FULL_BYTES = 1 << 20
"""With less than this free a failed write of the store was for want of space."""

EXIT_REMOVED = 77
"""Exit code of a member that was removed: to start it again is of no use."""


class StartError(Exception):
    """The member cannot start; the text says why and what to do."""


class RemovedError(StartError):
    """This member was removed from its cluster."""

    def __init__(self, member: int, cluster: int, folder: str) -> None:
        super().__init__(
            f"member {member:x} was removed from cluster {cluster:x} and stops for ever. Its data "
            f"directory {folder} is of no more use: remove it. To come back, add a member (kvctl "
            "member add) and start it with an empty one"
        )


def check_folder(disk: Disk, path: str) -> None:
    """Refuse the data directory of etcd: here it would look like that of an empty member.

    Raises:
        StartError: It is one.
    """
    if disk.exists(f"{path}/member") and not disk.exists(f"{path}/wal"):
        raise StartError(
            f"--data-dir {path} is the data directory of an etcd member, which kvstore does not "
            "read; choose another one"
        )


def explain_bind(host: str, port: int, flag: str, error: OSError) -> StartError:
    """Return the reason why a port could not be bound, with the holder where it can be seen."""
    address = f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        holder = port_holder(port)
        by = f" by {holder}" if holder else ""
        return StartError(f"{flag}: {address} is taken{by}; stop it or choose another port")
    if error.errno == errno.EADDRNOTAVAIL:
        return StartError(
            f"{flag}: this machine has no address {host}; use one of its own, or 0.0.0.0"
        )
    if error.errno == errno.EACCES:
        return StartError(f"{flag}: no permission for port {port}; use one above 1023")
    return StartError(f"{flag}: cannot listen on {address}: {error}")


def port_holder(port: int) -> str:
    """Return "pid N (command)" of the process that listens on a TCP port, or an empty text."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            parts = line.split()
            if parts[3] == "0A" and int(parts[1].rsplit(":", 1)[1], 16) == port:
                inodes.add(f"socket:[{parts[9]}]")
    if not inodes:
        return ""
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            for descriptor in (process / "fd").iterdir():
                if os.readlink(descriptor) in inodes:
                    command = (process / "comm").read_text().strip()
                    return f"pid {process.name} ({command})"
        except OSError:
            continue  # the process ended, or is another user's
    return ""


class Fatal(Protocol):
    """Ends the process at once; `kvstore.wal.fatal` fits."""

    def __call__(self, error: BaseException, *, what: str = ...) -> NoReturn:
        """End it, with one line that names the cause."""


def store_failed(folder: str, fatal: Fatal, error: BaseException) -> NoReturn:
    """End the process after an error of the store, and say so when the disk is merely full."""
    if is_full(folder, error):
        fatal(error, what=FULL)
    fatal(error)


def is_full(folder: str, error: BaseException) -> bool:
    """Tell whether an error is due to a full disk.

    LMDB reports a write that was cut short as an input/output error, so the disk is asked too.
    """
    if isinstance(error, OSError):
        return error.errno in FULL_ERRNOS
    if not isinstance(error, lmdb.Error):
        return False
    space = os.statvfs(folder)
    return space.f_bavail * space.f_frsize < FULL_BYTES


def explain_folder(path: str, error: OSError) -> StartError:
    """Return the reason why the data directory cannot be used."""
    if error.errno in FULL_ERRNOS:
        return StartError(f"--data-dir {path}: the disk is full; free space and start again")
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return StartError(f"--data-dir {path}: no permission to write there ({error.strerror})")
    if error.errno in {errno.ENOTDIR, errno.EEXIST}:
        return StartError(f"--data-dir {path}: a file is in the way ({error.strerror})")
    return StartError(f"--data-dir {path}: {error}")
