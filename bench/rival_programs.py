"""Python programs that put keys into ZooKeeper and PySyncObj, and a PySyncObj node; see `rivals`.

`python -m bench.rival_programs zookeeper HOSTS SECONDS`, `... pysyncobj ADDRESS PEERS FOLDER
[SECONDS]`. A program keeps `IN_FLIGHT` puts under way and prints an `Outcome` as JSON.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from bench.load import Outcome, key, percentiles, value_of
from bench.workloads import KEYS

IN_FLIGHT = 500
VALUE_BYTES = 256
WARMUP_S = 1.0
READY_S = 60.0

Done = Callable[[str], None]
"""Told why a put failed, or "" when it succeeded."""


class Chains:
    """Keeps that many puts under way: each answer starts the next."""

    def __init__(self, put: Callable[[bytes, bytes, Done], None], seconds: float) -> None:
        self._put = put
        self._value = value_of(VALUE_BYTES)
        self._rng = random.Random(1)
        self._begin_s = time.perf_counter() + WARMUP_S
        self._end_s = self._begin_s + seconds
        self._seconds = seconds
        self._lock = threading.Lock()
        self._running = IN_FLIGHT
        self._over = threading.Event()
        self._waits_s: list[float] = []
        self._outcome = Outcome(seconds=seconds)

    def run(self) -> Outcome:
        """Return what came of it."""
        for _ in range(IN_FLIGHT):
            self._next()
        if not self._over.wait(WARMUP_S + self._seconds + READY_S):
            self._outcome.unanswered = self._running
        outcome = self._outcome
        outcome.operations = len(self._waits_s)
        outcome.rate = outcome.operations / self._seconds
        outcome.put_ms = percentiles(self._waits_s)
        return outcome

    def _next(self) -> None:
        begin_s = time.perf_counter()
        if begin_s >= self._end_s:
            with self._lock:
                self._running -= 1
                if not self._running:
                    self._over.set()
            return

        def done(error: str) -> None:
            now_s = time.perf_counter()
            outcome = self._outcome
            with self._lock:
                if error:
                    outcome.errors[error[:200]] = outcome.errors.get(error[:200], 0) + 1
                else:
                    outcome.acknowledged += 1
                    outcome.acknowledged_puts += 1
                    if self._begin_s <= now_s < self._end_s:
                        self._waits_s.append(now_s - begin_s)
            self._next()

        self._put(key(self._rng.randrange(KEYS)), self._value, done)


def zookeeper(hosts: str, seconds: float) -> Outcome:
    """Set znodes through kazoo's asynchronous calls."""
    from kazoo.client import KazooClient  # noqa: PLC0415  only this program needs it

    client = KazooClient(hosts)
    client.start(timeout=READY_S)
    client.ensure_path("/bench")
    creations = [client.create_async("/" + key(number).decode()) for number in range(KEYS)]
    for creation in creations:
        creation.get(timeout=READY_S)

    def put(name: bytes, value: bytes, done: Done) -> None:
        def answered(result: object) -> None:
            error = result.exception  # type: ignore[attr-defined]
            done("" if error is None else repr(error))

        client.set_async("/" + name.decode(), value).rawlink(answered)

    outcome = Chains(put, seconds).run()
    client.stop()
    return outcome


def pysyncobj(address: str, peers: list[str], folder: str, seconds: float) -> Outcome | None:
    """Be a node with a journal on disk; with `seconds`, put from inside it."""
    from pysyncobj import SyncObj, SyncObjConf, replicated  # noqa: PLC0415  as above

    class Store(SyncObj):  # type: ignore[misc]
        def __init__(self) -> None:
            journal = str(Path(folder) / address.replace(":", "-"))
            config = SyncObjConf(journalFile=journal, commandsQueueSize=100_000)
            super().__init__(address, peers, config)
            self.data: dict[bytes, bytes] = {}

        @replicated  # type: ignore[misc]
        def put(self, name: bytes, value: bytes) -> None:
            self.data[name] = value

    store = Store()
    store.waitReady()
    print("ready", flush=True)
    if not seconds:
        sys.stdin.read()  # until the parent goes
        return None

    def put(name: bytes, value: bytes, done: Done) -> None:
        def answered(_: object, error: object) -> None:
            done("" if not error else f"PySyncObj error {error}")

        store.put(name, value, callback=answered)

    return Chains(put, seconds).run()


def main() -> None:
    """Run the program of the command line."""
    system, *arguments = sys.argv[1:]
    outcome: Outcome | None
    if system == "zookeeper":
        outcome = zookeeper(arguments[0], float(arguments[1]))
    else:
        address, peers, folder, *rest = arguments
        outcome = pysyncobj(address, peers.split(","), folder, float(rest[0]) if rest else 0.0)
    if outcome is not None:
        print(json.dumps(asdict(outcome)), flush=True)


if __name__ == "__main__":
    main()
