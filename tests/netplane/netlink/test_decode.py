"""What the kernel sends, read from bytes: whatever they are, a value or a clear refusal."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netplane.netlink import decode, messages, monitor
from netplane.netlink.decode import Message, NetlinkFormatError, Outcome
from netplane.netlink.messages import HEADER, Type
from netplane.netlink.objects import Address, FdbEntry, Neighbour, Route, VxlanLink

MAC = bytes.fromhex("02aabbccddee")
PACKED = bytes([10, 5, 7, 0])
ROUTE = Route("np.1", PACKED, 24, PACKED, onlink=True)
NEIGHBOUR = Neighbour("np.1", PACKED, MAC)
FDB = FdbEntry("np.1", MAC, bytes([192, 0, 2, 7]))
ADDRESS = Address("np.1", PACKED, 32)
LINK = VxlanLink("np.1", 77, "eth0", bytes([192, 0, 2, 1]), 8472, 1450, MAC, gbp=True)
NAMES = {7: "np.1"}


def error(code: int, *attributes: bytes, capped: bool = True) -> Message:
    """Return an acknowledgement of a request of 60 bytes, as the kernel lays it out."""
    request = HEADER.pack(60, Type.NEWROUTE, 5, 9, 0) + (b"" if capped else bytes(44))
    flags = (decode.CAPPED if capped else 0) | (decode.ACK_TLVS if attributes else 0)
    body = struct.pack("=i", -code) + request + b"".join(attributes)
    return Message(Type.ERROR, flags, 9, 4711, body)


TEXT = messages.attribute(1, b"Nexthop has invalid gateway\0")
OFFSET = messages.u32(2, 24)


@pytest.mark.parametrize("capped", [True, False])
def test_an_error_has_the_kernels_text(*, capped: bool) -> None:
    # Without the option to cap, the whole request stands between the code and the text.
    found = decode.outcome(error(errno.EINVAL, OFFSET, TEXT, capped=capped))
    assert found == Outcome(errno.EINVAL, "Nexthop has invalid gateway (EINVAL)")


def test_an_error_without_text_has_the_usual_one() -> None:
    assert decode.outcome(error(errno.EEXIST)) == Outcome(errno.EEXIST, "File exists")


def test_an_acknowledgement_is_code_0() -> None:
    assert decode.outcome(error(0)) == Outcome(0, "")


def read(message: Message) -> bytes:
    """Return what a read gives of a message."""
    head = HEADER.pack(
        16 + len(message.body), message.type, message.flags, message.sequence, message.port
    )
    return head + message.body


def test_word_of_success_is_known_by_its_number_and_its_code() -> None:
    assert decode.is_success(read(error(0)), 9)
    assert not decode.is_success(read(error(0)), 8)
    assert not decode.is_success(read(error(errno.EEXIST)), 9)


@pytest.mark.parametrize("data", [
    b"",
    read(error(0))[:-1],
    read(error(0)) * 2,
    read(error(0, TEXT)),
    read(error(0, capped=False)),
    read(error(0)._replace(type=Type.DONE)),
    read(error(0)._replace(flags=decode.CAPPED | decode.ACK_TLVS)),
])  # fmt: skip
def test_whatever_else_is_to_be_read_in_full(data: bytes) -> None:
    assert not decode.is_success(data, 9)


def test_the_end_of_a_dump_may_be_an_error() -> None:
    body = struct.pack("=i", -errno.EBUSY)
    assert decode.outcome(Message(Type.DONE, 2, 9, 0, body)).code == errno.EBUSY


def test_one_read_may_hold_several_messages() -> None:
    data = messages.add(ROUTE, 7).encode(3) + messages.add(NEIGHBOUR, 7).encode(4)
    assert [(item.type, item.sequence) for item in decode.messages(data)] == [(24, 3), (28, 4)]


def test_what_we_write_reads_back() -> None:
    assert decode.route(messages.add(ROUTE, 7).body, NAMES) == ROUTE
    assert decode.neighbour(messages.add(NEIGHBOUR, 7).body, NAMES) == NEIGHBOUR
    assert decode.neighbour(messages.add(FDB, 7).body, NAMES) == FDB
    assert decode.address(messages.add(ADDRESS, 7).body, NAMES) == ADDRESS


def test_a_link_reads_back() -> None:
    found = decode.link(messages.add(LINK, 2).body)
    assert (found.name, found.up, found.mtu, found.mac) == ("np.1", True, 1450, MAC)
    assert found.vxlan == decode.VxlanData(77, 2, LINK.local, 8472, learning=False, gbp=True)


def test_objects_on_links_unknown_to_us_are_left_out() -> None:
    assert decode.neighbour(messages.add(NEIGHBOUR, 8).body, NAMES) is None
    assert decode.address(messages.add(ADDRESS, 8).body, NAMES) is None


def test_a_route_of_another_table_is_left_out() -> None:
    body = bytearray(messages.add(ROUTE, 7).body)
    body[4] = 255  # local
    assert decode.route(bytes(body), NAMES) is None


@pytest.mark.parametrize("data", [
    b"\x01", bytes(15), HEADER.pack(15, 2, 0, 0, 0), HEADER.pack(17, 2, 0, 0, 0),
])  # fmt: skip
def test_what_is_cut_short_is_refused(data: bytes) -> None:
    with pytest.raises(NetlinkFormatError):
        list(decode.messages(data))


def test_an_attribute_longer_than_the_message_is_refused() -> None:
    with pytest.raises(NetlinkFormatError, match="attribute 1 of length 9"):
        decode.attributes(struct.pack("=HH", 9, 1) + bytes(4))


ATTRIBUTES = st.lists(
    st.builds(messages.attribute, st.integers(0, 30), st.binary(max_size=24)), max_size=6
).map(b"".join)
BODIES = st.one_of(
    st.binary(max_size=60),
    # As long as the layouts are, and of a link that we know; so the attributes are looked at.
    st.builds(
        lambda size, start, attributes: (
            (start + bytes(3) + struct.pack("=i", 7)).ljust(size, b"\x02")
            + messages.attribute(18, attributes)
            + attributes
        ),
        st.sampled_from([8, 12, 16]),
        st.sampled_from([b"\x00", b"\x02", b"\x07", b"\x0a"]),
        ATTRIBUTES,
    ),
)


@given(st.sampled_from(sorted(Type)), BODIES)
def test_no_bytes_lead_to_anything_but_a_value_or_a_refusal(kind: Type, body: bytes) -> None:
    try:
        monitor.change(Message(kind, 0, 0, 0, body), NAMES)
        decode.outcome(Message(kind, decode.ACK_TLVS, 0, 0, body))
    except NetlinkFormatError:
        pass


def test_an_entry_that_may_now_age_counts_as_removed() -> None:
    # `ip neigh change ... nud reachable` leaves the entry, until the kernel forgets it.
    request = messages.add(NEIGHBOUR, 7)
    body = request.body[:8] + struct.pack("=H", 0x02) + request.body[10:]
    found = monitor.change(Message(Type.NEWNEIGH, 0, 0, 12, body), NAMES)
    assert found == monitor.ObjectChange(NEIGHBOUR, removed=True, port=12)


def test_a_notification_that_is_not_understood_counts_as_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = messages.add(NEIGHBOUR, 7).encode(0)
    assert monitor._changes(data, NAMES, 9) == [monitor.ObjectChange(NEIGHBOUR, False, 0)]
    assert monitor._changes(data[:20], NAMES, 9) == [monitor.Overrun()]
    assert "not understood: length 56 in 20 bytes" in caplog.text


def test_what_we_wrote_ourselves_is_left_out() -> None:
    data = messages.add(NEIGHBOUR, 7).encode(0)
    assert monitor._changes(data[:12] + struct.pack("=I", 9) + data[16:], NAMES, 9) == []


def test_a_bridge_that_tells_of_its_ports_tells_no_link_change() -> None:
    body = messages.add(LINK, 2).body
    assert monitor.change(Message(Type.NEWLINK, 0, 0, 0, body), {}) is not None
    assert monitor.change(Message(Type.NEWLINK, 0, 0, 0, b"\x07" + body[1:]), {}) is None
