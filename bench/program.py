"""A Python program with many concurrent tasks that put keys, as a user would write it.

`python -m bench.program --client grpc-aio|kvstore ...` prints an `Outcome` as JSON. On etcd the
client is grpc.aio with prebuilt requests (which favours etcd: no protobuf work); on ours it is
`kvstore.client.AsyncClient` over a session.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict

import grpc.aio
import uvloop

from bench import messages
from bench.load import Outcome, key, percentiles, value_of

Put = Callable[[bytes, bytes], Awaitable[object]]
CONNECT_S = 10.0


async def connect(client: str, endpoints: list[str], stack: AsyncExitStack) -> Put:
    """Return the call that puts one key."""
    if client == "grpc-aio":
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(endpoints[0]))
        await asyncio.wait_for(channel.channel_ready(), CONNECT_S)
        call = channel.unary_unary(messages.PUT)

        async def put(name: bytes, value: bytes) -> object:
            return await call(messages.put(name, value))

        return put
    from kvstore.client import AsyncClient  # noqa: PLC0415  only this client needs it

    ours = await stack.enter_async_context(AsyncClient(endpoints, transport="session"))
    return ours.put


async def execute(arguments: argparse.Namespace) -> Outcome:
    """Run the tasks for the warm-up and the measured time."""
    outcome, errors = Outcome(), Counter[str]()
    latencies: list[float] = []
    value = value_of(arguments.value_bytes)
    async with AsyncExitStack() as stack:
        put = await connect(arguments.client, arguments.endpoints.split(","), stack)
        begin = time.perf_counter() + arguments.warmup_s
        end = begin + arguments.seconds

        async def task(number: int) -> None:
            rng = random.Random(number)
            while (then := time.perf_counter()) < end:
                name = key(rng.randrange(arguments.keys))
                try:
                    await put(name, value)
                except Exception as error:  # noqa: BLE001  counted by kind; any makes it unclean
                    errors[f"{type(error).__name__}: {error}"[:200]] += 1
                    if sum(errors.values()) > 10_000:
                        return
                else:
                    outcome.acknowledged_puts += 1
                    now = time.perf_counter()
                    if begin <= now < end:
                        latencies.append(now - then)

        await asyncio.gather(*(task(number) for number in range(arguments.tasks)))
    outcome.seconds = arguments.seconds
    outcome.operations = len(latencies)
    outcome.acknowledged = outcome.acknowledged_puts
    outcome.rate = outcome.operations / outcome.seconds
    outcome.put_ms = percentiles(latencies)
    outcome.errors = dict(errors.most_common(20))
    return outcome


def main() -> None:
    """Run the program of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--client", choices=("grpc-aio", "kvstore"), required=True)
    parser.add_argument("--endpoints", required=True, help="host:port, comma-separated")
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warmup-s", type=float, default=1.0)
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--value-bytes", type=int, default=256)
    print(json.dumps(asdict(uvloop.run(execute(parser.parse_args())))))


if __name__ == "__main__":
    main()
