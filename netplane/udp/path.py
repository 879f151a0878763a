"""The way of packets: from the device to a peer's socket, and from the socket to the device.

Both ways take what there is, up to a bound, and never wait. Packets of one stream mostly have one
length, and the kernel takes and gives many of these in one call (UDP_SEGMENT, UDP_GRO): on the wire
each is a datagram of its own, as from a sender that knows nothing of this.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from netplane.udp.packets import HEADER, HEADER_BYTES, is_whole, lower_ttl, net_unreachable
from netplane.udp.peers import Peer, Peers

SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104
SEGMENTS_MAX = 64
"""Of Linux before 6.9, UDP_MAX_SEGMENTS; later it is twice that."""
DATAGRAM_BYTES_MAX = 65535 - 28
BATCH = 128
"""Packets from the device before the socket has its turn."""
RECEIVES = 8
"""Calls of the socket, of up to 64 KiB each, before the device has its turn."""
BUFFER_BYTES = 1 << 18
PACKET_BYTES_MAX = 65535
ANCILLARY_BYTES = socket.CMSG_SPACE(4)
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
QUEUE_BYTES = 4 << 20
"""More than the kernel lets wait for one neighbour that does not answer (some 200 KiB)."""
UNREACHABLE_EVERY_S = 0.01
"""How often who sends to nobody is told so; each costs more than the packet."""
FOREIGN = ("unknown-host", "unknown-key", "not-authentic", "foreign-source", "foreign-target")
"""Reasons for drops of what came from no host of the overlay, or in the name of another."""

_size = struct.Struct("=H")
_gro_size = struct.Struct("=i")


class DeviceGoneError(Exception):
    """The device was removed; one of the same name is another."""


def open_socket(address: str, port: int) -> socket.socket:
    """Return the socket of the overlay's packets. Raises OSError."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        for option in SO_SNDBUFFORCE, SO_RCVBUFFORCE:
            made.setsockopt(socket.SOL_SOCKET, option, QUEUE_BYTES)
        made.setsockopt(SOL_UDP, UDP_GRO, 1)
        # Packets leave with the address that peers know this host by.
        made.bind((address, port))
    except OSError:
        made.close()
        raise
    return made


