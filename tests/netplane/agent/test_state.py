"""The state file: what is remembered comes back, and no file keeps an agent from starting."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netplane.agent import state
from netplane.agent.remembered import left
from netplane.agent.state import (
    Encoder,
    State,
    StateKeeper,
    decode,
    encode,
    load,
    read_machine_id,
)
from netplane.subnet.family import Pair
from netplane.subnet.lease import Lease

LEASE = Lease(
    IPv4Network("10.5.72.0/24"),
    IPv4Address("192.0.2.10"),
    "vxlan",
    {"VNI": 1, "VtepMAC": "c6:d2:32:6f:8f:44"},
    b"/coreos.com/network/subnets/10.5.72.0-24",
    7,
    9,
)
JUNK_KEY = replace(LEASE, subnet=IPv4Network("10.5.9.0/24"), key=b"\xff\x00", expires=False)
STATE = State(
    "host", "nonce", "02:00:00:00:00:01", 2**64 - 1, 12, '{"Network":"10.5.0.0/16"}', LEASE,
    (JUNK_KEY,), {"ipv4/ip_forward": "0"},
)  # fmt: skip


BOTH = replace(
    LEASE,
    subnet6=IPv6Network("fd00:5:0:48::/64"),
    public_ip6=IPv6Address("2001:db8::10"),
    backend_data6={"VNI": 1, "VtepMAC": "c6:d2:32:6f:8f:66"},
)
ONLY_IPV6 = replace(
    LEASE, subnet=IPv6Network("fd00:5:0:9::/64"), public_ip=IPv6Address("2001:db8::9")
)


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    assert decode(encode(STATE)) == STATE
    assert decode(encode(State())) == State()
    both = replace(STATE, own=BOTH, peers=(ONLY_IPV6, LEASE))
    assert decode(encode(both)) == both
    lost = replace(STATE, left="fd00:5:0:48::/64")
    assert decode(encode(lost)) == lost


def test_what_was_left_with_a_family_is_still_wished_for() -> None:
    before = replace(STATE, own=BOTH)
    pair = Pair(BOTH.subnet, BOTH.subnet6)
    assert before.pair == pair
    only_ipv6 = replace(BOTH.second() or BOTH)
    for now in (LEASE, only_ipv6):
        after = replace(before, own=now, left=left(before, now))
        assert after.pair == pair
        # Nor does it go with the next lease of the one family.
        assert left(after, replace(now, mod_revision=99)) == after.left
        # With both there is nothing that it had to remember.
        assert left(after, BOTH) == ""
    assert (left(State(), LEASE), left(STATE, LEASE), left(before, None)) == ("", "", "")


def test_files_of_one_family_are_as_agents_before_ipv6_wrote_them() -> None:
    # Both ways: an agent of before can be put back in place.
    fields = {
        "subnet", "public_ip", "backend_type", "backend_data", "key", "create_revision",
        "mod_revision", "expires",
    }  # fmt: skip
    text = encode(STATE)
    assert json.loads(text)["own"].keys() == fields
    assert "left" not in text


def test_settings_are_forgotten_with_the_boot_that_they_were_changed_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # In the next one somebody else may have set them before us, and set back they would be lost.
    text = encode(STATE)
    assert decode(text).sysctls == STATE.sysctls
    monkeypatch.setattr(state, "read_boot_id", lambda: "another")
    assert decode(text) == replace(STATE, sysctls={})
    # An agent of before did not write in which boot it was.
    whole = json.loads(text)
    del whole["boot_id"]
    assert decode(json.dumps(whole)) == replace(STATE, sysctls={})


def test_no_file_is_a_first_start(tmp_path: Path) -> None:
    assert load(tmp_path / "default.json") == (State(), "")


def mangled() -> list[str]:
    whole = json.loads(encode(STATE))
    lease = whole["own"]
    both = json.loads(encode(replace(STATE, own=BOTH)))["own"]
    changes: list[object] = [
        {**whole, "format": 2},
        {**whole, "revision": "12"},
        {**whole, "revision": True},
        {**whole, "vtep_mac": None},
        {**whole, "sysctls": {"ipv4/ip_forward": 0}},
        {**whole, "sysctls": []},
        {**whole, "left": 6},
        {**whole, "left": "fd00::1/64"},
        {**whole, "left": "10.5.9.0/24"},
        {**whole, "left": "fd00::/64", "own": both},
        {**whole, "left": "fd00::/64", "own": None},
        {**whole, "peers": {}},
        {**whole, "peers": [3]},
        {**whole, "own": {**lease, "subnet": "10.5.72.1/24"}},
        {**whole, "own": {**lease, "public_ip": "::1"}},
        {**whole, "own": {**lease, "subnet": "fd00::/64"}},
        {**whole, "own": {**both, "public_ip6": "192.0.2.1"}},
        {**whole, "own": {**both, "subnet6": 7}},
        {**whole, "own": {**both, "subnet": "fd00::/64", "public_ip": "fd01::1"}},
        {**whole, "own": {name: both[name] for name in both if name != "public_ip6"}},
        {**whole, "own": {**lease, "public_ip6": "fd01::1"}},
        {**whole, "own": {**lease, "key": 3}},
        {**whole, "own": {**lease, "expires": "no"}},
        {**whole, "own": {name: lease[name] for name in lease if name != "subnet"}},
        [whole],
        None,
    ]
    return ["", "{", "\x00" * 100, "[" * 100_000, *map(json.dumps, changes)]


@pytest.mark.parametrize("text", mangled())
def test_a_bad_file_is_named_and_set_aside(text: str, tmp_path: Path) -> None:
    path = tmp_path / "default.json"
    path.write_text(text)

    found, complaint = load(path)

    assert found == State()
    assert str(path) in complaint
    assert not path.exists()
    assert (tmp_path / "default.json.bad").read_text() == text


def test_fields_of_a_later_version_are_left_out_and_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Without its MAC a host that goes back to an older version would be another one to its peers.
    later = json.loads(encode(STATE))
    later |= {"more": 1, "own": later["own"] | {"surprise": {}}}
    later["peers"] = [peer | {"surprise": 2} for peer in [*later["peers"], later["own"]]]
    path = tmp_path / "default.json"
    path.write_text(json.dumps(later))

    found, complaint = load(path)

    assert found == replace(STATE, peers=(JUNK_KEY, LEASE))
    assert complaint == ""
    assert path.exists()
    [record] = caplog.records
    assert record.getMessage().endswith("left out: ['more', 'surprise']")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"0123456789abcdef0123456789abcdef\n", "0123456789abcdef0123456789abcdef"),
        (b"", ""),
        (b"uninitialized\n", ""),  # an image before its first boot: all its hosts have it
        (b"\xff\x00", ""),
        (b"a/b", ""),
    ],
)
def test_only_a_machine_id_is_taken_for_one(text: bytes, found: str, tmp_path: Path) -> None:
    path = tmp_path / "machine-id"
    assert read_machine_id(path) == ""
    path.write_bytes(text)
    assert read_machine_id(path) == found


@given(st.data())
def test_a_file_cut_or_flipped_anywhere_never_raises_anything_else(data: st.DataObject) -> None:
    text = encode(STATE)
    at = data.draw(st.integers(0, len(text) - 1))
    if data.draw(st.booleans()):
        text = text[:at]
    else:
        text = text[:at] + data.draw(st.characters(max_codepoint=255)) + text[at + 1 :]
    with contextlib.suppress(ValueError):  # named and set aside
        decode(text)


def test_bytes_that_are_no_text_are_set_aside_too(tmp_path: Path) -> None:
    path = tmp_path / "default.json"
    path.write_bytes(b"\xff\xfe")
    assert load(path)[1]
    assert not path.exists()


def test_a_peer_that_stays_is_not_put_into_text_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # With a thousand of them that took 20 ms for each lease that changed.
    encoder = Encoder()
    first = replace(STATE, peers=(LEASE, JUNK_KEY))
    assert encoder.encode(first) == encode(first)
    texts: list[Lease] = []
    real = state._lease_text
    monkeypatch.setattr(state, "_lease_text", lambda lease: texts.append(lease) or real(lease))
    other = replace(LEASE, mod_revision=10)
    second = replace(first, own=None, peers=(other, JUNK_KEY))
    text = encoder.encode(second)
    assert texts == [other]
    assert decode(text) == second


async def test_a_network_in_motion_is_written_once_in_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netplane.agent.state.PAUSE_S", 3600.0)
    written: list[int] = []
    done = asyncio.Event()
    loop = asyncio.get_running_loop()

    def write(path: Path, text: str) -> None:
        written.append(decode(text).revision)
        loop.call_soon_threadsafe(done.set)

    keeper = StateKeeper(tmp_path / "state", State(), write)
    running = asyncio.create_task(keeper.run())
    keeper.change(revision=1)
    await done.wait()
    for revision in range(2, 12):
        keeper.change(revision=revision)
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert written == [1, 11]  # the first at once, the last at the end


async def test_what_changes_during_a_write_is_written_by_the_next_in_order(tmp_path: Path) -> None:
    # Ten changes while the disk is busy cost one more write, and the newest is what stays.
    written: list[int] = []
    started, may_end = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slow(path: Path, text: str) -> None:
        written.append(decode(text).revision)
        loop.call_soon_threadsafe(started.set)
        assert may_end.wait(10)

    keeper = StateKeeper(tmp_path / "state", State(), slow)
    running = asyncio.create_task(keeper.run())
    keeper.change(revision=1)
    await started.wait()
    for revision in range(2, 12):
        keeper.change(revision=revision)
    running.cancel()
    may_end.set()
    await asyncio.gather(running, return_exceptions=True)

    assert written == [1, 11]


async def test_a_disk_that_fails_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netplane.agent.state.RETRY_S", 0.0)
    tries: list[str] = []
    done = asyncio.Event()
    loop = asyncio.get_running_loop()

    def full_at_first(path: Path, text: str) -> None:
        tries.append(keeper.problem)
        if len(tries) < 3:
            raise OSError(28, "No space left on device")
        loop.call_soon_threadsafe(done.set)

    said: list[str] = []
    keeper = StateKeeper(tmp_path / "state", State(), full_at_first, said.append)
    running = asyncio.create_task(keeper.run())
    keeper.change(revision=1)
    await done.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    assert len(tries) >= 3  # the last may be under way when the keeper ends, which then repeats it
    assert keeper.problem == ""
    # Told once, not at every try: a log on that disk would fill it further.
    path = tmp_path / "state"
    assert said == [f"cannot write the state file {path}: No space left on device", ""]


async def test_a_full_disk_keeps_nobody_from_starting_who_remembers_all(tmp_path: Path) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    keeper = StateKeeper(tmp_path / "state", STATE, full)
    keeper.change(host_id=STATE.host_id, vtep_mac=STATE.vtep_mac)
    assert await keeper.save()
    keeper.change(host_id="another")
    assert not await keeper.save()
    assert "No space left on device" in keeper.problem


async def test_the_real_file_is_private_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "lib" / "default.json"
    keeper = StateKeeper(path, State())
    keeper.change(revision=5)
    assert await keeper.save()
    assert load(path) == (State(revision=5), "")
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]
