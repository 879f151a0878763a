"""Makes COUNT unary calls with h2load on one connection; the paths take turns.

Run by `python -m bench.capture`: PROGRAM TARGET COUNT PATH...
"""

from __future__ import annotations

import subprocess
import sys
import tempfile

from bench import h2load


def main() -> None:
    """Make the calls of the command line."""
    target, count, *paths = sys.argv[1:]
    with tempfile.NamedTemporaryFile() as body:
        body.write(h2load.put_body())
        body.flush()
        command = ["h2load", "-n", count, "-c", "1", "-m", "1", *h2load.HEADERS, "-d", body.name]
        command += [f"http://{target}{path}" for path in paths]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    if h2load.parse(done.stdout)[1] != int(count):
        raise SystemExit(f"h2load's calls failed:\n{done.stdout}")
    version = subprocess.run(["h2load", "--version"], capture_output=True, text=True, check=True)
    print(version.stdout.strip(), end="")


if __name__ == "__main__":
    main()
