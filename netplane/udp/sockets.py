"""Who has a socket open, as /proc tells it: processes and their command lines. Ends nobody."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path


def open_sockets() -> Iterator[tuple[int, str, int]]:
    """Yield process, descriptor (a path) and inode of all sockets that somebody has open."""
    for name in os.listdir("/proc"):
        if name.isdecimal():
            for place, inode in sockets_of(int(name)):
                yield int(name), place, inode


def sockets_of(pid: int) -> Iterator[tuple[str, int]]:
    """Yield descriptor (a path) and inode of the sockets of a process that we may look at."""
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):  # it has just ended
        for number in os.listdir(folder):
            place = f"{folder}/{number}"
            inode = socket_in(place)
            if inode >= 0:
                yield place, inode


def socket_in(place: str) -> int:
    """Return the inode of the socket that a descriptor is of; -1: none."""
    try:
        kind, _, inode = os.readlink(place).partition(":")
    except OSError:
        return -1
    return int(inode[1:-1]) if kind == "socket" else -1


def port_text(address: str, port: int) -> str:
    """Say who has a UDP port of this network namespace, and what helps."""
    try:
        inodes = _bound_to(address, port)
        pid = next(pid for pid, _, inode in open_sockets() if inode in inodes)
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except (OSError, StopIteration):
        return "stop flanneld, or whatever else has it"
    if any("netplane.udp" in word for word in command) and "--socket" in command[:-1]:
        path = command[command.index("--socket") + 1]
        return f"process {pid}, a netplane-udp that agents find at {path}, has it: kill {pid}"
    return f"stop {name} (process {pid}), which has it"


def _bound_to(address: str, port: int) -> set[int]:
    """Return the inodes of the sockets that are in the way of one of an address and port."""
    # Bytes as in the packet, which the kernel prints as a number of its own order.
    number = int.from_bytes(IPv4Address(address).packed, sys.byteorder)
    wanted = {f"{number:08X}:{port:04X}", f"{0:08X}:{port:04X}"}
    _, *lines = Path("/proc/thread-self/net/udp").read_text().splitlines()
    fields = [line.split() for line in lines]
    return {int(one[9]) for one in fields if one[1] in wanted}
