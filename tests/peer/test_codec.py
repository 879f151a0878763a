"""Every message survives the wire; nothing else gets through, and never as another exception."""

from __future__ import annotations

import contextlib
import re
from typing import Any, get_type_hints

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvstore.peer import codec
from kvstore.peer.codec import (
    NUMBER_END,
    CodecError,
    decode,
    decode_entries,
    encode,
    encode_entries,
)
from kvstore.raft import messages
from kvstore.raft.messages import (
    CHANGE,
    NORMAL,
    AppendRequest,
    AppendResponse,
    Configuration,
    Entry,
    Forward,
    Heartbeat,
    InstallSnapshot,
    Message,
    PreVoteResponse,
    ReadResponse,
    SnapshotMeta,
    TimeoutNow,
)
from tests.pure import source_of

# Compiled classes do not keep the types of their fields.
SOURCE = source_of("kvstore/raft/messages.py")
NUMBERS = st.integers(0, NUMBER_END - 1)
IDS = st.integers(1, 2**64 - 1)
MEMBERS = st.lists(IDS, unique=True, max_size=7).map(lambda ids: tuple(sorted(ids)))
CONFIGURATIONS = st.builds(Configuration, MEMBERS, MEMBERS, MEMBERS, MEMBERS)
KINDS = [
    kind
    for kind in vars(messages).values()
    if isinstance(kind, type) and issubclass(kind, Message) and kind is not Message
]


@st.composite
def append_requests(draw: st.DrawFn) -> AppendRequest:
    prev = draw(NUMBERS)
    given = draw(
        st.lists(st.tuples(NUMBERS, st.sampled_from([NORMAL, CHANGE]), st.binary()), max_size=9)
    )
    entries = [Entry(prev + 1 + i, term, kind, data) for i, (term, kind, data) in enumerate(given)]
    return AppendRequest(
        draw(IDS), draw(IDS), draw(NUMBERS), prev, draw(NUMBERS), draw(NUMBERS), entries
    )


FIELDS: dict[Any, st.SearchStrategy[Any]] = {
    int: NUMBERS,
    bool: st.booleans(),
    bytes: st.binary(),
    tuple[int, int] | None: st.none() | st.tuples(NUMBERS, NUMBERS),
    int | None: st.none() | NUMBERS,
    SOURCE.SnapshotMeta: st.builds(SnapshotMeta, NUMBERS, NUMBERS, CONFIGURATIONS),
}


def of_kind(kind: type[Message]) -> st.SearchStrategy[Message]:
    if kind is AppendRequest:
        return append_requests()
    source = getattr(SOURCE, kind.__name__)
    fields = {name: FIELDS[hint] for name, hint in get_type_hints(source).items()}
    fields |= {"sender": IDS, "target": IDS}
    if kind is Forward:
        fields["kind"] = st.sampled_from([NORMAL, CHANGE])
    return st.builds(kind, **fields)


ANY = st.one_of([of_kind(kind) for kind in KINDS])


def test_every_message_kind_has_a_number() -> None:
    # A kind that is added to the core and forgotten here would fail at run time only.
    assert {kind for kind, _, _ in codec._TABLE} == set(KINDS)
    assert len(KINDS) == 15


def test_numbers_of_kinds_do_not_change() -> None:
    # Members of different releases talk to each other: a number is for ever.
    assert [kind.__name__ for kind, _, _ in codec._TABLE] == [
        "PreVoteRequest", "PreVoteResponse", "VoteRequest", "VoteResponse", "AppendRequest",
        "AppendResponse", "Heartbeat", "HeartbeatResponse", "CommitNotice", "InstallSnapshot",
        "TimeoutNow", "Forward", "ForwardRefused", "ReadRequest", "ReadResponse",
    ]  # fmt: skip


def test_bytes_do_not_change() -> None:
    # The same for the encoding itself; if this fails, VERSION must be raised.
    entries = [Entry(11, 3, NORMAL, b"ab"), Entry(12, 4, CHANGE, b"")]
    request = AppendRequest(1, 2, 4, 10, 3, 9, entries)
    assert encode(request).hex() == "0198050102040a0309960300c402616204 01c400".replace(" ", "")
    assert encode(AppendResponse(1, 2, 3, 4, (5, 6))).hex() == "019706010203040506"
    assert encode(TimeoutNow(1, 2, 3)).hex() == "01940b010203"


