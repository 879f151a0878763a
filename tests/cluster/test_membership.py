"""Members come, go and move while clients write: nothing is lost, and what could cost the quorum is
refused in etcd's words.

A member counts as healthy when it has been connected for 5 election timeouts: `when_healthy` waits
for that, and the election timeout is half of the usual one.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Awaitable, Callable
from typing import Literal, TypeVar

import pytest

from kvstore.client import (
    AsyncClient,
    AvailabilityError,
    KvError,
    Member,
    MemberNotFoundError,
    Op,
    OutcomeUnknownError,
    PreconditionError,
)
from kvstore.client.methods import MOVE_LEADER
from tests.cluster.test_three_members import Numbers, applied_everywhere, hashes, metric
from tests.servers import Kvstore, curl

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

EXIT_REMOVED = 77
UNHEALTHY = "etcdserver: unhealthy cluster"
NOT_STARTED = "etcdserver: re-configuration failed due to not enough started members"
NOT_IN_SYNC = "etcdserver: can only promote a learner member which is in sync with leader"
NOT_A_LEARNER = "etcdserver: can only promote a learner member"
NOT_FOR_LEARNERS = "etcdserver: rpc not supported for learner"
BAD_TRANSFEREE = "etcdserver: bad leader transferee"

Answer = TypeVar("Answer")


def members_of(nodes: int, *flags: str) -> Kvstore:
    """Return a cluster that elects, and counts as healthy, in half the usual time."""
    return Kvstore(nodes, ("--heartbeat-interval", "50", "--election-timeout", "500", *flags))


async def when_healthy(change: Callable[[], Awaitable[Answer]]) -> Answer:
    """Make a change as soon as the cluster counts as healthy."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await change()
            except (AvailabilityError, PreconditionError) as error:
                # Not all have published their names yet, or not for long.
                if error.text not in {UNHEALTHY, NOT_STARTED}:
                    raise
                await asyncio.sleep(0.1)  # nothing to await: time itself makes it healthy


async def in_sync(client: AsyncClient, member: Member) -> None:
    """Promote a learner as soon as it has caught up."""
    async with asyncio.timeout(30):
        while True:
            try:
                await client.member_promote(member.member_id)
            except PreconditionError as error:
                if error.text != NOT_IN_SYNC:
                    raise
            else:
                return


async def refusal(change: Awaitable[object]) -> str:
    """Return the text with which a change is refused."""
    with pytest.raises(KvError) as caught:
        await change
    assert not caught.value.may_have_applied
    return caught.value.text


async def add(
    client: AsyncClient, cluster: Kvstore, members: list[int], *, is_learner: bool = False
) -> Member:
    """Add one more member and start it; `members` gets its index."""
    index = cluster.reserve()
    members.append(index)
    member = await when_healthy(
        lambda: client.member_add([cluster.peer_urls[index]], is_learner=is_learner)
    )
    cluster.join(index, members)
    await asyncio.to_thread(cluster.wait, index)
    return member


async def ids(client: AsyncClient, cluster: Kvstore) -> list[int]:
    """Return the members' ids in the order of their indexes."""
    by_url = {member.peer_urls[0]: member.member_id for member in await client.member_list()}
    return [by_url.get(url, 0) for url in cluster.peer_urls]


async def leader_of(client: AsyncClient, cluster: Kvstore) -> int:
    """Return the id of the leader, which the cluster has."""
    return (await client.status(cluster.endpoints[cluster.leader()])).member_id


async def removed_and_gone(cluster: Kvstore, index: int) -> None:
    """Expect that a member ends itself, says why, and never comes back with its data."""
    assert await asyncio.to_thread(cluster.ended, index) == EXIT_REMOVED
    cluster.spawn(index)
    assert await asyncio.to_thread(cluster.ended, index) == EXIT_REMOVED
    # Its links may say that it was removed as well, and go on: the last words are the member's own.
    advice = "remove it. To come back, add a member"
    lines = [line for line in cluster.log_of(index).splitlines() if advice in line]
    assert lines.count(lines[0]) == 2
    assert "was removed from" in lines[0]
    assert "Traceback" not in cluster.log_of(index)


