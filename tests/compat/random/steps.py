"""The steps of a program, their text, and how a step's revisions get their meaning.

A step is one line: its kind and arguments, then the request in protobuf's text format. In a step,
revisions are counted as if the program began on a store at revision 1, zero and below stand for
themselves, and revisions around two far away numbers follow the program: so a step means the same
when the steps before it are taken away.

    call 0 PutRequest key: "a" value: "v"
    call 0 RangeRequest key: "a" revision: 999999       the revision before the current one
    call 0 CompactionRequest revision: 2000001          one above the last compaction
    watch 1 create_request { key: "a" range_end: "c" }  on the program's stream 1
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from google.protobuf import text_format

from kvstore.pb import rpc_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

CURRENT = 1_000_000
"""Stands for the store's current revision; what is added or taken away counts from there."""

COMPACTED = 2_000_000
"""The same for the last compaction's revision."""

_NEAR = 500_000

_REVISIONS = {
    "RangeRequest": (
        "revision",
        "min_mod_revision",
        "max_mod_revision",
        "min_create_revision",
        "max_create_revision",
    ),
    "Compare": ("create_revision", "mod_revision"),
    "CompactionRequest": ("revision",),
    "HashKVRequest": ("revision",),
    "WatchCreateRequest": ("start_revision",),
}


@dataclass(frozen=True)
class Call:
    """A unary request, by its message's type. `pad` is the size of the value of a put, if any.

    A value that long is not written into the text of the step.
    """

    request: Any
    pad: int = 0

    def __str__(self) -> str:
        return f"call {self.pad} {_name_of(self.request)} {_text_of(self.request)}"

    def __hash__(self) -> int:
        return hash(str(self))


@dataclass(frozen=True)
class Watch:
    """A message on one of the program's watch streams; the first one opens it."""

    stream: int
    request: rpc_pb2.WatchRequest

    def __str__(self) -> str:
        return f"watch {self.stream} {_text_of(self.request)}"

    def __hash__(self) -> int:
        return hash(str(self))


@dataclass(frozen=True)
class KeepAlive:
    """A message on the program's keep-alive stream."""

    lease_id: int

    def __str__(self) -> str:
        return f"keepalive {self.lease_id}"


@dataclass(frozen=True)
class ChosenLease:
    """Grant a lease whose id the member chooses, renew it, look at it, revoke it."""

    ttl_s: int

    def __str__(self) -> str:
        return f"chosen-lease {self.ttl_s}"


@dataclass(frozen=True)
class Expiry:
    """Grant a lease of the shortest life with some keys and wait until its end shows."""

    keys: tuple[bytes, ...]

    def __str__(self) -> str:
        return f"expiry {self.keys!r}"


@dataclass(frozen=True)
class Raw:
    """Bytes to a method's path, whatever they are."""

    path: str
    data: bytes

    def __str__(self) -> str:
        return f"raw {self.path} {self.data!r}"


Step = Call | Watch | KeepAlive | ChosenLease | Expiry | Raw


def dump(program: Iterable[Step]) -> str:
    """Return a program's text."""
    return "".join(f"{step}\n" for step in program)


def load(text: str) -> list[Step]:
    """Return the program of a text; empty lines and those that begin with # are comments."""
    lines = (line.strip() for line in text.splitlines())
    return [_step(line) for line in lines if line and not line.startswith("#")]


def _step(line: str) -> Step:
    kind, _, rest = line.partition(" ")
    first, _, others = rest.partition(" ")
    if kind == "call":
        name, _, text = others.partition(" ")
        return Call(text_format.Parse(text, getattr(rpc_pb2, name)()), int(first))
    if kind == "watch":
        return Watch(int(first), text_format.Parse(others, rpc_pb2.WatchRequest()))
    if kind == "keepalive":
        return KeepAlive(int(first))
    if kind == "chosen-lease":
        return ChosenLease(int(first))
    if kind == "expiry":
        return Expiry(ast.literal_eval(rest))
    if kind == "raw":
        return Raw(first, ast.literal_eval(others))
    raise ValueError(f"no step: {line}")


def _name_of(message: Any) -> str:
    name: str = message.DESCRIPTOR.name
    return name


def _text_of(message: Any) -> str:
    return text_format.MessageToString(message, as_one_line=True)


def resolved(request: Any, *, base: int, current: int, compacted: int) -> Any:
    """Return a copy of a request whose revisions are the members' own.

    Args:
        request: As in a step.
        base: What the members call the program's revision 1.
        current: The members' current revision.
        compacted: That of their last compaction.
    """
    copy = type(request)()
    copy.CopyFrom(request)
    for message in walk(copy):
        for name in _REVISIONS.get(_name_of(message), ()):
            number = getattr(message, name)
            # Of a union only the member that is set: writing to another would change the message.
            if number > 0:
                if abs(number - CURRENT) < _NEAR:
                    number += current - CURRENT
                elif abs(number - COMPACTED) < _NEAR:
                    number += compacted - COMPACTED
                elif number < _NEAR:
                    number += base - 1
                setattr(message, name, number)
    return copy


def walk(message: Any) -> Iterable[Any]:
    """Yield a message and all messages in it, outside first."""
    yield message
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for inner in value if descriptor.is_repeated else (value,):
                yield from walk(inner)
