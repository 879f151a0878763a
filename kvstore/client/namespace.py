"""A view of the keys below a prefix: added to what is asked, taken off what comes; keeps no state.

It works on the API's messages, between the client's methods and the transport. So every method,
also those that are not written yet, sees the namespace as if it were the whole store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import Message

from kvstore.client.carrier import Carrier, View
from kvstore.client.errors import KvError
from kvstore.client.keys import TO_THE_END, prefix_end
from kvstore.client.methods import (
    DELETE_RANGE,
    LEASE_TIME_TO_LIVE,
    PUT,
    RANGE,
    TXN,
    WATCH,
    Method,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kvstore.client.link import Link
    from kvstore.client.transport import PipelineCall
    from kvstore.pb import rpc_pb2 as pb

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

_OPERATIONS: dict[str, Method[Any, Any]] = {
    "request_range": RANGE,
    "request_put": PUT,
    "request_delete_range": DELETE_RANGE,
}
_ANSWERS: dict[str, Method[Any, Any]] = {
    "response_range": RANGE,
    "response_put": PUT,
    "response_delete_range": DELETE_RANGE,
}


class Namespace(View):
    """A transport that puts a prefix before every key, and takes it off again."""

    def __init__(self, carrier: Carrier, prefix: bytes) -> None:
        if not prefix:
            raise ValueError("a namespace needs a prefix of 1 byte or more")
        super().__init__(carrier)
        self._prefix = prefix
        self._end = prefix_end(prefix)

    async def call(
        self,
        method: Method[Request, Response],
        request: Request,
        *,
        write: bool,
        timeout_s: float | None = None,
        endpoint: str | None = None,
        require_leader: bool = True,
    ) -> Response:
        """As `Carrier.call`."""
        response = await super().call(
            method,
            self._asked(method, request),
            write=write,
            timeout_s=timeout_s,
            endpoint=endpoint,
            require_leader=require_leader,
        )
        self._strip(method, response)
        return response

    async def pipeline(
        self, calls: Sequence[PipelineCall], timeout_s: float | None = None
    ) -> list[Message | KvError]:
        """As `Carrier.pipeline`."""
        asked = [(method, self._asked(method, request), write) for method, request, write in calls]
        answers = await super().pipeline(asked, timeout_s)
        for (method, _, _), answer in zip(calls, answers, strict=True):
            if not isinstance(answer, KvError):
                self._strip(method, answer)
        return answers

    async def open_stream(self, method: Method[Any, Any]) -> tuple[Link, Any]:
        """As `Carrier.open_stream`."""
        link, stream = await super().open_stream(method)
        return link, _WatchStream(self, stream) if method is WATCH else stream

    def _asked(self, method: Method[Any, Any], request: Request) -> Request:
        """Return the request with the prefix; the caller's own stays as it is, for its retries."""
        if method not in _KEYED:
            return request
        asked = type(request)()
        asked.CopyFrom(request)
        self._prefix_keys(method, asked)
        return asked

    def _prefix_keys(self, method: Method[Any, Any], request: Any) -> None:
        if method is TXN:
            self._prefix_txn(request)
        elif method is PUT:
            # An empty key must stay one, for the server to refuse.
            request.key = request.key and self._prefix + request.key
        else:
            self.prefix_range(request)

    def prefix_range(self, message: Any) -> None:
        """Put the prefix before a message's `key` and `range_end`."""
        if not message.key and not message.range_end:
            return
        if message.range_end == TO_THE_END:
            message.range_end = self._end
        elif message.range_end:
            message.range_end = self._prefix + message.range_end
        message.key = self._prefix + message.key

    def _prefix_txn(self, txn: pb.TxnRequest) -> None:
        for comparison in txn.compare:
            self.prefix_range(comparison)
        for operation in (*txn.success, *txn.failure):
            kind = operation.WhichOneof("request")
            assert kind is not None
            method = TXN if kind == "request_txn" else _OPERATIONS[kind]
            self._prefix_keys(method, getattr(operation, kind))

    def _strip(self, method: Method[Any, Any], response: Any) -> None:
        if method is RANGE:
            self._strip_all(response.kvs)
        elif method is PUT:
            if response.HasField("prev_kv"):
                self._strip_all((response.prev_kv,))
        elif method is DELETE_RANGE:
            self._strip_all(response.prev_kvs)
        elif method is TXN:
            for answer in response.responses:
                kind = answer.WhichOneof("response")
                inner = TXN if kind == "response_txn" else _ANSWERS[kind]
                self._strip(inner, getattr(answer, kind))
        elif method is LEASE_TIME_TO_LIVE:
            # A lease is the cluster's, not the namespace's: it may hold keys of others too.
            ours = [key[len(self._prefix) :] for key in response.keys if self._holds(key)]
            response.keys[:] = ours

    def _holds(self, key: bytes) -> bool:
        return key.startswith(self._prefix)

    def _strip_all(self, kvs: Any) -> None:
        for kv in kvs:
            assert self._holds(kv.key), kv.key
            kv.key = kv.key[len(self._prefix) :]

    def strip_events(self, response: pb.WatchResponse) -> None:
        """Take the prefix off the keys of a watch's answer."""
        for event in response.events:
            self._strip_all((event.kv, event.prev_kv) if event.HasField("prev_kv") else (event.kv,))


_KEYED = frozenset({RANGE, PUT, DELETE_RANGE, TXN})


class _WatchStream:
    """A watch's stream with the keys changed in both directions."""

    def __init__(self, namespace: Namespace, stream: Any) -> None:
        self._namespace = namespace
        self._stream = stream

    async def write(self, request: pb.WatchRequest) -> None:
        if request.HasField("create_request"):
            asked = type(request)()
            asked.CopyFrom(request)
            # As the server does with an empty key, which here would be a key outside.
            asked.create_request.key = asked.create_request.key or b"\0"
            self._namespace.prefix_range(asked.create_request)
            request = asked
        await self._stream.write(request)

    async def read(self) -> Any:
        response = await self._stream.read()
        if hasattr(response, "events"):  # else the end of the stream
            self._namespace.strip_events(response)
        return response

    def on_end(self, call: Callable[[], None]) -> None:
        self._stream.on_end(call)

    def cancel(self) -> Any:
        return self._stream.cancel()
