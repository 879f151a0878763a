"""A model of put throughput from fsync, round trip and cores, checked: `python -m bench.capacity`.

Measured first, each alone: a write with fdatasync on the data's disk, a round trip over loopback,
and the CPU per put of the leader, a follower and the driver, with one put in flight and under full
load. From these the model predicts, and the same cluster is then measured in between:

    alone   = 2 round trips + fsync of the leader and, beside it, of the followers + CPU of one put
    rate(n) = min(n / (alone + (n - 1) * CPU of the leader), cores / CPU of all)   CPU: full load

Two round trips: client to leader, leader to follower. The followers write at the same time, so one
fsync is on the way (consensus needs one of them and the leader).
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass

from bench import process
from bench.clusters import KVSTORE, Cluster
from bench.load import Load
from bench.machine import facts
from bench.measure import Driver
from bench.report import Report, show, write
from bench.workloads import KEYS

IN_FLIGHT = (1, 4, 16, 64, 256, 1024)
SECONDS = 3.0
ROUNDS = 500
ENTRY_BYTES = 512
"""About what one put of 32 + 256 bytes takes in the log."""

COLUMNS = ("puts in flight", "predicted put/s", "measured put/s", "measured / predicted", "limit")


@dataclass(frozen=True)
class Parts:
    """What the model is made of, in seconds."""

    fsync_s: float
    round_trip_s: float
    leader_s: float
    follower_s: float
    driver_s: float
    """Under full load, as the two before."""
    single_s: float
    """CPU of leader, one follower and driver together for a put with nothing else in flight."""
    cores: int

    @property
    def alone_s(self) -> float:
        """One put with nothing else in flight."""
        return 2 * self.round_trip_s + self.fsync_s + self.single_s

    def predict(self, in_flight: int) -> tuple[float, str]:
        """Return puts a second, and what bounds them."""
        waiting = in_flight / (self.alone_s + (in_flight - 1) * self.leader_s)
        cpu = self.cores / (self.leader_s + 2 * self.follower_s + self.driver_s)
        return (waiting, "waiting") if waiting < cpu else (cpu, "CPU of all")


@dataclass(frozen=True)
class Point:
    """Prediction and measurement at one number of puts in flight."""

    in_flight: int
    predicted: float
    measured: float
    limit: str
    command: str

    def row(self) -> tuple[str, ...]:
        """Return the table's row."""
        return (
            f"{self.in_flight:,}",
            f"{self.predicted:,.0f}",
            f"{self.measured:,.0f}",
            f"{self.measured / self.predicted:.2f}",
            self.limit,
        )


def fsync_s(folder: str | None) -> float:
    """Return the median time of a write with fdatasync into preallocated space, as the log's."""
    times = []
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        file.write(bytes(ROUNDS * ENTRY_BYTES))
        os.fsync(file.fileno())
        file.seek(0)
        for _ in range(ROUNDS):
            begin = time.perf_counter()
            file.write(b"x" * ENTRY_BYTES)
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - begin)
    return statistics.median(times)


def round_trip_s() -> float:
    """Return the median time of a message and its echo over loopback, both sides blocking."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def echo() -> None:
            peer, _ = server.accept()
            with peer:
                while data := peer.recv(4096):
                    peer.sendall(data)

        thread = threading.Thread(target=echo, daemon=True)
        thread.start()
        times = []
        with socket.create_connection(server.getsockname()) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(ROUNDS):
                begin = time.perf_counter()
                client.sendall(b"x" * ENTRY_BYTES)
                client.recv(4096)
                times.append(time.perf_counter() - begin)
        thread.join()
    return statistics.median(times)


def load(in_flight: int, seconds: float) -> Load:
    """Return a load with that many puts in flight, a power of two, on a few connections."""
    connections = min(8, in_flight)
    return Load(
        [], connections=connections, streams=in_flight // connections, seconds=seconds, keys=KEYS
    )


def run(cluster: Cluster, in_flight: int, seconds: float) -> tuple[float, list[float], str]:
    """Return puts a second, CPU seconds per put of leader, follower and driver, and the command."""
    members = [cluster.leader(), *cluster.followers()]
    before = [process.cpu_s(member.pid) for member in members]
    driver = Driver("generator", load(in_flight, seconds))
    outcome, command = driver.run([members[0].target], cluster.kind)
    if problems := outcome.problems():
        raise RuntimeError("; ".join(problems))
    spent = [process.cpu_s(m.pid) - b for m, b in zip(members, before, strict=True)]
    puts = outcome.acknowledged
    costs = [spent[0] / puts, max(spent[1:]) / puts, outcome.cpu_s / outcome.operations]
    return outcome.rate, costs, command


def main() -> None:
    """Measure the parts, predict, measure the whole."""
    parser = argparse.ArgumentParser(prog="python -m bench.capacity", description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each measurement")
    parser.add_argument("--data-root", default=None, help="folder on the disk to measure")
    parser.add_argument("--name", default="", help="of the result files")
    arguments = parser.parse_args()
    cores = os.cpu_count() or 1
    command = f"python -m bench.capacity {' '.join(sys.argv[1:])}".strip()
    report: Report[Point] = Report(facts(arguments.data_root), command)
    with Cluster(KVSTORE, data_root=arguments.data_root) as cluster:
        _, single, _ = run(cluster, 1, arguments.seconds)
        _, costs, _ = run(cluster, max(IN_FLIGHT), arguments.seconds)
        fsync, round_trip = fsync_s(arguments.data_root), round_trip_s()
        parts = Parts(fsync, round_trip, *costs, sum(single), cores)
        for in_flight in IN_FLIGHT:
            measured, _, how = run(cluster, in_flight, arguments.seconds)
            predicted, limit = parts.predict(in_flight)
            report.samples.append(Point(in_flight, predicted, measured, limit, how))
    report.notes.append(
        f"write + fdatasync {1e6 * parts.fsync_s:.0f} us, loopback round trip "
        f"{1e6 * parts.round_trip_s:.0f} us, CPU per put: leader {1e6 * parts.leader_s:.1f} us, "
        f"follower {1e6 * parts.follower_s:.1f} us, driver {1e6 * parts.driver_s:.1f} us, alone "
        f"{1e6 * parts.single_s:.0f} us on all three; {cores} cores"
    )
    rows = [point.row() for point in report.samples]
    show(report, rows, COLUMNS)
    name = arguments.name or f"{cores}-cores-capacity"
    print(f"written: {write(report, rows, name, COLUMNS)}")


if __name__ == "__main__":
    main()