async def test_a_cluster_grows_from_one_to_five_under_writes() -> None:
    # Each addition changes what a majority is, while entries are on their way.
    with members_of(1) as cluster:
        members = [0]
        async with AsyncClient(cluster.endpoints) as client:
            numbers = Numbers(client)
            going_on = asyncio.create_task(numbers.write(1_000_000))
            for _ in range(4):
                await add(client, cluster, members)
            before = len(numbers.acknowledged)
            async with asyncio.timeout(20):
                while len(numbers.acknowledged) < before + 50:
                    await client.get(b"turn")
            going_on.cancel()
            await asyncio.gather(going_on, return_exceptions=True)
        async with AsyncClient(cluster.endpoints) as client:
            stored = {int(kv.value) async for kv in client.get_range(b"n/", prefix=True)}
            assert numbers.acknowledged <= stored
            listed = await client.member_list()
            assert {member.name for member in listed} == {"e1", "e2", "e3", "e4", "e5"}
            await applied_everywhere(client, cluster)
            assert len(await hashes(client, cluster)) == 1
        # It is a cluster of five: two may die.
        for index in (0, 1):
            cluster.kill(index)
        async with AsyncClient(cluster.endpoints[2:], timeout_s=20) as client:
            await client.put(b"after", b"1")


async def test_a_learner_serves_little_until_it_is_promoted() -> None:
    with members_of(1) as cluster:
        async with AsyncClient(cluster.endpoints) as client:
            await client.put(b"k", b"1")
            index = cluster.reserve()
            learner = await client.member_add([cluster.peer_urls[index]], is_learner=True)
            assert learner.is_learner
            assert learner.name == ""
            # It does not run: nobody waits for it, and it is not ready.
            await client.put(b"k", b"2")
            assert await refusal(client.member_promote(learner.member_id)) == NOT_IN_SYNC
            assert await refusal(client.move_leader(learner.member_id)) == BAD_TRANSFEREE
            second = client.member_add(["http://127.0.0.1:1"], is_learner=True)
            assert await refusal(second) == "etcdserver: too many learner members in cluster"

            cluster.join(index, [0, index])
            await asyncio.to_thread(cluster.wait, index)
            endpoint = cluster.endpoints[index]
            assert (await client.status(endpoint)).is_learner
            assert await metric(endpoint, "etcd_server_is_learner") == 1
            # Although the leader's log reaches back to its start: that knows no first members.
            assert await metric(endpoint, "kvstore_snapshots_installed_total") == 1
            async with AsyncClient([endpoint], timeout_s=2) as there:
                kv = await there.get(b"k", serializable=True)
                assert kv is not None
                assert kv.value == b"2"
                for request in (
                    there.get(b"k"),
                    there.put(b"k", b"3"),
                    there.lease_grant(10),
                    there.member_list(linearizable=False),
                    there.hash_kv(endpoint),
                    anext(there.watch(b"k")),
                ):
                    assert await refusal(request) == NOT_FOR_LEARNERS

            await in_sync(client, learner)
            assert [member.is_learner for member in await client.member_list()] == [False, False]
            assert await refusal(client.member_promote(learner.member_id)) == NOT_A_LEARNER
            async with AsyncClient([endpoint]) as there:
                await there.put(b"k", b"4")
                await when_healthy(lambda: there.put(b"k", b"5"))
            assert not (await client.status(endpoint)).is_learner
            # Now its vote is needed: without it nothing is committed.
            cluster.kill(index)
            with pytest.raises(AvailabilityError):
                await client.put(b"k", b"6", timeout_s=2)


@pytest.mark.parametrize("transport", ["session", "unary"])
async def test_a_client_that_meets_a_learner_goes_on_to_a_voter(
    transport: Literal["session", "unary"],
) -> None:
    # As etcd's own (etcd 12641): a program that lists all members must survive that one of them
    # has just been added as a learner.
    with members_of(1) as cluster:
        members = [0]
        async with AsyncClient(cluster.endpoints) as client:
            await add(client, cluster, members, is_learner=True)
        both = [cluster.endpoints[1], cluster.endpoints[0]]

        async def fresh() -> AsyncClient:
            return await stack.enter_async_context(AsyncClient(both, transport=transport))

        async with contextlib.AsyncExitStack() as stack, asyncio.timeout(20):
            # Each with a client of its own, whose first endpoint is the learner.
            put = await (await fresh()).put(b"k", b"1")
            kv = await (await fresh()).get(b"k")
            assert kv is not None
            assert kv.value == b"1"
            await (await fresh()).pipeline().then(Op.put(b"k", b"2"), Op.put(b"k", b"3")).commit()
            watcher = (await fresh()).watch(b"k", start_revision=put.revision)
            assert (await anext(watcher)).revision == put.revision
            await watcher.aclose()
            lease = await (await fresh()).lease_grant(30)
            assert await (await fresh()).lease_keep_alive_once(lease.lease_id) == lease


