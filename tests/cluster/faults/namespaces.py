"""A network of its own for every member: namespaces on one bridge, links cut one way by nftables.

For use inside `isolated`: the bridge lies in the namespace of the calling process, the members'
namespaces live as long as a process that holds each. Nothing has a name outside, and all of it goes
with the last process, however that ends.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from contextlib import ExitStack

from tests.net.namespaces import Namespace, run

BRIDGE = "10.77.0"


def isolated(command: list[str]) -> list[str]:
    """Return the command in namespaces of its own (root): network, mounts, processes."""
    return [
        "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--",
        *command,
    ]  # fmt: skip


@functools.cache
def missing() -> str | None:
    """Say why namespaces cannot be had here; None when they can."""
    if os.geteuid() != 0:
        return "namespaces and small disks need root"
    for program in ("ip", "nft", "unshare", "nsenter"):
        if shutil.which(program) is None:
            return f"no {program} on this machine (iproute2, nftables, util-linux)"
    # Root in a container may lack what it takes.
    if subprocess.run(isolated(["true"]), capture_output=True, check=False).returncode:
        return "this root may not make namespaces"
    return None


class Namespaces:
    """The members' namespaces. `cut` and `heal` say which links work."""

    kind = "netns"

    def __init__(self, members: int) -> None:
        self.members = members
        self.cuts = 0
        self.held = 0
        """Packets that cut links have dropped, as of the last `heal`."""

        self._stack = ExitStack()
        self._inside: list[Namespace] = []

    def start(self) -> None:
        """Build bridge, namespaces and cables."""
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "hub", "type", "bridge")
        run("ip", "addr", "add", f"{BRIDGE}.254/24", "dev", "hub")
        run("ip", "link", "set", "hub", "up")
        for index in range(self.members):
            made = self._stack.enter_context(Namespace(f"member {index}"))
            self._inside.append(made)
            run(
                "ip", "link", "add", f"port{index}", "type", "veth",
                "peer", "name", "eth0", "netns", str(made.pid),
            )  # fmt: skip
            run("ip", "link", "set", f"port{index}", "master", "hub", "up")
            made.ip(f"addr add {self.host(index)}/24 dev eth0", "link set eth0 up")
            self._nft(
                index,
                "add table inet faults; add chain inet faults input "
                "{ type filter hook input priority 0; policy accept; }",
            )

    def stop(self) -> None:
        """Let the namespaces go."""
        for index in range(len(self._inside)):
            # The kernel takes namespaces apart in its own time, and the name is needed again.
            run("ip", "link", "del", f"port{index}")
        self._stack.close()
        self._inside.clear()
        run("ip", "link", "del", "hub")

    def host(self, index: int) -> str:
        """Return a member's address."""
        return f"{BRIDGE}.{index + 1}"

    def wrapper(self, index: int) -> list[str]:
        """Return what starts a command in a member's namespace."""
        return self._inside[index].command()

    def cut(self, sender: int, receiver: int) -> None:
        """Drop whatever one member sends to another; the other way stays open."""
        self.cuts += 1
        rule = f"add rule inet faults input ip saddr {self.host(sender)} counter drop"
        self._nft(receiver, rule)

    def heal(self) -> None:
        """Let every link work again."""
        for index in range(self.members):
            rules = self._nft(index, "list chain inet faults input")
            self.held += sum(map(int, re.findall(r"packets (\d+)", rules)))
            self._nft(index, "flush chain inet faults input")

    def _nft(self, index: int, rules: str) -> str:
        text = rules.replace("; add", "\nadd") + "\n"
        return self._inside[index].run("nft", "-f", "-", text=text)
