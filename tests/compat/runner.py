"""Runs the command list with etcdctl against one cluster, keeps what it printed; judges nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty, Queue
from typing import TYPE_CHECKING

from tests.compat.commands import Await, Case, Run, Send

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

COMMAND_S = 30.0
AWAIT_S = 15.0


@dataclass(frozen=True)
class Output:
    """What one command did."""

    case: Case
    code: int | None
    """Exit status; None for a command that was interrupted by its script."""

    stdout: str
    stderr: str
    missed: tuple[str, ...] = ()
    """Texts that the script waited for in vain."""


@dataclass
class Transcript:
    """All outputs of one cluster, in order, and the ids that etcdctl was given."""

    outputs: list[Output] = field(default_factory=list)
    leases: list[int] = field(default_factory=list)


class Etcdctl:
    """etcdctl with the endpoints of one cluster."""

    def __init__(self, endpoints: Sequence[str]) -> None:
        self.endpoints = list(endpoints)
        self.transcript = Transcript()

    def run_all(self, cases: Sequence[Case]) -> Transcript:
        """Run the cases in order."""
        for case in cases:
            output = self._run(case)
            self.transcript.outputs.append(output)
            if case.argv[:2] == ("lease", "grant"):
                self._note_lease(output.stdout)
        return self.transcript

    def _run(self, case: Case) -> Output:
        argv = tuple(self._fill(word) for word in case.argv)
        command = self._command(argv, every_endpoint=case.every_endpoint)
        if case.script:
            return self._run_script(case, command)
        done = subprocess.run(
            command,
            input=self._fill(case.stdin).encode(),
            capture_output=True,
            timeout=COMMAND_S if case.argv[:2] != ("check", "perf") else 110.0,
            check=False,
            env=_environment(),
        )
        return Output(case, done.returncode, _text(done.stdout), _text(done.stderr))

    def _run_script(self, case: Case, command: list[str]) -> Output:
        with _running(command) as (process, lines):
            seen: list[str] = []
            missed: list[str] = []
            for step in case.script:
                match step:
                    case Send(line):
                        assert process.stdin is not None
                        process.stdin.write(line.encode() + b"\n")
                        process.stdin.flush()
                    case Run(argv, stdin):
                        subprocess.run(
                            self._command(argv, every_endpoint=False),
                            input=stdin.encode(),
                            capture_output=True,
                            timeout=COMMAND_S,
                            check=True,
                            env=_environment(),
                        )
                    case Await(text):
                        while True:
                            try:
                                seen.append(lines.get(timeout=AWAIT_S))
                            except Empty:
                                missed.append(text)
                                break
                            if seen[-1] is None:
                                seen.pop()
                                missed.append(text)
                                lines.put(None)
                                break
                            if text in seen[-1]:
                                break
            process.send_signal(signal.SIGINT)
            while (line := lines.get(timeout=COMMAND_S)) is not None:
                seen.append(line)
            process.wait(COMMAND_S)
            assert process.stderr is not None
            stderr = _text(process.stderr.read())
        return Output(case, None, "".join(seen), stderr, tuple(missed))

    def _command(self, argv: Sequence[str], *, every_endpoint: bool) -> list[str]:
        endpoints = self.endpoints if every_endpoint else self.endpoints[:1]
        # Flags go in front: behind a `--` they would be arguments.
        return ["etcdctl", "--endpoints", ",".join(endpoints), *argv]

    def _fill(self, text: str) -> str:
        for number, lease in enumerate(self.transcript.leases, 1):
            text = text.replace(f"{{L{number}}}", f"{lease:x}")
        if "{next}" in text:
            text = text.replace("{next}", str(self._revision() + 1))
        return text

    def _revision(self) -> int:
        done = subprocess.run(
            self._command(["get", "x", "-w", "json"], every_endpoint=False),
            capture_output=True,
            timeout=COMMAND_S,
            check=True,
            env=_environment(),
        )
        found = re.search(rb'"revision":(\d+)', done.stdout)
        assert found is not None, done.stdout
        return int(found[1])

    def _note_lease(self, stdout: str) -> None:
        if found := re.search(r"lease ([0-9a-f]+) granted", stdout):
            self.transcript.leases.append(int(found[1], 16))
        elif found := re.search(r'"ID":(\d+)', stdout):
            self.transcript.leases.append(int(found[1]))


@contextmanager
def _running(
    command: Sequence[str],
) -> Iterator[tuple[subprocess.Popen[bytes], Queue[str | None]]]:
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(),
    )
    lines: Queue[str | None] = Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(_text(line))
        lines.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield process, lines
    finally:
        process.kill()
        process.wait()
        reader.join()
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


def _environment() -> dict[str, str]:
    # Only what etcdctl needs: an ETCDCTL_* variable of the user would change the outputs.
    return {"PATH": os.environ["PATH"], "ETCDCTL_API": "3", "HOME": os.environ.get("HOME", "/")}


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")
