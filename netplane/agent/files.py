"""Files that are there whole or not at all, also after a power cut."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def write_whole(path: Path, text: str, *, mode: int = 0o644, durable: bool = True) -> None:
    """Replace a file, so that a reader sees the old text or the new one; make its folder.

    Blocks for the fsync. Raises OSError, and then the old file is as it was. Without `durable` it
    only outlives us, not a power cut.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), mode)
            if durable:
                os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    if not durable:
        return
    # Without this the name may still be the old file's after a power cut.
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
