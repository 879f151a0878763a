"""Members of a set of nftables added and removed by messages of our own.

One host that comes or goes is the steady state of every agent. By libnftables and its thread that
took two thirds of a millisecond of CPU in each of a hundred agents, by this a tenth.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct
from collections.abc import Iterable

from netplane.netlink import decode
from netplane.netlink.connection import (
    NETLINK_CAP_ACK,
    READ_MAX_BYTES,
    SOL_NETLINK,
    drain,
    open_socket,
)
from netplane.netlink.messages import ACK, CREATE, NESTED, Request, Type, attribute
from netplane.nft.monitor import FAMILIES, NETLINK_NETFILTER, SUBSYSTEM, opening
from netplane.nft.rules import NftError

# linux/netfilter/nfnetlink.h, nf_tables.h, netlink.h
BATCH_BEGIN, BATCH_END = 0x10, 0x11
NEWSETELEM, DELSETELEM = SUBSYSTEM << 8 | 12, SUBSYSTEM << 8 | 14
LIST_TABLE, LIST_SET, LIST_ELEMENTS = 1, 2, 3
LIST_ELEMENT, ELEMENT_KEY, DATA_VALUE = 1, 1, 1

MEMBERS_MAX = 256
"""In one transaction: more are for libnftables. The message stays far below 64 KiB."""


class MemberSocket:
    """A socket for the members of one set; opened when it is first needed. End with `close`."""

    def __init__(self, namespace: str | None, table: str, name: str, family: str = "ip") -> None:
        # struct nfgenmsg: family, version, resource
        self._family = struct.pack("!BBH", FAMILIES[family], 0, 0)
        self._namespace = namespace
        self._socket: socket.socket | None = None
        self._is_clean = True
        """All that was asked for is answered."""
        self._numbers = itertools.count(1)
        self._list = attribute(LIST_TABLE, table.encode() + b"\0") + attribute(
            LIST_SET, name.encode() + b"\0"
        )

    @property
    def port(self) -> int:
        """Notifications about what we wrote carry it. Opens the socket. Raises OSError."""
        port: int = self._opened().getsockname()[0]
        return port

    def close(self) -> None:
        """Give the socket back."""
        if self._socket is not None:
            self._socket.close()

    def change(self, came: Iterable[bytes], gone: Iterable[bytes]) -> None:
        """Remove members and add others, in one transaction. Waits for nobody but the kernel.

        Args:
            came: packed addresses; one that is in the set already is no error.
            gone: packed addresses; one that is not in the set is an error.

        Raises:
            NftError: Nothing was written, or it is not known whether it was.
        """
        try:
            opened = self._opened()
            if not self._is_clean:
                drain(opened)
            data, last = self._transaction(came, gone)
            self._is_clean = False
            # The kernel does the work within this call, and its answers are there after it.
            opened.send(data)
            code = _outcome(opened, last)
        except OSError as error:
            raise NftError(error.strerror or str(error), "a change of members") from error
        if code:
            raise NftError(os.strerror(code), "a change of members")
        self._is_clean = True

    def _opened(self) -> socket.socket:
        if self._socket is None:
            with opening:
                made = open_socket(self._namespace, NETLINK_NETFILTER)
            made.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
            self._socket = made
        return self._socket

    def _transaction(self, came: Iterable[bytes], gone: Iterable[bytes]) -> tuple[bytes, int]:
        """Return the messages, and the number of the last that is answered."""
        requests = []
        for kind, flags, members in ((DELSETELEM, 0, gone), (NEWSETELEM, CREATE, came)):
            packed = b"".join(map(_element, members))
            if packed:
                body = self._family + self._list + attribute(LIST_ELEMENTS | NESTED, packed)
                requests.append(Request(kind, ACK | flags, body))
        parts, last = [Request(BATCH_BEGIN, 0, _batch).encode(next(self._numbers))], 0
        for request in requests:
            last = next(self._numbers)
            # What is refused is told of anyway.
            parts.append(request.encode(last, quiet=request is not requests[-1]))
        parts.append(Request(BATCH_END, 0, _batch).encode(next(self._numbers)))
        return b"".join(parts), last


# struct nfgenmsg: family, version, resource
_batch = struct.pack("!BBH", socket.AF_UNSPEC, 0, SUBSYSTEM)


def _element(packed: bytes) -> bytes:
    value = attribute(DATA_VALUE, packed)
    return attribute(LIST_ELEMENT | NESTED, attribute(ELEMENT_KEY | NESTED, value))


def _outcome(opened: socket.socket, last: int) -> int:
    """Return the errno of the first message that was refused, 0 when all were taken."""
    found = 0
    try:
        while not decode.is_success(data := opened.recv(READ_MAX_BYTES), last):
            for message in decode.messages(data):
                if message.type == Type.ERROR:
                    found = found or -struct.unpack_from("=i", message.body)[0]
    except BlockingIOError:
        return found or errno.ETIMEDOUT
    return found
