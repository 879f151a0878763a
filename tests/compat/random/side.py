"""One of the two members: its process, calls and streams; compares nothing."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc

from kvstore.pb import rpc_pb2
from tests.servers import Cluster, Etcd, Kvstore

if TYPE_CHECKING:
    from collections.abc import Callable

ANSWER_S = 20.0
"""For one answer. etcd itself takes 7 s at most, the rest is for busy machines."""

REQUEST_SIZE_MAX = 64 << 10
"""Of both members, so that a request that is too large, or a fragment, is small enough to draw."""

TXN_OPS_MAX = 8

_FLAGS = (
    # The same ids for both, so that headers are compared whole; they listen elsewhere.
    *("--initial-advertise-peer-urls", "http://127.0.0.1:2380"),
    *("--initial-cluster", "e1=http://127.0.0.1:2380"),
    *("--advertise-client-urls", "http://127.0.0.1:2379"),
    *("--max-request-bytes", str(REQUEST_SIZE_MAX)),
    *("--max-txn-ops", str(TXN_OPS_MAX)),
)

_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]

WATCH = "/etcdserverpb.Watch/Watch"
KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"


@dataclass(frozen=True)
class Failure:
    """An error as a client gets it."""

    code: str
    text: str


Tamper = Callable[[Any], list[Any]] if TYPE_CHECKING else Any
"""Takes an answer and returns what stands in its place: for planted differences."""


class Stream:
    """A bidirectional stream whose messages are collected as they come."""

    def __init__(self, side: Side, path: str, request: Any, response: Any) -> None:
        self.messages: list[Any] = []
        self.ended: Failure | None = None
        self._side = side
        self._call = side.channel.stream_stream(
            path,
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )()
        self._news = asyncio.Event()
        self._reader = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        try:
            while (message := await self._call.read()) is not grpc.aio.EOF:
                self.messages.extend(self._side.tampered(message))
                self._news.set()
            self.ended = Failure("OK", "")
        except grpc.aio.AioRpcError as error:
            self.ended = Failure(error.code().name, error.details() or "")
        self._news.set()

    async def send(self, message: Any) -> None:
        await self._call.write(message)

    async def wait(self, ready: Callable[[], bool]) -> bool:
        """Wait until `ready()`; tell whether that came true in time and before the stream's end."""
        deadline = asyncio.get_running_loop().time() + ANSWER_S
        while not ready():
            left_s = deadline - asyncio.get_running_loop().time()
            if self.ended is not None or left_s <= 0:
                return False
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), left_s)
        return True

    async def close(self) -> None:
        self._call.cancel()
        # The reader must be gone before the loop is; its end is the cancellation just asked for.
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader


class Side:
    """One member and a client of it. `tamper` stands between them, for planted differences."""

    def __init__(self, name: str, cluster: Cluster, tamper: Tamper | None = None) -> None:
        self.name = name
        self.cluster = cluster
        self.tamper = tamper
        self.term = 0
        self._calls: dict[type, Any] = {}

    async def connect(self) -> None:
        """Open a channel to the member, which runs."""
        self.channel = grpc.aio.insecure_channel(self.cluster.endpoints[0], options=_OPTIONS)
        self._calls.clear()
        status = await self.call(rpc_pb2.StatusRequest())
        assert not isinstance(status, Failure), status
        self.term = status.header.raft_term

    async def close(self) -> None:
        """Close the channel; the member runs on."""
        await self.channel.close()

    async def call(self, request: Any) -> Any:
        """Return the response or the `Failure`."""
        kind = type(request)
        if kind not in self._calls:
            path, response = UNARY[kind]
            self._calls[kind] = self.channel.unary_unary(
                path,
                request_serializer=kind.SerializeToString,
                response_deserializer=response.FromString,
            )
        answer = await self._answer(self._calls[kind](request, timeout=ANSWER_S))
        return self.tampered(answer)[0]

    def tampered(self, answer: Any) -> list[Any]:
        """Return what stands in an answer's place."""
        return [answer] if self.tamper is None else self.tamper(answer)

    async def raw(self, path: str, data: bytes) -> Any:
        """Send bytes to a path; return the response's bytes or the `Failure`."""
        return await self._answer(self.channel.unary_unary(path)(data, timeout=ANSWER_S))

    @staticmethod
    async def _answer(call: Any) -> Any:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            return Failure(error.code().name, error.details() or "")

    def watch(self) -> Stream:
        return Stream(self, WATCH, rpc_pb2.WatchRequest, rpc_pb2.WatchResponse)

    def keep_alive(self) -> Stream:
        return Stream(
            self, KEEP_ALIVE, rpc_pb2.LeaseKeepAliveRequest, rpc_pb2.LeaseKeepAliveResponse
        )


def _unary() -> dict[type, tuple[str, type]]:
    found = {}
    for service in rpc_pb2.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            if not method.client_streaming and not method.server_streaming:
                request = getattr(rpc_pb2, method.input_type.name)
                response = getattr(rpc_pb2, method.output_type.name)
                found[request] = (f"/{service.full_name}/{method.name}", response)
    return found


UNARY = _unary()


def clusters() -> tuple[Cluster, Cluster]:
    """Return etcd and ours, one member each, not started."""
    return Etcd(1, _FLAGS), Kvstore(1, _FLAGS)
