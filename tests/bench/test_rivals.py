"""The comparison with other systems: the table, what is missing, how puts are kept under way."""

from __future__ import annotations

import threading

import pytest

from bench import rivals
from bench.load import Outcome
from bench.rival_programs import IN_FLIGHT, Chains, Done


def outcome(rate: float, **more: object) -> Outcome:
    return Outcome(rate=rate, put_ms={"p50": 1.0, "p99": 2.0}, **more)  # type: ignore[arg-type]


def test_rates_are_medians_and_ours_is_put_over_each() -> None:
    samples = [rivals.Sample("kvstore", "", outcome(rate)) for rate in (900.0, 1000.0, 5000.0)]
    samples += [rivals.Sample("etcd", "", outcome(250.0, errors={"broken": 2}))]
    ours, theirs = rivals.rows(samples)
    assert ours[2:4] == ("1,000", "900 to 5,000")
    assert theirs[6] == "4.0x as fast"
    assert theirs[7] == "2 x broken"


def test_what_is_not_installed_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals.importlib.util, "find_spec", lambda name: None)
    reason = rivals.missing("pysyncobj")
    assert reason is not None
    assert "pip install" in reason


@pytest.mark.alone  # what is counted is what is done within half a second
def test_a_chain_keeps_so_many_puts_under_way_and_counts_failures() -> None:
    under_way: list[Done] = []
    most = 0
    lock = threading.Lock()

    def put(name: bytes, value: bytes, done: Done) -> None:
        nonlocal most
        with lock:
            under_way.append(done)
            most = max(most, len(under_way))

    over = threading.Event()

    def answer() -> None:
        number = 0
        while not over.is_set():
            with lock:
                batch, under_way[:] = under_way[:], []
            for done in batch:
                number += 1
                done("refused" if number % 100 == 0 else "")

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        result = Chains(put, 0.5).run()
    finally:
        over.set()
        thread.join()
    assert most == IN_FLIGHT
    assert result.unanswered == 0
    assert result.errors["refused"] > 0
    assert result.operations > 0
    assert result.acknowledged >= result.operations
