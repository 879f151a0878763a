"""What every service needs: parse a request, answer with an error of the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message

from kvstore.rpc import Call, StreamHandler
from kvstore.server.errors import Code, NoLeaderError, wire_error

M = TypeVar("M", bound=Message)
M_co = TypeVar("M_co", bound=Message, covariant=True)


class Routes(Protocol):
    """Where a service registers its methods; `kvstore.rpc.Server` fits."""

    def unary(self, path: str, handler: Callable[[Call, bytes], None]) -> None:
        """Serve a method with one request and one reply."""

    def stream(self, path: str, handler: Callable[[Call], StreamHandler]) -> None:
        """Serve a method with streams."""


class LeaderGuard:
    """Refuses calls that ask for a member with a leader, while this one has none.

    Clients say so with the metadata `hasleader: true`, to find out at once and go elsewhere.
    """

    def __init__(self, routes: Routes, has_leader: Callable[[], bool]) -> None:
        """Stand in front of `routes`."""
        self._routes = routes
        self._has_leader = has_leader

    def unary(self, path: str, handler: Callable[[Call, bytes], None]) -> None:
        """Serve a method behind the guard."""
        has_leader = self._has_leader

        def guarded(call: Call, data: bytes) -> None:
            if not has_leader() and call.metadata(b"hasleader") == b"true":
                fail(call, NoLeaderError())
            else:
                handler(call, data)

        self._routes.unary(path, guarded)

    def stream(self, path: str, handler: Callable[[Call], StreamHandler]) -> None:
        """Streams watch for themselves whether the leader is lost."""
        self._routes.stream(path, handler)


class Parser(Protocol[M_co]):
    """`SomeRequest.FromString`."""

    def __call__(self, data: bytes, /) -> M_co:
        """Return the message."""


def parse(call: Call, parser: Parser[M], data: bytes) -> M | None:
    """Return the request, or answer the call as grpc-go does and return None."""
    try:
        return parser(data)
    except DecodeError as error:
        call.fail(Code.INTERNAL, f"grpc: error unmarshalling request: {error}")
        return None


def fail(call: Call, error: Exception) -> None:
    """Answer with the error's code and text. Raises KeyError for one outside the table."""
    code, text = wire_error(error)
    call.fail(int(code), text)


def with_header(header: bytes, rest: bytes = b"") -> bytes:
    """Return a response message: field 1 is the header, then the encoded rest."""
    return b"\x0a" + bytes([len(header)]) + header + rest


def message_with_header(header: bytes, message: Any) -> bytes:
    """Return an encoded response whose header field was left empty, with the header in front."""
    return with_header(header, message.SerializeToString())
