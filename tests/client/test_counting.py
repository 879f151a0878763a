"""What a client says of itself: counters and OpenTelemetry spans; and endpoints it finds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from kvstore.client import (
    AsyncClient,
    Client,
    LeaseNotFoundError,
    NoLeaderError,
    Op,
    OutcomeUnknownError,
    UnreachableError,
)
from tests.client.proxy import Proxy

if TYPE_CHECKING:
    from tests.servers import Cluster


async def test_calls_failures_and_retries_are_counted(server: Cluster, prefix: bytes) -> None:
    async with AsyncClient(["127.0.0.1:1", *server.endpoints]) as client:
        await client.put(prefix, b"")
        await client.get(prefix)
        with pytest.raises(LeaseNotFoundError):
            await client.put(prefix, b"", lease=404)
        await client.pipeline().then(Op.put(prefix, b""), Op.get(prefix)).commit()
        async with client.lease(60), client.watch(prefix):
            during = client.statistics()
        lease = await client.lease(60).start()
        await client.lease_revoke(lease.lease_id)
        after = client.statistics()
    assert (after.calls["KV/Put"], after.calls["KV/Range"]) == (2, 1 if after.pipelined else 2)
    assert after.failures == {"LeaseNotFoundError": 1}
    assert (after.failovers, after.retries) == (1, 1)
    assert after.pipelined == 2
    assert (during.leases_kept, during.watch_registrations) == (1, 1)


async def test_resumptions_and_lost_leases_are_counted(server: Cluster, prefix: bytes) -> None:
    async with (
        Proxy(server.endpoints[0]) as proxy,
        AsyncClient([proxy.endpoint]) as client,
        AsyncClient(server.endpoints) as other,
        client.watch(prefix) as watcher,
    ):
        await proxy.cut()
        await other.put(prefix, b"")
        await asyncio.wait_for(anext(watcher), 20)
        lease = await client.lease(2).start()
        await proxy.refuse()
        await asyncio.wait_for(lease.wait_lost(), 20)
        counts = client.statistics()
    assert counts.watch_resumptions == 1
    assert (counts.leases_lost, counts.leases_kept) == (1, 0)


async def test_each_call_is_a_span(server: Cluster, prefix: bytes) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with AsyncClient(server.endpoints, tracer_provider=provider) as client:
        await client.put(prefix, b"")
        with provider.get_tracer("test").start_as_current_span("outer") as outer:
            await client.namespace(prefix).get(b"k")
        with pytest.raises(LeaseNotFoundError):
            await client.put(prefix, b"", lease=404)
        await client.pipeline().then(Op.put(prefix, b""), Op.get(prefix)).commit()
    put, get, _, refused, pipeline = exporter.get_finished_spans()
    host, _, port = server.endpoints[0].partition(":")
    assert (put.name, put.kind) == ("etcdserverpb.KV/Put", SpanKind.CLIENT)
    assert put.attributes == {
        "rpc.system": "grpc",
        "rpc.service": "etcdserverpb.KV",
        "rpc.method": "Put",
        "rpc.grpc.status_code": 0,
        "server.address": host,
        "server.port": int(port),
    }
    assert get.parent is not None
    assert get.parent.span_id == outer.get_span_context().span_id
    assert refused.attributes is not None
    assert refused.attributes["rpc.grpc.status_code"] == 5  # NOT_FOUND
    assert refused.attributes["error.type"] == "LeaseNotFoundError"
    assert refused.status.status_code is StatusCode.ERROR
    assert [event.name for event in refused.events] == ["exception"]
    assert pipeline.attributes is not None
    assert pipeline.attributes["kvstore.operations"] == 2
    assert prefix.decode() not in put.to_json(), "keys and values are nobody's business"


async def test_a_call_that_never_left_has_no_status_code() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with AsyncClient(["127.0.0.1:1"], tracer_provider=provider, timeout_s=0.2) as client:
        with pytest.raises(UnreachableError):
            await client.get(b"k")
    [span] = exporter.get_finished_spans()
    assert span.attributes is not None
    assert "rpc.grpc.status_code" not in span.attributes


async def test_endpoints_are_those_of_the_members(three: Cluster) -> None:
    async with AsyncClient(three.endpoints[1:2], timeout_s=10) as client:
        await client.put(b"k", b"v")
        assert set(await client.sync_endpoints()) == set(three.endpoints)
        assert client._transport.link().endpoint.target == three.endpoints[1], "stays where it is"
        await asyncio.to_thread(three.kill, 1)
        # Without the others this client would be alone with a dead member.
        kv = await client.get(b"k")
        assert kv is not None
        try:
            await client.put(b"k", b"w")
        except (NoLeaderError, OutcomeUnknownError):
            assert await client.get(b"k") is not None


async def test_endpoints_are_looked_up_again_and_again(three: Cluster) -> None:
    async with AsyncClient(three.endpoints[:1], timeout_s=5) as client:
        assert len(await client.sync_endpoints(every_s=0.05)) == 3
        await client._transport.use_endpoints(three.endpoints[:1])  # as if members had come since
        async with asyncio.timeout(20):
            while len(client.endpoints) < 3:  # noqa: ASYNC110 the work of another task
                await asyncio.sleep(0.01)
        with pytest.raises(ValueError, match="every_s"):
            await client.sync_endpoints(every_s=0)


def test_without_asyncio(server: Cluster, prefix: bytes) -> None:
    with Client(server.endpoints) as client:
        client.put(prefix, b"")
        assert client.statistics().calls == {"KV/Put": 1}
        assert client.sync_endpoints() == client.endpoints
