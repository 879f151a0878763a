"""Consensus messages to bytes and back. No framing, no sockets: one call, one message.

A message is one version byte and a msgpack array `[kind, sender, target, term, fields ...]`.
Entries are flat, `[term, kind, data, term, kind, data, ...]`; their indexes follow from the
request, since a gap cannot be said. The bytes of an entry's data pass through untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgpack

from kvstore.raft.messages import (
    CHANGE,
    NORMAL,
    AppendRequest,
    AppendResponse,
    CommitNotice,
    Configuration,
    Entry,
    Forward,
    ForwardRefused,
    Heartbeat,
    HeartbeatResponse,
    Index,
    InstallSnapshot,
    MemberId,
    Message,
    PreVoteRequest,
    PreVoteResponse,
    ReadRequest,
    ReadResponse,
    SnapshotMeta,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)

VERSION = 1
_VERSION_BYTE = bytes((VERSION,))
_KINDS = frozenset((NORMAL, CHANGE))
_INT = frozenset((int,))
_BYTES = frozenset((bytes,))
NUMBER_END = 1 << 63
"""Terms, indexes and rounds are below: nobody counts so far, and the next one can be encoded."""

_COPY_BYTES_MAX = 4096
# Up to here a copy without the version byte is cheaper than a view.

# `msgpack.packb` makes a Packer, with a buffer of 256 KiB, for every message. Not for threads.
_pack = msgpack.Packer(autoreset=True).pack
_unpack = msgpack.unpackb


class CodecError(ValueError):
    """The bytes are not a message of this version. The link that carried them must be closed."""


def encode(message: Message) -> bytes:
    """Return the bytes of a message."""
    packed: bytes = _pack(_FIELDS[type(message)](message))
    return _VERSION_BYTE + packed


def decode(data: bytes | memoryview) -> Message:
    """Return the message that `encode` made `data` from.

    Whatever is wrong raises CodecError and nothing else. Values are checked for type and range,
    not for sense: that is the core's business.
    """
    if not data:
        raise CodecError("an empty message")
    if data[0] != VERSION:
        raise CodecError(
            f"message format {data[0]}, this release speaks {VERSION}: "
            "run the same release on all members, or upgrade one minor release at a time"
        )
    try:
        fields = _unpack(
            data[1:] if len(data) <= _COPY_BYTES_MAX else memoryview(data)[1:], use_list=False
        )
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise CodecError(f"not msgpack: {error}") from error
    if type(fields) is not tuple or len(fields) < 4:
        raise CodecError("not an array of at least four fields")
    kind, sender, target, term = fields[:4]
    if type(kind) is not int or not 0 < kind <= len(_DECODERS):
        raise CodecError("unknown kind of message: upgrade this member")
    if not (
        type(sender) is type(target) is type(term) is int
        and sender > 0
        and target > 0
        and 0 <= term < NUMBER_END
    ):
        _check_numbers(sender, target, term)
        raise CodecError("member id 0 is reserved")
    try:
        return _DECODERS[kind - 1](*fields)
    except TypeError as error:
        # The number of fields is wrong; their types are checked by the decoders themselves.
        raise CodecError(f"wrong fields for kind {kind}: {len(fields)}") from error


def encode_entries(entries: Sequence[Entry]) -> list[Any]:
    """Return entries as the flat list `[term, kind, data, ...]`; indexes are not in it."""
    flat: list[Any] = []
    for entry in entries:
        flat += (entry.term, entry.kind, entry.data)
    return flat


def decode_entries(first_index: Index, flat: Any) -> list[Entry]:
    """Return the entries of an unpacked `encode_entries`, a tuple, the first at `first_index`.

    Raises CodecError.
    """
    if type(flat) is not tuple or len(flat) % 3:
        raise CodecError("entries are not a list of triples")
    if not flat:
        return []
    if len(flat) == 3:
        # One entry that holds many operations is what a busy leader sends.
        term, kind, payload = flat
        known = type(term) is type(kind) is int and 0 <= term < NUMBER_END and kind in _KINDS
        if known and type(payload) is bytes:
            return [Entry(first_index, term, kind, payload)]
    terms, kinds, data = flat[0::3], flat[1::3], flat[2::3]
    # Whole columns at a time: per entry this costs a third of a loop.
    if not (_INT.issuperset(map(type, terms)) and 0 <= min(terms) <= max(terms) < NUMBER_END):
        raise CodecError("a term is not a number")
    if not (_INT.issuperset(map(type, kinds)) and _KINDS.issuperset(kinds)):
        raise CodecError("unknown kind of entry: upgrade this member")
    if not _BYTES.issuperset(map(type, data)):
        raise CodecError("the data of an entry is not bytes")
    return list(map(Entry, range(first_index, first_index + len(terms)), terms, kinds, data))


# --- checks -----------------------------------------------------------------------------------


def _check_numbers(*values: Any) -> None:
    for value in values:
        # `type() is` and not isinstance: a msgpack bool is no number.
        if type(value) is not int or not 0 <= value < NUMBER_END:
            raise CodecError("a field is not a number of 0 or more that the next one could follow")


def _check_flags(*values: Any) -> None:
    for value in values:
        if type(value) is not bool:
            raise CodecError("a field is not a flag")


def _members(ids: Any) -> tuple[MemberId, ...]:
    if type(ids) is not tuple or not _INT.issuperset(map(type, ids)):
        raise CodecError("member ids are not a list of numbers")
    if ids and (ids[0] <= 0 or ids != tuple(sorted(set(ids)))):
        raise CodecError("member ids must be positive, ascending and different")
    return ids


# --- one decoder per kind; what they return is checked for type -----------------------------------
# Heartbeats and append answers are most of all messages: there a call for each check would be a
# third of the time.


def _pre_vote_request(
    _: int, s: int, t: int, term: int, last_index: Any, last_term: Any
) -> Message:
    _check_numbers(last_index, last_term)
    return PreVoteRequest(s, t, term, last_index, last_term)


def _pre_vote_response(_: int, s: int, t: int, term: int, granted: Any) -> Message:
    _check_flags(granted)
    return PreVoteResponse(s, t, term, granted)


def _vote_request(
    _: int, s: int, t: int, term: int, last_index: Any, last_term: Any, transfer: Any
) -> Message:
    _check_numbers(last_index, last_term)
    _check_flags(transfer)
    return VoteRequest(s, t, term, last_index, last_term, transfer)


def _vote_response(_: int, s: int, t: int, term: int, granted: Any) -> Message:
    _check_flags(granted)
    return VoteResponse(s, t, term, granted)


def _append_request(
    _: int, s: int, t: int, term: int, prev_index: Any, prev_term: Any, commit: Any, flat: Any
) -> Message:
    _check_numbers(prev_index, prev_term, commit)
    return AppendRequest(
        s, t, term, prev_index, prev_term, commit, decode_entries(prev_index + 1, flat)
    )


def _append_response(
    _: int, s: int, t: int, term: int, index: Any, hint_index: Any = None, hint_term: Any = None
) -> Message:
    if hint_index is None and hint_term is None:
        if not (type(index) is int and 0 <= index < NUMBER_END):
            _check_numbers(index)
        return AppendResponse(s, t, term, index, None)
    _check_numbers(index, hint_index, hint_term)
    return AppendResponse(s, t, term, index, (hint_index, hint_term))


def _heartbeat(_: int, s: int, t: int, term: int, commit: Any, round_: Any) -> Message:
    is_number = type(commit) is type(round_) is int
    if not (is_number and 0 <= commit < NUMBER_END and 0 <= round_ < NUMBER_END):
        _check_numbers(commit, round_)
    return Heartbeat(s, t, term, commit, round_)


def _heartbeat_response(_: int, s: int, t: int, term: int, round_: Any) -> Message:
    if not (type(round_) is int and 0 <= round_ < NUMBER_END):
        _check_numbers(round_)
    return HeartbeatResponse(s, t, term, round_)


def _commit_notice(_: int, s: int, t: int, term: int, commit: Any) -> Message:
    _check_numbers(commit)
    return CommitNotice(s, t, term, commit)


def _install_snapshot(
    _: int,
    s: int,
    t: int,
    term: int,
    index: Any,
    index_term: Any,
    voters: Any,
    outgoing: Any,
    learners: Any,
    removed: Any,
) -> Message:
    _check_numbers(index, index_term)
    configuration = Configuration(
        _members(voters), _members(outgoing), _members(learners), _members(removed)
    )
    return InstallSnapshot(s, t, term, SnapshotMeta(index, index_term, configuration))


def _timeout_now(_: int, s: int, t: int, term: int) -> Message:
    return TimeoutNow(s, t, term)


def _forward(_: int, s: int, t: int, term: int, forward_id: Any, kind: Any, data: Any) -> Message:
    _check_numbers(forward_id, kind)
    if kind not in _KINDS:
        raise CodecError("unknown kind of entry: upgrade this member")
    if type(data) is not bytes:
        raise CodecError("the data of an entry is not bytes")
    return Forward(s, t, term, forward_id, kind, data)


def _forward_refused(_: int, s: int, t: int, term: int, forward_id: Any) -> Message:
    _check_numbers(forward_id)
    return ForwardRefused(s, t, term, forward_id)


def _read_request(_: int, s: int, t: int, term: int, round_: Any) -> Message:
    _check_numbers(round_)
    return ReadRequest(s, t, term, round_)


def _read_response(_: int, s: int, t: int, term: int, round_: Any, index: Any) -> Message:
    _check_numbers(round_, 0 if index is None else index)
    return ReadResponse(s, t, term, round_, index)


def _snapshot_fields(m: InstallSnapshot) -> tuple[Any, ...]:
    index, term, configuration = m.snapshot.index, m.snapshot.term, m.snapshot.configuration
    return (
        *(10, m.sender, m.target, m.term, index, term),
        configuration.voters,
        configuration.outgoing,
        configuration.learners,
        configuration.removed,
    )


_TABLE: tuple[tuple[type[Message], Callable[[Any], tuple[Any, ...]], Callable[..., Message]], ...]
_TABLE = (
    (
        PreVoteRequest,
        lambda m: (1, m.sender, m.target, m.term, m.last_index, m.last_term),
        _pre_vote_request,
    ),
    (PreVoteResponse, lambda m: (2, m.sender, m.target, m.term, m.granted), _pre_vote_response),
    (
        VoteRequest,
        lambda m: (3, m.sender, m.target, m.term, m.last_index, m.last_term, m.transfer),
        _vote_request,
    ),
    (VoteResponse, lambda m: (4, m.sender, m.target, m.term, m.granted), _vote_response),
    (
        AppendRequest,
        lambda m: (
            *(5, m.sender, m.target, m.term),
            *(m.prev_index, m.prev_term, m.commit, encode_entries(m.entries)),
        ),
        _append_request,
    ),
    (
        AppendResponse,
        lambda m: (6, m.sender, m.target, m.term, m.index, *(m.hint or ())),
        _append_response,
    ),
    (Heartbeat, lambda m: (7, m.sender, m.target, m.term, m.commit, m.round), _heartbeat),
    (HeartbeatResponse, lambda m: (8, m.sender, m.target, m.term, m.round), _heartbeat_response),
    (CommitNotice, lambda m: (9, m.sender, m.target, m.term, m.commit), _commit_notice),
    (InstallSnapshot, _snapshot_fields, _install_snapshot),
    (TimeoutNow, lambda m: (11, m.sender, m.target, m.term), _timeout_now),
    (
        Forward,
        lambda m: (12, m.sender, m.target, m.term, m.forward_id, m.kind, m.data),
        _forward,
    ),
    (ForwardRefused, lambda m: (13, m.sender, m.target, m.term, m.forward_id), _forward_refused),
    (ReadRequest, lambda m: (14, m.sender, m.target, m.term, m.round), _read_request),
    (ReadResponse, lambda m: (15, m.sender, m.target, m.term, m.round, m.index), _read_response),
)
"""Kind n is line n, and the first of its fields. Append only: a kind keeps its number for ever."""

_FIELDS: dict[type, Callable[[Any], tuple[Any, ...]]] = {
    type_: fields for type_, fields, _ in _TABLE
}
_DECODERS = tuple(decoder for _, _, decoder in _TABLE)
