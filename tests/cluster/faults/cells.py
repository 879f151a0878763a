"""The faults, one function each, and the matrix. A new fault is a function and a line in `CELLS`.

A fault leaves behind whatever `run` mends: stopped and dead members, cut links. It clears its
failpoints itself, or the member that has them dies.
"""

from __future__ import annotations

import asyncio
import time

from tests.cluster.faults import replacing
from tests.cluster.faults.run import ELECTION_S, Cell, World
from tests.validate.history import Violation

EXIT_DISK = 74
EXIT_PANIC = 70


# processes


async def kill_leader(world: World) -> None:
    await world.kill(await world.leader())
    await world.goes_on()


async def kill_follower(world: World) -> None:
    await world.kill(await world.follower())
    await world.goes_on()


async def kill_two(world: World) -> None:
    leader = await world.leader()
    await world.kill(leader)
    await world.kill((leader + 1) % world.members.nodes)
    await world.goes_on()


async def kill_all(world: World) -> None:
    world.tell("kill all members at once")
    for index in world.members.running():
        world.members.process(index).kill()
    for index in range(world.members.nodes):
        world.members.kill(index)


async def kill_all_slow_disks(world: World) -> None:
    # Whoever acknowledges before its write is done has much to lose here.
    for index in range(world.members.nodes):
        await world.failpoint(index, "wal.write.before", "sleep(300)")
    await world.goes_on(10)
    await kill_all(world)


async def kill_each(world: World) -> None:
    for index in range(world.members.nodes):
        await world.kill(index)
        await world.goes_on(10)
        await world.restart(index)


async def pause_leader(world: World) -> None:
    leader = await world.leader()
    await world.do(f"pause member {leader}", world.members.pause, leader)
    await asyncio.sleep(2.5 * ELECTION_S)
    await world.goes_on()
    # It wakes in the belief that it leads, with its clients' reads in its sockets.
    await asyncio.sleep(0.5)
    await world.do(f"resume member {leader}", world.members.resume, leader)


async def pause_leaders_of_lessees(world: World) -> None:
    # Each finds renewals in its sockets that its successor's clock knows nothing of.
    for _ in range(3):
        await pause_leader(world)
        await world.goes_on()


async def pause_follower(world: World) -> None:
    follower = await world.follower()
    await world.do(f"pause member {follower}", world.members.pause, follower)
    await asyncio.sleep(2.5 * ELECTION_S)
    await world.goes_on()


async def pause_all(world: World) -> None:
    for index in range(world.members.nodes):
        world.members.pause(index)
    world.tell("all members are paused")
    await asyncio.sleep(2.5 * ELECTION_S)


# networks


async def cut_leader(world: World) -> None:
    leader = await world.leader()
    others = [m for m in range(world.members.nodes) if m != leader]
    await world.split([leader], others)
    await world.deposed(leader)
    await world.goes_on()
    await asyncio.sleep(ELECTION_S)


async def cut_follower(world: World) -> None:
    follower = await world.follower()
    others = [m for m in range(world.members.nodes) if m != follower]
    await world.split([follower], others)
    await asyncio.sleep(2 * ELECTION_S)
    await world.goes_on()


async def cut_leader_out(world: World) -> None:
    leader = await world.leader()
    for other in range(world.members.nodes):
        if other != leader:
            await world.cut(leader, other)
    await world.deposed(leader)
    await world.goes_on()


async def cut_leader_in(world: World) -> None:
    leader = await world.leader()
    for other in range(world.members.nodes):
        if other != leader:
            await world.cut(other, leader)
    await world.deposed(leader)
    await world.goes_on()


async def cut_follower_out(world: World) -> None:
    follower = await world.follower()
    for other in range(world.members.nodes):
        if other != follower:
            await world.cut(follower, other)
    await asyncio.sleep(2 * ELECTION_S)
    await world.goes_on()


async def cut_follower_in(world: World) -> None:
    # Hears nobody, is heard by all: without PreVote it would depose one leader after the other.
    follower = await world.follower()
    for other in range(world.members.nodes):
        if other != follower:
            await world.cut(other, follower)
    await asyncio.sleep(2 * ELECTION_S)
    await world.goes_on()


