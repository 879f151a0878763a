"""Lets the processes that tests start keep their bytecode, as installed programs have it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "build" / "bytecode"


def keep() -> None:
    """From now on what this process starts keeps its bytecode, and finds what others have kept.

    Where Python is told to write none (PYTHONDONTWRITEBYTECODE), a member's start takes four times
    the CPU, and an agent's nearly twice: each compiles everything anew. It is kept apart, so that
    the tree stays as whoever told that wants it.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(FOLDER)


def compile_all() -> None:
    """Compile what is not compiled yet, so that a hundred processes do not do it side by side."""
    keep()
    subprocess.run(
        [sys.executable, "-m", "compileall", "-q", "kvstore", "netplane"], cwd=ROOT, check=True
    )
