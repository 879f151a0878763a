"""Opens and drops connections at a steady rate: python -m tests.hostile.churn PORT PER_S SECONDS.

Prints how many it came to; some say something before they go.
"""

from __future__ import annotations

import socket
import struct
import sys
import time

from tests.rpc.wire import PREFACE, settings

FIRST_WORDS = (b"", b"", PREFACE[:7], PREFACE + settings(), b"GET / HT")
STEP_S = 0.01


def churn(port: int, per_s: float, seconds: float) -> int:
    """Return how many connections were made."""
    began_s = time.monotonic()
    made = 0
    while (now_s := time.monotonic()) < began_s + seconds:
        while made < (now_s - began_s) * per_s:
            with socket.socket() as one:
                # A reset at the end: thousands of sockets in TIME_WAIT would use up the ports.
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one.connect(("127.0.0.1", port))
                one.send(FIRST_WORDS[made % len(FIRST_WORDS)])
            made += 1
        time.sleep(STEP_S)  # the rate is what this program is for
    return made


if __name__ == "__main__":
    sys.stdout.write(str(churn(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))))
