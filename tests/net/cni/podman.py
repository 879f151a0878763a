"""podman on simulated hosts, each with folders and a network configuration of its own."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.net.namespaces import CommandError
from tests.net.overlay import AgentProcess

BUSYBOX, LOOPBACK = Path("/bin/busybox"), Path("/usr/lib/cni/loopback")
IMAGE = "localhost/box"
LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000")
FILE_BYTES = 32 << 20
"""Of the file that containers send to each other."""


def missing_podman() -> str | None:
    """Say why there is no podman here; None: there is."""
    for program in ("podman", "runc"):
        if shutil.which(program) is None:
            return f"no {program} on this machine (Debian packages podman, runc)"
    for path, package in ((BUSYBOX, "busybox-static"), (LOOPBACK, "containernetworking-plugins")):
        if not path.exists():
            return f"no {path} on this machine (Debian package {package})"
    return None


def image() -> bytes:
    """Return an image with busybox and a file to send, as a tar."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        tar.add(BUSYBOX, "bin/busybox")
        for name in ("sh", "sleep", "ping", "httpd", "wget", "md5sum", "ip", "nc"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        data = tarfile.TarInfo("www/data")
        data.size = FILE_BYTES
        tar.addfile(data, io.BytesIO(bytes(range(256)) * (FILE_BYTES >> 8)))
    return target.getvalue()


class Podman:
    """podman as it would be on the host of an agent, with our plugin. Ends with the `with`."""

    def __init__(self, agent: AgentProcess, tar: bytes) -> None:
        self._agent = agent
        # podman takes no path of more than 50 characters.
        self._temporary = tempfile.TemporaryDirectory(prefix="podman-")
        self._folder = Path(self._temporary.name)
        self._bin_dir, self._conf_dir = agent.folder / "bin", agent.folder / "net.d"
        self.install("netplane")
        config = self._folder / "containers.conf"
        config.write_text(
            "[network]\n"
            'network_backend = "cni"\n'
            f'cni_plugin_dirs = ["{self._bin_dir}", "{LOOPBACK.parent}"]\n'
            f'network_config_dir = "{self._conf_dir}"\n'
            'default_network = "netplane"\n'
            "[engine]\n"
            'events_logger = "none"\n'
        )
        self._config = config
        self._call("import", "-", IMAGE, feed=tar)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(CommandError):
            self("rm", "--all", "--force", "--time", "0")
        self._temporary.cleanup()

    def __call__(self, *arguments: str) -> str:
        """Run podman and return what it prints. Raises CommandError."""
        return self._call(*arguments)

    def install(self, network: str) -> None:
        """Install our plugin and a network that uses it."""
        self._agent.host.namespace.run(
            *(sys.executable, "-m", "netplane.cli.netplane", "ctl", "install-cni"),
            *("--bin-dir", str(self._bin_dir), "--conf-dir", str(self._conf_dir)),
            *("--run-dir", str(self._agent.folder), "--name", network),
        )

    def run(self, *arguments: str) -> str:
        """Run a container: options, then what runs in it behind `--`. Raises CommandError."""
        split = arguments.index("--")
        return self._call(
            "run", *LIMITS, *arguments[:split], IMAGE, *arguments[split + 1 :]
        ).strip()

    def address(self, name: str) -> str:
        """Return a container's address, as podman has it."""
        form = '{{(index .NetworkSettings.Networks "netplane").IPAddress}}'
        return self._call("inspect", "--format", form, name).strip()

    def address6(self, name: str) -> str:
        """Return its IPv6 address; empty: it has none."""
        form = '{{(index .NetworkSettings.Networks "netplane").GlobalIPv6Address}}'
        return self._call("inspect", "--format", form, name).strip()

    def _call(self, *arguments: str, feed: bytes | None = None) -> str:
        command = self._agent.host.namespace.command(
            *("podman", "--root", str(self._folder / "root")),
            *("--runroot", str(self._folder / "run"), "--tmpdir", str(self._folder / "tmp")),
            *("--storage-driver", "vfs", "--runtime", "runc", "--cgroup-manager", "cgroupfs"),
            *arguments,
        )
        done = subprocess.run(
            command, input=feed, capture_output=True, check=False, timeout=100,
            env={"CONTAINERS_CONF": str(self._config), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )  # fmt: skip
        if done.returncode:
            raise CommandError(f"podman {' '.join(arguments)}: {done.stderr.decode()}")
        return done.stdout.decode()
