"""Packets between namespaces, sent and counted in this process; the kernels between do the rest."""

from __future__ import annotations

import itertools
import json
import random
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Protocol, Self

from tests.net.namespaces import Namespace
from tests.net.rig import Container

ECHO_REQUEST, ECHO_REPLY = 8, 0
ECHO6_REQUEST, ECHO6_REPLY = 128, 129
SO_RCVBUFFORCE, SO_TIMESTAMPNS = 33, 35
TIMESTAMP = struct.Struct("qq")
"""struct timespec: seconds and nanoseconds."""
SOL_RAW, ICMP_FILTER = 255, 1
SOL_ICMPV6, ICMPV6_FILTER = 58, 1
UDP_PORT = 7000
TAKE_S = 0.02
"""After so long what has come is taken."""
DRAIN_S = 1.0
"""What has not come so long after the last packet will not come."""


class Place(Protocol):
    """Where packets start and end."""

    namespace: Namespace
    address: str


@dataclass(frozen=True)
class Loss:
    """What became of the packets of a flow."""

    sent: int
    missing: tuple[int, ...]
    refused: int
    """Of these: not even taken by the sender's own kernel."""
    longest_gap_ms: float
    """Between two packets that arrived."""
    per_second: float
    """How many were sent."""

    def __str__(self) -> str:
        return f"{len(self.missing)} of {self.sent} lost, longest gap {self.longest_gap_ms:.0f} ms"


