"""Running kvctl: in this process, for speed, or as a process of its own; compares nothing."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from kvstore.cli import kvctl

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Done(NamedTuple):
    """What a command did."""

    code: int
    out: bytes
    err: bytes


@contextmanager
def _streams(stdin: bytes) -> Iterator[tuple[io.BytesIO, io.BytesIO]]:
    saved = sys.stdin, sys.stdout, sys.stderr
    out, err = io.BytesIO(), io.BytesIO()
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin))
    sys.stdout = io.TextIOWrapper(out, write_through=True)
    sys.stderr = io.TextIOWrapper(err, write_through=True)
    try:
        yield out, err
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            stream.detach()  # or its end would close the buffer that is read after it
        sys.stdin, sys.stdout, sys.stderr = saved


def run_kvctl(args: Sequence[str], stdin: bytes = b"") -> Done:
    """Run kvctl's command line in this process: what `main` does, but for the signals."""
    with _streams(stdin) as (out, err):
        code = kvctl.run(args)
    return Done(code, out.getvalue(), err.getvalue())


def spawn_kvctl(args: Sequence[str], stdin: bytes = b"", **environment: str) -> Done:
    """Run kvctl as a process."""
    done = subprocess.run(
        [sys.executable, "-m", "kvstore.cli.kvctl", *args],
        input=stdin,
        capture_output=True,
        check=False,
        timeout=15,
        env={"PATH": os.environ["PATH"], **environment},
    )
    return Done(done.returncode, done.stdout, done.stderr)


def spawn_etcdctl(args: Sequence[str], stdin: bytes = b"", **environment: str) -> Done:
    """Run etcdctl; its own log lines are left out of what it says."""
    done = subprocess.run(
        ["etcdctl", *args],
        input=stdin,
        capture_output=True,
        check=False,
        timeout=15,
        env={"PATH": os.environ["PATH"], "ETCDCTL_API": "3", **environment},
    )
    lines = done.stderr.splitlines(keepends=True)
    said = b"".join(line for line in lines if not line.startswith(b'{"level"'))
    return Done(done.returncode, done.stdout, said)
