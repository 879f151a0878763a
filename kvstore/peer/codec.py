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


class CodecError(ValueError):
    """The bytes are not a message of this version. The link that carried them must be closed."""


def encode(message: Message) -> bytes:
    """Return the bytes of a message."""
    kind, fields = _ENCODERS[type(message)]
    packed: bytes = msgpack.packb(
        [kind, message.sender, message.target, message.term, *fields(message)]
    )
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
        fields = msgpack.unpackb(memoryview(data)[1:], strict_map_key=False)
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise CodecError(f"not msgpack: {error}") from error
    if type(fields) is not list or len(fields) < 4:
        raise CodecError("not an array of at least four fields")
    kind = fields[0]
    if type(kind) is not int or not 0 < kind <= len(_DECODERS):
        raise CodecError("unknown kind of message: upgrade this member")
    _, sender, target, term, *rest = fields
    if not (type(sender) is type(target) is type(term) is int and min(sender, target, term) >= 0):
        raise CodecError("a field is not a number of 0 or more")
    if not sender or not target:
        raise CodecError("member id 0 is reserved")
    try:
        return _DECODERS[kind - 1](sender, target, term, *rest)
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
    """Return the entries of `encode_entries`, the first at `first_index`. Raises CodecError."""
    if type(flat) is not list or len(flat) % 3:
        raise CodecError("entries are not a list of triples")
    if not flat:
        return []
    if len(flat) == 3:
        # One entry that holds many operations is what a busy leader sends.
        term, kind, payload = flat
        known = type(term) is type(kind) is int and term >= 0 and kind in _KINDS
        if known and type(payload) is bytes:
            return [Entry(first_index, term, kind, payload)]
    terms, kinds, data = flat[0::3], flat[1::3], flat[2::3]
    # Whole columns at a time: per entry this costs a third of a loop.
    if not (_INT.issuperset(map(type, terms)) and min(terms) >= 0):
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
        if type(value) is not int or value < 0:
            raise CodecError("a field is not a number of 0 or more")


def _check_flags(*values: Any) -> None:
    for value in values:
        if type(value) is not bool:
            raise CodecError("a field is not a flag")


def _members(ids: Any) -> tuple[MemberId, ...]:
    if type(ids) is not list or not _INT.issuperset(map(type, ids)):
        raise CodecError("member ids are not a list of numbers")
    members = tuple(ids)
    if members and (members[0] <= 0 or members != tuple(sorted(set(members)))):
        raise CodecError("member ids must be positive, ascending and different")
    return members


# --- one decoder per kind; what they return is checked for type -----------------------------------


def _pre_vote_request(s: int, t: int, term: int, last_index: Any, last_term: Any) -> Message:
    _check_numbers(last_index, last_term)
    return PreVoteRequest(s, t, term, last_index, last_term)


def _pre_vote_response(s: int, t: int, term: int, granted: Any) -> Message:
    _check_flags(granted)
    return PreVoteResponse(s, t, term, granted)


def _vote_request(
    s: int, t: int, term: int, last_index: Any, last_term: Any, transfer: Any
) -> Message:
    _check_numbers(last_index, last_term)
    _check_flags(transfer)
    return VoteRequest(s, t, term, last_index, last_term, transfer)


def _vote_response(s: int, t: int, term: int, granted: Any) -> Message:
    _check_flags(granted)
    return VoteResponse(s, t, term, granted)


def _append_request(
    s: int, t: int, term: int, prev_index: Any, prev_term: Any, commit: Any, flat: Any
) -> Message:
    _check_numbers(prev_index, prev_term, commit)
    return AppendRequest(
        s, t, term, prev_index, prev_term, commit, decode_entries(prev_index + 1, flat)
    )


def _append_response(
    s: int, t: int, term: int, index: Any, hint_index: Any = None, hint_term: Any = None
) -> Message:
    if hint_index is None and hint_term is None:
        _check_numbers(index)
        return AppendResponse(s, t, term, index, None)
    _check_numbers(index, hint_index, hint_term)
    return AppendResponse(s, t, term, index, (hint_index, hint_term))


def _heartbeat(s: int, t: int, term: int, commit: Any, round_: Any) -> Message:
    _check_numbers(commit, round_)
    return Heartbeat(s, t, term, commit, round_)


def _heartbeat_response(s: int, t: int, term: int, round_: Any) -> Message:
    _check_numbers(round_)
    return HeartbeatResponse(s, t, term, round_)


def _commit_notice(s: int, t: int, term: int, commit: Any) -> Message:
    _check_numbers(commit)
    return CommitNotice(s, t, term, commit)


def _install_snapshot(
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


def _timeout_now(s: int, t: int, term: int) -> Message:
    return TimeoutNow(s, t, term)


def _forward(s: int, t: int, term: int, forward_id: Any, kind: Any, data: Any) -> Message:
    _check_numbers(forward_id, kind)
    if kind not in _KINDS:
        raise CodecError("unknown kind of entry: upgrade this member")
    if type(data) is not bytes:
        raise CodecError("the data of an entry is not bytes")
    return Forward(s, t, term, forward_id, kind, data)


def _forward_refused(s: int, t: int, term: int, forward_id: Any) -> Message:
    _check_numbers(forward_id)
    return ForwardRefused(s, t, term, forward_id)


def _read_request(s: int, t: int, term: int, round_: Any) -> Message:
    _check_numbers(round_)
    return ReadRequest(s, t, term, round_)


def _read_response(s: int, t: int, term: int, round_: Any, index: Any) -> Message:
    _check_numbers(round_, 0 if index is None else index)
    return ReadResponse(s, t, term, round_, index)


def _snapshot_fields(message: InstallSnapshot) -> tuple[Any, ...]:
    snapshot = message.snapshot
    configuration = snapshot.configuration
    return (
        snapshot.index,
        snapshot.term,
        configuration.voters,
        configuration.outgoing,
        configuration.learners,
        configuration.removed,
    )


_TABLE: tuple[tuple[type[Message], Callable[[Any], tuple[Any, ...]], Callable[..., Message]], ...]
_TABLE = (
    (PreVoteRequest, lambda m: (m.last_index, m.last_term), _pre_vote_request),
    (PreVoteResponse, lambda m: (m.granted,), _pre_vote_response),
    (VoteRequest, lambda m: (m.last_index, m.last_term, m.transfer), _vote_request),
    (VoteResponse, lambda m: (m.granted,), _vote_response),
    (
        AppendRequest,
        lambda m: (m.prev_index, m.prev_term, m.commit, encode_entries(m.entries)),
        _append_request,
    ),
    (AppendResponse, lambda m: (m.index, *(m.hint or ())), _append_response),
    (Heartbeat, lambda m: (m.commit, m.round), _heartbeat),
    (HeartbeatResponse, lambda m: (m.round,), _heartbeat_response),
    (CommitNotice, lambda m: (m.commit,), _commit_notice),
    (InstallSnapshot, _snapshot_fields, _install_snapshot),
    (TimeoutNow, lambda _: (), _timeout_now),
    (Forward, lambda m: (m.forward_id, m.kind, m.data), _forward),
    (ForwardRefused, lambda m: (m.forward_id,), _forward_refused),
    (ReadRequest, lambda m: (m.round,), _read_request),
    (ReadResponse, lambda m: (m.round, m.index), _read_response),
)
"""Kind n is line n. Append only: a kind keeps its number for ever."""

_ENCODERS = {type_: (n, fields) for n, (type_, fields, _) in enumerate(_TABLE, start=1)}
_DECODERS = tuple(decoder for _, _, decoder in _TABLE)
