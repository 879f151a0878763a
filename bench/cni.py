"""`python -m bench.cni`: how long containers wait for their network.

Needs root. A registry member and an agent on a simulated host; the plugin as a runtime starts it.
Measured from exec to exit: calls of ADD one after the other, then as many at once as asked for,
and the same of DEL. Every result is checked by `ip`. Beside it, in the same run: the interpreter
started for nothing, and, where it is installed, the reference plugin `bridge` with `host-local`.
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
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.net.namespaces import Namespace
from tests.net.overlay import AgentProcess, Overlay

REFERENCE = Path("/usr/lib/cni/bridge")
PREFIX = "bench"


class Calls:
    """One plugin on one host."""

    def __init__(self, agent: AgentProcess, program: Path, config: dict[str, object]) -> None:
        self._host = agent.host.namespace
        self._program = program
        self._config = json.dumps({"cniVersion": "1.0.0", "name": PREFIX, **config}).encode()

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


async def rounds(calls: Calls, boxes: list[Namespace], side_by_side: int) -> dict[str, list[float]]:
    """Return the milliseconds of all calls, by what they are."""
    found: dict[str, list[float]] = {}
    for command in ("ADD", "DEL"):
        found[command] = [await calls.call(command, box) for box in boxes]
        if command == "ADD":
            check(boxes)
    few = boxes[:side_by_side]
    for command in ("ADD", "DEL"):
        begun = time.perf_counter()
        found[f"{command}, {len(few)} at once"] = list(
            await asyncio.gather(*(calls.call(command, box) for box in few))
        )
        found[f"{command}, all {len(few)}"] = [1000 * (time.perf_counter() - begun)]
        if command == "ADD":
            check(few)
    return found


def check(boxes: list[Namespace]) -> None:
    """Every container has an address, and each its own."""
    addresses = [
        one["local"]
        for box in boxes
        for link in box.json("ip", "-j", "-4", "addr", "show", "dev", "eth0")
        for one in link["addr_info"]
    ]
    assert len(set(addresses)) == len(boxes), addresses


def bare_starts(count: int) -> list[float]:
    """Return the milliseconds of an interpreter that does nothing."""
    found = []
    for _ in range(count):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-IS", "-c", ""], check=True)
        found.append(1000 * (time.perf_counter() - begun))
    return found


def measure(count: int, side_by_side: int) -> dict[str, dict[str, list[float]]]:
    figures: dict[str, dict[str, list[float]]] = {"python -IS": {"start": bare_starts(count)}}
    with Overlay(1) as overlay, ExitStack() as stack:
        [agent] = overlay.agents
        boxes = [
            stack.enter_context(Namespace(f"{PREFIX}-{number}"))
            for number in range(max(count, side_by_side))
        ]
        agent.host.namespace.run(
            *(sys.executable, "-m", "netplane.cli.netplane", "ctl", "install-cni"),
            *("--bin-dir", str(agent.folder), "--conf-dir", str(agent.folder)),
            *("--run-dir", str(agent.folder)),
        )
        # The plugin starts where the host is, as the runtime does.
        run: Callable[[Calls], dict[str, list[float]]] = lambda calls: agent.host.namespace.within(  # noqa: E731
            asyncio.run, rounds(calls, boxes, side_by_side)
        )
        figures["netplane-cni"] = run(
            Calls(agent, agent.folder / "netplane-cni", {"type": "netplane-cni"})
        )
        if REFERENCE.exists():
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            ipam = {
                "type": "host-local", "dataDir": folder, "ranges": [[{"subnet": "10.99.0.0/16"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            }  # fmt: skip
            config = {"type": "bridge", "bridge": "ref0", "isGateway": True, "ipam": ipam}
            figures["bridge and host-local"] = run(Calls(agent, REFERENCE, config))
    return figures


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
    print(f"milliseconds{'':22}{'median':>9}{'p99':>9}{'highest':>9}")
    for name, kinds in figures.items():
        for kind, values in kinds.items():
            p99 = statistics.quantiles(values, n=100)[98] if len(values) > 1 else values[0]
            middle = statistics.median(values)
            print(f"{name + ' ' + kind:34}{middle:9.1f}{p99:9.1f}{max(values):9.1f}")


if __name__ == "__main__":
    main()
