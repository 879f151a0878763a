"""CPU time and memory of a process tree, read from /proc and psutil; starts no process."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil


def tree(pid: int) -> list[psutil.Process]:
    """Return the process and everything it started; empty when it is gone."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_s(pid: int) -> float:
    """Return user plus system CPU seconds of the process tree, in steps of a clock tick (10 ms)."""
    total = 0.0
    for process in tree(pid):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def bound() -> list[str]:
    """Return what to put before a command whose process must not outlive ours.

    A benchmark that is killed cannot tidy up: the kernel then does. setpriv becomes the program
    (exec), so the process id is the program's own.
    """
    return ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []


@dataclass(frozen=True)
class Memory:
    """Resident memory in bytes, with what is backed by files told apart (an LMDB map is)."""

    anonymous_bytes: int
    file_bytes: int


def memory(pid: int) -> Memory:
    """Return RssAnon and RssFile + RssShmem of the process tree."""
    anonymous = file = 0
    for process in tree(pid):
        try:
            text = Path(f"/proc/{process.pid}/status").read_text()
        except FileNotFoundError:
            continue
        for line in text.splitlines():
            name, _, rest = line.partition(":")
            if name == "RssAnon":
                anonymous += int(rest.split()[0]) * 1024
            elif name in ("RssFile", "RssShmem"):
                file += int(rest.split()[0]) * 1024
    return Memory(anonymous, file)
