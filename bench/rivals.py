"""Puts from a Python program, 500 in flight, on four three-node systems: `python -m bench.rivals`.

kvstore through `kvstore.client`, etcd through grpc.aio, ZooKeeper through kazoo, PySyncObj from
inside one of its nodes. All write 32-byte keys and 256-byte values; kvstore, etcd and ZooKeeper
fsync on every member before they answer, PySyncObj writes a memory-mapped journal and does not.
ZooKeeper is Debian's package `zookeeper`; kazoo and pysyncobj come with `pip install -e .[rivals]`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from bench import process
from bench.clusters import ETCD, KVSTORE, Cluster, available, free_ports
from bench.load import Load, Outcome
from bench.machine import facts
from bench.measure import Driver
from bench.report import Report, show, write
from bench.rival_programs import IN_FLIGHT
from bench.workloads import KEYS

SECONDS = 5.0
ROUNDS = 3
WAIT_S = 120.0
COLUMNS = ("system", "client", "put/s", "spread", "p50 ms", "p99 ms", "kvstore is", "problems")
JARS = Path("/usr/share/java")
JAR_NAMES = (
    *("zookeeper", "zookeeper-jute", "slf4j-api", "slf4j-simple", "netty*", "metrics-core*"),
    *("snappy*", "commons-cli", "jackson*"),
)


@dataclass
class Sample:
    """One run of one system."""

    system: str
    client: str
    outcome: Outcome
    round: int = 0
    command: str = ""

    @classmethod
    def of(cls, data: dict[str, Any]) -> Self:
        """Return the sample that `asdict` took apart."""
        return cls(**data | {"outcome": Outcome(**data["outcome"])})


def run_registry(kind: str, seconds: float, data_root: str | None) -> Outcome:
    """Run our program or grpc.aio's."""
    load = Load([], seconds=seconds, keys=KEYS)
    with Cluster(kind, data_root=data_root) as cluster:
        members = [cluster.leader(), *cluster.followers()]
        driver = Driver("program", load, tasks=IN_FLIGHT)
        outcome, _ = driver.run([member.target for member in members], kind)
        cluster.ensure_running()
        return outcome


def run_zookeeper(seconds: float, data_root: str | None) -> Outcome:
    """Run three servers and kazoo's program."""
    with _folder(data_root) as folder, ExitStack() as stack:
        client_ports, quorum, votes = (free_ports(3) for _ in range(3))
        for number in range(1, 4):
            data = folder / f"z{number}"
            data.mkdir()
            (data / "myid").write_text(f"{number}\n")
            servers = "".join(
                f"server.{n}=127.0.0.1:{quorum[n - 1]}:{votes[n - 1]}\n" for n in range(1, 4)
            )
            config = folder / f"z{number}.cfg"
            config.write_text(
                f"tickTime=2000\ninitLimit=10\nsyncLimit=5\ndataDir={data}\n"
                f"clientPort={client_ports[number - 1]}\nadmin.enableServer=false\n{servers}"
            )
            _start(stack, _java(str(config)), folder / f"z{number}.log")
        hosts = ",".join(f"127.0.0.1:{port}" for port in client_ports)
        return _program(folder, "zookeeper", hosts, str(seconds))


def run_pysyncobj(seconds: float, data_root: str | None) -> Outcome:
    """Run three nodes, one of which puts."""
    with _folder(data_root) as folder, ExitStack() as stack:
        addresses = [f"127.0.0.1:{port}" for port in free_ports(3)]
        for address in addresses[1:]:
            peers = ",".join(other for other in addresses if other != address)
            command = _module("pysyncobj", address, peers, str(folder))
            _start(stack, command, folder / f"{address}.log")
        peers = ",".join(addresses[1:])
        return _program(folder, "pysyncobj", addresses[0], peers, str(folder), str(seconds))


def _java(config: str) -> list[str]:
    jars = sorted(jar for name in JAR_NAMES for jar in JARS.glob(f"{name}.jar"))
    main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
    return ["java", "-cp", ":".join(map(str, jars)), main, config]


def _module(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "bench.rival_programs", *arguments]


def _start(stack: ExitStack, command: list[str], log_path: Path) -> None:
    with log_path.open("wb") as log:
        server = subprocess.Popen(
            [*process.bound(), *command], stdin=subprocess.PIPE, stdout=log, stderr=log
        )
    stack.callback(server.wait)
    stack.callback(server.kill)


