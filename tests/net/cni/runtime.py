"""A container runtime as small as can be: namespaces, and the plugin as runtimes start it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple, Self

from tests.net.namespaces import Namespace
from tests.net.overlay import AgentProcess
from tests.net.rig import Host

NETWORK = "net"
LISTED = "cni.dev/valid-attachments"


class Said(NamedTuple):
    """What the plugin said."""

    status: int
    content: dict[str, Any]

    @property
    def text(self) -> str:
        """Of an error."""
        return f"{self.content.get('msg', '')} {self.content.get('details', '')}"


def finish(call: subprocess.Popen[str]) -> Said:
    """Wait for the end of a call, and return what it said."""
    text, complaint = call.communicate(timeout=60)
    assert not complaint, complaint
    return Said(call.returncode, json.loads(text or "{}"))


class Box:
    """A container: a namespace, and what the runtime remembers of it."""

    def __init__(self, runtime: Runtime, name: str) -> None:
        self.name = name
        self.agent, self.host = runtime.agent, runtime.host
        self.namespace = Namespace(name)
        self.result: dict[str, Any] = {}
        self._runtime = runtime

    @property
    def address(self) -> str:
        """The first, as the last ADD told it."""
        return self.addresses[0]

    @property
    def addresses(self) -> list[str]:
        """Of all families that it has, IPv4 first."""
        return [one["address"].partition("/")[0] for one in self.result["ips"]]

    def of(self, version: int) -> str:
        """Return its address of a family."""
        [found] = [one for one in self.addresses if ip_address(one).version == version]
        return found

    def call(
        self, command: str, ifname: str = "eth0", config: Mapping[str, Any] | None = None,
        arguments: str = "", version: str = "1.1.0",
    ) -> Said:  # fmt: skip
        """Call the plugin for this container."""
        said = finish(self.start(command, ifname, config, arguments, version))
        if command == "ADD" and not said.status:
            self.result = said.content
        return said

    def start(
        self, command: str, ifname: str = "eth0", config: Mapping[str, Any] | None = None,
        arguments: str = "", version: str = "1.1.0",
    ) -> subprocess.Popen[str]:  # fmt: skip
        """Start the plugin, and do not wait."""
        whole = {"prevResult": self.result} if command in {"CHECK", "DEL"} else {}
        return self._runtime.start(
            command, {**whole, "cniVersion": version, **(config or {})},
            CNI_CONTAINERID=self.name, CNI_IFNAME=ifname, CNI_NETNS=self.namespace.path,
            CNI_ARGS=arguments,
        )  # fmt: skip

    def add(self, **config: Any) -> Self:
        """Give it its interface; that has to succeed."""
        said = self.call("ADD", config=config)
        assert said.status == 0, said.text
        return self

    def delete(self) -> None:
        """Take the interface away and end the container."""
        said = self.call("DEL")
        assert said.status == 0, said.text
        self.namespace.close()

    def links(self) -> dict[str, dict[str, Any]]:
        """Return what `ip` says of its interfaces."""
        return {link["ifname"]: link for link in self.namespace.json("ip", "-j", "-d", "addr")}


class Runtime:
    """Starts containers on one host; those that are left end with the `with`."""

    def __init__(self, agent: AgentProcess) -> None:
        self.agent = agent
        self.host: Host = agent.host
        self.program = agent.folder / "bin/netplane-cni"
        self._stack = ExitStack()
        self.host.namespace.run(
            *(sys.executable, "-m", "netplane.cli.netplane", "ctl", "install-cni"),
            *("--bin-dir", str(self.program.parent), "--conf-dir", str(agent.folder / "net.d")),
            *("--run-dir", str(agent.folder), "--name", NETWORK, "--cni-version", "1.1.0"),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def box(self, name: str) -> Box:
        """Return a container without an interface."""
        made = Box(self, name)
        self._stack.callback(made.namespace.close)
        return made

    def start(
        self, command: str, config: Mapping[str, Any], **variables: str
    ) -> subprocess.Popen[str]:
        """Start the plugin on the host."""
        whole = {"cniVersion": "1.1.0", "name": NETWORK, "type": "netplane-cni", **config}
        process = subprocess.Popen(
            self.host.namespace.command(str(self.program)),
            env={"CNI_COMMAND": command, "CNI_PATH": str(self.program.parent), **variables},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(json.dumps(whole))
        process.stdin.close()
        process.stdin = None
        return process

    def call(self, command: str, **config: Any) -> Said:
        """Call a verb that is about no container."""
        return finish(self.start(command, config))

    def status(self) -> Said:
        """Ask whether ADD would be served."""
        return self.call("STATUS")

    def collect(self, *boxes: Box) -> Said:
        """Have everything removed but these."""
        valid = [{"containerID": box.name, "ifname": "eth0"} for box in boxes]
        return self.call("GC", **{LISTED: valid})

    def ports(self) -> dict[str, dict[str, Any]]:
        """Return the ports of containers, as `ip` sees them, by name."""
        links = self.host.namespace.json("ip", "-j", "-d", "link")
        return {link["ifname"]: link for link in links if link["ifname"].startswith("npv")}

    def bridge(self) -> dict[str, Any]:
        """Return the bridge with its addresses, as `ip` sees it; empty: there is none."""
        links = self.host.namespace.json("ip", "-j", "-d", "addr")
        return next((link for link in links if link["ifname"] == "npb-default"), {})

    def noted(self) -> set[str]:
        """Return the containers that are written down."""
        path: Path = self.agent.folder / "default.containers.json"
        return {record["container"] for record in json.loads(path.read_text())["records"]}
