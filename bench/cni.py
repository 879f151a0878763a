"""`python -m bench.cni`: how long containers wait for their network.

Needs root. A registry member and an agent on a simulated host, in a network of IPv4 and, on a host
of its own, in one of both families; the plugin as a runtime starts it. Measured from exec to exit:
calls of ADD one after the other, then as many at once as asked for, and the same of DEL. Every
result is checked by `ip`. Beside it, in the same run: the interpreter started for nothing, and,
where it is installed, the reference plugin `bridge` with `host-local`. All take turns, so that what
a machine does meanwhile meets all.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.net.namespaces import Namespace
from tests.net.overlay import DUAL, NETWORK, AgentProcess, Overlay

REFERENCE = Path("/usr/lib/cni/bridge")
PREFIX = "bench"
IPV4, BOTH = "netplane-cni", "netplane-cni, both families"
TURN = 10
"""So many calls of one plugin, then of the next."""


class Calls:
    """One plugin on one host, with containers of its own."""

    def __init__(
        self,
        agent: AgentProcess,
        program: Path,
        config: dict[str, object],
        boxes: list[Namespace],
        *,
        families: int = 1,
    ) -> None:
        self.boxes = boxes
        self._host = agent.host.namespace
        self._program = program
        self._config = json.dumps({"cniVersion": "1.0.0", "name": PREFIX, **config}).encode()
        self._families = families

    def in_turn(self, command: str, boxes: list[Namespace]) -> list[float]:
        """Return the milliseconds of calls, one after the other."""

        async def calls() -> list[float]:
            return [await self.call(command, box) for box in boxes]

        # The plugin starts where the host is, as the runtime does.
        return self._host.within(asyncio.run, calls())

    def at_once(self, command: str, boxes: list[Namespace]) -> tuple[list[float], float]:
        """Return the milliseconds of calls that start together, and of all of them."""

        async def calls() -> tuple[list[float], float]:
            begun = time.perf_counter()
            each = await asyncio.gather(*(self.call(command, box) for box in boxes))
            return each, 1000 * (time.perf_counter() - begun)

        return self._host.within(asyncio.run, calls())

    def check(self, boxes: list[Namespace]) -> None:
        """Every container has an address of each family, and each its own."""
        addresses = [
            one["local"]
            for box in boxes
            for link in box.json("ip", "-j", "addr", "show", "dev", "eth0")
            for one in link["addr_info"]
            if one["scope"] == "global"
        ]
        assert len(set(addresses)) == self._families * len(boxes), addresses

    async def call(self, command: str, box: Namespace) -> float:
        """Return the milliseconds of one call."""
        begun = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            self._program,
            env={
                "CNI_COMMAND": command, "CNI_CONTAINERID": box.name, "CNI_NETNS": box.path,
                "CNI_IFNAME": "eth0", "CNI_PATH": str(self._program.parent),
            },
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        text, _ = await process.communicate(self._config)
        took = 1000 * (time.perf_counter() - begun)
        if process.returncode:
            raise RuntimeError(f"{command} failed: {text.decode()}")
        return took


def rounds(plugins: dict[str, Calls], side_by_side: int) -> dict[str, dict[str, list[float]]]:
    """Return the milliseconds of all calls, by plugin and by what they are."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in plugins}
    count = len(next(iter(plugins.values())).boxes)
    for command in ("ADD", "DEL"):
        for first in range(0, count, TURN):
            for name, calls in plugins.items():
                took = calls.in_turn(command, calls.boxes[first : first + TURN])
                found[name].setdefault(command, []).extend(took)
        if command == "ADD":
            for calls in plugins.values():
                calls.check(calls.boxes)
    for name, calls in plugins.items():
        few = calls.boxes[:side_by_side]
        for command in ("ADD", "DEL"):
            each, whole = calls.at_once(command, few)
            found[name][f"{command}, {len(few)} at once"] = each
            found[name][f"{command}, all {len(few)}"] = [whole]
            if command == "ADD":
                calls.check(few)
    return found


def bare_starts(count: int) -> list[float]:
    """Return the milliseconds of an interpreter that does nothing."""
    found = []
    for _ in range(count):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-IS", "-c", ""], check=True)
        found.append(1000 * (time.perf_counter() - begun))
    return found


def measure(count: int, side_by_side: int) -> dict[str, dict[str, list[float]]]:
    figures = {"python -IS": {"start": bare_starts(count)}}
    plugins: dict[str, Calls] = {}
    with ExitStack() as stack:

        def boxes() -> list[Namespace]:
            numbers = range(max(count, side_by_side))
            return [stack.enter_context(Namespace(f"{PREFIX}-{number}")) for number in numbers]

        for name, network, families in ((IPV4, NETWORK, 1), (BOTH, DUAL, 2)):
            [agent] = stack.enter_context(Overlay(1, network=network)).agents
            agent.host.namespace.run(
                *(sys.executable, "-m", "netplane.cli.netplane", "ctl", "install-cni"),
                *("--bin-dir", str(agent.folder), "--conf-dir", str(agent.folder)),
                *("--run-dir", str(agent.folder)),
            )
            plugins[name] = Calls(
                agent, agent.folder / "netplane-cni", {"type": "netplane-cni"}, boxes(),
                families=families,
            )  # fmt: skip
        if REFERENCE.exists():
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            ipam = {
                "type": "host-local", "dataDir": folder, "ranges": [[{"subnet": "10.99.0.0/16"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            }  # fmt: skip
            config = {"type": "bridge", "bridge": "ref0", "isGateway": True, "ipam": ipam}
            plugins["bridge and host-local"] = Calls(agent, REFERENCE, config, boxes())
        return figures | rounds(plugins, side_by_side)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cni", description=__doc__)
    parser.add_argument("--containers", type=int, default=100)
    parser.add_argument("--at-once", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="print all figures instead of a table")
    arguments = parser.parse_args()
    if not 1 < arguments.containers <= 250 or not 1 < arguments.at_once <= 250:
        parser.error("from 2 to 250 containers have an address in a subnet")
    figures = measure(arguments.containers, arguments.at_once)
    if arguments.json:
        print(json.dumps({"milliseconds": figures}))
        return
    print(f"milliseconds{'':36}{'median':>9}{'p99':>9}{'highest':>9}")
    for name, kinds in figures.items():
        for kind, values in kinds.items():
            p99 = statistics.quantiles(values, n=100)[98] if len(values) > 1 else values[0]
            middle = statistics.median(values)
            print(f"{name + ' ' + kind:48}{middle:9.1f}{p99:9.1f}{max(values):9.1f}")
    both, first = (statistics.median(figures[name]["ADD"]) for name in (BOTH, IPV4))
    print(f"ADD of both families takes {both / first:.2f} times as long as of IPv4 alone")


if __name__ == "__main__":
    main()
