"""Makes COUNT unary calls with grpcio and a token, on one connection; the paths take turns.

Run by `python -m bench.capture`: PROGRAM TARGET COUNT PATH...
"""

from __future__ import annotations

import platform
import sys

import grpc

TOKEN_NAME = "xtoken"
"""Not `token`: etcd without users refuses a call that carries one. It travels the same way."""

TOKEN = "abcdefghijklmnop.12"
"""The shape of etcd's simple token."""


def main() -> None:
    """Make the calls of the command line."""
    target, count, *paths = sys.argv[1:]
    with grpc.insecure_channel(target) as channel:
        for number in range(int(count)):
            path = paths[number % len(paths)]
            channel.unary_unary(path)(b"", metadata=[(TOKEN_NAME, TOKEN)], timeout=None)
    print(f"grpcio {grpc.__version__}, Python {platform.python_version()}", end="")


if __name__ == "__main__":
    main()
