"""Sealed packets through a data path between real sockets; the test plays the other host."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netplane.backend.udp import OVERHEAD_BYTES as WRAPPED_BYTES
from netplane.backend.udp import SEAL_BYTES, SealedUdpBackend
from netplane.udp import seal, sealed
from netplane.udp.peers import Peer, Peers
from netplane.udp.seal import Identity, Session
from netplane.udp.sealed import FORMER_MAX, SealedPath
from tests.netplane.udp.ends import OWN, PathEnds, received_by
from tests.netplane.udp.packets import SOURCE, TARGET, packet

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="the queues are larger than others may have"),
]
INCOMING = packet(TARGET, SOURCE, b"from there")


class Ends(PathEnds):
    """With a peer 10.5.2.0/24, which has a second address."""

    path: SealedPath

    def __init__(self) -> None:
        super().__init__()
        self.address = self.udp.getsockname()
        self.elsewhere = self.another_peer("127.0.0.2")
        self.identity, self.other = Identity(), Identity()
        self.session = Session(self.other, self.identity.public)
        """The peer's."""
        self.path = SealedPath(self.device.fileno(), self.udp, self.icmp_socket, OWN, self.identity)
        self.told = ["10.5.2.0/24", *self.peer.getsockname(), self.other.public.hex()]
        self.tell(self.told)

    def tell(self, *peers: list[object]) -> None:
        self.path.set_peers(Peers(map(Peer.parse, peers)))

    def leave(self, *packets: bytes) -> list[bytes]:
        """Send from a container; return what the peer gets, opened."""
        for one in packets:
            self.containers.send(one)
        self.path.from_device()
        return [self.session.open(memoryview(one))[0] for one in self.sent()]


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


def test_packets_of_all_sizes_leave_each_sealed_and_in_order(ends: Ends) -> None:
    sizes = [1000] * 5 + [999, 1000, 1000, 1001, 1, 0, 0, 1400, 30] + [1300] * 50
    got = ends.leave(*(packet(SOURCE, TARGET, bytes(size)) for size in sizes))
    assert [len(one) - 20 for one in got] == sizes
    assert ends.path.counters()["sent"] == len(sizes)
    assert ends.path.drops == {}


def test_what_the_peer_seals_comes_in_once(ends: Ends) -> None:
    sealed = ends.session.seal(INCOMING)
    assert ends.come_in(sealed) == [INCOMING]
    assert ends.come_in(sealed) == []
    assert ends.path.drops == {"replay": 1}


def test_what_is_inside_is_looked_at_all_the_same(ends: Ends) -> None:
    # A host of the overlay, whose key is good, speaks for its own containers only.
    for inner in packet(SOURCE, SOURCE), packet(TARGET, TARGET), b"", INCOMING + b"more":
        assert ends.come_in(ends.session.seal(inner)) == []
    assert ends.path.drops == {"foreign-source": 1, "foreign-target": 1, "malformed": 2}


@pytest.mark.parametrize("length", [0, 1, 20, seal.OVERHEAD_BYTES - 1])
def test_what_is_too_short_is_counted(ends: Ends, length: int) -> None:
    assert ends.come_in(ends.session.seal(INCOMING)[:length]) == []
    assert ends.path.drops == {"malformed": 1}


def test_a_plain_packet_does_not_come_in(ends: Ends) -> None:
    assert ends.come_in(INCOMING + bytes(40)) == []
    assert ends.path.drops == {"malformed": 1}


def test_who_has_no_key_gets_nothing_and_is_no_harm(ends: Ends) -> None:
    for key in "", "00" * 32, "ff":
        ends.tell(["10.5.3.0/24", *ends.peer.getsockname(), key], ends.told)
        third = bytes([10, 5, 3, 2])
        assert ends.leave(packet(SOURCE, third), packet(SOURCE, TARGET, b"on")) != []
        assert ends.path.drops.pop("no-key") == 1


def test_a_host_that_has_moved_is_followed_by_what_it_seals(ends: Ends) -> None:
    ends.come_in(ends.session.seal(INCOMING), ends.elsewhere)
    assert ends.leave(packet(SOURCE, TARGET)) == []
    [sealed] = received_by(ends.elsewhere)
    assert ends.session.open(memoryview(sealed))[0][16:20] == TARGET
    assert ends.path.moved == 1
    # What is told anew, as before, is no news; another address is.
    ends.tell(ends.told)
    assert ends.leave(packet(SOURCE, TARGET)) == []
    ends.tell(["10.5.2.0/24", "127.0.0.9", 1, ends.told[3]])
    ends.tell(ends.told)
    assert len(ends.leave(packet(SOURCE, TARGET))) == 1


def test_nobody_else_moves_a_host(ends: Ends) -> None:
    late, first = ends.session.seal(INCOMING), ends.session.seal(INCOMING)
    ends.come_in(first)
    forged = bytearray(ends.session.seal(INCOMING))
    forged[-1] ^= 1
    # A copy, a forgery, and a true one that was held back until a newer one had come.
    for data in first, bytes(forged), late:
        ends.come_in(data, ends.elsewhere)
    assert ends.path.drops == {"replay": 1, "not-authentic": 1}
    assert ends.path.moved == 0
    assert len(ends.leave(packet(SOURCE, TARGET))) == 1