def _program(folder: Path, *arguments: str) -> Outcome:
    command = [*process.bound(), *_module(*arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    if done.returncode:
        logs = "".join(log.read_text(errors="replace")[-500:] for log in folder.glob("*.log"))
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}\n{logs}")
    return Outcome(**json.loads(done.stdout.splitlines()[-1]))


@contextmanager
def _folder(data_root: str | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bench-rival-", dir=data_root) as folder:
        yield Path(folder)


def missing(system: str) -> str | None:
    """Return why a system cannot run here and the commands that install it, or None."""
    if system in (KVSTORE, ETCD):
        return available(system)
    found = []
    if system == "zookeeper" and not (shutil.which("java") and (JARS / "zookeeper.jar").exists()):
        found.append("ZooKeeper is not installed: apt-get install zookeeper default-jre-headless")
    module = {"zookeeper": "kazoo", "pysyncobj": "pysyncobj"}[system]
    if importlib.util.find_spec(module) is None:
        found.append(f"{module} is not installed: .venv/bin/pip install -e '.[rivals]'")
    return "; ".join(found) or None


def zookeeper_version() -> str:
    """Return the version in the name of the installed jar."""
    return (JARS / "zookeeper.jar").resolve().stem.removeprefix("zookeeper-")


def measure(system: str, number: int, seconds: float, data_root: str | None) -> Sample:
    """Return what one run of a system found."""
    client, run = SYSTEMS[system]
    return Sample(system, client, run(seconds, data_root), number)


Run = Callable[[float, str | None], Outcome]
SYSTEMS: dict[str, tuple[str, Run]] = {
    KVSTORE: ("kvstore.client", lambda seconds, root: run_registry(KVSTORE, seconds, root)),
    ETCD: ("grpc.aio", lambda seconds, root: run_registry(ETCD, seconds, root)),
    "zookeeper": ("kazoo", run_zookeeper),
    "pysyncobj": ("in a node, no fsync", run_pysyncobj),
}


def rows(samples: list[Sample]) -> list[tuple[str, ...]]:
    """Return the table: medians over the rounds."""
    found = []
    by_system = {
        system: [sample.outcome for sample in samples if sample.system == system]
        for system in SYSTEMS
    }
    rates = {
        system: statistics.median(outcome.rate for outcome in outcomes)
        for system, outcomes in by_system.items()
        if outcomes
    }
    for system, rate in rates.items():
        outcomes = by_system[system]
        spread = [outcome.rate for outcome in outcomes]
        waits = [
            statistics.median(outcome.put_ms.get(point, 0.0) for outcome in outcomes)
            for point in ("p50", "p99")
        ]
        ours = rates.get(KVSTORE, 0.0)
        problems = sorted({text for outcome in outcomes for text in outcome.problems()})
        found.append(
            (
                system,
                SYSTEMS[system][0],
                f"{rate:,.0f}",
                f"{min(spread):,.0f} to {max(spread):,.0f}",
                *(f"{wait:.1f}" for wait in waits),
                f"{ours / rate:.1f}x as fast" if ours and system != KVSTORE else "",
                "; ".join(problems),
            )
        )
    return found


def main() -> None:
    """Measure what is installed, in turn, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.rivals", description=__doc__)
    parser.add_argument("--only", default="", help=f"comma-separated: {', '.join(SYSTEMS)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="alternations")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="measured time of a run")
    parser.add_argument("--data-root", default=None, help="folder on the disk to measure")
    parser.add_argument("--name", default="rivals", help="of the result files")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that data is removed
    wanted = [name.strip() for name in arguments.only.split(",") if name.strip()] or [*SYSTEMS]
    if unknown := [name for name in wanted if name not in SYSTEMS]:
        parser.error(f"no such system: {unknown[0]}; there are {', '.join(SYSTEMS)}")
    command = f"python -m bench.rivals {' '.join(sys.argv[1:])}".strip()
    report: Report[Sample] = Report(facts(arguments.data_root), command)
    absent = {system: reason for system in wanted if (reason := missing(system))}
    report.notes += [f"{system} not measured: {reason}" for system, reason in absent.items()]
    systems = [system for system in wanted if system not in absent]
    for number in range(arguments.rounds):
        # None is always the first: the machine's speed drifts.
        for system in systems if number % 2 == 0 else reversed(systems):
            sample = measure(system, number, arguments.seconds, arguments.data_root)
            report.samples.append(sample)
            print(f"{system} round {number + 1}: {sample.outcome.rate:,.0f}/s", flush=True)
    table = rows(report.samples)
    show(report, table, COLUMNS)
    print(f"written: {write(report, table, arguments.name, COLUMNS)}")


if __name__ == "__main__":
    main()
