"""Errors of the log, and the one place that ends the process when the disk fails. No other I/O.

WalError
├── NoLogError        nothing there yet; create it
├── LogExistsError    there is a log already; open it
├── LockedError       another process uses the folder
├── IdentityError     the log of another member or cluster
├── FormatError       written by a newer version
├── CorruptError      acknowledged data may be missing; never repaired silently
└── BrokenError       this object saw a failed write, or is closed

A refusal of the system (no space, input/output error) stays an OSError.
"""

from __future__ import annotations

import errno
import os
from typing import NoReturn

EXIT_DISK = 74
"""Exit status after a disk error: EX_IOERR of sysexits.h."""

FULL_ERRNOS = frozenset((errno.ENOSPC, errno.EDQUOT))
FULL = "the disk is full (free space and start again; nothing that was acknowledged is lost)"

_REPLACE = (
    "Nothing was changed. Do not edit or delete the files by hand. In a cluster: remove this "
    "member (kvctl member remove), delete its data directory and add it again; it fetches the data "
    "from the others. Alone: restore the last backup."
)


class WalError(Exception):
    """The log cannot be used; the text says what to do."""


class NoLogError(WalError):
    """The folder holds no log."""


class LogExistsError(WalError):
    """The folder holds a log already."""


class LockedError(WalError):
    """Another process holds the folder."""

    def __init__(self, path: str, holder_pid: int | None) -> None:
        by = f"by process {holder_pid}" if holder_pid else "by another process"
        super().__init__(
            f"{path} is locked {by}: a member already runs on this data directory. "
            "Stop it first, or choose another data directory."
        )
        self.path = path
        self.holder_pid = holder_pid


class IdentityError(WalError):
    """The log belongs to another member or another cluster."""


class FormatError(WalError):
    """The log has a format that this version does not know."""

    def __init__(self, path: str, found: int, known: int) -> None:
        super().__init__(
            f"{path} has log format {found}; this version reads formats up to {known}. "
            "Start the newer version that wrote it; downgrades need a backup taken by that version."
        )
        self.found = found
        self.known = known


class CorruptError(WalError):
    """The log is damaged where a crash cannot have damaged it."""

    def __init__(self, path: str, offset: int, what: str) -> None:
        super().__init__(f"{path}, byte {offset}: {what}. {_REPLACE}")
        self.path = path
        self.offset = offset


class BrokenError(WalError):
    """The object refuses: a write failed before, or it is closed."""


def fatal(error: BaseException, *, what: str = "the disk failed") -> NoReturn:
    """End the process at once with one line on stderr; nothing in flight is answered.

    `what`: the cause in words, where it is another than the disk.

    After a failed write or fsync nobody knows what the disk holds, and asking again can succeed
    with the data gone (Linux marks the pages clean). So no handler, no retry and no clean-up runs:
    each could acknowledge something. At the next start recovery reads what is really there.
    """
    if isinstance(error, OSError) and error.errno in FULL_ERRNOS:
        what = FULL
    line = f"kvstore: fatal: {what}, ending now: {type(error).__name__}: {error}\n"
    os.write(2, line.replace("\n", " ").rstrip().encode("utf-8", "replace") + b"\n")
    os._exit(EXIT_DISK)
