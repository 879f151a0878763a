"""Nobody but the two reads, makes, changes or repeats a sealed packet; no nonce comes twice."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from netplane.udp import seal
from netplane.udp.seal import EPOCH_S, HEADER, OVERHEAD_BYTES, Identity, SealError, Session
from netplane.udp.window import SIZE, Window


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def pair(clock: Clock | None = None) -> tuple[Session, Session]:
    one, other = Identity(), Identity()
    clock = clock or Clock()
    return (
        Session(one, other.public, clock=clock),
        Session(other, one.public, clock=clock),
    )


def opened(session: Session, data: bytes) -> bytes:
    return session.open(memoryview(data))[0]


def reason(session: Session, data: bytes) -> str:
    with pytest.raises(SealError) as caught:
        session.open(memoryview(data))
    return str(caught.value)


def test_what_is_sealed_is_opened_by_the_other_and_by_nobody_else() -> None:
    here, there = pair()
    sealed = here.seal(b"packet")
    assert len(sealed) == len(b"packet") + OVERHEAD_BYTES
    assert b"packet" not in sealed
    assert reason(here, sealed) == "not-authentic"  # what is ours does not come back to us
    assert reason(pair()[1], sealed) == "not-authentic"
    assert opened(there, sealed) == b"packet"


def test_the_format_is_as_it_is_written_down() -> None:
    # Fixed keys: a change of any derivation would cut hosts of two versions from each other.
    one, other = Identity(bytes(range(32))), Identity(bytes(range(1, 33)))
    session = Session(one, other.public, first_epoch=5)
    sealed = session.seal(b"packet")
    assert sealed[:4] == b"\x01\x00\x00\x05"
    assert sealed[4:12] == Session(other, one.public).incoming_id
    assert sealed[12:20] == bytes(8)
    assert session.seal(b"packet")[12:20] == b"\0\0\0\0\0\0\0\1"
    assert sealed.hex() == FIXTURE


FIXTURE = "01000005812e76b9c8d162fe00000000000000000e6fc0c08fb9b02ade552a4a4e97bcb4a86dd3b36ded"


@given(place=st.integers(0, 8 * (OVERHEAD_BYTES + 6) - 1))
def test_no_changed_bit_passes(place: int) -> None:
    here, there = pair()
    sealed = bytearray(here.seal(b"packet"))
    sealed[place // 8] ^= 1 << place % 8
    if 32 <= place < 96:
        return  # the key id, by which the session is looked up: it is authenticated all the same
    assert reason(there, bytes(sealed)) in {"not-authentic", "old-epoch"}


def test_the_key_id_and_the_version_are_authenticated() -> None:
    here, there = pair()
    sealed = bytearray(here.seal(b"packet"))
    sealed[4] ^= 1
    assert reason(there, bytes(sealed)) == "not-authentic"


@given(st.integers(HEADER.size, OVERHEAD_BYTES + 5))
def test_nothing_that_is_cut_passes(length: int) -> None:
    here, there = pair()
    assert reason(there, here.seal(b"packet")[:length]) == "not-authentic"


@given(st.binary(max_size=80))
def test_no_noise_passes(noise: bytes) -> None:
    _, there = pair()
    with pytest.raises(SealError):
        there.open(memoryview(bytes(HEADER.size) + noise))


@settings(max_examples=50)
@given(st.permutations(range(40)), st.lists(st.integers(0, 39), max_size=40))
def test_in_whatever_order_each_is_taken_once(order: list[int], again: list[int]) -> None:
    here, there = pair()
    sealed = [here.seal(bytes([number])) for number in range(40)]
    assert [opened(there, sealed[number]) for number in order] == [bytes([n]) for n in order]
    assert {reason(there, sealed[number]) for number in again} <= {"replay"}


def test_what_is_far_behind_is_not_taken() -> None:
    here, there = pair()
    sealed = [here.seal(b"") for _ in range(SIZE + 1)]
    opened(there, sealed[-1])
    assert opened(there, sealed[1]) == b""
    assert reason(there, sealed[0]) == "replay"


def test_a_forged_number_moves_no_window() -> None:
    here, there = pair()
    first = here.seal(b"first")
    forged = first[:12] + (10**6).to_bytes(8) + first[20:]
    assert reason(there, forged) == "not-authentic"
    forged = b"\x01\x00\xff\x00" + first[4:]
    assert reason(there, forged) == "not-authentic"
    assert opened(there, first) == b"first"


# Drawn numbers seldom lead to the window's very edge.
@example([0, SIZE - 2, 0, 1])
@example([0, SIZE - 1, 0, 1])
@example([0, SIZE, 0, 1])
@example([0, SIZE + 1, 0, 1])
@given(st.lists(st.integers(0, 3 * SIZE), max_size=60))
def test_a_window_agrees_with_a_set(numbers: list[int]) -> None:
    window, taken = Window(), set[int]()
    for number in numbers:
        expected = number not in taken and number > max(taken, default=-1) - SIZE
        assert window.is_new(number) == expected
        if expected:
            assert window.note(number) == (number > max(taken, default=-1))
            taken.add(number)


def test_epochs_follow_each_other_and_the_last_but_one_ends() -> None:
    clock = Clock()
    here, there = pair(clock)
    sealed = []
    for _ in range(3):
        sealed.append([here.seal(b"packet") for _ in range(64)])
        clock.now_s += EPOCH_S
    assert [one[0][3] for one in sealed] == [0, 1, 2]
    for one in sealed[0][1:], sealed[1][2:], sealed[2]:
        for packet in one:
            opened(there, packet)
    assert opened(there, sealed[1][0]) == b"packet"  # late, yet of the epoch before
    assert reason(there, sealed[1][0]) == "replay"
    assert reason(there, sealed[0][0]) == "old-epoch"


def test_only_the_newest_packet_is_told_as_such() -> None:
    # By it the endpoint of a host that has moved is learned.
    clock = Clock()
    here, there = pair(clock)
    sealed = [here.seal(b"") for _ in range(64)]
    clock.now_s += EPOCH_S
    later = here.seal(b"")
    assert there.open(memoryview(sealed[5]))[1]
    assert not there.open(memoryview(sealed[4]))[1]
    assert there.open(memoryview(later))[1]
    assert not there.open(memoryview(sealed[6]))[1]


def test_an_epoch_ends_with_its_packets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal, "EPOCH_PACKETS", 128)
    here, there = pair()
    sealed = [here.seal(b"") for _ in range(300)]
    assert [one[3] for one in sealed] == [0] * 128 + [1] * 128 + [2] * 44
    for one in sealed:
        opened(there, one)


@given(st.lists(st.sampled_from(["send", "wait", "hand over", "restart"]), max_size=40))
def test_no_nonce_comes_twice_under_one_key(steps: list[str]) -> None:
    # Whatever happens to the process: the key id names the pair of keys.
    clock = Clock()
    identity, other = Identity(), Identity()
    session = Session(identity, other.public, clock=clock)
    used = set[bytes]()
    for step in steps:
        match step:
            case "send":
                for _ in range(70):
                    head = session.seal(b"")[: HEADER.size]
                    assert head not in used
                    used.add(head)
            case "wait":
                clock.now_s += EPOCH_S
            case "hand over":
                identity = Identity(identity.secret)
                session = Session.restored(identity, session.told())
            case "restart":
                identity = Identity()
                session = Session(identity, other.public, clock=clock)


def test_a_successor_takes_what_is_new_and_nothing_again() -> None:
    here, there = pair()
    sealed = [here.seal(b"") for _ in range(3)]
    identity = Identity()
    there = Session(identity, here.public, clock=Clock())  # not the one that they are for
    assert reason(there, sealed[0]) == "not-authentic"
    one, other = Identity(), Identity()
    here, there = Session(one, other.public), Session(other, one.public)
    sealed = [here.seal(b"") for _ in range(3)]
    opened(there, sealed[0])
    opened(there, sealed[2])
    next_one = Session.restored(Identity(other.secret), there.told())
    assert reason(next_one, sealed[0]) == "replay"
    assert opened(next_one, sealed[1]) == b""
    assert opened(here, next_one.seal(b"back")) == b"back"


def test_restarted_ends_do_not_take_what_was_before() -> None:
    one, other = Identity(), Identity()
    sealed = Session(one, other.public).seal(b"")
    again = Identity()
    assert reason(Session(again, one.public), sealed) == "not-authentic"
    assert Session(again, one.public).incoming_id != Session(other, one.public).incoming_id


@pytest.mark.parametrize("public", [bytes(32), bytes(31), b""])
def test_what_is_no_key_is_refused(public: bytes) -> None:
    # The zero key would make a secret that everybody knows.
    with pytest.raises(ValueError):  # noqa: PT011  the library's own
        Session(Identity(), public)


def counted(patch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the epoch of every key that is derived from now on."""
    derived: list[int] = []
    real = seal._Direction.cipher

    def cipher(self: seal._Direction, epoch: int) -> object:
        derived.append(epoch)
        return real(self, epoch)

    patch.setattr(seal._Direction, "cipher", cipher)
    return derived


