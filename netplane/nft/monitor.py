"""Notifications of what changes in tables of nftables; whether it matters is not decided here."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import struct
import threading
from asyncio import get_running_loop
from collections.abc import Iterator
from dataclasses import dataclass

from netplane.netlink import decode
from netplane.netlink.connection import (
    READ_MAX_BYTES,
    SO_RCVBUFFORCE,
    SOL_NETLINK,
    open_socket,
)
from netplane.netlink.monitor import BUFFER_BYTES, NETLINK_ADD_MEMBERSHIP, Overrun, leave_out

log = logging.getLogger(__name__)

# linux/netfilter/nfnetlink.h, nf_tables.h
NETLINK_NETFILTER = 12
NFNLGRP_NFTABLES = 7
SUBSYSTEM = 10
NEWTABLE, DELTABLE, NEWGEN = 0, 2, 15
HEADER_BYTES = 4  # family, version, resource id
ATTRIBUTE_TABLE = 1
"""The same in the messages about tables, chains, rules, sets, elements and objects."""
GENERATION_PID, GENERATION_NAME = 2, 3

FAMILIES = {"ip": 2, "ip6": 10}

opening = threading.Lock()
"""Held by who opens a netfilter socket: the library's is known by being the only new one."""


@dataclass(frozen=True, slots=True)
class TableChange:
    """One transaction changed a table, or what is in it."""

    family: int
    table: str
    removed: bool
    """The table is gone; also when all of them are, as after `flush ruleset`."""
    writer: str
    """As `nft (process 4711)`; empty if the kernel does not say."""


class NftMonitor:
    """A socket that hears of every change of nftables in a namespace. End with `close`.

    Args:
        namespace: a path, as `/run/netns/a`; None is the one we are in.
        buffer_bytes: what may wait to be read.
        but_of_port: of a socket whose changes are not to be heard.

    Raises:
        OSError: The kernel has no nf_tables, or we may not listen.
    """

    def __init__(
        self,
        namespace: str | None = None,
        *,
        buffer_bytes: int = BUFFER_BYTES,
        but_of_port: int | None = None,
    ) -> None:
        with opening:
            self._socket = open_socket(namespace, NETLINK_NETFILTER)
        with contextlib.ExitStack() as undo:
            undo.callback(self._socket.close)
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, buffer_bytes)
            except PermissionError:  # as far as we may: an overrun costs a look, nothing is missed
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
            if but_of_port is not None:
                leave_out(self._socket, but_of_port)
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)
            undo.pop_all()
        self._changed: dict[tuple[int, str], bool] = {}
        """By the transaction whose end is still to come; true: that table is gone."""

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    async def read(self, own_port: int) -> list[TableChange | Overrun]:
        """Wait for notifications and return what the transactions that ended have changed.

        What carries `own_port` we wrote ourselves, so it is left out. The list may be empty.
        """
        try:
            data = await get_running_loop().sock_recv(self._socket, READ_MAX_BYTES)
            return list(self._changes(data, own_port))
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
        except decode.NetlinkFormatError as error:
            # As good as lost, and as harmless: what is there will be read.
            log.warning("a notification of nftables is not understood: %s", error)
        self._changed.clear()
        return [Overrun()]

    def _changes(self, data: bytes, own_port: int) -> Iterator[TableChange]:
        # All that one transaction tells carries the port of who wrote it.
        for message in decode.messages(data, but_of_port=own_port):
            subsystem, kind = message.type >> 8, message.type & 0xFF
            if subsystem != SUBSYSTEM or len(message.body) < HEADER_BYTES:
                continue
            found = decode.attributes(message.body, HEADER_BYTES)
            if kind != NEWGEN:
                key = message.body[0], _text(found.get(ATTRIBUTE_TABLE))
                about_table = kind in {NEWTABLE, DELTABLE}
                self._changed[key] = (
                    kind == DELTABLE if about_table else self._changed.get(key, False)
                )
                continue
            changed, self._changed = self._changed, {}
            for (family, table), removed in changed.items():
                yield TableChange(family, table, removed, _writer(found))


def _writer(generation: dict[int, bytes]) -> str:
    name = _text(generation.get(GENERATION_NAME))
    pid = generation.get(GENERATION_PID, b"")
    return f"{name} (process {struct.unpack('!I', pid)[0]})" if name and len(pid) == 4 else name


def _text(payload: bytes | None) -> str:
    return (payload or b"").rstrip(b"\0").decode(errors="replace")
