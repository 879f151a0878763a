"""Runs h2load (Debian package nghttp2-client) with a prebuilt request body; checks no writes.

h2load does not look at grpc-status: `bench.measure` reads the revision before and after.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench import messages
from bench.load import key, percentiles, value_of

HEADERS = ("-H", "content-type: application/grpc", "-H", "te: trailers")
"""What a gRPC call needs beside h2load's own headers."""


class H2loadError(RuntimeError):
    """h2load did not end well; the text has its output."""


@dataclass(frozen=True)
class H2loadOutcome:
    """What one run reported."""

    seconds: float
    succeeded: int
    """Answered with HTTP status 2xx."""

    failed: int
    ms: dict[str, float]
    """Percentiles of the time per request."""

    command: str


def available() -> bool:
    """Tell whether h2load is installed."""
    return shutil.which("h2load") is not None


def put_body(value_bytes: int = 256) -> bytes:
    """Return a framed PutRequest for one fixed key."""
    return messages.framed(messages.put(key(0), value_of(value_bytes)))


def range_body(*, serializable: bool) -> bytes:
    """Return a framed RangeRequest for that key."""
    return messages.framed(messages.range_(key(0), serializable=serializable))


def run(
    target: str,
    path: str,
    body: bytes,
    *,
    requests: int,
    connections: int = 10,
    streams: int = 50,
) -> H2loadOutcome:
    """Send the same request again and again, and return what came of it. Raises H2loadError."""
    with tempfile.TemporaryDirectory() as folder:
        body_file, log_file = Path(folder, "body"), Path(folder, "log")
        body_file.write_bytes(body)
        command = [
            *("h2load", "-n", str(requests), "-c", str(connections), "-m", str(streams)),
            *("-t", "1", *HEADERS),
            *("-d", str(body_file), f"--log-file={log_file}", f"http://{target}{path}"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        if done.returncode:
            raise H2loadError(f"h2load ended with {done.returncode}:\n{done.stderr or done.stdout}")
        latencies = [int(line.split("\t")[2]) / 1e6 for line in log_file.read_text().splitlines()]
    seconds, succeeded, failed = parse(done.stdout)
    shown = " ".join(command).replace(str(body_file), "BODY").replace(str(log_file), "LOG")
    return H2loadOutcome(seconds, succeeded, failed, percentiles(latencies), shown)


UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def parse(text: str) -> tuple[float, int, int]:
    """Return elapsed seconds, succeeded and failed requests of h2load's report."""
    finished = re.search(r"finished in ([0-9.]+)(us|ms|s)\b", text)
    counts = re.search(r"(\d+) succeeded, (\d+) failed", text)
    if finished is None or counts is None:
        raise H2loadError(f"h2load's report has another form:\n{text}")
    return float(finished[1]) * UNITS_S[finished[2]], int(counts[1]), int(counts[2])
