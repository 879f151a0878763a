"""A measurement is checked against the store, on a real etcd."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from bench import failover, gate, h2load, messages, million, scenarios
from bench import measure as measuring
from bench.clusters import ETCD, KINDS, KVSTORE, Cluster, ClusterError
from bench.load import Load, Outcome, key
from bench.measure import Ceilings, Driver, measure, preload, too_slow
from bench.profiles import CALLS
from tests.compat.conftest import need

pytestmark = [pytest.mark.etcd, pytest.mark.cluster]
LOAD = Load(targets=[], connections=2, streams=10, seconds=0.5, warmup_s=0.2, keys=800)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    need("etcd")
    with Cluster(ETCD) as cluster:
        yield cluster


@pytest.mark.alone
def test_a_clean_run_has_no_problems_and_real_costs(cluster: Cluster) -> None:
    preload(cluster, 800)
    load = replace(LOAD, put_share=0.5)

    sample = measure("P1-mix", cluster, Driver("generator", load), Ceilings(0.3), 0)

    assert [problem for problem in sample.problems if "null server" not in problem] == []
    assert sample.rate > 0
    assert sample.leader_us > 0
    assert sample.follower_us > 0
    assert sample.driver_rate > sample.rate


def test_loading_in_slices_writes_each_key_once(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Five million keys in one go would outlast the driver's limit and hold every latency.
    monkeypatch.setattr(measuring, "LOADING_MAX", 10)
    leader = cluster.leader()
    revision = cluster.revision()
    everything = messages.range_(key(2_000), key(3_000), count_only=True)

    outcome = preload(cluster, 2_030, first=2_005)

    assert outcome.acknowledged_puts == cluster.revision() - revision == 25
    with leader.channel() as channel:
        reply = messages.range_reply(channel.unary_unary(messages.RANGE)(everything, timeout=10.0))
    assert reply.count == 25


def test_etcd_understands_a_replay_that_starts_over(cluster: Cluster) -> None:
    # Its HPACK decoder is Go's, with rules of its own for table size updates.
    load = Load(
        **{**LOAD.__dict__, "profile": "grpc-java", "connections": 1, "requests": CALLS + 9}
    )

    outcome, _ = Driver("generator", load).run([cluster.leader().target], cluster.kind)

    assert outcome.problems() == []
    assert outcome.acknowledged_puts == CALLS + 9


def test_puts_that_did_not_happen_are_found(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A driver that claims one put more than it made, as h2load would when etcd refuses calls.
    run = Driver.run

    def boast(self: Driver, targets: list[str], kind: str) -> tuple[Outcome, str]:
        outcome, command = run(self, targets, kind)
        if kind == ETCD and targets == [cluster.leader().target]:
            outcome.acknowledged_puts += 1
        return outcome, command

    monkeypatch.setattr(Driver, "run", boast)

    sample = measure("P1", cluster, Driver("generator", LOAD), Ceilings(0.3), 0)

    assert any("the revision moved by" in problem for problem in sample.problems)


def test_a_member_that_ends_meanwhile_is_found() -> None:
    # The other two go on, and faster: nothing else would tell.
    with Cluster(ETCD) as cluster:
        follower = cluster.followers()[0]
        killer = threading.Timer(1.0, follower.kill)
        killer.start()

        with pytest.raises(ClusterError, match=f"{follower.name} ended"):
            measure(
                "P1", cluster, Driver("generator", replace(LOAD, seconds=3.0)), Ceilings(0.1), 0
            )

        killer.join()


@pytest.mark.h2load
def test_h2load_is_checked_by_the_revision(cluster: Cluster) -> None:
    if not h2load.available():
        pytest.skip("h2load is not installed (Debian package nghttp2-client)")
    load = Load(targets=[], connections=2, streams=10, requests=2_000, distribution="one")

    sample = measure("P1-h2load", cluster, Driver("h2load", load), Ceilings(0.3), 0)

    assert sample.problems == []
    assert sample.p99_ms >= sample.p50_ms > 0
    assert sample.command.startswith("h2load -n 2000 -c 2 -m 10")


def test_the_python_program_counts_what_it_wrote(cluster: Cluster) -> None:
    driver = Driver("program", LOAD, tasks=20)

    sample = measure("P4", cluster, driver, Ceilings(0.3), 0)

    assert [problem for problem in sample.problems if "null server" not in problem] == []
    assert sample.rate > 0


class LowCeilings(Ceilings):
    """As if no driver were faster than one call a second."""

    def rate(self, driver: Driver, kind: str) -> float:
        return 1.0


def test_a_figure_too_near_to_the_drivers_own_rate_is_flagged(cluster: Cluster) -> None:
    sample = measure("P1", cluster, Driver("generator", LOAD), LowCeilings(0.3), 0)

    assert sample.problems == ["the driver reaches only 1/s against the null server"]
    assert too_slow(200.0, 100.0) == []
    assert too_slow(199.0, 100.0)


@pytest.mark.parametrize("tool", ["generator", "program", "h2load"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_driver_has_a_ceiling(tool: str, kind: str) -> None:
    if tool == "h2load" and not h2load.available():
        pytest.skip("h2load is not installed (Debian package nghttp2-client)")
    load = replace(LOAD, requests=2_000) if tool == "h2load" else LOAD

    assert Ceilings(0.3).rate(Driver(tool, load, tasks=20), kind) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gate", "P6"])
def test_scenarios_flag_rates_too_near_to_the_drivers_own(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "Ceilings", LowCeilings)
    monkeypatch.setattr(million, "Ceilings", LowCeilings)
    brief = {
        key: replace(driver, load=replace(driver.load, seconds=0.3, warmup_s=0.2))
        for key, driver in million.DRIVERS.items()
    }
    monkeypatch.setattr(million, "DRIVERS", brief)

    found = scenarios.SCENARIOS[name](KVSTORE, data_root=None, scale=0.03)

    flagged = [key for key, value in found.items() if "against the null server" in str(value)]
    assert flagged == (
        ["problems"]
        if name == "P6"
        else [
            f"{how} at {where}: problems"
            for where in ("leader", "follower")
            for how in ("serializable", "linearizable")
        ]
    )


@pytest.mark.slow
def test_a_killed_leader_costs_no_acknowledged_write(cluster: Cluster) -> None:
    gaps, ledger = asyncio.run(failover.drive(cluster, 1))
    pairs = failover.stored(cluster.leader().target)

    assert len(gaps) == 1
    assert 0 < gaps[0] < 10
    assert ledger.acknowledged
    assert ledger.acknowledged.items() <= pairs.items()
    assert not ledger.refused & pairs.keys()
    assert pairs.keys() <= ledger.acknowledged.keys() | ledger.unknown
