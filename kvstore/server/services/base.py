"""What every service needs: parse a request, answer with an error of the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message

from kvstore.pb import rpc_pb2
from kvstore.rpc import StreamHandler
from kvstore.server.errors import (
    NOT_FOR_LEARNER,
    Code,
    NoLeaderError,
    RefusedRequestError,
    wire_error,
)

M = TypeVar("M", bound=Message)
M_co = TypeVar("M_co", bound=Message, covariant=True)


class ServiceCall(Protocol):
    """A call as services see it: `kvstore.rpc.Call`, or the same inside a session.

    Handlers are annotated with it and not with `kvstore.rpc.Call`: compiled modules check their
    arguments, and would refuse a session's calls.
    """

    @property
    def cancelled(self) -> bool:
        """Whether the client is gone, or its deadline is over."""

    @property
    def unsent_bytes(self) -> int:
        """Bytes of `send` that wait for the client."""

    @property
    def peer(self) -> str:
        """The client's `host:port`."""

    @property
    def peer_certificate(self) -> dict[str, Any] | None:
        """The client's verified certificate."""

    def metadata(self, name: bytes) -> bytes | None:
        """Return a metadata field; ValueError for bad base64."""

    def reply(self, message: bytes) -> None:
        """Answer with success. Nothing happens when the call is gone, here and below."""

    def reply_parts(self, parts: Sequence[bytes], size_bytes: int) -> None:
        """Answer with a message in parts."""

    def fail(self, code: int, text: str, metadata: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """Answer with an error status."""

    def send(self, message: bytes) -> bool:
        """Queue one message of a stream; False above the high-water mark."""

    def send_all(self, messages: Sequence[bytes]) -> bool:
        """Queue several messages of a stream, as `send` does each."""

    def finish(
        self, code: int = 0, text: str = "", metadata: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        """End with a status, after everything that was sent."""

    def pause_receiving(self) -> None:
        """Deliver no more messages of a stream."""

    def resume_receiving(self) -> None:
        """Deliver messages again."""


Unary = Callable[[ServiceCall, bytes], None]
"""Serves a method with one request and one reply."""

Stream = Callable[[ServiceCall], StreamHandler]
"""Serves a method with streams."""


class Routes(Protocol):
    """Where a service registers its methods; `kvstore.rpc.Server` fits."""

    def unary(self, path: str, handler: Unary) -> None:
        """Serve a method with one request and one reply."""

    def stream(self, path: str, handler: Stream) -> None:
        """Serve a method with streams."""


class LeaderGuard:
    """Refuses calls that ask for a member with a leader, while this one has none.

    Clients say so with the metadata `hasleader: true`, to find out at once and go elsewhere.
    """

    def __init__(self, routes: Routes, has_leader: Callable[[], bool]) -> None:
        """Stand in front of `routes`."""
        self._routes = routes
        self._has_leader = has_leader

    def unary(self, path: str, handler: Unary) -> None:
        """Serve a method behind the guard."""
        has_leader = self._has_leader

        def guarded(call: ServiceCall, data: bytes) -> None:
            if not has_leader() and call.metadata(b"hasleader") == b"true":
                fail(call, NoLeaderError())
            else:
                handler(call, data)

        self._routes.unary(path, guarded)

    def stream(self, path: str, handler: Stream) -> None:
        """Streams watch for themselves whether the leader is lost."""
        self._routes.stream(path, handler)


class LearnerGuard:
    """Refuses what a learner does not serve: all but serializable ranges and its status.

    What is not etcd's API (`grpc.health.v1`) is served: a learner is healthy.
    """

    def __init__(self, routes: Routes, is_learner: Callable[[], bool]) -> None:
        """Stand in front of `routes`."""
        self._routes = routes
        self._is_learner = is_learner

    def unary(self, path: str, handler: Unary) -> None:
        """Serve a method behind the guard."""
        if path == "/etcdserverpb.Maintenance/Status" or not path.startswith("/etcdserverpb."):
            self._routes.unary(path, handler)
            return
        is_learner = self._is_learner
        is_range = path == "/etcdserverpb.KV/Range"

        def guarded(call: ServiceCall, data: bytes) -> None:
            if is_learner() and not (is_range and _is_serializable(data)):
                fail(call, RefusedRequestError(*NOT_FOR_LEARNER))
            else:
                handler(call, data)

        self._routes.unary(path, guarded)

    def stream(self, path: str, handler: Stream) -> None:
        """Serve a stream behind the guard."""
        if not path.startswith("/etcdserverpb."):
            self._routes.stream(path, handler)
            return

        def guarded(call: ServiceCall) -> StreamHandler:
            if self._is_learner():
                fail(call, RefusedRequestError(*NOT_FOR_LEARNER))
                return _Refused()
            return handler(call)

        self._routes.stream(path, guarded)


def _is_serializable(data: bytes) -> bool:
    try:
        return bool(rpc_pb2.RangeRequest.FromString(data).serializable)
    except DecodeError:
        return False


class _Refused:
    """The handler of a stream that was refused when it was opened."""

    def message(self, data: bytes) -> None:
        """The client may not know yet."""

    def half_closed(self) -> None:
        """Nothing is owed."""

    def cancelled(self) -> None:
        """Nothing is kept."""

    def writable(self) -> None:
        """Nothing is sent."""


class Parser(Protocol[M_co]):
    """`SomeRequest.FromString`."""

    def __call__(self, data: bytes, /) -> M_co:
        """Return the message."""


def parse(call: ServiceCall, parser: Parser[M], data: bytes) -> M | None:
    """Return the request, or answer the call as grpc-go does and return None."""
    try:
        return parser(data)
    except DecodeError as error:
        call.fail(Code.INTERNAL, f"grpc: error unmarshalling request: {error}")
        return None


def fail(call: ServiceCall, error: Exception) -> None:
    """Answer with the error's code and text. Raises KeyError for one outside the table."""
    code, text = wire_error(error)
    call.fail(int(code), text)


def with_header(header: bytes, rest: bytes = b"") -> bytes:
    """Return a response message: field 1 is the header, then the encoded rest."""
    return b"\x0a" + bytes([len(header)]) + header + rest


def message_with_header(header: bytes, message: Any) -> bytes:
    """Return an encoded response whose header field was left empty, with the header in front."""
    return with_header(header, message.SerializeToString())
