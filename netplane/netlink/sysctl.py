"""Settings below /proc/sys/net, in a network namespace."""

from __future__ import annotations

import contextlib
from pathlib import Path

from netplane.netlink.namespace import inside

ROOT = Path("/proc/sys/net")


def read(names: list[str], namespace: str | None = None) -> dict[str, str]:
    """Return the values of those that exist, as `{"ipv4/ip_forward": "1"}`."""

    def action() -> dict[str, str]:
        # The kernel shows each thread the settings of the namespace that it is in.
        found = {}
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # its link may go at any time
                found[name] = (ROOT / name).read_text().strip()
        return found

    return inside(namespace, action)


def write(name: str, value: str, namespace: str | None = None) -> None:
    """Set one value; OSError: it is not there, not ours to write, or refused."""
    inside(namespace, lambda: (ROOT / name).write_text(value + "\n"))