async def bridge_leader_at_end(world: World) -> None:
    # A - B - C without A - C, and A leads.
    leader = await world.leader()
    middle, end = ((leader + 1) % 3, (leader + 2) % 3)
    await world.split([leader, middle], [middle, end])
    await asyncio.sleep(2 * ELECTION_S)
    await world.goes_on()


async def bridge_leader_between(world: World) -> None:
    leader = await world.leader()
    follower, other = (leader + 1) % 3, (leader + 2) % 3
    await world.split([leader, follower], [leader, other])
    await asyncio.sleep(2 * ELECTION_S)
    await world.goes_on()
    # Followers have nothing to say to each other, unless one of them begins anew.
    await world.kill(other)
    await world.do(f"start member {other}", world.members.start_only, other)
    await world.goes_on()


async def minority_leader(world: World) -> None:
    leader = await world.leader()
    order = [(leader + number) % 5 for number in range(5)]
    await world.split(order[:2], order[2:])
    await world.deposed(leader)
    await world.goes_on()
    await asyncio.sleep(ELECTION_S)


async def majority_leader(world: World) -> None:
    leader = await world.leader()
    order = [(leader + number) % 5 for number in range(5)]
    await world.split(order[:3], order[3:])
    await asyncio.sleep(2 * ELECTION_S)
    await world.goes_on()


async def bridge_of_five(world: World) -> None:
    # Two pairs that only one member in the middle joins: only with it is there a majority.
    leader = await world.leader()
    order = [(leader + number) % 5 for number in range(5)]
    await world.split([order[0], order[1], order[2]], [order[2], order[3], order[4]])
    await asyncio.sleep(2 * ELECTION_S)
    await world.goes_on()


async def ring_of_five(world: World) -> None:
    # Everybody sees two neighbours: each has a majority with itself, no two the same.
    await world.split(*([m, (m + 1) % 5] for m in range(5)))
    await asyncio.sleep(2 * ELECTION_S)
    await world.goes_on()


async def no_majority(world: World) -> None:
    # No write may succeed; what clients were told is unknown must stay so or be there.
    await world.split(*([m] for m in range(world.members.nodes)))
    await asyncio.sleep(3 * ELECTION_S)


async def flapping_links(world: World) -> None:
    for _ in range(6):
        one, other = world.rng.sample(range(world.members.nodes), 2)
        await world.cut(one, other)
        await asyncio.sleep(world.rng.uniform(0.1, 0.8))
        await world.heal()
    await world.goes_on()


async def lost_messages(world: World) -> None:
    for index in range(world.members.nodes):
        await world.failpoint(index, "peer.send", "10%return")
    await world.goes_on(100)
    for index in range(world.members.nodes):
        await world.failpoint(index, "peer.send", None)


# disks


async def disk_full(world: World) -> None:
    leader = await world.leader()
    await world.do(f"fill the disk of member {leader}", world.members.fill, leader)
    code = await world.dies(leader)
    if code != EXIT_DISK:
        raise Violation(f"a full disk ended the member with {code}, not {EXIT_DISK}")
    await world.goes_on()
    await world.do("make room", world.members.free, leader)


async def slow_fsync_leader(world: World) -> None:
    # Longer than an election timeout: the leader must hand over.
    leader = await world.leader()
    await world.failpoint(leader, "wal.sync.before", "sleep(2500)")
    await world.deposed(leader)
    await world.goes_on()
    await world.failpoint(leader, "wal.sync.before", None)


async def slow_fsync_everywhere(world: World) -> None:
    for index in range(world.members.nodes):
        await world.failpoint(index, "wal.sync.before", "sleep(60)")
    await world.goes_on()
    for index in range(world.members.nodes):
        await world.failpoint(index, "wal.sync.before", None)


async def slow_commit(world: World) -> None:
    leader = await world.leader()
    await world.failpoint(leader, "store.commit.before", "sleep(700)")
    await world.goes_on(150)
    await world.failpoint(leader, "store.commit.before", None)


async def disk_errors(world: World) -> None:
    for point, action in (
        ("wal.write.before", "error(ENOSPC)"),
        ("wal.sync.before", "error"),
        ("store.commit.before", "error"),
    ):
        leader = await world.leader()
        await world.failpoint(leader, point, action)
        code = await world.dies(leader)
        if code != EXIT_DISK:
            raise Violation(f"{point}={action} ended the member with {code}, not {EXIT_DISK}")
        await world.goes_on(10)
        await world.restart(leader)


