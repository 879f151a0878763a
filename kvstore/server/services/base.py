"""What every service needs: parse a request, answer with an error of the table."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message

from kvstore.rpc import Call
from kvstore.server.errors import Code, wire_error

M = TypeVar("M", bound=Message)
M_co = TypeVar("M_co", bound=Message, covariant=True)


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
