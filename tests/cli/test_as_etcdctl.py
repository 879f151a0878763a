"""kvctl prints what etcdctl prints: the command list of tests/compat, with both, on real etcd.

Both tools get a fresh cluster on the same ports and run the same list, so that everything is
compared as it is, but for the fields that `tests.compat.normalise` names. On standard error kvctl
may say more: lines that begin with `Hint: `. etcdctl's own log lines are not imitated.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from bench.clusters import ETCD, Cluster, choose_ports
from tests.cli.running import run_kvctl
from tests.compat.commands import COMMANDS, Case, txn
from tests.compat.compare import compare, report
from tests.compat.conftest import need
from tests.compat.differences import Known
from tests.compat.runner import Etcdctl, Output, Transcript

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = [pytest.mark.etcd, pytest.mark.etcdctl, pytest.mark.cluster]

NOT_YET = {"lock"}
"""Commands of etcdctl that kvctl does not have."""

QUOTES = txn("", "put '' 1", "")
"""etcdctl reads '' in a transaction as the key `'`, by a slip in its reader of single quotes; for
kvctl it is the empty key, which the server refuses. All later revisions would differ."""

CASES = [case for case in COMMANDS if case.argv[0] not in NOT_YET and case.stdin != QUOTES]


class Kvctl(Etcdctl):
    """Runs the list with kvctl; in this process where the command ends by itself."""

    def _run(self, case: Case) -> Output:
        if case.script:
            return super()._run(case)
        argv = [self._fill(word) for word in case.argv]
        endpoints = self.endpoints if case.every_endpoint else self.endpoints[:1]
        done = run_kvctl(
            ["--endpoints", ",".join(endpoints), *argv], self._fill(case.stdin).encode()
        )
        out, err = (data.decode("utf-8", "backslashreplace") for data in (done.out, done.err))
        return Output(case, done.code, out, err)

    def _command(self, argv: Sequence[str], *, every_endpoint: bool) -> list[str]:
        command = super()._command(argv, every_endpoint=every_endpoint)
        return [sys.executable, "-m", "kvstore.cli.kvctl", *command[1:]]


def without_extras(transcript: Transcript) -> Transcript:
    """Drop etcdctl's log lines and kvctl's hints from standard error."""
    outputs = []
    for output in transcript.outputs:
        lines = output.stderr.splitlines(keepends=True)
        said = [line for line in lines if not line.startswith(('{"level"', "Hint: "))]
        outputs.append(replace(output, stderr="".join(said)))
    return Transcript(outputs, transcript.leases)


KNOWN = [
    Known(
        name="limit of the tool",
        reason="etcdctl refuses by itself to send over 2 MiB; kvctl lets the server decide",
        command="put big",
        etcd="err: Error: rpc error: code = ResourceExhausted desc = trying to send message larger"
        " than max (2252810 vs. 2097152)",
        ours="err: Error: rpc error: code = ResourceExhausted desc = grpc: received message larger"
        r" than max \(2252810 vs\. 2097152\)",
    ),
]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_every_command_prints_what_etcdctl_prints() -> None:
    need("etcd", "etcdctl")
    ports = choose_ports(3)
    transcripts = []
    for tool in (Etcdctl, Kvctl):
        with Cluster(ETCD, ports=ports) as cluster:
            endpoints = [f"http://{member.target}" for member in cluster.members]
            transcripts.append(without_extras(tool(endpoints).run_all(CASES)))

    differences, met = compare(transcripts[0], transcripts[1], KNOWN)

    assert not differences, report(differences)
    assert met == {entry.name for entry in KNOWN}