class Flow:
    """Numbered UDP packets from one place to another, evenly, until `stop` or the end of `with`."""

    def __init__(
        self,
        source: Place,
        target: Place,
        rate: int = 1000,
        *,
        port: int = UDP_PORT,
        size: int = 64,
        address: str = "",
    ) -> None:
        """Start to send `rate` packets of `size` payload bytes a second.

        To `address` of the target, or to its first.
        """
        self._address = (address or target.address, port)
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        self._interval_s = 1 / rate
        self._padding = bytes(size - 8)
        self._sent = 0
        self._refused = 0
        self._got: dict[int, float] = {}
        self._stopping = threading.Event()
        self._all_sent = threading.Event()
        self._begun = time.monotonic()
        self._sender = source.namespace.socket(family, socket.SOCK_DGRAM)
        self._receiver = target.namespace.socket(family, socket.SOCK_DGRAM)
        # A reader that waits for the processor must not look like a network that loses.
        self._receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
        self._receiver.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._receiver.bind(self._address)
        self._receiver.setblocking(False)
        self._threads = [
            threading.Thread(target=self._send, name="flow sender", daemon=True),
            threading.Thread(target=self._receive, name="flow receiver", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if not self._stopping.is_set():
            self.stop()

    @property
    def sent(self) -> int:
        """How many so far."""
        return self._sent

    @property
    def received(self) -> int:
        """How many so far."""
        return len(self._got)

    @property
    def late(self) -> int:
        """How many should have been sent by now and wait: a busy machine sends them after."""
        return int((time.monotonic() - self._begun) / self._interval_s) - self._sent

    def stop(self) -> Loss:
        """Stop sending, wait for what is still under way, and count."""
        seconds = time.monotonic() - self._begun
        sent = self._sent
        self._stopping.set()
        sender, receiver = self._threads
        sender.join()
        # Only now: it may have been about to send one more, however long ago it was told.
        self._all_sent.set()
        receiver.join()
        self._sender.close()
        self._receiver.close()
        times = list(self._got.values())
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        return Loss(
            self._sent,
            tuple(number for number in range(self._sent) if number not in self._got),
            self._refused,
            1000 * max(gaps, default=0.0),
            sent / seconds,
        )

    def _send(self) -> None:
        while not self._stopping.is_set():
            try:
                self._sender.sendto(struct.pack("!Q", self._sent) + self._padding, self._address)
            except OSError:
                self._refused += 1  # no route: lost at once
            self._sent += 1
            early_s = self._begun + self._sent * self._interval_s - time.monotonic()
            if early_s > 0:
                time.sleep(early_s)  # an event's wait takes several times the CPU

    def _receive(self) -> None:
        # Some at a time, as the kernel says when each came: to be woken for each takes more than
        # all else that is done for it.
        last = time.monotonic()
        while len(self._got) + self._refused < self._sent or not self._all_sent.is_set():
            if self._take() or not self._all_sent.is_set():
                last = time.monotonic()
            elif time.monotonic() > last + DRAIN_S:
                return
            time.sleep(TAKE_S)

    def _take(self) -> bool:
        """Take what has come and tell whether there was any."""
        before = len(self._got)
        with suppress(BlockingIOError):
            while True:
                packet, told, *_ = self._receiver.recvmsg(8, socket.CMSG_SPACE(TIMESTAMP.size))
                seconds, nanoseconds = TIMESTAMP.unpack(told[0][2])
                self._got[struct.unpack("!Q", packet)[0]] = seconds + nanoseconds / 1e9
        return len(self._got) > before


def ping_all(
    pairs: Iterable[tuple[Place, str]], *, timeout_s: float = 1.0, size: int = 56
) -> list[float | None]:
    """Send one ICMP echo request for each place and address, all at once.

    Returns the milliseconds of each in their order, None for those without a reply in time.
    `size` is the payload; a packet has 28 bytes more, one of IPv6 48.
    """
    wanted = list(pairs)
    with ExitStack() as stack:
        sockets = []
        for place, target in wanted:
            sockets.append(stack.enter_context(_raw(place, target)))
        marks = [random.randrange(1 << 16) for _ in wanted]
        sent: list[float] = []
        for raw, mark, (_, target) in zip(sockets, marks, wanted, strict=True):
            sent.append(time.monotonic())
            with suppress(OSError):  # no route: it will get no reply
                raw.sendto(_echo_request(mark, size, target), (target, 0))
        results: list[float | None] = []
        for raw, mark, begun, (_, target) in zip(sockets, marks, sent, wanted, strict=True):
            at = _await_reply(raw, mark, target, begun + timeout_s)
            results.append(None if at is None else 1000 * (at - begun))
    return results


def ping(source: Place, target: str, *, timeout_s: float = 1.0, size: int = 56) -> float | None:
    """Return the milliseconds of one ping, None without a reply in time."""
    return ping_all([(source, target)], timeout_s=timeout_s, size=size)[0]


def _raw(place: Place, target: str) -> socket.socket:
    """Return a socket that gets replies only: a namespace sees the requests of others as well."""
    if ":" in target:
        raw = place.namespace.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        blocked = ((1 << 256) - 1) ^ 1 << ECHO6_REPLY
        raw.setsockopt(SOL_ICMPV6, ICMPV6_FILTER, blocked.to_bytes(32, "little"))
        return raw
    raw = place.namespace.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    raw.setsockopt(SOL_RAW, ICMP_FILTER, struct.pack("I", 0xFFFFFFFF ^ 1 << ECHO_REPLY))
    return raw


def _echo_request(mark: int, size: int, target: str) -> bytes:
    if ":" in target:  # the kernel computes the checksum
        return struct.pack("!BBHHH", ECHO6_REQUEST, 0, 0, mark, 1) + bytes(size)
    head = struct.pack("!BBHHH", ECHO_REQUEST, 0, 0, mark, 1)
    data = bytes(size)
    checksum = _checksum(head + data)
    return struct.pack("!BBHHH", ECHO_REQUEST, 0, checksum, mark, 1) + data


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) // 2 * 2]))
    if len(data) % 2:
        total += data[-1] << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _await_reply(raw: socket.socket, mark: int, target: str, until: float) -> float | None:
    while True:
        # Without time left: what has come already counts, as others may have taken all the time.
        raw.settimeout(max(until - time.monotonic(), 0))
        try:
            packet, (sender, *_) = raw.recvfrom(65536)
        except (TimeoutError, BlockingIOError):
            return None
        # Of IPv6 the kernel gives what is behind the header.
        offset, wanted = (0, ECHO6_REPLY) if ":" in target else (4 * (packet[0] & 15), ECHO_REPLY)
        kind, _, _, found, _ = struct.unpack_from("!BBHHH", packet, offset)
        if kind == wanted and found == mark and sender == target:
            return time.monotonic()


def throughput(source: Place, target: Place, *, seconds: int = 2) -> float:
    """Return the Gbit/s of one TCP stream, as iperf3 measures it. Raises CommandError."""
    with subprocess.Popen(
        target.namespace.command(
            "iperf3", "--server", "--one-off", "--forceflush", "--bind", target.address
        ),
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        try:
            _read_until(server.stdout, "listening")
            answer = source.namespace.run(
                "iperf3", "--client", target.address, "--time", str(seconds), "--json"
            )
        finally:
            server.kill()
    bits: float = json.loads(answer)["end"]["sum_received"]["bits_per_second"]
    return bits / 1e9


def _read_until(lines: Iterable[str], word: str) -> None:
    for line in lines:
        if word in line:
            return
    raise ConnectionError(f"iperf3 ended before it said {word!r}")


def mesh(places: Sequence[Place]) -> list[tuple[Place, str]]:
    """Return every ordered pair of different places, as `ping_all` takes them."""
    return [(one, other.address) for one in places for other in places if one is not other]


def mesh6(containers: Sequence[Container]) -> list[tuple[Place, str]]:
    """Return the same for second addresses, of those that have one."""
    both = [one for one in containers if one.address6]
    return [(one, other.address6) for one in both for other in both if one is not other]
