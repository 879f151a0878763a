"""One measurement: a driver against a cluster, checked, with CPU per operation; no reports.

Each driver is first run against the null server with the same arguments: its ceiling.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace

from bench import h2load, messages, process
from bench.clusters import ETCD, Cluster, python, shown
from bench.load import Load, Outcome

PYTHON_DRIVER_S = 300.0


class DriverError(RuntimeError):
    """A driver's process failed; the text has its error output."""


@dataclass(frozen=True)
class Driver:
    """How a workload is driven."""

    tool: str
    """h2load, generator or program."""

    load: Load
    """Keys, mix, connections; `targets` is filled in when it runs."""

    every_member: bool = False
    """All three as targets instead of the leader alone."""

    tasks: int = 500
    """Of the program."""

    def command(self, targets: list[str], kind: str) -> list[str]:
        """Return the command line of a Python driver."""
        if self.tool == "generator":
            load = replace(self.load, targets=targets)
            return [sys.executable, "-m", "bench.generator", load.to_json()]
        load = self.load
        return [
            *(*python(kind), "-m", "bench.program"),
            *("--client", "grpc-aio" if kind == ETCD else "kvstore"),
            *("--endpoints", ",".join(targets), "--tasks", str(self.tasks)),
            *("--seconds", str(load.seconds), "--warmup-s", str(load.warmup_s)),
            *("--keys", str(load.keys), "--value-bytes", str(load.value_bytes)),
        ]

    def run(self, targets: list[str], kind: str) -> tuple[Outcome, str]:
        """Run it and return the outcome and the command. Raises DriverError, H2loadError."""
        if self.tool == "h2load":
            return self._run_h2load(targets[0])
        with self.started(targets, kind) as result:
            return result()

    @contextmanager
    def started(self, targets: list[str], kind: str) -> Iterator[Callable[[], tuple[Outcome, str]]]:
        """Start a Python driver; yield what waits for its end and returns as `run` does."""
        command = self.command(targets, kind)
        driver = subprocess.Popen(
            [*process.bound(), *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

        def result() -> tuple[Outcome, str]:
            output, errors = driver.communicate(timeout=PYTHON_DRIVER_S)
            if driver.returncode:
                raise DriverError(f"{shown(command)} failed:\n{errors[-2000:]}")
            return Outcome(**json.loads(output)), shown(command)

        try:
            yield result
        finally:
            driver.kill()
            driver.communicate()

    def _run_h2load(self, target: str) -> tuple[Outcome, str]:
        load = self.load
        is_put = load.put_share == 1.0
        assert load.put_share in (0.0, 1.0), "h2load sends one request"
        body = (
            h2load.put_body(load.value_bytes)
            if is_put
            else h2load.range_body(serializable=load.serializable)
        )
        assert load.requests, "h2load runs for a number of requests"
        result = h2load.run(
            target,
            messages.PUT if is_put else messages.RANGE,
            body,
            requests=load.requests,
            connections=load.connections,
            streams=load.streams,
        )
        outcome = Outcome(
            seconds=result.seconds,
            operations=result.succeeded,
            rate=result.succeeded / result.seconds,
            acknowledged=result.succeeded,
            acknowledged_puts=result.succeeded if is_put else 0,
            errors={"h2load: failed requests": result.failed} if result.failed else {},
        )
        if is_put:
            outcome.put_ms = result.ms
        else:
            outcome.range_ms = result.ms
        return outcome, result.command


@contextmanager
def null_server(driver: Driver, kind: str) -> Iterator[str]:
    """Run the null server with replies as large as this driver's; yield its host:port."""
    reply = "range" if driver.load.put_share < 1.0 else "put"
    arguments = ["--reply", reply, "--value-bytes", str(driver.load.value_bytes or 8_000)]
    module = "bench.null_server"
    if driver.tool == "program" and kind != ETCD:
        module, arguments = "bench.null_session", []  # our client's program speaks in sessions
    server = subprocess.Popen(
        [*process.bound(), sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C at the terminal is ours to handle
    )
    try:
        assert server.stdout is not None
        port = server.stdout.readline().decode().strip()
        if not port:
            raise DriverError("the null server did not start")
        yield f"127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()


class Ceilings:
    """What each driver reaches against the null server, measured once per run."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._known: dict[str, float] = {}

    def rate(self, driver: Driver, kind: str) -> float:
        """Return operations per second."""
        load = replace(driver.load, seconds=self._seconds, warmup_s=0.3, serializable=False)
        if load.distribution == "sequence":
            load = replace(load, distribution="uniform")
        client = kind if driver.tool == "program" else ""  # it has one for each system
        name = f"{driver.tool} {client} {driver.tasks} {load.to_json()}"
        if name not in self._known:
            with null_server(driver, kind) as target:
                outcome, _ = replace(driver, load=load).run([target], kind)
            if problems := outcome.problems():
                raise DriverError(f"{driver.tool} against the null server: {'; '.join(problems)}")
            self._known[name] = outcome.rate
        return self._known[name]

    def check(self, driver: Driver, kind: str, rate: float) -> list[str]:
        """Return what is wrong when the driver's own rate is not at least twice the figure."""
        return too_slow(self.rate(driver, kind), rate)


def too_slow(ceiling: float, rate: float) -> list[str]:
    """Return what is wrong when a driver with that ceiling measured that rate."""
    if ceiling >= 2 * rate:
        return []
    return [f"the driver reaches only {ceiling:,.0f}/s against the null server"]


@dataclass
class Sample:
    """One run of one workload on one system."""

    workload: str
    system: str
    round: int
    rate: float
    p50_ms: float
    p99_ms: float
    leader_us: float
    """CPU microseconds of the leader per operation."""

    follower_us: float
    """The same of the followers, the larger one."""

    driver_rate: float
    """The driver against the null server."""

    problems: list[str] = field(default_factory=list)
    command: str = ""
    outcome: dict[str, object] = field(default_factory=dict)


def measure(
    workload: str, cluster: Cluster, driver: Driver, ceilings: Ceilings, number: int
) -> Sample:
    """Run the driver on an awake cluster and check what it says against the store.

    Raises ClusterError when a member ended meanwhile.
    """
    ceiling = ceilings.rate(driver, cluster.kind)
    leader, followers = cluster.leader(), cluster.followers()
    members = [leader, *followers]
    targets = [member.target for member in (members if driver.every_member else members[:1])]
    if driver.tool == "program":
        targets = [member.target for member in members]
    term, revision = cluster.term(), cluster.revision()
    before = [process.cpu_s(member.pid) for member in members]
    outcome, command = driver.run(targets, cluster.kind)
    after = [process.cpu_s(member.pid) for member in members]
    cluster.ensure_running()
    moved = cluster.revision() - revision

    problems = outcome.problems()
    if moved != outcome.acknowledged_puts:
        problems.append(
            f"{outcome.acknowledged_puts} puts acknowledged, the revision moved by {moved}"
        )
    if cluster.term() != term:
        problems.append(f"the term moved from {term} to {cluster.term()}: an election")
    problems += too_slow(ceiling, outcome.rate)
    # Warm-up and end are in the CPU time as well, so they must be in the count.
    done = max(1, outcome.acknowledged)
    costs = [1e6 * (b - a) / done for a, b in zip(before, after, strict=True)]
    latency = outcome.put_ms or outcome.range_ms
    return Sample(
        workload=workload,
        system=cluster.kind,
        round=number,
        rate=outcome.rate,
        p50_ms=latency.get("p50", 0.0),
        p99_ms=latency.get("p99", 0.0),
        leader_us=costs[0],
        follower_us=max(costs[1:]),
        driver_rate=ceiling,
        problems=problems,
        command=command,
        outcome=asdict(outcome),
    )


LOADING = Load(targets=[], connections=8, streams=32)
"""How `preload` drives."""


LOADING_MAX = 1_000_000
"""Keys to one run of the generator: it keeps every latency, and may not take for ever."""


def preload(cluster: Cluster, keys: int, value_bytes: int = 256, *, first: int = 0) -> Outcome:
    """Write keys `first` to `keys` - 1 once each. Raises DriverError when one fails.

    Returns the sum of what came of it; latencies are those of the last million.
    """
    target, total = [cluster.leader().target], Outcome()
    for start in range(first, keys, LOADING_MAX):
        count = min(LOADING_MAX, keys - start)
        load = replace(LOADING, requests=count, distribution="sequence", value_bytes=value_bytes)
        driver = Driver("generator", replace(load, first_key=start))
        outcome, _ = driver.run(target, cluster.kind)
        if outcome.problems() or outcome.acknowledged_puts != count:
            raise DriverError(
                f"loading keys from {start}: {outcome.acknowledged_puts} of {count} acknowledged, "
                f"{outcome.problems()}"
            )
        outcome.seconds += total.seconds
        outcome.acknowledged_puts += total.acknowledged_puts
        outcome.rate = outcome.acknowledged_puts / outcome.seconds
        total = outcome
    return total
