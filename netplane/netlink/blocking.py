"""Netlink requests from a thread that may wait, in the namespace that the thread is in.

What takes the kernel long (it makes and removes devices under one lock, and waits for packets that
are under way) would hold up an event loop: `connection` sends from there.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address
from types import TracebackType
from typing import Self

from netplane.netlink import decode, messages
from netplane.netlink.connection import (
    DUMPS_MAX,
    NETLINK_CAP_ACK,
    NETLINK_EXT_ACK,
    NETLINK_GET_STRICT_CHK,
    NETLINK_ROUTE,
    READ_MAX_BYTES,
    SEND_MAX,
    SOL_NETLINK,
    TIMEOUT_S,
    NetlinkError,
    NetlinkLostError,
)
from netplane.netlink.decode import DUMP_INTERRUPTED, Message, Outcome, outcome
from netplane.netlink.kernel import GONE, KERNEL_PROTOCOL
from netplane.netlink.messages import ANY_PROTOCOL, RT_TABLE_LOCAL, Request, Type
from netplane.netlink.objects import LOCAL, Address, Route

LINKS, ROUTES6 = 0x1, 0x400
"""RTMGRP_LINK, RTMGRP_IPV6_ROUTE: notifications about links, about routes of IPv6."""


class Blocking:
    """A socket for requests. Use as `with Blocking() as kernel`, in one thread.

    Raises:
        NetlinkError: the kernel refused a request.
        NetlinkLostError: no answer. What was asked for may have happened.
    """

    def __init__(self, *, timeout_s: float = TIMEOUT_S) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._socket.settimeout(timeout_s)
        self._timeout_s = timeout_s
        for option in (NETLINK_EXT_ACK, NETLINK_CAP_ACK, NETLINK_GET_STRICT_CHK):
            self._socket.setsockopt(SOL_NETLINK, option, 1)
        self._sequences = itertools.count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def perform(self, *requests: Request) -> list[Outcome]:
        """Send requests, in order, and return how each ended; one that fails stops no other."""
        ended: list[Outcome] = []
        for start in range(0, len(requests), SEND_MAX):
            ended += self._perform(requests[start : start + SEND_MAX])
        return ended

    def _perform(self, requests: Sequence[Request]) -> list[Outcome]:
        numbers = [next(self._sequences) for _ in requests]
        found: dict[int, Outcome] = {}
        with self._answers():
            self._socket.sendall(b"".join(map(Request.encode, requests, numbers)))
            while len(found) < len(numbers):
                for message in self._read():
                    if message.type == Type.ERROR and message.sequence in numbers:
                        found[message.sequence] = outcome(message)
        return [found[number] for number in numbers]

    def do(self, *requests: Request) -> None:
        """Send requests, in order; all have to succeed."""
        for ended in self.perform(*requests):
            if ended.code:
                raise NetlinkError(ended.code, ended.text)

    def dump(self, request: Request) -> list[Message]:
        """Return all messages of a dump; one that others disturbed is repeated a few times."""
        for _ in range(DUMPS_MAX):
            found, disturbed = self._dump(request)
            if not disturbed:
                break
        return found

    def _dump(self, request: Request) -> tuple[list[Message], bool]:
        number = next(self._sequences)
        found: list[Message] = []
        disturbed = False
        with self._answers():
            self._socket.sendall(request.encode(number))
            while True:
                for message in self._read():
                    if message.sequence != number:
                        continue
                    disturbed = disturbed or bool(message.flags & DUMP_INTERRUPTED)
                    if message.type not in {Type.DONE, Type.ERROR}:
                        found.append(message)
                        continue
                    ended = outcome(message)
                    if ended.code:
                        raise NetlinkError(ended.code, ended.text)
                    return found, disturbed

    def link(self, name: str) -> decode.Link | None:
        """Return a link by its name."""
        number = next(self._sequences)
        link = None
        with self._answers():
            self._socket.sendall(messages.get_link(name).encode(number))
            while True:
                for message in self._read():
                    if message.sequence != number:
                        continue
                    if message.type != Type.ERROR:
                        link = decode.link(message.body)
                        continue
                    ended = outcome(message)
                    if ended.code and ended.code not in GONE:
                        raise NetlinkError(ended.code, ended.text)
                    return link

    def await_use(
        self, links: Iterable[str], addresses: Iterable[IPv4Address | IPv6Address]
    ) -> None:
        """Wait until packets pass links that are up, and come to addresses of ours.

        What is sent before is lost. That may be the question for a neighbour, asked again after a
        second: so long would the first packet of a container wait.

        Raises:
            NetlinkLostError: they do not in time.
        """
        for name in links:
            self.await_running(name)
        for address in addresses:
            if isinstance(address, IPv6Address):  # those of IPv4 are in use when they are given
                self.await_local(address)

    def await_running(self, name: str) -> None:
        """Wait until packets pass a bridge, or one of a pair of devices, that is up.

        Who sends there, and the bridge that it is a port of, are told that its cable is in a moment
        after it is so; until then packets are lost. Newer kernels do it when asked for the link.

        Raises:
            NetlinkLostError: no packets pass in time.
        """

        def is_running() -> bool:
            link = self.link(name)
            return link is None or link.running

        self._await(is_running, LINKS, f"no packets pass {name}")

    def await_local(self, address: IPv6Address) -> None:
        """Wait until packets for an address of ours are taken, and neighbours who ask for it heard.

        The kernel sees to that a moment after it has given the address.

        Raises:
            NetlinkLostError: they are not taken in time.
        """

        # Not what a look-up finds: a rule of somebody may come before.
        local = messages.dump_routes(socket.AF_INET6, KERNEL_PROTOCOL, RT_TABLE_LOCAL)

        def is_local() -> bool:
            found = (decode.route(one.body, {}, any_table=True) for one in self.dump(local))
            return any(
                route is not None and route.kind == LOCAL and route.destination == address.packed
                for route in found
            )

        self._await(is_local, ROUTES6, f"packets for {address} are not taken")

    def _await(self, condition: Callable[[], bool], groups: int, failure: str) -> None:
        """Wait for what the kernel's notifications of some groups tell of."""
        if condition():
            return
        ends_s = time.monotonic() + self._timeout_s
        with (
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE) as told,
            self._answers(failure),
        ):
            told.bind((0, groups))
            while not condition():
                told.settimeout(max(ends_s - time.monotonic(), 0.001))
                told.recv(READ_MAX_BYTES)

    def links(self) -> list[decode.Link]:
        """Return all links."""
        return [decode.link(message.body) for message in self.dump(messages.dump_links())]

    def addresses(self, family: int, index: int, name: str) -> list[Address]:
        """Return the addresses of a link."""
        found = self.dump(messages.dump_addresses(family, index))
        read = (decode.address(message.body, {index: name}) for message in found)
        return [item for item in read if item is not None]

    def routes(self, family: int) -> list[Route]:
        """Return the main table's routes, without the names of their links."""
        found = self.dump(messages.dump_routes(family, ANY_PROTOCOL))
        read = (decode.route(message.body, {}) for message in found)
        return [item for item in read if item is not None]

    def _read(self) -> Iterator[Message]:
        return decode.messages(self._socket.recv(READ_MAX_BYTES))

    @contextlib.contextmanager
    def _answers(self, missing: str = "no answer of the kernel in time") -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            raise NetlinkLostError(missing) from error
        except OSError as error:
            raise NetlinkLostError(f"the kernel's answer is lost: {error.strerror}") from error