@given(ANY)
@example(AppendResponse(1, 2, 3, 4, None))
@example(AppendResponse(1, 2, 3, 4, (0, 0)))
@example(ReadResponse(1, 2, 3, 4, None))
@example(InstallSnapshot(1, 2, 3, SnapshotMeta(9, 2, Configuration((1, 2), (1,), (3,), (4,)))))
def test_round_trip(message: Message) -> None:
    data = encode(message)
    assert decode(data) == message
    assert decode(memoryview(data)) == message
    assert type(decode(data)) is type(message)


@given(st.binary(max_size=200))
def test_random_bytes_raise_only_codec_error(data: bytes) -> None:
    with contextlib.suppress(CodecError):
        decode(data)
    with contextlib.suppress(CodecError):
        decode(b"\x01" + data)


@given(ANY, st.data())
def test_damaged_messages_raise_only_codec_error(message: Message, draw: st.DataObject) -> None:
    data = bytearray(encode(message))
    for _ in range(draw.draw(st.integers(1, 3))):
        position = draw.draw(st.integers(0, len(data) - 1))
        data[position] = draw.draw(st.integers(0, 255))
    try:
        decoded = decode(bytes(data))
    except CodecError:
        return
    # Damage can make another valid message; it must be one that we could have sent.
    assert decode(encode(decoded)) == decoded


@given(ANY, st.data())
def test_cut_messages_raise_codec_error(message: Message, draw: st.DataObject) -> None:
    data = encode(message)
    with pytest.raises(CodecError):
        decode(data[: draw.draw(st.integers(0, len(data) - 1))])


@pytest.mark.parametrize(
    "message",
    [
        TimeoutNow(2, 1, NUMBER_END),
        Heartbeat(2, 1, 5, NUMBER_END, 0),
        Heartbeat(2, 1, 5, 0, NUMBER_END),
        AppendResponse(2, 1, 5, NUMBER_END, None),
        AppendResponse(2, 1, 5, 1, (1, NUMBER_END)),
        AppendRequest(2, 1, 5, 0, 0, 0, [Entry(1, NUMBER_END, NORMAL, b"")]),
        AppendRequest(2, 1, 5, 0, 0, 0, [Entry(i, NUMBER_END, NORMAL, b"") for i in (1, 2)]),
    ],
)
def test_numbers_that_no_next_one_could_follow_are_refused(message: Message) -> None:
    # A term is taken from any member: with the last one that fits, the next election could not be
    # encoded, and would end every member.
    with pytest.raises(CodecError):
        decode(encode(message))


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
    | st.binary(),
    lambda children: st.lists(children, max_size=4)
    | st.dictionaries(st.text() | st.integers(0, 9), children, max_size=3),
    max_leaves=12,
)  # fmt: skip


@given(st.integers(1, 15), st.lists(JUNK, max_size=9))
def test_well_formed_msgpack_of_wrong_types_raises_only_codec_error(
    kind: int, fields: list[Any]
) -> None:
    data = b"\x01" + msgpack.packb([kind, *fields])
    try:
        message = decode(data)
    except CodecError:
        return
    assert decode(encode(message)) == message


