"""Tells systemd how the agent does (sd_notify(3)); without systemd it tells nobody."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


def notify(*assignments: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Send `READY=1`, `STOPPING=1`, `STATUS=text`; return whether somebody was told.

    A socket that is gone is no reason for the network of a host to stop.
    """
    name = environment.get("NOTIFY_SOCKET", "")
    if not name.startswith(("/", "@")):
        return False
    # "@" stands for the zero byte of an abstract address.
    address = "\0" + name[1:] if name.startswith("@") else name
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)
        try:
            sender.sendto("\n".join(assignments).encode(), address)
        except OSError:
            return False
    return True
