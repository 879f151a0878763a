"""Network namespaces that nobody can name and that go with us, and what is done inside them.

A namespace is held by a `cat` that waits for input: when this process ends, however that happens,
the pipe closes, the `cat` ends and the kernel takes the namespace apart. Nothing has a name in
/run/netns, and nothing is created in the namespace of the caller.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from typing import Any, Self, TypeVar

from netplane.netlink.namespace import inside

Result = TypeVar("Result")


@functools.cache
def missing() -> str | None:
    """Say why namespaces cannot be had here; None when they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program in ("ip", "bridge", "unshare", "nsenter"):
        if shutil.which(program) is None:
            return f"no {program} on this machine (Debian packages iproute2, util-linux)"
    # Root in a container may lack what it takes, a kernel its modules.
    try:
        with Namespace("probe") as probe:
            probe.ip("link add hub type bridge", "link add np.1 type vxlan id 1 dstport 8472")
    except (CommandError, ConnectionError) as error:
        return f"this root may not make namespaces with bridges and vxlan: {error}"
    return None


class CommandError(Exception):
    """A command failed; the text is what it said."""


def run(*command: str, text: str | None = None) -> str:
    """Run a command to its end and return its output. Raises CommandError."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


class Namespace:
    """A network namespace with its loopback up. Close it, or use it in a `with`."""

    def __init__(self, name: str) -> None:
        """Make it; `name` is only for people."""
        self.name = name
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        # What comes back comes from `cat`, which runs inside already.
        try:
            self._holder.stdin.write(b"\n")
            self._holder.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; the next line tells
        if self._holder.stdout.readline() != b"\n":
            self.close()
            raise ConnectionError("unshare --net failed")
        self.path = f"/proc/{self._holder.pid}/ns/net"
        self.ip("link set lo up")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """A process inside."""
        return self._holder.pid

    def close(self) -> None:
        """Let it go. What others still run inside keeps it."""
        self._holder.kill()
        self._holder.communicate()

    def command(self, *command: str) -> list[str]:
        """Return what runs a command inside."""
        return ["nsenter", f"--net={self.path}", "--", *command]

    def run(self, *command: str, text: str | None = None) -> str:
        """Run a command inside and return its output. Raises CommandError."""
        return run(*self.command(*command), text=text)

    def ip(self, *lines: str) -> None:
        """Run `ip` commands, one to a line, in one process. Raises CommandError."""
        self.run("ip", "-batch", "-", text="".join(f"{line}\n" for line in lines))

    def bridge(self, *lines: str) -> None:
        """Run `bridge` commands. Raises CommandError."""
        self.run("bridge", "-batch", "-", text="".join(f"{line}\n" for line in lines))

    def json(self, *command: str) -> list[dict[str, Any]]:
        """Return what `ip -j` or `bridge -j` prints."""
        found: list[dict[str, Any]] = json.loads(self.run(*command) or "[]")
        return found

    def within(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function in a thread that is inside, and return or raise what it does.

        Sockets that it makes stay inside wherever they are used later; /proc/sys/net is ours.
        """
        return inside(self.path, functools.partial(function, *arguments))

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Return a socket that was made inside."""
        return self.within(socket.socket, family, kind, protocol)

    def sysctl(self, name: str, value: str | None = None) -> str:
        """Return a setting under /proc/sys/net, or change it; without slashes dots are such."""
        path = f"/proc/sys/net/{name if '/' in name else name.replace('.', '/')}"

        def access() -> str:
            with open(path, "r+" if value is not None else "r") as file:
                if value is None:
                    return file.read().strip()
                file.write(value)
                return value

        return self.within(access)