@pytest.mark.slow
async def test_a_learner_far_behind_is_not_promoted() -> None:
    # It stands still, so that whatever the leader appends puts it further behind.
    with members_of(1) as cluster:
        members = [0]
        async with AsyncClient(cluster.endpoints) as client:
            learner = await add(client, cluster, members, is_learner=True)
            cluster.pause(1)
            for number in range(200):
                await client.put(b"k", b"%d" % number)
            assert await refusal(client.member_promote(learner.member_id)) == NOT_IN_SYNC
            cluster.resume(1)
            await in_sync(client, learner)
            await client.put(b"k", b"end")


async def test_a_removed_follower_stops_and_never_comes_back() -> None:
    with members_of(3) as cluster:
        follower = (cluster.leader() + 1) % 3
        running = [cluster.endpoints[index] for index in range(3) if index != follower]
        async with AsyncClient(running) as client:
            member = (await ids(client, cluster))[follower]
            # Asked at the member itself: it still answers before it ends.
            async with AsyncClient([cluster.endpoints[follower]], timeout_s=20) as there:
                left = await when_healthy(lambda: there.member_remove(member))
            assert len(left) == 2
            assert member not in {each.member_id for each in left}
            await removed_and_gone(cluster, follower)
            await client.put(b"k", b"1")
            for change in (
                client.member_remove(member),
                client.member_promote(member),
                client.member_update(member, ["http://127.0.0.1:1"]),
            ):
                with pytest.raises(MemberNotFoundError):
                    await change


@pytest.mark.slow
async def test_a_member_that_was_down_when_removed_learns_it_at_its_start() -> None:
    # Its own data does not say so: the others refuse it.
    with members_of(3) as cluster:
        follower = (cluster.leader() + 1) % 3
        running = [cluster.endpoints[index] for index in range(3) if index != follower]
        async with AsyncClient(running) as client:
            member = (await ids(client, cluster))[follower]
            cluster.kill(follower)
            await when_healthy(lambda: client.member_remove(member))
            cluster.spawn(follower)
            await removed_and_gone(cluster, follower)
            await client.put(b"k", b"1")


async def test_the_leader_removes_itself_and_the_cluster_goes_on() -> None:
    with members_of(3, "--log-level", "info") as cluster:
        leader = cluster.leader()
        elections = pre_votes(cluster)
        running = [cluster.endpoints[index] for index in range(3) if index != leader]
        async with AsyncClient(running) as client:
            numbers = Numbers(client)
            during = asyncio.create_task(numbers.write(300))
            member = (await ids(client, cluster))[leader]
            async with AsyncClient([cluster.endpoints[leader]], timeout_s=20) as there:
                left = await when_healthy(lambda: there.member_remove(member))
            assert len(left) == 2
            await during
            await removed_and_gone(cluster, leader)
            stored = {int(kv.value) async for kv in client.get_range(b"n/", prefix=True)}
            assert numbers.acknowledged <= stored
            await client.put(b"k", b"1")
        # The leadership was handed over; nobody had to miss the leader first.
        assert pre_votes(cluster) == elections


def pre_votes(cluster: Kvstore) -> int:
    """Return how often a member has missed its leader so far."""
    return sum(cluster.log_of(index).count('"pre_candidate"') for index in range(3))


async def test_of_two_members_the_leader_can_be_removed() -> None:
    # The one left needs to know that it is alone, or it would wait for a majority of two for ever.
    with members_of(1) as cluster:
        async with AsyncClient(cluster.endpoints) as client:
            await add(client, cluster, [0])
            leader = cluster.leader()
            other = 1 - leader
            member = (await ids(client, cluster))[leader]
        async with AsyncClient([cluster.endpoints[other]], timeout_s=20) as client:
            await when_healthy(lambda: client.member_remove(member))
            await client.put(b"k", b"1")
            await removed_and_gone(cluster, leader)
            [alone] = await client.member_list()
            # The last one stays.
            assert await refusal(client.member_remove(alone.member_id)) == NOT_STARTED
            await client.put(b"k", b"2")


