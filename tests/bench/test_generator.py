"""The generator against servers that answer well, badly and not at all."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
import pytest

from bench.generator import execute
from bench.load import Load, draws, key, percentiles
from bench.measure import Driver, null_server
from bench.messages import framed
from bench.null_server import NullConnection, message
from bench.profiles import CALLS, NAMES
from kvstore.pb import rpc_pb2

LOAD = Load(targets=[], connections=2, streams=5, seconds=0.3, warmup_s=0.1, keys=100)


class Service(grpc.GenericRpcHandler):
    """A real gRPC server that keeps what it was sent."""

    def __init__(self) -> None:
        self.puts: list[tuple[bytes, bytes]] = []
        self.ranges: list[bytes] = []
        self.refuse_every = 0

    def service(
        self, details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        if details.method.endswith("/Put"):
            return grpc.unary_unary_rpc_method_handler(self._put)
        return grpc.unary_unary_rpc_method_handler(self._range)

    def _put(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        request = rpc_pb2.PutRequest.FromString(data)
        self.puts.append((request.key, request.value))
        if self.refuse_every and len(self.puts) % self.refuse_every == 0:
            context.abort(grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader, 100 %")
        return message("put")

    def _range(self, data: bytes, _: grpc.ServicerContext) -> bytes:
        self.ranges.append(rpc_pb2.RangeRequest.FromString(data).key)
        return message("range", 16)


@pytest.fixture
def served():  # type: ignore[no-untyped-def]
    """Yield a grpcio server's service and target."""
    service = Service()
    server = grpc.server(ThreadPoolExecutor(4), handlers=[service])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield service, f"127.0.0.1:{port}"
    server.stop(None).wait()


async def test_a_sequence_writes_each_key_once(served: tuple[Service, str]) -> None:
    service, target = served

    outcome = await execute(
        replace(LOAD, targets=[target], requests=500, distribution="sequence", value_bytes=20)
    )

    assert outcome.problems() == []
    assert outcome.acknowledged_puts == outcome.operations == 500
    assert sorted(service.puts) == [(key(number), b"v" * 20) for number in range(500)]


@pytest.mark.parametrize("profile", NAMES)
async def test_a_real_server_understands_every_profile(
    profile: str, served: tuple[Service, str]
) -> None:
    # More calls on the connection than a recording has: the replay starts over.
    service, target = served
    load = replace(LOAD, targets=[target], connections=1, put_share=0.5, value_bytes=16)

    outcome = await execute(replace(load, requests=CALLS + 100, profile=profile))

    assert outcome.problems() == []
    assert len(service.puts) == outcome.acknowledged_puts
    assert len(service.ranges) == CALLS + 100 - outcome.acknowledged_puts
    assert service.puts
    assert service.ranges


async def test_large_values_pass_the_flow_control_window(served: tuple[Service, str]) -> None:
    # 64 KiB and its framing do not fit into the first window of a stream.
    service, target = served

    outcome = await execute(replace(LOAD, targets=[target], requests=60, value_bytes=65_536))

    assert outcome.problems() == []
    assert {len(value) for _, value in service.puts} == {65_536}


async def test_refusals_are_counted_with_their_text(served: tuple[Service, str]) -> None:
    service, target = served
    service.refuse_every = 4

    outcome = await execute(replace(LOAD, targets=[target], requests=200))

    assert outcome.errors == {"grpc-status 14: etcdserver: no leader, 100 %": 50}
    assert outcome.acknowledged_puts == outcome.operations == 150
    assert outcome.problems()


async def test_a_range_without_its_value_is_a_problem(served: tuple[Service, str]) -> None:
    # The service's values have 16 bytes: a store that lost what was loaded looks like this.
    _, target = served

    outcome = await execute(
        replace(LOAD, targets=[target], requests=50, put_share=0.0, value_bytes=4_000)
    )

    assert outcome.short_replies == 50
    assert outcome.problems()


class Breaking(NullConnection):
    """Answers the first requests, then drops the connection."""

    def __init__(self) -> None:
        super().__init__(message("put"))
        self._turns = 0

    def data_received(self, data: bytes) -> None:
        self._turns += 1
        if self._turns > 3:
            self._transport.abort()
        else:
            super().data_received(data)


async def test_a_broken_connection_is_not_success() -> None:
    loop = asyncio.get_running_loop()
    async with await loop.create_server(Breaking, "127.0.0.1", 0) as server:
        target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

        outcome = await execute(replace(LOAD, targets=[target], connections=1))

    assert outcome.unanswered == 5
    assert outcome.problems()


class Silent(NullConnection):
    """Replies with status 0, but without a message."""

    def __init__(self) -> None:
        super().__init__(b"")


async def test_a_reply_without_a_message_is_not_success() -> None:
    loop = asyncio.get_running_loop()
    async with await loop.create_server(Silent, "127.0.0.1", 0) as server:
        target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

        outcome = await execute(replace(LOAD, targets=[target], requests=40))

    assert outcome.short_replies == 40


async def test_a_timed_run_measures_the_middle_only() -> None:
    driver = Driver("generator", LOAD)
    with null_server(driver, "etcd") as target:
        outcome = await execute(replace(LOAD, targets=[target]))

    assert outcome.problems() == []
    assert 0 < outcome.operations < outcome.acknowledged
    assert outcome.rate == pytest.approx(outcome.operations / outcome.seconds)
    assert outcome.put_ms["p50"] <= outcome.put_ms["p99"] <= outcome.put_ms["max"]


def test_percentiles_of_known_samples() -> None:
    found = percentiles([number / 1e3 for number in range(1, 1_001)])

    assert found == {"p50": 501.0, "p90": 900.0, "p99": 990.0, "p99.9": 999.0, "max": 1000.0}


def test_zipf_prefers_few_keys_and_uniform_does_not() -> None:
    def distinct(distribution: str) -> int:
        load = replace(LOAD, keys=10_000, distribution=distribution, value_bytes=16)
        return len({payload for _, payload in draws(load, 0)})

    assert distinct("one") == 1
    assert distinct("uniform") > 9_900
    assert distinct("zipf") < 9_000


def test_mixed_sizes_cover_the_whole_span() -> None:
    sizes = sorted(len(payload) for _, payload in draws(replace(LOAD, value_bytes=0), 0))

    overhead = len(framed(b"")) + 40
    assert sizes[0] < 32 + overhead
    assert sizes[-1] > 50_000
    # Each size class equally likely: as many below the middle power of two as above.
    assert sizes[len(sizes) // 2] == pytest.approx(1_024, rel=0.4)
