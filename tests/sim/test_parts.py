"""The simulated disk, network and clock do what their options and faults say."""

from __future__ import annotations

from kvstore.raft.membership import Configuration
from kvstore.raft.messages import AppendWork, Entry, HardState, SnapshotMeta
from tests.sim.disk import Disk, DiskOptions
from tests.sim.linear import APPEND, PUT
from tests.sim.machine import Image, Machine, decode, encode
from tests.sim.network import LinkOptions, Network
from tests.sim.world import World


def work(
    first: int, *terms: int, hard: HardState | None = None, must_sync: bool = True
) -> AppendWork:
    entries = [Entry(i, term, 0, b"") for i, term in enumerate(terms, start=first)]
    return AppendWork(entries, hard, None, must_sync=must_sync, messages=[])


class Machinery:
    """A disk and what it called durable."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        self.disk = Disk(self.world, DiskOptions(1_000, 4), Image())
        self.done: list[AppendWork] = []
        self.disk.start(self.done.extend)


def test_an_fsync_takes_time_and_what_comes_meanwhile_is_one_batch() -> None:
    m = Machinery(1)
    for index in (1, 2, 3):
        m.disk.submit(work(index, 1))
    assert m.disk.last_index == 0
    m.world.run(1)
    assert (m.disk.last_index, len(m.done)) == (1, 1)
    assert m.world.now_ns >= 1_000
    m.world.run(2)
    assert (m.disk.last_index, len(m.done)) == (3, 3)
    assert m.world.events == 2


def test_a_crash_keeps_some_prefix_of_what_was_being_written() -> None:
    kept = set()
    for seed in range(60):
        m = Machinery(seed)
        m.disk.submit(work(1, 1))
        for index in (2, 3, 4):
            m.disk.submit(work(index, 1))
        m.world.run(1)
        m.disk.submit(work(5, 1))  # waits behind the fsync that is under way: never written
        m.disk.crash()
        kept.add(m.disk.last_index)
        assert [entry.index for entry in m.disk.start(m.done.extend).entries] == list(
            range(1, m.disk.last_index + 1)
        )
        m.world.run(100)
        assert len(m.done) == 1, "a dead machine finished an fsync"
    assert kept == {1, 2, 3, 4}


def test_what_needs_no_fsync_is_durable_only_with_the_next_one() -> None:
    m = Machinery(1)
    m.disk.submit(work(1, hard=HardState(1, 1, 1), must_sync=False))
    m.world.run(1)
    assert len(m.done) == 1
    assert m.disk.hard_state.term == 0
    m.disk.submit(work(1, 1))
    m.world.run(2)
    assert m.disk.hard_state.term == 1


def test_later_entries_replace_earlier_ones_with_their_index() -> None:
    m = Machinery(1)
    m.disk.submit(work(1, 1, 1, 1))
    m.disk.submit(work(2, 2))
    m.world.run(2)
    assert [entry.term for entry in m.disk.entries] == [1, 2]


def test_a_named_snapshot_survives_a_crash_before_the_store_is_swapped() -> None:
    m = Machinery(1)
    meta = SnapshotMeta(9, 3, Configuration((1,)))
    m.disk.stage(Image(index=9, term=3, lists={1: (5,)}))
    m.disk.submit(AppendWork([], None, meta, must_sync=True, messages=[]))
    m.world.run(1)
    m.disk.crash()
    recovered = m.disk.start(m.done.extend)
    assert (recovered.compacted_index, recovered.compacted_term) == (9, 3)
    assert recovered.image.lists == {1: (5,)}


def links(
    *, in_order: bool = True, loss: float = 0.0, duplication: float = 0.0
) -> tuple[World, Network, list[bytes]]:
    world = World(3)
    network = Network(world, 3, LinkOptions(1_000, 12, loss, duplication, 16, in_order=in_order))
    got: list[bytes] = []
    network.receivers = [got.append] * 4
    return world, network, got


def frames(count: int) -> list[bytes]:
    return [bytes([i]) for i in range(count)]


def test_a_link_keeps_order_or_does_not() -> None:
    for in_order in (True, False):
        world, network, got = links(in_order=in_order)
        for frame in frames(50):
            network.send(1, 2, frame)
        world.run(1, 1 << 40)
        assert sorted(got) == frames(50)
        assert (got == frames(50)) is in_order


def test_loss_and_duplication_have_about_the_rates_that_were_asked_for() -> None:
    world, network, got = links(loss=0.3)
    for frame in frames(200):
        network.send(1, 2, frame)
    world.run(1, 1 << 40)
    assert 110 < len(got) < 170
    world, network, got = links(duplication=0.3)
    for frame in frames(200):
        network.send(1, 2, frame)
    world.run(1, 1 << 40)
    assert 230 < len(got) < 290
    assert set(got) == set(frames(200))


def test_a_cut_loses_one_direction_and_a_clog_only_delays() -> None:
    world, network, got = links()
    lost: list[tuple[int, int]] = []
    network.lost = lambda source, target: lost.append((source, target))
    network.cut(1, 2)
    network.clog(2, 1)
    network.send(1, 2, b"cut")
    network.send(2, 1, b"held 1")
    network.send(2, 1, b"held 2")
    network.send(1, 3, b"free")
    world.run(1, 1 << 40)
    assert (got, lost) == ([b"free"], [(1, 2)])
    network.heal()
    network.send(1, 2, b"healed")
    world.run(1, 1 << 41)
    assert got[1:3] == [b"held 1", b"held 2"] or set(got[1:]) == {b"held 1", b"held 2", b"healed"}
    assert len(got) == 4


def test_a_slow_link_delays() -> None:
    world, network, got = links()
    network.slow(1, 2, 1_000_000)
    network.send(1, 2, b"slow")
    world.run(1, 900_000)
    assert got == []
    world.run(1, 1 << 40)
    assert got == [b"slow"]


def test_events_of_one_time_keep_their_order() -> None:
    world = World(1)
    got: list[int] = []
    for i in range(20):
        world.after(7, got.append, i)
    world.run(1, 100)
    assert got == list(range(20))
    assert world.now_ns == 7


def test_the_machine_shows_lists_and_tells_histories_apart() -> None:
    one, two = Machine(Image()), Machine(Image())
    assert one.apply([(1, PUT, 5), (1, APPEND, 6), (1, PUT, 7)]) == [(), (5, 6), (5, 6)]
    two.apply([(1, PUT, 6), (1, APPEND, 5), (1, PUT, 7)])
    assert one.lists == two.lists
    assert one.digest != two.digest
    again = Machine(one.image())
    assert (again.lists, again.digest) == (one.lists, one.digest)


def test_entry_data_round_trip() -> None:
    origin, writes = (3, 2, 70_000), ((1, PUT, 5), (65_535, APPEND, 4_000_000_000))
    assert decode(encode(origin, writes)) == (origin, writes)
