"""Notifications of what changes in the kernel; whether it matters is not decided here."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from netplane.netlink import decode
from netplane.netlink.connection import (
    READ_MAX_BYTES,
    SO_RCVBUFFORCE,
    SOL_NETLINK,
    open_socket,
)
from netplane.netlink.messages import Type
from netplane.netlink.objects import Address, FdbEntry, Neighbour, Route

log = logging.getLogger(__name__)

NETLINK_ADD_MEMBERSHIP = 1
GROUPS = (1, 3, 5, 7, 24)
"""RTNLGRP_LINK, _NEIGH (forwarding entries too), _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_NETCONF."""

GROUPS6 = (1, 3, 9, 11, 25)
"""The same of IPv6."""

WITHOUT_PEERS = (1, 5, 9, 24)
"""Links, addresses, settings: of the others a thousand peers are three thousand notifications."""

BUFFER_BYTES = 16 * 1024 * 1024
SO_ATTACH_FILTER = 26
BPF_LD_W_ABS, BPF_JEQ, BPF_RET = 0x20, 0x15, 0x06
PORT_OFFSET = 12
"""Of nlmsg_pid in a message's header."""

REMOVALS = {Type.DELLINK, Type.DELADDR, Type.DELROUTE, Type.DELNEIGH}


@dataclass(frozen=True, slots=True)
class LinkChange:
    """A link came, changed or went."""

    link: decode.Link
    """As it is after the change; of one that went, as it was."""
    removed: bool
    port: int


class ObjectChange(NamedTuple):
    """An object came or changed, or went."""

    item: Address | Neighbour | FdbEntry | Route
    removed: bool
    port: int
    """Of the socket that wrote it; 0: the kernel itself, or it does not say."""


@dataclass(frozen=True, slots=True)
class SettingsChange:
    """Forwarding or reverse path filtering changed somewhere."""


@dataclass(frozen=True, slots=True)
class Overrun:
    """Notifications were lost: anything may have changed."""


Change = LinkChange | ObjectChange | SettingsChange | Overrun


class Monitor:
    """A socket that hears of every change in a namespace. End with `close`."""

    def __init__(
        self,
        namespace: str | None = None,
        *,
        buffer_bytes: int = BUFFER_BYTES,
        groups: Sequence[int] = GROUPS,
    ) -> None:
        self._socket = open_socket(namespace)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, buffer_bytes)
        except PermissionError:  # as far as we may: an overrun costs a dump, nothing is missed
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        for group in groups:
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def leave_out(self, port: int) -> None:
        """Hear no more of what is written by the socket with this port: nobody is woken by it."""
        leave_out(self._socket, port)

    async def read(self, names: Mapping[int, str], own_port: int) -> list[Change]:
        """Wait for notifications and return them, oldest first.

        Args:
            names: the links whose objects matter, by index; of others only link changes are told.
                Looked at when something comes, so it may change while this waits.
            own_port: what carries it we wrote ourselves, so it is left out.
        """
        try:
            data = await asyncio.get_running_loop().sock_recv(self._socket, READ_MAX_BYTES)
        except OSError as error:
            return _overrun(error)
        return _changes(data, names, own_port)

    def pending(self, names: Mapping[int, str], own_port: int) -> list[Change]:
        """Return what has come up to now, without waiting; for the arguments see `read`."""
        found: list[Change] = []
        while True:
            try:
                found += _changes(self._socket.recv(READ_MAX_BYTES), names, own_port)
            except BlockingIOError:
                return found
            except OSError as error:
                found += _overrun(error)


def leave_out(monitor: socket.socket, port: int) -> None:
    """Have the kernel drop, for this socket, what carries a port. Once for each socket."""
    # linux/filter.h: load the header's port, as big endian; equal: drop, else take all of it.
    meant = int.from_bytes(struct.pack("=I", port), "big")
    program = b"".join(
        struct.pack("=HBBI", *step)
        for step in (
            (BPF_LD_W_ABS, 0, 0, PORT_OFFSET),
            (BPF_JEQ, 0, 1, meant),
            (BPF_RET, 0, 0, 0),
            (BPF_RET, 0, 0, 0xFFFFFFFF),
        )
    )
    kept = ctypes.create_string_buffer(program, len(program))
    filter_program = struct.pack("HP", len(program) // 8, ctypes.addressof(kept))
    monitor.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, filter_program)


def _overrun(error: OSError) -> list[Change]:
    if error.errno != errno.ENOBUFS:
        raise error
    return [Overrun()]


def _changes(data: bytes, names: Mapping[int, str], own_port: int) -> list[Change]:
    try:
        return [
            told
            for message in decode.messages(data, but_of_port=own_port)
            if (told := change(message, names)) is not None
        ]
    except decode.NetlinkFormatError as error:
        # As good as lost, and as harmless: what is there will be read.
        log.warning("a notification of the kernel is not understood: %s", error)
        return [Overrun()]


def change(message: decode.Message, names: Mapping[int, str]) -> Change | None:
    """Return what a notification tells, None if nothing about these links."""
    removed = message.type in REMOVALS
    item: Address | Neighbour | FdbEntry | Route | None
    match message.type:
        # First, as the kernel does not say of forwarding entries that we wrote them.
        case Type.NEWNEIGH | Type.DELNEIGH:
            item = decode.neighbour(message.body, names)
            # One that may now age is as good as gone.
            removed = removed or not decode.is_permanent(message.body)
        case Type.NEWLINK | Type.DELLINK:
            # A bridge tells of its ports in link messages of its own family; those are no changes.
            if message.body[:1] == b"\x07":
                return None
            return LinkChange(decode.link(message.body), removed, message.port)
        case Type.NEWADDR | Type.DELADDR:
            item = decode.address(message.body, names)
        case Type.NEWROUTE | Type.DELROUTE:
            item = decode.route(message.body, names)
        case Type.NEWNETCONF:
            return SettingsChange()
        case _:
            return None
    return None if item is None else ObjectChange(item, removed, message.port)