async def fail(cluster: Kvstore, index: int, point: str, action: bytes) -> None:
    """Let a member fail at a point."""
    url = f"{cluster.endpoints[index]}/failpoints/{point}"
    put = ("-X", "PUT", "--data-binary", "@-")
    status, _ = await asyncio.to_thread(curl, url, *put, body=action)
    assert status.startswith("200")


async def logged(cluster: Kvstore, index: int, text: str) -> None:
    """Return when a member has written a text to its log."""
    async with asyncio.timeout(20):
        while True:
            if text in cluster.log_of(index):
                return
            await asyncio.sleep(0.05)  # nothing to await: another process's file


async def test_a_member_without_data_hears_of_members_that_came_later() -> None:
    # It knows the members of when it was added. When those are gone, nobody would get its answers.
    with members_of(1, "--enable-failpoints", "--log-level", "info") as cluster:
        async with AsyncClient(cluster.endpoints, timeout_s=20) as client:
            await fail(cluster, 0, "snapshot.send.before", b"error")
            late = cluster.reserve()
            learner = await when_healthy(
                lambda: client.member_add([cluster.peer_urls[late]], is_learner=True)
            )
            cluster.join(late, [0, late])
            await logged(cluster, late, '"members": 2')
            cluster.pause(late)
            await fail(cluster, 0, "snapshot.send.before", b"0%error")
            second = cluster.reserve()
            await when_healthy(lambda: client.member_add([cluster.peer_urls[second]]))
            cluster.join(second, [0, late, second])
            await asyncio.to_thread(cluster.wait, second)
            await fail(cluster, 0, "snapshot.send.before", b"error")
            cluster.resume(late)
            await logged(cluster, late, '"members": 3')
            first = (await ids(client, cluster))[0]
        async with AsyncClient([cluster.endpoints[second]], timeout_s=20) as client:
            await when_healthy(lambda: client.member_remove(first))
            await removed_and_gone(cluster, 0)
            await in_sync(client, learner)
            await asyncio.to_thread(cluster.wait, late)


async def closed_to_clients(cluster: Kvstore, index: int) -> None:
    """Return when a member that runs takes no more connections of clients."""
    host, _, port = cluster.endpoints[index].partition(":")
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except ConnectionRefusedError:
                return
            writer.close()
            await asyncio.sleep(0.05)  # nothing to await: another process's port


async def test_a_removed_member_stays_until_the_last_one_knows() -> None:
    # The last voter forgets in a crash what it did not store, and then counts two voters again:
    # without the vote or the word of the removed one it would never lead.
    with members_of(1, "--enable-failpoints") as cluster:
        async with AsyncClient(cluster.endpoints) as client:
            await add(client, cluster, [0])
            gone = cluster.leader()
            last = 1 - gone
            member = (await ids(client, cluster))[gone]
        async with AsyncClient([cluster.endpoints[last]], timeout_s=20) as client:
            await client.put(b"k", b"1")
            # From the change of leader on, the last voter stores nothing any more.
            await fail(cluster, last, "store.commit.before", b"sleep(60000)")
            await when_healthy(lambda: client.member_remove(member))
            cluster.kill(last)
            await closed_to_clients(cluster, gone)
            # A signal ends it, and it goes on telling when it is started again.
            assert await asyncio.to_thread(cluster.terminate, gone) == 0
            cluster.spawn(gone)
            await asyncio.to_thread(cluster.restart, last)
            await client.put(b"k", b"2")
            await removed_and_gone(cluster, gone)
            assert [one.member_id != member for one in await client.member_list()] == [True]


async def test_a_removal_that_would_break_the_quorum_is_refused() -> None:
    with members_of(3) as cluster:
        leader = cluster.leader()
        down, other = (leader + 1) % 3, (leader + 2) % 3
        async with AsyncClient([cluster.endpoints[leader]]) as client:
            numbers = await ids(client, cluster)
            cluster.kill(down)
            # The leader and one more work: neither can be spared, the dead one can.
            for index in (other, leader):
                assert await refusal(client.member_remove(numbers[index])) == UNHEALTHY
            assert await refusal(client.member_add(["http://127.0.0.1:1"])) == UNHEALTHY
            await client.member_remove(numbers[down])
            await client.put(b"k", b"1")