@given(of_kind(AppendRequest), st.integers(1, 7), JUNK)
def test_one_wrong_field_of_an_append_raises_only_codec_error(
    message: Message, position: int, junk: Any
) -> None:
    fields = msgpack.unpackb(encode(message)[1:])
    fields[position] = junk
    with contextlib.suppress(CodecError):
        decode(b"\x01" + msgpack.packb(fields))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ([99, 1, 2, 3], "unknown kind"),
        ([0, 1, 2, 3], "unknown kind"),
        ([True, 1, 2, 3], "unknown kind"),
        ([11, 0, 2, 3], "member id 0"),
        ([11, 1, 0, 3], "member id 0"),
        ([11, 1, 2, -3], "not a number"),
        ([11, 1, 2, True], "not a number"),
        ([11, 1, 2], "at least four"),
        ([11, 1, 2, 3, 4], "wrong fields"),
        ([9, 1, 2, 3], "wrong fields"),
        ([2, 1, 2, 3, 1], "not a flag"),
        ([5, 1, 2, 3, 0, 0, 0, [1, 0]], "triples"),
        ([5, 1, 2, 3, 0, 0, 0, [1, 0, "text"]], "not bytes"),
        ([5, 1, 2, 3, 0, 0, 0, [1, 2, b""]], "unknown kind of entry"),
        ([5, 1, 2, 3, 0, 0, 0, [1, False, b""]], "unknown kind of entry"),
        ([5, 1, 2, 3, 0, 0, 0, [-1, 0, b""]], "term is not a number"),
        ([5, 1, 2, 3, 0, 0, 0, [1.0, 0, b""]], "term is not a number"),
        ([6, 1, 2, 3, 4, 5, None], "not a number"),
        ([6, 1, 2, 3, 4, None, 5], "not a number"),
        ([10, 1, 2, 3, 4, 5, [2, 1], [], [], []], "ascending"),
        ([10, 1, 2, 3, 4, 5, [1, 1], [], [], []], "ascending"),
        ([10, 1, 2, 3, 4, 5, [0], [], [], []], "positive"),
        ([10, 1, 2, 3, 4, 5, ["a"], [], [], []], "list of numbers"),
        ([10, 1, 2, 3, 4, 5, 7, [], [], []], "list of numbers"),
        ([12, 1, 2, 3, 4, 2, b""], "unknown kind of entry"),
        ([12, 1, 2, 3, 4, 0, "text"], "not bytes"),
        ({"a": 1}, "not an array"),
        (7, "not an array"),
    ],
)
def test_refusals_name_the_reason(fields: Any, reason: str) -> None:
    with pytest.raises(CodecError, match=reason):
        decode(b"\x01" + msgpack.packb(fields))


def test_another_version_is_refused_with_advice() -> None:
    data = bytes([2]) + encode(TimeoutNow(1, 2, 3))[1:]
    with pytest.raises(CodecError, match=re.escape("message format 2, this release speaks 1")) as e:
        decode(data)
    assert "upgrade" in str(e.value)


def test_empty_and_trailing_bytes_are_refused() -> None:
    with pytest.raises(CodecError):
        decode(b"")
    with pytest.raises(CodecError):
        decode(encode(TimeoutNow(1, 2, 3)) + b"\x00")


def test_deep_nesting_is_refused() -> None:
    # Not a RecursionError: 100,000 open arrays fit into one frame.
    with pytest.raises(CodecError):
        decode(b"\x01" + b"\x91" * 100_000)


def test_huge_announced_lengths_are_refused_without_allocating() -> None:
    with pytest.raises(CodecError):
        decode(b"\x01\xdd\xff\xff\xff\xff")
    with pytest.raises(CodecError):
        decode(b"\x01\xc6\xff\xff\xff\xff")


def test_flags_are_not_numbers() -> None:
    assert decode(encode(PreVoteResponse(1, 2, 3, granted=False))) == PreVoteResponse(
        1, 2, 3, False
    )


def test_entry_data_passes_untouched() -> None:
    data = bytes(range(256)) * 160
    entries = [Entry(8, 1, NORMAL, data), Entry(9, 1, NORMAL, b"")]
    flat = tuple(encode_entries(entries))
    assert flat[2] is data
    assert decode_entries(8, flat) == entries
    assert decode_entries(8, flat)[0].data is data
    assert decode_entries(5, ()) == []


def test_indexes_follow_from_the_request() -> None:
    message = decode(encode(AppendRequest(1, 2, 3, 41, 3, 0, [Entry(42, 3, NORMAL, b"x")])))
    assert isinstance(message, AppendRequest)
    assert message.entries[0].index == 42


def test_large_ids_and_rounds_survive() -> None:
    message = Heartbeat(2**64 - 1, 2**63, 2**40, 2**50, 2**62)
    assert decode(encode(message)) == message
