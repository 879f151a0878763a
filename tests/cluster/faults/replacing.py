"""The faults in which members are replaced or lead no more because somebody wants it so.

A replaced member comes back at its old addresses with nothing on its disk and a new id, as a host
with a new disk does: its clients and watchers stay with it and must not notice more than the gap.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from kvstore.client import AsyncClient, AvailabilityError, KvError, Member, PreconditionError
from tests.cluster.faults.run import ELECTION_S, World
from tests.validate.history import Violation

EXIT_REMOVED = 77

CHANGE_S = 40.0
"""How long a change may be refused: a member counts as healthy five election timeouts after it was
connected, and a learner as in sync once it has nine tenths of the log."""

NOT_YET = frozenset(
    {
        "etcdserver: unhealthy cluster",
        "etcdserver: re-configuration failed due to not enough started members",
        "etcdserver: can only promote a learner member which is in sync with leader",
    }
)

Answer = TypeVar("Answer")


async def replace_follower(world: World) -> None:
    await _replace_dead(world, await world.follower())


async def replace_leader(world: World) -> None:
    # The entries that only it had, acknowledged by nobody, are gone for ever.
    await _replace_dead(world, await world.leader())


async def replace_through_learner(world: World) -> None:
    # While it has no vote, clients that stay at it are refused, and watchers move away.
    await _replace_dead(world, await world.follower(), as_learner=True)


async def replace_each(world: World) -> None:
    # In the end no disk of the beginning is left: all that there is came through snapshots.
    first = await world.leader()
    for number in range(world.members.nodes):
        index = (first + number) % world.members.nodes
        await _replace_dead(world, index, as_learner=world.rng.random() < 0.5)


async def replace_over_bad_links(world: World) -> None:
    for index in range(world.members.nodes):
        await world.failpoint(index, "peer.send", "5%return")
    await _replace_dead(world, await world.follower(), as_learner=world.rng.random() < 0.5)
    # The newcomer has no failpoint.
    for index in range(world.members.nodes):
        await world.failpoint(index, "peer.send", None)


async def remove_leader(world: World) -> None:
    # It hands over, the successor removes it, and it ends by itself.
    leader = await world.leader()
    async with _asking(world, leader) as client:
        await _remove(world, client, await _id_of(world, client, leader))
        await _ends_as_removed(world, leader)
        await world.goes_on()
        await _join(world, client, leader, as_learner=False)


async def remove_paused_leader(world: World) -> None:
    # It wakes in the belief that it leads, with the reads and renewals of its clients in its
    # sockets, and nobody counts it any more.
    leader = await world.leader()
    await world.do(f"pause member {leader}", world.members.pause, leader)
    await asyncio.sleep(2.5 * ELECTION_S)
    await world.goes_on()
    async with _asking(world, leader) as client:
        await _remove(world, client, await _id_of(world, client, leader))
        await world.goes_on()
        await world.do(f"resume member {leader}", world.members.resume, leader)
        await _ends_as_removed(world, leader)
        await _join(world, client, leader, as_learner=False)


async def remove_cut_leader(world: World) -> None:
    # Both sides want to remove each other: only the majority may.
    leader = await world.leader()
    others = [m for m in range(world.members.nodes) if m != leader]
    await world.split([leader], others)
    async with AsyncClient([world.members.endpoints[leader]], timeout_s=5) as client:
        victim = await _id_of(world, client, others[0], linearizable=False)
        try:
            await client.member_remove(victim)
        except KvError as error:
            world.tell(f"the minority is refused: {error.text}")
        else:
            raise Violation("a leader without a majority has removed a member")
    await world.deposed(leader)
    async with _asking(world, leader) as client:
        await _remove(world, client, await _id_of(world, client, leader))
        await world.goes_on()
        await world.heal()
        await _ends_as_removed(world, leader)
        await _join(world, client, leader, as_learner=False)
        if victim not in {member.member_id for member in await client.member_list()}:
            raise Violation("what a leader without a majority proposed has become true")


async def move_leader(world: World) -> None:
    # Without any failure; who holds a lease or a watch must not notice.
    for _ in range(6):
        leader = await world.leader()
        target = (leader + world.rng.choice((1, 2))) % world.members.nodes
        async with AsyncClient(world.members.endpoints) as client:
            await _until_allowed(
                world,
                f"move the leadership from member {leader} to {target}",
                lambda client=client, target=target: _move(world, client, target),
            )
        await world.goes_on(60)


async def move_leader_to_paused(world: World) -> None:
    # The transfer cannot succeed; the leader must take writes again soon.
    leader = await world.leader()
    target = (leader + 1) % world.members.nodes
    async with AsyncClient(world.members.endpoints) as client:
        member = await _id_of(world, client, target)
        await world.do(f"pause member {target}", world.members.pause, target)
        try:
            await client.move_leader(member, timeout_s=5)
        except KvError as error:
            world.tell(f"not moved: {error.text}")
        else:
            raise Violation("the leadership has moved to a member that does not run")
    await world.goes_on()


# how


def _asking(world: World, without: int) -> AsyncClient:
    endpoints = [text for index, text in enumerate(world.members.endpoints) if index != without]
    return AsyncClient(endpoints, timeout_s=5)


async def _replace_dead(world: World, index: int, *, as_learner: bool = False) -> None:
    """Lose a member with its disk, and let a fresh one take its place."""
    await world.kill(index)
    await world.do(f"member {index} has lost its disk", world.members.wipe, index)
    await world.goes_on()
    async with _asking(world, index) as client:
        await _remove(world, client, await _id_of(world, client, index))
        await _join(world, client, index, as_learner=as_learner)


async def _join(world: World, client: AsyncClient, index: int, *, as_learner: bool) -> None:
    """Add a member at the addresses of one that was removed, and start it."""
    url = world.members.peer_urls[index]
    kind = "learner" if as_learner else "voter"
    member: Member = await _until_allowed(
        world, f"add member {index}, a {kind}", lambda: _added(client, url, as_learner=as_learner)
    )
    await world.do(f"start it as {member.member_id:x}", world.members.rejoin, index, member)
    await world.goes_on()
    if as_learner:
        await _until_allowed(
            world, f"promote member {index}", lambda: client.member_promote(member.member_id)
        )
    installed = "kvstore_snapshots_installed_total"
    if await asyncio.to_thread(world.members.metric, index, installed) < 1:
        raise Violation("a member that had nothing has installed no snapshot")
    await world.goes_on()


async def _added(client: AsyncClient, url: str, *, as_learner: bool) -> Member:
    found = [member for member in await client.member_list() if url in member.peer_urls]
    if found:
        return found[0]  # an earlier attempt of unknown outcome
    return await client.member_add([url], is_learner=as_learner)


async def _remove(world: World, client: AsyncClient, member: int) -> None:
    async def removed() -> None:
        if member in {each.member_id for each in await client.member_list()}:
            await client.member_remove(member)

    await _until_allowed(world, f"remove {member:x}", removed)


async def _move(world: World, client: AsyncClient, target: int) -> None:
    await client.move_leader(await _id_of(world, client, target))


async def _ends_as_removed(world: World, index: int) -> None:
    """Demand that a removed member ends, and does so again when started with its data."""
    code = await world.dies(index)
    if code != EXIT_REMOVED:
        raise Violation(f"a removed member ended with {code}, not {EXIT_REMOVED}")
    await world.do(f"start member {index} again", world.members.start_only, index)
    code = await world.dies(index)
    if code != EXIT_REMOVED:
        raise Violation(f"a removed member came back and ended with {code}, not {EXIT_REMOVED}")
    await world.do(f"member {index} gets a new disk", world.members.wipe, index)


async def _id_of(
    world: World, client: AsyncClient, index: int, *, linearizable: bool = True
) -> int:
    url = world.members.peer_urls[index]
    members = await client.member_list(linearizable=linearizable)
    [member] = [each for each in members if url in each.peer_urls]
    return member.member_id


async def _until_allowed(
    world: World, what: str, change: Callable[[], Awaitable[Answer]]
) -> Answer:
    """Make a change that may be made twice, as soon as the cluster lets us."""
    started = time.monotonic()
    while True:
        try:
            answer = await change()
        except (AvailabilityError, PreconditionError) as error:
            if isinstance(error, PreconditionError) and error.text not in NOT_YET:
                raise
            if time.monotonic() > started + CHANGE_S:
                raise Violation(f"{what}: still refused after {CHANGE_S} s: {error}") from error
            await asyncio.sleep(0.1)  # nothing to await: time itself makes a cluster healthy
        else:
            world.tell(f"{what}: done after {time.monotonic() - started:.2f} s")
            return answer
