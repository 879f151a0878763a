"""One trivial unary method, Put with a fixed reply, on each engine that could serve kvstore.

`python -m bench.micro.unary_server ENGINE` prints its port, serves until its input ends, then
prints how many calls its handler saw. `bench.engine` drives it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio
import uvloop

from bench.messages import PUT
from bench.null_server import NullConnection, message
from kvstore.rpc import Call, Server

ADDRESS = "127.0.0.1"
REPLY = message("put")
THREADS = 10
"""As in grpcio's examples."""

Counter = Callable[[], object]
"""Called by the handler once per call; safe in threads."""


class Methods(grpc.GenericRpcHandler):
    """Routes Put to a handler of bytes, as grpcio wants it."""

    def __init__(self, put: Callable[..., Any]) -> None:
        self._handler = grpc.unary_unary_rpc_method_handler(put)

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        return self._handler if details.method == PUT else None


async def input_ends() -> None:
    """Wait for the end of the standard input: whoever started this wants no more, or is gone."""
    await asyncio.to_thread(sys.stdin.buffer.read)


async def kvstore(count: Counter) -> None:
    """Serve on kvstore.rpc."""

    def put(call: Call, _: bytes) -> None:
        count()
        call.reply(REPLY)

    server = Server()
    server.unary(PUT, put)
    print(await server.listen(ADDRESS, 0), flush=True)
    await input_ends()
    await server.drain(0.0)


async def grpcio_aio(count: Counter) -> None:
    """Serve on grpc.aio."""

    async def put(_: bytes, __: object) -> bytes:
        count()
        return REPLY

    server = grpc.aio.server(handlers=[Methods(put)])
    port = server.add_insecure_port(f"{ADDRESS}:0")
    await server.start()
    print(port, flush=True)
    await input_ends()
    await server.stop(None)


async def grpcio_sync(count: Counter) -> None:
    """Serve on grpcio's threads; the loop of this process only waits."""

    def put(_: bytes, __: object) -> bytes:
        count()
        return REPLY

    server = grpc.server(ThreadPoolExecutor(THREADS), handlers=[Methods(put)])
    port = server.add_insecure_port(f"{ADDRESS}:0")
    server.start()
    print(port, flush=True)
    await input_ends()
    server.stop(None).wait()


async def null(_: Counter) -> None:
    """Serve a prebuilt answer to every frame that ends a request: the driver's ceiling."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: NullConnection(REPLY), ADDRESS, 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await input_ends()
    server.close()


ENGINES = {
    "kvstore.rpc": kvstore,
    "grpcio-aio": grpcio_aio,
    "grpcio-sync": grpcio_sync,
    "null": null,
}


def main() -> None:
    """Run the server of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("--cpu", type=int, default=None, help="the one core to run on")
    arguments = parser.parse_args()
    if arguments.cpu is not None:
        os.sched_setaffinity(0, {arguments.cpu})
    calls = itertools.count()
    uvloop.run(ENGINES[arguments.engine](calls.__next__))
    print(next(calls), flush=True)


if __name__ == "__main__":
    main()