async def panics(world: World) -> None:
    # At every step of the way to the disk; each time another place that recovery starts from.
    for point in (
        "wal.write.before", "wal.write.after", "wal.sync.before", "wal.sync.after",
        "store.commit.before", "store.commit.after", "peer.send", "peer.receive",
    ):  # fmt: skip
        victim = await world.leader() if world.rng.random() < 0.7 else await world.follower()
        await world.failpoint(victim, point, "panic")
        if await world.dies(victim) != EXIT_PANIC:
            raise Violation(f"{point} did not panic")
        await world.restart(victim)
    await world.goes_on(10)


async def panic_all_before_fsync(world: World) -> None:
    # What was acknowledged must not depend on a write that no disk has confirmed.
    for index in range(world.members.nodes):
        await world.failpoint(index, "wal.sync.before", "panic")
    for index in range(world.members.nodes):
        # A last one cannot write without the others; it dies with them.
        if index in world.members.running():
            world.members.kill(index)
        world.members.exits.pop(index, None)


# snapshots


async def _leave_behind(world: World, entries: int = 60) -> None:
    """Let the log go past a follower that hears nothing: only a snapshot brings it back."""
    name = "kvstore_log_first_index"
    wanted = await asyncio.to_thread(world.members.metric, await world.leader(), name) + entries
    end = time.monotonic() + 60
    while await asyncio.to_thread(world.members.metric, await world.leader(), name) <= wanted:
        if time.monotonic() > end:
            raise Violation("the log is not released")
        await world.goes_on(20)


async def _installed(world: World, follower: int) -> None:
    name = "kvstore_snapshots_installed_total"
    if await asyncio.to_thread(world.members.metric, follower, name) < 1:
        raise Violation("no snapshot was installed")


async def snapshot_to_paused(world: World) -> None:
    # Its watchers stay connected, and must hear of everything that the snapshot jumps over.
    follower = await world.follower()
    await world.do(f"pause member {follower}", world.members.pause, follower)
    # More than the leader has in flight to it (256 messages): those wait in its sockets.
    await _leave_behind(world, entries=500)
    await world.do(f"resume member {follower}", world.members.resume, follower)
    await world.goes_on()
    end = time.monotonic() + 30
    name = "kvstore_snapshots_installed_total"
    while await asyncio.to_thread(world.members.metric, follower, name) < 1:
        if time.monotonic() > end:
            raise Violation("no snapshot was installed")
        await asyncio.sleep(0.1)


async def snapshot_under_load(world: World) -> None:
    follower = await world.follower()
    await world.kill(follower)
    await _leave_behind(world)
    await world.restart(follower)
    await _installed(world, follower)


async def snapshot_receiver_panics(world: World) -> None:
    follower = await world.follower()
    await world.kill(follower)
    await _leave_behind(world)
    for point in (
        "snapshot.receive", "snapshot.install.before", "store.rename.before", "store.rename.after",
    ):  # fmt: skip
        world.members.extra_environment[follower] = {"KVSTORE_FAILPOINTS": f"{point}=panic"}
        await world.do(f"start member {follower} with {point}", world.members.start_only, follower)
        code = await world.dies(follower)
        if code != EXIT_PANIC:
            raise Violation(f"{point} did not panic, the member ended with {code}")
        # Behind again, for the next point.
        await world.goes_on(150)
    world.members.extra_environment.clear()
    await world.restart(follower)


async def snapshot_sender_fails(world: World) -> None:
    follower = await world.follower()
    await world.kill(follower)
    await _leave_behind(world)
    leader = await world.leader()
    await world.failpoint(leader, "snapshot.send.frame", "2*error(EPIPE)")
    await world.restart(follower)
    await _installed(world, follower)
    await world.failpoint(leader, "snapshot.send.frame", None)


async def snapshot_to_cut_link(world: World) -> None:
    follower = await world.follower()
    await world.kill(follower)
    await _leave_behind(world)
    await world.do(f"start member {follower}", world.members.start_only, follower)
    for _ in range(4):
        leader = await world.leader()
        await world.cut(leader, follower)
        await asyncio.sleep(world.rng.uniform(0.1, 0.4))
        await world.heal()
        await asyncio.sleep(world.rng.uniform(0.0, 0.3))
    await world.goes_on()