def test_a_peer_that_goes_and_comes_back_is_sent_no_number_twice(ends: Ends) -> None:
    ends.containers.send(packet(SOURCE, TARGET))
    ends.path.from_device()
    ends.tell()
    assert ends.come_in(ends.session.seal(INCOMING)) == []
    assert ends.path.drops == {"unknown-key": 1}
    ends.tell(ends.told)
    ends.containers.send(packet(SOURCE, TARGET))
    ends.path.from_device()
    one, other = ends.sent()
    assert one[:20] != other[:20]
    # ... and takes none twice, of before it went.
    assert ends.come_in(ends.session.seal(INCOMING)) == [INCOMING]
    late, sealed = ends.session.seal(INCOMING), ends.session.seal(INCOMING)
    assert ends.come_in(sealed) == [INCOMING]
    ends.tell()
    ends.tell(ends.told)
    assert ends.come_in(sealed) == []
    assert ends.path.drops == {"unknown-key": 1, "replay": 1}
    assert ends.come_in(late) == [INCOMING]


def keys_of(ends: Ends, count: int) -> list[list[object]]:
    """Return what is told of one host that starts its process so often."""
    return [[*ends.told[:3], Identity().public.hex()] for _ in range(count)]


def test_a_host_that_starts_again_and_again_leaves_a_bounded_number_of_sessions(
    ends: Ends,
) -> None:
    third = ["10.5.3.0/24", "127.0.0.3", 9, Identity().public.hex()]
    ends.tell(ends.told, third)
    fourth = ["10.5.4.0/24", "127.0.0.4", 9, Identity().public.hex()]
    ends.tell(ends.told, third, fourth)
    ends.tell(ends.told, third)
    keys = keys_of(ends, 3 * FORMER_MAX)
    for told in keys:
        ends.tell(told, third)
    left = [told["public"] for told in ends.path.sessions()]
    # Of others nothing is forgotten for it, whether they are there now or not.
    assert sorted(left) == sorted(
        [str(told[3]) for told in keys[-1 - FORMER_MAX :]] + [str(third[3]), str(fourth[3])]
    )
    assert ends.path.drops == {}


STEPS = st.one_of(
    st.tuples(st.just("tell"), st.integers(0, 4), st.integers(0, 4)),
    st.tuples(st.just("hand over"), st.just(0), st.just(0)),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(STEPS, max_size=40))
def test_no_nonce_comes_twice_whatever_is_told_and_forgotten(
    monkeypatch: pytest.MonkeyPatch, steps: list[tuple[str, int, int]]
) -> None:
    # Five keys that come and go in two subnets; of each subnet but one is remembered.
    monkeypatch.setattr(sealed, "FORMER_MAX", 1)
    ends = Ends()
    keys = [Identity().public.hex() for _ in range(5)]
    used = set[bytes]()
    try:
        for what, one, other in steps:
            if what == "hand over":
                before = ends.path
                again = Identity(ends.identity.secret)
                ends.path = SealedPath(
                    ends.device.fileno(), ends.udp, ends.icmp_socket, OWN, again
                )  # fmt: skip
                state = json.loads(json.dumps([before.sessions(), before.first_epoch]))
                ends.path.restore(*state)
            ends.tell(
                ["10.5.2.0/24", *ends.peer.getsockname(), keys[one]],
                ["10.5.3.0/24", *ends.peer.getsockname(), keys[other]],
            )
            for _ in range(2):
                ends.containers.send(packet(SOURCE, TARGET))
                ends.containers.send(packet(SOURCE, bytes([10, 5, 3, 2])))
            ends.path.from_device()
            heads = [data[: seal.HEADER.size] for data in ends.sent()]
            assert len(heads) == 4
            assert len(used | set(heads)) == len(used) + 4
            used.update(heads)
    finally:
        ends.close()


def test_a_successor_knows_keys_numbers_and_addresses(ends: Ends) -> None:
    sealed = ends.session.seal(INCOMING)
    ends.come_in(sealed, ends.elsewhere)
    before = ends.path
    again = Identity(ends.identity.secret)
    ends.path = SealedPath(ends.device.fileno(), ends.udp, ends.icmp_socket, OWN, again)
    ends.path.restore(before.sessions(), before.first_epoch)
    ends.tell(ends.told)
    assert ends.come_in(sealed) == []
    assert ends.path.drops == {"replay": 1}
    ends.leave(packet(SOURCE, TARGET))
    assert len(received_by(ends.elsewhere)) == 1


def test_the_plan_leaves_room_for_what_sealing_adds() -> None:
    assert SEAL_BYTES == seal.OVERHEAD_BYTES
    assert SealedUdpBackend.overhead_bytes == WRAPPED_BYTES + seal.OVERHEAD_BYTES
