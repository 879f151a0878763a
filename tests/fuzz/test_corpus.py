"""Every kept input still holds, fuzzing still finds planted bugs, and its command works."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvstore.http2 import hpack
from kvstore.rpc.requests import Requests
from kvstore.server import membership, node
from kvstore.server.services import watch
from netplane.udp import path as udp_path
from tests.fuzz.__main__ import CORPUS, NAMES, corpus
from tests.fuzz.mutate import search
from tests.fuzz.oddities import Oddities
from tests.fuzz.targets import TARGETS

CORPUS_BYTES_MAX = 200 * 1024
ROOT = Path(__file__).parents[2]


def test_every_target_is_known_to_the_command() -> None:
    assert tuple(TARGETS) == NAMES
    assert sum(path.stat().st_size for path in CORPUS.rglob("*")) < CORPUS_BYTES_MAX


@pytest.mark.parametrize("name", NAMES)
def test_corpus(name: str) -> None:
    inputs = corpus(name)
    assert inputs
    for data in inputs:
        TARGETS[name](data)


@pytest.mark.parametrize("name", NAMES)
def test_some_mutations_with_a_fixed_seed(name: str) -> None:
    found = search(TARGETS[name], corpus(name), seed=2, executions=150)
    if found is not None:
        raise AssertionError(found[0]) from found[1]


def test_members_stand_what_makes_no_sense() -> None:
    found = odd_input_that_breaks(1000)
    if found is not None:
        raise AssertionError(found[0]) from found[1]


def odd_input_that_breaks(executions: int) -> tuple[bytes, Exception] | None:
    oddities = Oddities(random.Random(1))
    for _ in range(executions):
        data = oddities.input()
        try:
            TARGETS["member"](data)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is what we look for
            return data, error
    return None


# Planted bugs: if one survives, the product is fine and the fuzzing has gone blind.


def no_eviction(patch: pytest.MonkeyPatch) -> None:
    """The HPACK table grows for ever."""
    patch.setattr(hpack.Decoder, "_evict", lambda self: None)


def bytes_not_given_back(patch: pytest.MonkeyPatch) -> None:
    """Incomplete requests are counted when they come and not when they go."""
    count = Requests._count_kept
    patch.setattr(Requests, "_count_kept", lambda self, size_bytes: count(self, max(0, size_bytes)))


def unexpected_error(patch: pytest.MonkeyPatch) -> None:
    """A request of any bytes raises in a watch's handler, which would end its stream untold."""
    patch.setattr(watch, "DecodeError", ZeroDivisionError)


def code_outside_the_table(patch: pytest.MonkeyPatch) -> None:
    """A leader's refusal with a code that gRPC does not have: who asked was never answered."""
    patch.setattr(membership, "_REFUSALS", range(1 << 16))


def length_not_compared(patch: pytest.MonkeyPatch) -> None:
    """The overlay takes packets whose length is another than they say."""
    patch.setattr(udp_path, "is_whole", lambda first, total, length: True)


PLANTED: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str, int]] = {
    "no_eviction": (no_eviction, "hpack", 3000),
    "bytes_not_given_back": (bytes_not_given_back, "rpc", 3000),
    "unexpected_error": (unexpected_error, "requests", 3000),
    "code_outside_the_table": (code_outside_the_table, "member", 3000),
    "length_not_compared": (length_not_compared, "packets", 3000),
}


@pytest.mark.pure_python
@pytest.mark.parametrize("bug", PLANTED)
def test_fuzzing_still_finds(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, name, executions = PLANTED[bug]
    # Some kept inputs may show it by themselves; the search has to make one from those that do not.
    inputs = [data for data in corpus(name) if holds(TARGETS[name], plant, data)]
    plant(monkeypatch)
    found = search(TARGETS[name], inputs, seed=1, executions=executions)
    assert found is not None, f"{bug} survived {executions:,} executions"


def snapshot_taken_anywhere(patch: pytest.MonkeyPatch) -> None:
    """The announcement of a snapshot is taken without its store, and a change unjudged."""
    patch.setattr(node, "_is_misplaced", lambda message: False)


@pytest.mark.parametrize(
    "plant",
    [code_outside_the_table, pytest.param(snapshot_taken_anywhere, marks=pytest.mark.pure_python)],
)
def test_what_makes_no_sense_still_finds(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert odd_input_that_breaks(3000) is not None


def holds(target: Callable[[bytes], Any], plant: Any, data: bytes) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        try:
            target(data)
        except AssertionError:
            return False
    return True


@pytest.mark.parametrize("engine", ["random", pytest.param(None, marks=pytest.mark.slow)])
def test_the_command_runs_and_counts(engine: str | None) -> None:
    # With the engine of this machine, too, which is atheris where it is installed.
    # The gate searches where it searched before: fresh seeds are for `make fuzz`.
    arguments = ["--seed", "1"] if engine is None else ["--seed", "1", "--engine", engine]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--target", "peer", "--seconds", "2", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("peer"))
    assert line.endswith("held")
    assert int(line.split()[1].replace(",", "")) > 200
