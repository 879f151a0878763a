"""One agent for one instance: a lock that ends with its process, however that ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Self

from netplane.agent.errors import LockedError


class InstanceLock:
    """Held from `acquire` until `close` or the end of the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number = -1

    def acquire(self) -> Self:
        """Take the lock, or raise LockedError that names who has it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Close-on-exec, as Python opens everything: no child keeps the lock beyond our end.
        number = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(number, 32).decode("ascii", "replace").strip()
            os.close(number)
            raise LockedError(
                f"the agent of this instance runs already (process {holder or 'unknown'}, "
                f"lock {self._path})",
                "stop it, or give this one --instance NAME",
            ) from error
        os.ftruncate(number, 0)
        os.write(number, f"{os.getpid()}\n".encode())
        self._number = number
        return self

    def close(self) -> None:
        """Let the next one in. The file stays: whoever waits has it open."""
        os.close(self._number)
        self._number = -1
