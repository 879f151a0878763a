"""A request's header list, checked and understood once for all calls that repeat its block."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvstore.rpc import grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kvstore.http2.hpack import Field

_NAME_LEGAL = re.compile(rb":?[!#$%&'*+\-.^_`|~0-9a-z]+").fullmatch
_VALUE_ILLEGAL = re.compile(rb"[\x00\r\n]|^[ \t]|[ \t]\Z").search
_CONNECTION_FIELDS = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade")
)
_PSEUDO_FIELDS = frozenset((b":method", b":scheme", b":path", b":authority"))
_CONTENT_LENGTH_DIGITS_MAX = 15
_TALLIES_MAX = 16
_TALLY_TEXT = re.compile(rb"[!-~]{1,64}").fullmatch


class MalformedError(Exception):
    """The request breaks RFC 9113 8.2 or 8.3: a stream error of type PROTOCOL_ERROR."""


@dataclass(slots=True)
class Tally:
    """Calls of one method by clients that say the same of themselves."""

    started: int = 0
    """Calls that reached the method."""


@dataclass(slots=True)
class Route:
    """What serves one gRPC method."""

    path: str
    handler: Callable[..., Any]
    unary: bool
    tally_by: bytes = b""
    """Metadata field by whose value calls are counted apart; empty: not apart."""
    tallies: dict[str, Tally] = field(default_factory=dict)
    """By the field's value, "unknown" without one."""
    received: int = 0
    """Messages of streams; a unary call has one."""
    sent: int = 0
    """As `received`."""
    on_handled: Callable[[float], None] | None = None
    """Takes the seconds of every call that ended. Calls then take the general path, which is
    slower by some microseconds."""
    failed: dict[int, int] = field(default_factory=dict)
    """Calls that ended, by gRPC code, but for OK: the hot path of replies counts nothing."""

    def tally(self, value: bytes | None) -> Tally:
        """Return where to count calls with this value of the field; "other" past 16 values."""
        name = "unknown"
        if value is not None:
            name = value.decode() if _TALLY_TEXT(value) else "other"
        if name not in self.tallies and len(self.tallies) >= _TALLIES_MAX:
            name = "other"
        return self.tallies.setdefault(name, Tally())


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is ready before any handler runs."""

    http_status: int
    code: int
    text: str


class Head:
    """One request head. Shared between calls, so nothing in it changes."""

    __slots__ = (
        "content_length",
        "encoding",
        "fields",
        "method",
        "path",
        "quick",
        "refusal",
        "route",
        "tally",
        "timeout_s",
    )

    def __init__(self, fields: list[Field], method: bytes, path: str, content_length: int) -> None:
        self.fields = fields
        self.method = method
        self.path = path
        self.content_length = content_length
        """Announced bytes of the body, -1 when not announced."""
        self.route: Route | None = None
        self.tally: Tally | None = None
        """Where calls with this head are counted; there is one when there is a route."""
        self.refusal: Refusal | None = None
        self.timeout_s: float | None = None
        self.encoding = b""
        self.quick = False
        """A unary gRPC call without compression: the engine's inlined paths may serve it."""

    def get(self, name: bytes) -> bytes | None:
        """Return the first value of a field, as sent."""
        for known, value in self.fields:
            if known == name:
                return value
        return None


def check_fields(fields: list[Field]) -> None:
    """Check every name and value (RFC 9113 8.2.1). MalformedError."""
    for name, value in fields:
        if _NAME_LEGAL(name) is None or _VALUE_ILLEGAL(value) is not None:
            raise MalformedError


def check_trailers(fields: list[Field] | None, *, ends: bool) -> None:
    """Check a trailer section: it ends the stream, no pseudo-header fields (RFC 9113 8.1).

    None stands for a list over the limit. MalformedError.
    """
    if fields is None or not ends:
        raise MalformedError
    for name, _ in fields:
        if name[:1] == b":" or name in _CONNECTION_FIELDS:
            raise MalformedError


def parse(
    fields: list[Field], routes: Mapping[bytes, Route], services: set[str], *, http: bool
) -> Head:
    """Understand a request head; names and values are legal already. MalformedError.

    `http` says that a handler for requests without gRPC exists.
    """
    table = dict(fields)
    regular_seen = False
    pseudo_count = 0
    for name, _ in fields:
        if name[0] == 0x3A:  # a pseudo-header field
            if regular_seen or name not in _PSEUDO_FIELDS:
                raise MalformedError
            pseudo_count += 1
        else:
            regular_seen = True
    method = table.get(b":method")
    path = table.get(b":path")
    if (
        not method
        or not path
        or b":scheme" not in table
        or pseudo_count != 3 + (b":authority" in table)  # a repeated one counts twice
        or not _CONNECTION_FIELDS.isdisjoint(table)
        or table.get(b"te", b"trailers") != b"trailers"
    ):
        raise MalformedError
    announced = table.get(b"content-length")
    content_length = -1
    if announced is not None:
        if not announced.isdigit() or len(announced) > _CONTENT_LENGTH_DIGITS_MAX:
            raise MalformedError
        content_length = int(announced)

    route = routes.get(path)
    head = Head(fields, method, route.path if route else path.decode("latin-1"), content_length)
    content_type = table.get(b"content-type", b"")
    if not content_type.startswith(b"application/grpc"):
        if not http:
            head.refusal = _unsupported(content_type)
        return head
    if content_type != b"application/grpc" and not _is_grpc(content_type):
        head.refusal = _unsupported(content_type)
    elif method != b"POST":
        shown = method.decode("latin-1")
        text = f'Received a HEADERS frame with :method "{shown}" which should be POST'
        head.refusal = Refusal(405, grpc.INTERNAL, text)
    elif route is None:
        text = grpc.unknown_method_text(head.path, services)
        head.refusal = Refusal(200, grpc.UNIMPLEMENTED, text)
    else:
        _grpc_fields(head, table, route)
    return head


def _grpc_fields(head: Head, table: dict[bytes, bytes], route: Route) -> None:
    head.route = route
    head.tally = route.tally(table.get(route.tally_by) if route.tally_by else None)
    timeout = table.get(b"grpc-timeout")
    if timeout is not None:
        try:
            head.timeout_s = grpc.parse_timeout(timeout)
        except ValueError as error:
            head.refusal = Refusal(400, grpc.INTERNAL, str(error))
            return
    encoding = table.get(b"grpc-encoding")
    if encoding is not None and encoding != b"identity":
        head.encoding = encoding
    head.quick = route.unary and not head.encoding and route.on_handled is None


def _is_grpc(content_type: bytes) -> bool:
    # application/grpc, application/grpc+proto, either with parameters. Other codecs we have not.
    return content_type.split(b";", 1)[0].strip() in {
        b"application/grpc",
        b"application/grpc+proto",
    }


def _unsupported(content_type: bytes) -> Refusal:
    text = f'invalid gRPC request content-type "{content_type.decode("latin-1")}"'
    return Refusal(415, grpc.INVALID_ARGUMENT, text)