class DataPath:
    """Moves packets between a device and a socket, neither of which is closed here.

    Args:
        device: a TUN device's descriptor.
        udp: as `open_socket` returns it.
        icmp: a raw one, to tell containers that there is no way. Through the device the kernel
            would not take it: what comes from there cannot have an address of the host.
        own: mask and masked address of our own subnet, which packets come in for.
    """

    def __init__(
        self, device: int, udp: socket.socket, icmp: socket.socket, own: tuple[int, int]
    ) -> None:
        self.peers = Peers()
        self.drops: Counter[str] = Counter()
        """By reason; see docs/netplane-udp.md."""
        self.sent = self.sent_bytes = self.received = self.received_bytes = 0
        self.device = device
        """Another one after `DeviceGoneError`."""
        self._udp = udp
        self._icmp = icmp
        self._mask, self._own = own
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._cuts = True
        """Whether the way out takes many in one call."""
        self._told_s = 0.0

    def counters(self) -> dict[str, Any]:
        """Return what was done so far."""
        return {
            "sent": self.sent,
            "sent_bytes": self.sent_bytes,
            "received": self.received,
            "received_bytes": self.received_bytes,
            "dropped": dict(self.drops),
        }

    def count_from(self, told: Mapping[str, Any]) -> None:
        """Go on from the counters of another one."""
        self.sent, self.sent_bytes = told["sent"], told["sent_bytes"]
        self.received, self.received_bytes = told["received"], told["received_bytes"]
        self.drops.update(told["dropped"])

    def set_peers(self, peers: Peers) -> None:
        """Go on with these peers and no others."""
        self.peers = peers

    def from_device(self) -> None:
        """Send what containers have sent. Raises DeviceGoneError."""
        view = self._view
        start = end = size = count = 0
        run: Peer | None = None
        for _ in range(BATCH):
            if end > BUFFER_BYTES - PACKET_BYTES_MAX:
                self._send_run(run, view[start:end], size)
                start = end = count = 0
                run = None
            try:
                length = self._read(end)
            except BlockingIOError:
                break
            peer = self._way_out(end, length)
            if peer is None:
                continue
            if peer is not run or length > size or end + length - start > DATAGRAM_BYTES_MAX:
                self._send_run(run, view[start:end], size)
                run, start, size, count = peer, end, length, 0
            end += length
            count += 1
            if length < size or count == SEGMENTS_MAX:
                # Only the last one of a run may be shorter.
                self._send_run(run, view[start:end], size)
                run, start, count = None, end, 0
        self._send_run(run, view[start:end], size)

    def from_network(self) -> None:
        """Give containers what was sent to them. Raises DeviceGoneError."""
        buffer = self._buffer
        receive = self._udp.recvmsg_into
        for _ in range(RECEIVES):
            try:
                length, ancillary, _, (host, port) = receive([buffer], ANCILLARY_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                # What the network says of an earlier packet (ICMP), or an interface that is down.
                self.drops[f"receive-{_name_of(error)}"] += 1
                return
            size = _gro_size.unpack(ancillary[0][2])[0] if ancillary else length
            # An empty one is a datagram, too.
            for start in range(0, length or 1, size or 1):
                packet = self._take(start, min(start + size, length), host, port)
                if packet is not None:
                    self._write(packet)

    def _read(self, at: int) -> int:
        """Return the length of the next packet of the device, which is in the buffer then.

        Raises BlockingIOError: there is none. DeviceGoneError.
        """
        try:
            return os.readv(self.device, [self._view[at:]])
        except OSError as error:
            if error.errno == errno.EBADFD:
                raise DeviceGoneError from error
            raise

    def _way_out(self, start: int, length: int) -> Peer | None:
        """Return who gets a packet, ready to be sent; None: it goes nowhere."""
        if length < HEADER_BYTES:
            self.drops["malformed"] += 1
            return None
        first, total, _, source, target = HEADER.unpack_from(self._buffer, start)
        if not is_whole(first, total, length):
            # IPv6 too: the kernel sends its own announcements into every device that is up.
            self.drops["not-ipv4" if first >> 4 != 4 else "malformed"] += 1
            return None
        peer = self.peers.find(target)
        if peer is None:
            self.drops["no-route"] += 1
            if source & self._mask == self._own:
                self._tell_unreachable(bytes(self._view[start : start + length]))
            return None
        if not lower_ttl(self._buffer, start):
            self.drops["ttl"] += 1
            return None
        return peer

    def _take(self, start: int, end: int, host: str, _port: int) -> memoryview | bytes | None:
        """Return the packet in a datagram of the buffer; None: it may not come in."""
        if host not in self.peers.hosts:
            self.drops["unknown-host"] += 1
            return None
        if not self._is_for_us(self._buffer, start, end - start, "host", host):
            return None
        return self._view[start:end]

    def _is_for_us(
        self, data: bytearray | bytes, start: int, length: int, what: str, sender: str
    ) -> bool:
        """Tell whether a packet may come in that a host or key, which `what` says, has sent."""
        if length < HEADER_BYTES:
            self.drops["malformed"] += 1
            return False
        first, total, _, source, target = HEADER.unpack_from(data, start)
        if not is_whole(first, total, length):
            self.drops["malformed"] += 1
            return False
        peer = self.peers.find(source)
        if peer is None or getattr(peer, what) != sender:
            self.drops["foreign-source"] += 1
            return False
        if target & self._mask != self._own:
            self.drops["foreign-target"] += 1
            return False
        return True

    def _send_run(self, peer: Peer | None, data: memoryview, size: int) -> None:
        if peer is not None and data:
            self._send(peer.address, data, size)

    def _send(self, address: tuple[str, int], data: memoryview, size: int) -> None:
        """Send datagrams of one size that lie behind each other; the last may be shorter."""
        count = -(-len(data) // size)
        try:
            if count == 1:
                self._udp.sendto(data, address)
            elif self._cuts:
                cut = (SOL_UDP, UDP_SEGMENT, _size.pack(size))
                self._udp.sendmsg([data], [cut], 0, address)
            else:
                self._send_apart(address, data, size)
                return
        except OSError as error:
            if count > 1 and error.errno in {errno.EIO, errno.EMSGSIZE, errno.EINVAL}:
                # The interface makes no checksums (EIO), or the way has a smaller MTU now
                # (EMSGSIZE, of earlier kernels EINVAL): one by one they leave as fragments.
                self._cuts = error.errno != errno.EIO
                self._send_apart(address, data, size)
                return
            self._note_unsent(error, count)
            return
        self.sent += count
        self.sent_bytes += len(data)

    def _send_apart(self, address: tuple[str, int], data: memoryview, size: int) -> None:
        for start in range(0, len(data), size):
            packet = data[start : start + size]
            try:
                self._udp.sendto(packet, address)
            except OSError as error:
                self._note_unsent(error, 1)
            else:
                self.sent += 1
                self.sent_bytes += len(packet)

    def _note_unsent(self, error: OSError, count: int) -> None:
        # A network loses packets, and who sent them sees to that.
        full = error.errno == errno.EAGAIN
        self.drops["queue-full" if full else f"send-{_name_of(error)}"] += count

    def _write(self, packet: memoryview | bytes) -> None:
        try:
            os.write(self.device, packet)
        except OSError as error:
            if error.errno == errno.EBADFD:
                raise DeviceGoneError from error
            # EIO: it is down.
            self.drops[f"device-{_name_of(error)}"] += 1
        else:
            self.received += 1
            self.received_bytes += len(packet)

    def _tell_unreachable(self, packet: bytes) -> None:
        now_s = time.monotonic()
        if now_s < self._told_s + UNREACHABLE_EVERY_S:
            return
        message = net_unreachable(packet)
        if message:
            self._told_s = now_s
            try:
                self._icmp.sendto(message, (socket.inet_ntoa(packet[12:16]), 0))
            except OSError as error:
                self._note_unsent(error, 1)


def _name_of(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "error").lower()
