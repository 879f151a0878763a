"""How long a member keeps a trivial request waiting while something heavy runs; starts nothing.

The probe is a process of its own, so that what the benchmark itself does meanwhile does not count.
`python -m bench.stalls TARGET [CA_FILE]` runs until its standard input ends, then prints JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from typing import Self

from bench import messages
from bench.clusters import CALL_OPTIONS, Member, open_channel
from bench.load import key

CALL_S = 120.0
PAUSE_S = 0.001
"""Between two probes: enough of them to meet every stall that counts, and no load of their own."""


class Stalls:
    """Gets one key from a member again and again and keeps the longest wait: the loop's lag.

    A serializable get of one key is answered at once, unless the member's loop is busy.
    """

    def __init__(self, member: Member) -> None:
        self._command = [sys.executable, "-m", "bench.stalls", member.target]
        if member.ca_file:
            self._command.append(member.ca_file)
        self.longest_ms = 0.0
        self.count = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError(f"the probe did not start: {' '.join(self._command)}")
        return self

    def __exit__(self, *_: object) -> None:
        output, _ = self._process.communicate("")
        if self._process.returncode:
            raise RuntimeError(f"the probe failed: {' '.join(self._command)}")
        found = json.loads(output)
        self.longest_ms, self.count = found["longest_ms"], found["count"]


def main(target: str, ca_file: str = "") -> None:
    """Probe until standard input ends; print the longest wait and the number of probes."""
    over = threading.Event()
    longest_s, count = 0.0, 0
    request = messages.range_(key(0), serializable=True)
    with open_channel(target, ca_file, CALL_OPTIONS) as channel:
        call = channel.unary_unary(messages.RANGE)
        call(request, timeout=CALL_S)  # the first one connects
        print("ready", flush=True)
        threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
        while not over.wait(PAUSE_S):
            begin = time.perf_counter()
            call(request, timeout=CALL_S)
            longest_s = max(longest_s, time.perf_counter() - begin)
            count += 1
    print(json.dumps({"longest_ms": 1e3 * longest_s, "count": count}))


if __name__ == "__main__":
    main(*sys.argv[1:])
