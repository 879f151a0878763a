"""What a result is worth without: machine, cores, disk, kernel and versions; measures nothing."""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path

import psutil


def cpu_model() -> str:
    """Return the processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def filesystem(folder: str) -> str:
    """Return the type of the filesystem that holds a folder: tmpfs makes fsync free."""
    best, kind = "", "unknown"
    path = os.path.realpath(folder)
    for mount in psutil.disk_partitions(all=True):
        point = mount.mountpoint.rstrip("/") + "/"
        if (path + "/").startswith(point) and len(point) > len(best):
            best, kind = point, mount.fstype
    return kind


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "not installed"
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0] if lines else "unknown"


def facts(data_root: str | None) -> dict[str, str | int | float]:
    """Return what to print beside every figure."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count() or 0,
        "cores usable": len(os.sched_getaffinity(0)),
        "memory GiB": round(psutil.virtual_memory().total / 2**30, 1),
        "load before": round(os.getloadavg()[0], 2),
        "data on": filesystem(data_root or tempfile.gettempdir()),
        "kernel": platform.release(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "etcd": _first_line("etcd", "--version").removeprefix("etcd Version: "),
        "h2load": _first_line("h2load", "--version"),
        "uvloop": version("uvloop"),
        "grpcio": version("grpcio"),
        "commit": _first_line("git", "rev-parse", "--short", "HEAD"),
    }
