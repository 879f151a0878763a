"""The same etcdctl commands against etcd and against us."""

from __future__ import annotations

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


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", [ETCD, KVSTORE])
@pytest.mark.parametrize("case", PERFORMANCE, ids=lambda case: case.name)
def test_check_perf_ends_in_pass(kind: str, case: Case) -> None:
    # Compared by verdict, not by figure: `m` demands 1,000 writes a second for a minute, which a
    # slow disk does not give to anybody.
    need("etcdctl")
    if reason := available(kind):
        pytest.skip(f"{kind}: {reason}")
    with Cluster(kind) as cluster:
        result = Etcdctl([f"http://{cluster.leader().target}"]).run_all([case])

    [output] = result.outputs
    assert output.code == 0, output.stdout + output.stderr
    assert output.stdout.rstrip().endswith("PASS"), output.stdout
