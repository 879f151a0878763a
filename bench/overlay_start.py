"""`python -m bench.overlay_start`: one agent that starts among a thousand peers, and its memory.

Needs root. A real `netplane agent` on a host that knows nothing yet, in a network namespace; the
peers are only registered. What the agent logs tells when it had the listing of the registry. The
routes come last, and when the last one is there is told by the kernel, to a listener of this
program; until then nobody asks the agent anything. Between the two lie its claim of a subnet (three
calls) and all of its own work, nftables included.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import shutil
import statistics
import time
from dataclasses import asdict, dataclass
from itertools import chain

from bench import machine
from bench.overlay import CONFIG, NETWORK, verdict
from tests.net.crowd import ROUTES, Crowd
from tests.net.fleet import Fleet, cpu_s, pss_bytes, rss_bytes
from tests.net.overlay import READY_TIMEOUT_S, SERVERS, AgentProcess, until
from tests.net.witnesses import LINK, kernel_of, vteps_of
from tests.net.writer import Writer, peers

REST_S = 3.0
"""After it the agent has written down what it remembers."""
PROGRAMMED_MS, MEMORY_MB = 80.0, 80.0


@dataclass
class Start:
    """One start."""

    programmed_ms: float
    """From the listing to the last route."""
    ready_ms: float
    """From exec to ready."""
    cpu_ms: float
    """Until ready."""
    rss_mb: float
    pss_mb: float


def logged_s(agent: AgentProcess, text: str) -> float:
    """Return when an agent first logged a text."""
    for line in agent.log_file.read_text().splitlines():
        event = json.loads(line)
        if event["msg"].startswith(text):
            return dt.datetime.fromisoformat(event["ts"]).timestamp()
    raise SystemExit(f"the agent has not logged {text!r}")


def start(agent: AgentProcess, count: int) -> Start:
    """Start an agent on a host as it was before the first, and end it."""
    with Crowd([agent.host], ROUTES) as kernel:
        begun_s = time.monotonic()
        agent.start()
        until(lambda: kernel.routes == count, READY_TIMEOUT_S, f"{count} routes")
        agent.wait_ready()
        ready_s = time.monotonic()
        used_s = cpu_s(agent.pid)
        last_s = max(chain.from_iterable(hosts.values() for hosts in kernel.heard.values()))
    # The log has the time of day.
    listed_s = logged_s(agent, "listed") - (time.time() - time.monotonic())
    programmed_s = last_s - listed_s
    assert len(kernel_of(agent.host)["routes"]) == count
    assert len(vteps_of(agent.host)) == count
    time.sleep(REST_S)
    done = Start(
        1000 * programmed_s,
        1000 * (ready_s - begun_s),
        1000 * used_s,
        rss_bytes(agent.pid) / 2**20,
        pss_bytes(agent.pid) / 2**20,
    )
    agent.ctl("drain")
    agent.ended()
    assert LINK not in agent.host.namespace.run("ip", "link")
    agent.log_file.unlink()
    shutil.rmtree(agent.folder)
    agent.folder.mkdir()
    return done


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.overlay_start", description=__doc__)
    parser.add_argument("--peers", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--registry", choices=SERVERS, default="kvstore")
    parser.add_argument("--json", action="store_true", help="print all figures instead of a table")
    arguments = parser.parse_args()
    if not 1 <= arguments.peers <= 10_000 or arguments.rounds < 1:
        parser.error("--peers is from 1 to 10000, --rounds at least 1")
    if os.geteuid() != 0:
        parser.error("namespaces need root")
    if reason := SERVERS[arguments.registry].missing():
        parser.error(reason)
    facts = machine.facts(None)
    with Fleet(
        1, server=arguments.registry, network=CONFIG, flags=("--log-level", "debug")
    ) as fleet:
        with Writer(fleet.apart.namespace, fleet.registry.endpoints) as writer:
            writer.put(peers(arguments.peers, NETWORK))
        starts = [start(fleet.agents[0], arguments.peers) for _ in range(arguments.rounds)]
    if arguments.json:
        print(json.dumps({"machine": facts, "starts": [asdict(each) for each in starts]}))
        return
    print(f"{arguments.registry}, {arguments.peers} peers, {arguments.rounds} starts")
    print(f"{'':34}{'median':>8}{'least':>8}{'most':>8}")
    for name, title in (
        ("programmed_ms", "listing to last route, ms"),
        ("ready_ms", "exec to ready, ms"),
        ("cpu_ms", "CPU until ready, ms"),
        ("rss_mb", "memory (RSS), MB"),
        ("pss_mb", "memory (PSS), MB"),
    ):
        values = [getattr(each, name) for each in starts]
        print(f"{title:36}{statistics.median(values):8.1f}{min(values):8.1f}{max(values):8.1f}")
    programmed = statistics.median(each.programmed_ms for each in starts)
    memory = max(each.rss_mb for each in starts)
    print(f"programmed, wanted {PROGRAMMED_MS:g} ms: {verdict(programmed, PROGRAMMED_MS)}")
    print(f"memory, wanted below {MEMORY_MB:g} MB: {verdict(memory, MEMORY_MB)}")


if __name__ == "__main__":
    main()
