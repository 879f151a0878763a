"""The comparator sees what it must see, and only overlooks the named fields."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest

from tests.compat.compare import compare
from tests.compat.differences import Known
from tests.compat.runner import Output, Transcript

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.etcd, pytest.mark.etcdctl, pytest.mark.cluster]


@dataclass(frozen=True)
class Planted:
    """A change of one output."""

    name: str
    command: str
    change: Callable[[Output], Output]


def stdout(pattern: str, replacement: str) -> Callable[[Output], Output]:
    """Return a change of the first match in the standard output."""

    def change(output: Output) -> Output:
        text, count = re.subn(pattern, replacement, output.stdout, count=1, flags=re.DOTALL)
        assert count == 1, f"{pattern} is not in {output.stdout!r}"
        return replace(output, stdout=text)

    return change


def stderr(pattern: str, replacement: str) -> Callable[[Output], Output]:
    """Return a change of every match in the error output."""

    def change(output: Output) -> Output:
        text, count = re.subn(pattern, replacement, output.stderr)
        assert count, f"{pattern} is not in {output.stderr!r}"
        return replace(output, stderr=text)

    return change


PLANTED = [
    Planted(
        "a revision one too high", "put a 8 -w json", stdout(r'"revision":14', '"revision":15')
    ),
    Planted(
        "another order of keys",
        "get dir/ --prefix",
        stdout(r"dir/x\n10\ndir/y\n21", "dir/y\n21\ndir/x\n10"),
    ),
    Planted("another error text", "get a --rev=1000000", stderr("a future", "the future")),
    Planted("another error code", "get ''", stderr("code = InvalidArgument", "code = Unknown")),
    Planted("a missing field", "get dir/ --prefix --limit=2 -w json", stdout(',"count":3', "")),
    Planted("`more` lost", "get dir/ --prefix --limit=2 -w json", stdout('"more":true,', "")),
    Planted("an exit status", "get ''", lambda output: replace(output, code=0)),
    Planted("a key-value's version", "get a --rev=2 -w json", stdout('"version":1', '"version":2')),
    Planted(
        "a member id",
        "member list",
        stdout(r"^([0-9a-f]+)([0-9a-f]),", lambda m: m[1] + ("0" if m[2] != "0" else "1") + ","),  # type: ignore[arg-type]
    ),
    Planted(
        "a lost event",
        "watch w/ --prefix --rev=2",
        stdout(r"DELETE\nw/b\n\n", ""),
    ),
    Planted(
        "a repeated event",
        "watch w/a --rev={next}",
        stdout(r"DELETE\nw/a\n\n", "DELETE\nw/a\n\nDELETE\nw/a\n\n"),
    ),
    Planted(
        "an event without prev_kv",
        "watch -i -w json",
        stdout(r',"prev_kv":\{[^}]*\}', ""),
    ),
    Planted("another hash", "endpoint hashkv", stdout(r", (\d)(\d+)\n", r", \g<1>0\g<2>\n")),
    Planted("two leaders", "endpoint status", stdout(", false, false", ", true, false")),
    Planted(
        "a lease too long", "lease timetolive {L1}", stdout(r"remaining\(\d+", "remaining(601")
    ),
    Planted("a key not attached", "lease timetolive {L1} --keys", stdout("leased/a", "")),
    Planted(
        "a txn's sub-header with more than the revision",
        "txn -w json",
        stdout(r'"ResponsePut":\{"header":\{', '"ResponsePut":{"header":{"cluster_id":1,'),
    ),
    Planted(
        "a script's text that never came",
        "watch w/ --prefix --rev=2",
        lambda output: replace(output, missed=("w/end",)),
    ),
]


def changed(transcript: Transcript, planted: Planted) -> Transcript:
    """Return the transcript with the first output of that command changed."""
    outputs = list(transcript.outputs)
    for number, output in enumerate(outputs):
        if output.case.name == planted.command:
            outputs[number] = planted.change(output)
            assert outputs[number] != output, "the planted difference changes nothing"
            return Transcript(outputs, transcript.leases)
    raise AssertionError(f"no command {planted.command!r}")


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.name)
def test_a_planted_difference_is_reported(planted: Planted, etcd_transcript: Transcript) -> None:
    other = changed(etcd_transcript, planted)

    differences, _ = compare(etcd_transcript, other)

    assert [difference.command for difference in differences] == [planted.command]


OVERLOOKED = [
    Planted("raft term", "put a 8 -w json", stdout(r'"raft_term":\d+', '"raft_term":77')),
    Planted("took", "endpoint health", stderr(r"took = [0-9.]+ms", "took = 9.5s")),
    Planted("db size", "endpoint status", stdout(r"[0-9.]+ [kM]B", "77 GB")),
    Planted(
        "server version", "endpoint status -w json", stdout('"version":"3.4', '"version":"3.6')
    ),
    Planted("log time", "get ''", stderr('"ts":"[^"]*"', '"ts":"2001-01-01T00:00:00.000Z"')),
]


@pytest.mark.parametrize("planted", OVERLOOKED, ids=lambda planted: planted.name)
def test_a_named_field_is_overlooked(planted: Planted, etcd_transcript: Transcript) -> None:
    differences, _ = compare(etcd_transcript, changed(etcd_transcript, planted))

    assert not differences


def test_other_lease_ids_are_overlooked(etcd_transcript: Transcript) -> None:
    # All of them, consistently, as another run draws them.
    offset = 0x1111
    outputs = []
    for output in etcd_transcript.outputs:
        text = output.stdout
        for lease in etcd_transcript.leases:
            text = text.replace(f"{lease:016x}", f"{lease + offset:016x}")
            text = text.replace(str(lease), str(lease + offset))
        outputs.append(replace(output, stdout=text))
    other = Transcript(outputs, [lease + offset for lease in etcd_transcript.leases])
    assert other.outputs != etcd_transcript.outputs

    differences, _ = compare(etcd_transcript, other)

    assert not differences


def test_one_other_lease_id_is_reported(etcd_transcript: Transcript) -> None:
    # The second lease answered where the first was asked for.
    first, second = etcd_transcript.leases[:2]
    planted = Planted(
        "lease", "lease keep-alive --once {L1}", stdout(f"{first:016x}", f"{second:016x}")
    )

    differences, _ = compare(etcd_transcript, changed(etcd_transcript, planted))

    assert [difference.command for difference in differences] == [planted.command]


def test_a_known_difference_excuses_nothing_else(etcd_transcript: Transcript) -> None:
    known = Known("text", "a test", "get absent", etcd="out: ", ours="out: something")
    excused = changed(
        etcd_transcript, Planted("", "get absent", lambda output: replace(output, code=7))
    )

    differences, met = compare(etcd_transcript, excused, [known])

    assert len(differences) == 1
    assert not met