def with_epoch(sealed: bytes, epoch: int) -> bytes:
    return b"\x01" + epoch.to_bytes(3) + sealed[4:]


def test_a_flood_of_odd_epochs_costs_few_keys_and_no_packet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Who has seen one packet knows the key id, and can send 10,000 headers a second.
    clock = Clock()
    here, there = pair(clock)
    draw = random.Random(1)
    first = here.seal(b"first")
    derived = counted(monkeypatch)
    opened(there, first)
    late = here.seal(b"late")
    for number in range(10_000):
        near = number % 2
        epoch = draw.randrange(1, 20) if near else draw.randrange(1, 1 << 24)
        assert reason(there, with_epoch(first, epoch)) in {
            "not-authentic", "old-epoch", "far-epoch", "replay",
        }  # fmt: skip
        if number % 10 == 0:
            assert opened(there, here.seal(b"real")) == b"real"
        if number in (3000, 6000):
            clock.now_s += EPOCH_S  # a rekey in the middle of it
    assert there._received[0].number == 2
    assert reason(there, late) == "old-epoch"
    # The sender's two, the receiver's first, those ahead of each of three epochs, and what time
    # has let through of the far ones.
    assert len(derived) <= 2 + 1 + seal.EPOCHS_AHEAD + 2 + 3
    assert len(there._ahead) <= seal.EPOCHS_AHEAD


def test_who_was_out_of_reach_for_hours_is_heard_again_also_under_a_flood() -> None:
    clock = Clock()
    here, there = pair(clock)
    first = here.seal(b"first")
    opened(there, first)
    for _ in range(100):
        clock.now_s += EPOCH_S
        for _ in range(64):
            unheard = here.seal(b"unheard")
    assert reason(there, with_epoch(first, 1 << 20)) == "not-authentic"
    assert reason(there, unheard) == "far-epoch"
    clock.now_s += seal.FAR_EVERY_S
    assert opened(there, unheard) == b"unheard"
