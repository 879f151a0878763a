"""Hears what nf_tables tells of one table, without a line of netplane; asserts nothing."""

from __future__ import annotations

import queue
import socket
import struct
import threading
import time
from typing import NamedTuple, Self

from netplane.netlink.namespace import inside

# linux/netfilter/nfnetlink.h, nf_tables.h, linux/netlink.h
NETLINK_NETFILTER, GROUP_NFTABLES, SUBSYSTEM = 12, 7, 10
NAMES = {
    0: "new table", 2: "del table", 3: "new chain", 5: "del chain", 6: "new rule", 8: "del rule",
    9: "new set", 11: "del set", 12: "new element", 14: "del element", 15: "end",
}  # fmt: skip
SOL_NETLINK, ADD_MEMBERSHIP, SO_RCVBUFFORCE = 270, 1, 33


class Told(NamedTuple):
    """One thing that the kernel said."""

    at: float
    what: str
    port: int


class Ear:
    """Hears from its construction on."""

    def __init__(self, namespace: str, table: str = "netplane") -> None:
        self.told: queue.SimpleQueue[Told] = queue.SimpleQueue()
        self._table = table.encode()
        self._socket = inside(
            namespace, lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        )
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
        self._socket.bind((0, 0))
        self._socket.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, GROUP_NFTABLES)
        self._socket.settimeout(0.05)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="ear")
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._ending.set()
        self._thread.join()
        self._socket.close()

    def until(self, what: str, timeout_s: float = 20.0) -> Told:
        """Wait for the next thing of a kind and return it; those before it are dropped."""
        until = time.monotonic() + timeout_s
        while True:
            told = self.told.get(timeout=max(0.0, until - time.monotonic()))
            if told.what == what:
                return told

    def _listen(self) -> None:
        is_ours = False
        while True:
            try:
                data = self._socket.recv(1 << 20)
            except TimeoutError:
                if self._ending.is_set():
                    return
                continue
            now = time.monotonic()
            while len(data) >= 20:
                length, kind, _, _, port = struct.unpack_from("=IHHII", data)
                what = NAMES.get(kind & 0xFF, "") if kind >> 8 == SUBSYSTEM else ""
                if what != "end":
                    size, attribute = struct.unpack_from("=HH", data, 20)
                    mine = attribute == 1 and data[24 : 20 + size].rstrip(b"\0") == self._table
                    is_ours = is_ours or mine
                    if mine and what:
                        self.told.put(Told(now, what, port))
                elif is_ours:
                    self.told.put(Told(now, what, port))
                    is_ours = False
                data = data[(length + 3) & ~3 :]
