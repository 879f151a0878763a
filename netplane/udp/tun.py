"""TUN devices: packets without a link below them, read and written as a file."""

from __future__ import annotations

import fcntl
import os
import socket
import struct

PATH = "/dev/net/tun"
NAME_BYTES_MAX = 15

# linux/if_tun.h, linux/sockios.h, linux/if.h
TUNSETIFF, TUNSETPERSIST = 0x400454CA, 0x400454CB
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCGIFMTU, SIOCSIFMTU = 0x8913, 0x8914, 0x8921, 0x8922
IFF_UP = 1
_FLAGS = struct.Struct("16sH22x")
_NUMBER = struct.Struct("16si20x")


def attach(name: str) -> int:
    """Return a descriptor of a device, for reads that do not wait; it is made if it is not there.

    It stays when the descriptor is closed, with its address and routes: who attaches to it then
    goes on with them. See `remove`.

    Raises OSError: there is no TUN here, or somebody else is attached (EBUSY).
    """
    assert 0 < len(name) <= NAME_BYTES_MAX, name
    number = os.open(PATH, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(number, TUNSETIFF, _FLAGS.pack(name.encode(), IFF_TUN | IFF_NO_PI))
        fcntl.ioctl(number, TUNSETPERSIST, 1)
    except OSError:
        os.close(number)
        raise
    return number


def remove(number: int) -> None:
    """Close a descriptor, and let the device go with it. Raises OSError."""
    try:
        fcntl.ioctl(number, TUNSETPERSIST, 0)
    finally:
        os.close(number)


def keep(name: str, mtu: int) -> bool:
    """Give a device its MTU and take it up; True: something was to be done.

    Raises OSError: there is no such device.
    """
    packed = name.encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        found = _NUMBER.unpack(fcntl.ioctl(asking, SIOCGIFMTU, _NUMBER.pack(packed, 0)))[1]
        if found != mtu:
            fcntl.ioctl(asking, SIOCSIFMTU, _NUMBER.pack(packed, mtu))
        flags = _FLAGS.unpack(fcntl.ioctl(asking, SIOCGIFFLAGS, _FLAGS.pack(packed, 0)))[1]
        if not flags & IFF_UP:
            fcntl.ioctl(asking, SIOCSIFFLAGS, _FLAGS.pack(packed, flags | IFF_UP))
    return found != mtu or not flags & IFF_UP
