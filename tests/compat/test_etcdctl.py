"""The same etcdctl commands against etcd and against us."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

import pytest

from bench.clusters import ETCD, KVSTORE, Cluster, Ports, available
from tests.compat.commands import PERFORMANCE, Case
from tests.compat.compare import compare, report
from tests.compat.conftest import need, transcript
from tests.compat.differences import KNOWN
from tests.compat.runner import Etcdctl, Transcript

pytestmark = [pytest.mark.etcd, pytest.mark.etcdctl, pytest.mark.cluster]


def test_etcd_equals_etcd(etcd_transcript: Transcript, ports: list[Ports]) -> None:
    # If this fails the harness compares something that is not a promise: a time, a race.
    again = transcript(ETCD, ports)

    differences, _ = compare(etcd_transcript, again)

    assert not differences, report(differences)


def test_we_answer_as_etcd_does(etcd_transcript: Transcript, our_transcript: Transcript) -> None:
    differences, met = compare(etcd_transcript, our_transcript, KNOWN)

    assert not differences, report(differences)
    # A difference that is gone must leave the list, or it would excuse the next one.
    assert met == {entry.name for entry in KNOWN}


# The first verdict stands behind the bar on its line; two failures come without the word for it.
VERDICT = re.compile(
    r"(?:(?:PASS|FAIL)(?:: [^\n]*)?|(?:Slowest request took too long|Stddev too high): [^\n]*)$",
    re.MULTILINE,
)


def test_every_verdict_of_etcdctl_is_known() -> None:
    # A slow machine gives the forms without "FAIL", which no quiet one shows.
    text = (
        " 60 / 60 Booooo! 100.00% 1m0sFAIL: Throughput too low: 574 writes/s\n"
        "Slowest request took too long: 0.602211s\nStddev too high: 0.173197s\nFAIL\n"
    )

    assert [line[:12] for line in VERDICT.findall(text)] == [
        "FAIL: Throug",
        "Slowest requ",
        "Stddev too h",
        "FAIL",
    ]


@dataclass(frozen=True)
class Verdict:
    """How one `check perf` ended, without the progress bar."""

    kind: str
    code: int | None
    lines: tuple[str, ...]
    stderr: str
    left_keys: str
    logs: str

    @property
    def failed(self) -> tuple[str, ...]:
        """What etcdctl was not content with, but for the summary."""
        return tuple(line for line in self.lines if line.startswith("FAIL:"))

    def __str__(self) -> str:
        """Return all that helps to find the cause."""
        lines = "\n  ".join(self.lines)
        return (
            f"{self.kind}: exit code {self.code}, verdicts:\n  {lines}\n"
            f"standard error: {self.stderr.strip()[-1000:]}\nthe members' logs:\n{self.logs}"
        )


def is_compared(case: Case) -> bool:
    """Tell whether we must pass what etcd passes."""
    return case.argv[-1] == "--load=s"


def check_perf(kind: str, case: Case) -> Verdict:
    """Run `check perf` on a fresh cluster, then list what it left."""
    with Cluster(kind) as cluster:
        endpoint = f"http://{cluster.leader().target}"
        listing = Case(("get", "", "--prefix", "--keys-only"))
        output, kept = Etcdctl([endpoint]).run_all([case, listing]).outputs
        logs = "\n".join(f"{member.name}: {member.log_end()}" for member in cluster.members)
    found = VERDICT.findall(output.stdout)
    verdict = Verdict(kind, output.code, tuple(found), output.stderr, kept.stdout.strip(), logs)
    logging.getLogger(__name__).warning("%s on %s: %s", case.name, kind, "; ".join(verdict.lines))
    return verdict


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.parametrize(
    "case",
    [
        # Beside other tests, which come and go between the two, times would not compare.
        pytest.param(one, marks=[pytest.mark.alone] if is_compared(one) else [], id=one.name)
        for one in PERFORMANCE
    ],
)
def test_check_perf_runs_through(case: Case) -> None:
    # No request may fail, whatever the machine does meanwhile. What `check perf` says of times is
    # about the machine as well: its own rate limiter falls behind when it gets no processor, and
    # then etcd does not reach the 150 writes a second of load `s` either (nor, on two shared
    # cores, the 1,000 of `m`). So where etcd passes `s`, we must; -rP shows the verdicts.
    need("etcdctl")
    for kind in (ETCD, KVSTORE):
        if reason := available(kind):
            pytest.skip(f"{kind}: {reason}")
    etcd, ours = check_perf(ETCD, case), check_perf(KVSTORE, case)
    compared = is_compared(case) and etcd.code == 0
    if compared and ours.code != 0:
        ours = check_perf(KVSTORE, case)  # the load may have come in between
    assert not [line for line in ours.failed if "error" in line.lower()], ours
    assert "error" not in ours.stderr.lower(), ours
    for verdict in (etcd, ours):
        # Throughput, slowest, deviation; without them it did not run to its end.
        assert len([line for line in verdict.lines if ": " in line]) >= 3, verdict
        assert verdict.left_keys == "", f"its keys are left, so a deletion was lost; {verdict}"
    assert not compared or ours.code == 0, ours
