"""The matrix of attacks on a real member: it stays small, is idle afterwards, and others go on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.process import memory
from kvstore.client import Client
from tests.hostile import LINE
from tests.hostile.attacks import ATTACKS, BIG_BYTES, BIG_KEY
from tests.hostile.bystander import CALM_S, Bystander, judge, settle_s
from tests.servers import Kvstore

pytestmark = [pytest.mark.cluster]

QUICK = ("rapid-reset", "hpack-count-bomb", "window-updates", "zero-windows", "half-open-streams")
"""One of each kind; the rest is slow only because there are many."""

QUICK_S, SLOW_S = 1.5, 3.0

IDLE_SHARE, IDLE_WITHIN_S = 0.3, 10.0

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def member() -> Iterator[Kvstore]:
    with Kvstore(1) as server:
        with Client(server.endpoints) as client:
            client.put(BIG_KEY, bytes(BIG_BYTES))
        yield server


def port_of(member: Kvstore) -> int:
    return int(member.endpoints[0].partition(":")[2])


@pytest.mark.alone  # it judges the latency of others, of which a busy machine takes seconds
@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ATTACKS],
)
def test_attack(member: Kvstore, name: str, record_property: Callable[[str, object], None]) -> None:
    attack = ATTACKS[name]
    port, pid = port_of(member), member._processes[0].pid
    seconds = QUICK_S if name in QUICK else SLOW_S
    command = [sys.executable, "-m", "tests.hostile.attacker", name, str(port), str(seconds)]
    with Bystander(port, pid) as bystander:
        bystander.watch(0.2)
        calm = bystander.watch(CALM_S)
        before_bytes = memory(pid).anonymous_bytes
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as attacker:
            output, _ = attacker.communicate(timeout=60)
        grown_bytes = bystander.peak_bytes - before_bytes
        attacked = bystander.phase()
    assert attacker.returncode == 0
    done = json.loads(output)
    record_property(
        LINE,
        f"{name:28} {calm!s:>14} {attacked!s:>14} {max(attacked.taken_s) * 1e3:5.0f} ms"
        f" {max(attacked.writes_s) * 1e3:5.0f} ms"
        f" {grown_bytes >> 20:5} MiB  "
        + ", ".join(f"{how} {count:,}" for how, count in done["ends"].items()),
    )

    settle_s(pid, IDLE_SHARE, IDLE_WITHIN_S)
    judge(calm, attacked, seconds)
    assert grown_bytes <= attack.memory_bytes
    # The last connection of a flood was open when its time was over.
    assert set(done["ends"]) <= attack.ends | {"open"}
    assert set(done["ends"]) & attack.ends