@pytest.mark.slow
async def test_a_member_that_stands_still_counts_as_down() -> None:
    # Its connections are open, but it would not help to decide anything.
    with members_of(3) as cluster:
        leader = cluster.leader()
        frozen, other = (leader + 1) % 3, (leader + 2) % 3
        async with AsyncClient([cluster.endpoints[leader]]) as client:
            numbers = await ids(client, cluster)
            # Healthy before, so that only the pause can be the reason.
            learner = await when_healthy(
                lambda: client.member_add(["http://127.0.0.1:1"], is_learner=True)
            )
            await client.member_remove(learner.member_id)
            cluster.pause(frozen)
            await asyncio.sleep(1.0)  # more than an election timeout: silence is what counts
            assert await refusal(client.member_add(["http://127.0.0.1:2"])) == UNHEALTHY
            assert await refusal(client.member_remove(numbers[other])) == UNHEALTHY
            cluster.resume(frozen)


async def outcome(change: Awaitable[object]) -> str:
    """Return the text of a refusal, or that there was none."""
    try:
        await change
    except KvError as error:
        return error.text
    return "added"


async def test_of_two_additions_at_once_one_is_refused() -> None:
    # Two voters that do not run, in a cluster of three, would leave three of five: one more
    # failure and nothing goes on. Asked at different members, so that no member can know.
    with members_of(3) as cluster:
        async with (
            AsyncClient([cluster.endpoints[0]], timeout_s=10) as first,
            AsyncClient([cluster.endpoints[1]], timeout_s=10) as second,
        ):
            learner = await when_healthy(
                lambda: first.member_add(["http://127.0.0.1:1"], is_learner=True)
            )
            await first.member_remove(learner.member_id)
            texts = await asyncio.gather(
                outcome(first.member_add(["http://127.0.0.1:2"])),
                outcome(second.member_add(["http://127.0.0.1:3"])),
            )
            assert sorted(texts) == ["added", UNHEALTHY]
            assert len(await first.member_list()) == 4


async def test_urls_that_are_taken_or_none_are_refused() -> None:
    with members_of(1) as cluster:
        async with AsyncClient(cluster.endpoints) as client:
            [own] = await client.member_list()
            added = await client.member_add(["http://127.0.0.1:1"], is_learner=True)
            taken = "etcdserver: Peer URLs already exists"
            for urls in (cluster.peer_urls, ["http://127.0.0.1:1", "http://127.0.0.1:2"]):
                assert await refusal(client.member_add(urls)) == taken
            assert await refusal(client.member_update(added.member_id, own.peer_urls)) == taken
            invalid = "etcdserver: given member URLs are invalid"
            for urls in ([], ["127.0.0.1:1"], ["http://127.0.0.1"], ["http://127.0.0.1:1/x"]):
                assert await refusal(client.member_add(urls, is_learner=True)) == invalid


async def test_a_dead_member_is_replaced_by_an_empty_one() -> None:
    with members_of(3, "--snapshot-count", "10") as cluster:
        dead = (cluster.leader() + 1) % 3
        members = [index for index in range(3) if index != dead]
        async with AsyncClient([cluster.endpoints[index] for index in members]) as client:
            for number in range(100):
                await client.put(b"k%d" % (number % 7), b"%d" % number)
            old = (await ids(client, cluster))[dead]
            cluster.kill(dead)
            shutil.rmtree(cluster.folder / f"e{dead + 1}")
            # With its old name and an empty folder it would have forgotten its votes.
            for tries, start in enumerate((cluster.spawn, lambda one: cluster.join(one, range(3)))):
                start(dead)
                assert await asyncio.to_thread(cluster.ended, dead) == 1
                assert cluster.log_of(dead).count("has run before") == tries + 1
            assert f"kvctl member remove {old:x}" in cluster.log_of(dead)

            await when_healthy(lambda: client.member_remove(old))
            # At the same address, under a new id.
            new = await when_healthy(lambda: client.member_add([cluster.peer_urls[dead]]))
            assert new.member_id != old
            cluster.join(dead, range(3))
            await asyncio.to_thread(cluster.wait, dead)
            assert await metric(cluster.endpoints[dead], "kvstore_snapshots_installed_total") == 1
            # It counts: with another one down, it and the third are the majority.
            await applied_everywhere(client, cluster)
            assert len(await hashes(client, cluster)) == 1
            cluster.kill(members[0])
        async with AsyncClient(
            [cluster.endpoints[index] for index in (dead, members[1])], timeout_s=20
        ) as client:
            await client.put(b"after", b"1")
        # And its flags still fit after a restart.
        cluster.kill(dead)
        await asyncio.to_thread(cluster.restart, dead)


