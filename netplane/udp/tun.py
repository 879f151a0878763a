"""TUN devices: packets without a link below them, read and written as a file."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct

PATH = "/dev/net/tun"
NAME_BYTES_MAX = 15
NAME_BYTES = NAME_BYTES_MAX + 1

# linux/if_tun.h, linux/sockios.h, linux/if.h
TUNSETIFF, TUNSETPERSIST, TUNGETIFF = 0x400454CA, 0x400454CB, 0x800454D2
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCGIFMTU, SIOCSIFMTU = 0x8913, 0x8914, 0x8921, 0x8922
SIOCSIFNAME = 0x8923
IFF_UP = 1
_FLAGS = struct.Struct("16sH22x")
_NUMBER = struct.Struct("16si20x")
_NAMES = struct.Struct("16s16s8x")


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


def keep(number: int, name: str, mtu: int) -> bool:
    """Give a device that we are attached to its name and MTU, and take it up.

    Returns:
        Whether something was to be done.

    Raises OSError: it is gone, or another one has its name.
    """
    packed = name.encode()
    has = fcntl.ioctl(number, TUNGETIFF, _FLAGS.pack(b"", 0))[:NAME_BYTES].rstrip(b"\0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        if has != packed:
            _rename(asking, has, packed)
        found = _NUMBER.unpack(fcntl.ioctl(asking, SIOCGIFMTU, _NUMBER.pack(packed, 0)))[1]
        if found != mtu:
            fcntl.ioctl(asking, SIOCSIFMTU, _NUMBER.pack(packed, mtu))
        flags = _FLAGS.unpack(fcntl.ioctl(asking, SIOCGIFFLAGS, _FLAGS.pack(packed, 0)))[1]
        if not flags & IFF_UP:
            fcntl.ioctl(asking, SIOCSIFFLAGS, _FLAGS.pack(packed, flags | IFF_UP))
    return has != packed or found != mtu or not flags & IFF_UP


def _rename(asking: socket.socket, name: bytes, wanted: bytes) -> None:
    rename = _NAMES.pack(name, wanted)
    try:
        fcntl.ioctl(asking, SIOCSIFNAME, rename)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        # Linux before 6.2 renames none that is up; what it loses by this the agent puts back.
        flags = _FLAGS.unpack(fcntl.ioctl(asking, SIOCGIFFLAGS, _FLAGS.pack(name, 0)))[1]
        fcntl.ioctl(asking, SIOCSIFFLAGS, _FLAGS.pack(name, flags & ~IFF_UP))
        fcntl.ioctl(asking, SIOCSIFNAME, rename)