# clocks


async def clocks_apart(world: World) -> None:
    # The monotonic clocks of the members differ by days (see `CELLS`), and one starts at another
    # time after its restart, as after a reboot. No promise may depend on a moment of another's.
    leader = await world.leader()
    world.members.wrappers[leader] = clock_offset(-1)
    await world.kill(leader)
    await world.goes_on()
    await world.restart(leader)
    await world.goes_on(10)


def clock_offset(hours: int) -> list[str]:
    """Return what starts a command with a monotonic clock of its own (a time namespace)."""
    seconds = str(hours * 3600)
    return ["unshare", "--time", f"--monotonic={seconds}", f"--boottime={seconds}", "--"]


SNAPSHOTS = ("--snapshot-count", "20")

CELLS: dict[str, Cell] = {
    cell.name: cell
    for cell in (
        Cell("kill-leader", kill_leader),
        Cell("kill-follower", kill_follower),
        Cell("kill-each", kill_each),
        Cell("kill-two-of-five", kill_two, nodes=5),
        Cell("kill-all", kill_all),
        Cell("kill-all-of-five", kill_all, nodes=5),
        Cell("kill-all-slow-disks", kill_all_slow_disks),
        Cell("pause-leader", pause_leader),
        Cell("pause-leaders-of-lessees", pause_leaders_of_lessees, lessees=24),
        Cell("pause-follower", pause_follower),
        Cell("pause-all", pause_all),
        Cell("cut-leader", cut_leader),
        Cell("cut-follower", cut_follower),
        Cell("cut-leader-out", cut_leader_out),
        Cell("cut-leader-in", cut_leader_in),
        Cell("cut-follower-out", cut_follower_out),
        Cell("cut-follower-in", cut_follower_in),
        Cell("bridge-leader-at-end", bridge_leader_at_end),
        Cell("bridge-leader-between", bridge_leader_between),
        Cell("minority-leader-of-five", minority_leader, nodes=5),
        Cell("majority-leader-of-five", majority_leader, nodes=5),
        Cell("bridge-of-five", bridge_of_five, nodes=5),
        Cell("ring-of-five", ring_of_five, nodes=5),
        Cell("no-majority", no_majority),
        Cell("flapping-links", flapping_links),
        Cell("lost-messages", lost_messages),
        Cell("disk-full", disk_full, needs_root=True, small_disk=True),
        Cell("slow-fsync-leader", slow_fsync_leader),
        Cell("slow-fsync-everywhere", slow_fsync_everywhere),
        Cell("slow-commit", slow_commit),
        Cell("disk-errors", disk_errors),
        Cell("panics", panics),
        Cell("panic-all-before-fsync", panic_all_before_fsync),
        Cell("snapshot-to-paused", snapshot_to_paused, flags=SNAPSHOTS),
        Cell("snapshot-under-load", snapshot_under_load, flags=SNAPSHOTS),
        Cell("snapshot-receiver-panics", snapshot_receiver_panics, flags=SNAPSHOTS),
        Cell("snapshot-sender-fails", snapshot_sender_fails, flags=SNAPSHOTS),
        Cell("snapshot-to-cut-link", snapshot_to_cut_link, flags=SNAPSHOTS),
        Cell("replace-follower", replacing.replace_follower),
        Cell("replace-leader", replacing.replace_leader),
        Cell("replace-through-learner", replacing.replace_through_learner),
        Cell("replace-each", replacing.replace_each),
        Cell("replace-one-of-five", replacing.replace_leader, nodes=5),
        Cell("replace-over-bad-links", replacing.replace_over_bad_links),
        Cell("remove-leader", replacing.remove_leader),
        Cell("remove-paused-leader", replacing.remove_paused_leader),
        Cell("remove-cut-leader", replacing.remove_cut_leader),
        Cell("move-leader", replacing.move_leader),
        Cell("move-leader-to-paused", replacing.move_leader_to_paused),
        Cell(
            "clocks-apart",
            clocks_apart,
            needs_root=True,
            wrappers={0: clock_offset(24 * 30), 2: clock_offset(5)},
        ),
    )
}