async def test_an_update_moves_a_member_to_another_address() -> None:
    with members_of(3) as cluster:
        moved = (cluster.leader() + 1) % 3
        stays = [cluster.endpoints[index] for index in range(3) if index != moved]
        async with AsyncClient(stays) as client:
            member = (await ids(client, cluster))[moved]
            spare = cluster.reserve()
            url = cluster.peer_urls.pop(spare)
            cluster.endpoints.pop(spare)
            cluster.nodes -= 1
            left = await client.member_update(member, [url])
            assert {each.member_id: each.peer_urls for each in left}[member] == (url,)
            cluster.kill(moved)
            cluster.peer_urls[moved] = url
            cluster.join(moved, range(3))
            await asyncio.to_thread(cluster.wait, moved)
            # It is needed, so the others must have found it.
            cluster.kill(cluster.leader())
        async with AsyncClient(cluster.endpoints, timeout_s=20) as client:
            await client.put(b"k", b"1")
            assert (await ids(client, cluster))[moved] == member


async def test_the_leadership_moves_where_it_is_told() -> None:
    with members_of(3) as cluster:
        leader = cluster.leader()
        async with AsyncClient(cluster.endpoints, timeout_s=10) as client:
            numbers = await ids(client, cluster)
            for target in ((leader + 1) % 3, (leader + 2) % 3, leader):
                await client.move_leader(numbers[target])
                for endpoint in cluster.endpoints:
                    async with asyncio.timeout(5):
                        while (await client.status(endpoint)).leader_id != numbers[target]:
                            pass
                await client.put(b"k", b"1")
            await client.move_leader(numbers[leader])  # where it is already
            assert await refusal(client.move_leader(1234)) == BAD_TRANSFEREE
            await client.put(b"k", b"2")
            request = MOVE_LEADER.request(targetID=numbers[leader])
            follower = cluster.endpoints[(leader + 1) % 3]
            asked = client.call(MOVE_LEADER, request, write=True, endpoint=follower)
            assert await refusal(asked) == "etcdserver: not leader"
            # A target that stands still does not take over; the leader leads on.
            frozen = (leader + 1) % 3
            cluster.pause(frozen)
            async with AsyncClient([cluster.endpoints[leader]]) as there:
                with pytest.raises(OutcomeUnknownError, match="leader transfer took too long"):
                    await there.move_leader(numbers[frozen])
                assert cluster.leader() == leader
                await there.put(b"k", b"3")
            cluster.resume(frozen)


async def test_a_member_that_was_not_added_is_told_how() -> None:
    with members_of(1) as cluster:
        index = cluster.reserve()
        cluster.join(index, [0, index])
        assert await asyncio.to_thread(cluster.ended, index) == 1
        url = cluster.peer_urls[index]
        assert f"kvctl member add e2 --peer-urls={url}" in cluster.log_of(index)
        async with AsyncClient([cluster.endpoints[0]]) as client:
            await client.member_add([url], is_learner=True)
            # Half the members named: it would dial half of them.
            cluster.join(index, [index])
            assert await asyncio.to_thread(cluster.ended, index) == 1
            assert "needs the members of the running cluster" in cluster.log_of(index)
            other = cluster.reserve()
            cluster.join(index, [0, index, other])
            assert await asyncio.to_thread(cluster.ended, index) == 1
            assert f"e3={cluster.peer_urls[other]} is no member" in cluster.log_of(index)


@pytest.mark.slow
async def test_a_joining_member_that_dies_before_its_snapshot_joins_again() -> None:
    # Its store knows no configuration yet; were it to take the flags for one, it would replay the
    # log with wrong quorums.
    with members_of(1, "--snapshot-count", "10") as cluster:
        async with AsyncClient(cluster.endpoints) as client:
            index = cluster.reserve()
            await client.member_add([cluster.peer_urls[index]], is_learner=True)
            await client.put(b"k", b"1")
            cluster.join(index, [0, index])
            async with asyncio.timeout(20):
                while not (cluster.folder / "e2" / "store.lmdb").exists():
                    await client.get(b"turn")
            cluster.kill(index)
            await client.put(b"k", b"2")
            await asyncio.to_thread(cluster.restart, index)
            async with AsyncClient([cluster.endpoints[index]]) as there:
                async with asyncio.timeout(10):
                    while (kv := await there.get(b"k", serializable=True)) is None:
                        pass
                assert kv.value == b"2"
