"""Software transactions: which anomalies each level permits, and that it permits no others."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from kvstore.client import AsyncClient, Client, ConflictError, OutcomeUnknownError, Stm
from kvstore.client.recipes.stm import LEVELS
from tests.client.proxy import Proxy

if TYPE_CHECKING:
    from kvstore.client import Isolation
    from kvstore.client.sync_recipes import SyncStm
    from tests.servers import Cluster

levels = pytest.mark.parametrize("isolation", LEVELS)


class Interference:
    """Something that happens once, in the middle of the first run of a transaction."""

    def __init__(self, client: AsyncClient, *puts: tuple[bytes, bytes]) -> None:
        self._client = client
        self._puts = list(puts)

    async def happen(self) -> None:
        while self._puts:
            await self._client.put(*self._puts.pop(0))


async def value(client: AsyncClient, key: bytes) -> bytes:
    kv = await client.get(key)
    assert kv is not None
    return kv.value


@levels
async def test_lost_update(client: AsyncClient, prefix: bytes, isolation: Isolation) -> None:
    # Another writer adds 10 between our read and our write.
    await client.put(prefix, b"0")
    other = Interference(client, (prefix, b"10"))

    async def add(stm: Stm) -> None:
        before = int(await stm.get(prefix) or b"")
        await other.happen()
        stm.put(prefix, b"%d" % (before + 1))

    result = await client.stm(add, isolation=isolation)

    if isolation == "read_committed":
        assert (await value(client, prefix), result.attempts) == (b"1", 1)
    else:
        assert (await value(client, prefix), result.attempts) == (b"11", 2)


@levels
async def test_write_skew(client: AsyncClient, prefix: bytes, isolation: Isolation) -> None:
    # Two doctors on call; each may leave while the other stays. Both read before either writes.
    doctors = (prefix + b"a", prefix + b"b")
    for doctor in doctors:
        await client.put(doctor, b"on call")
    both_have_read = asyncio.Barrier(2)
    runs = [0, 0]

    async def leave(stm: Stm, own: int) -> None:
        on_call = [await stm.get(doctor) == b"on call" for doctor in doctors]
        runs[own] += 1
        if runs[own] == 1:
            await both_have_read.wait()
        if all(on_call):
            stm.put(doctors[own], b"gone")

    await asyncio.gather(
        *(client.stm(lambda stm, n=n: leave(stm, n), isolation=isolation) for n in (0, 1))
    )

    left = [await value(client, doctor) for doctor in doctors].count(b"gone")
    assert left == (2 if isolation == "read_committed" else 1)


@levels
async def test_read_skew(client: AsyncClient, prefix: bytes, isolation: Isolation) -> None:
    # Money moves between two reads: does a run see it in neither or both accounts?
    await client.put(prefix + b"a", b"50")
    await client.put(prefix + b"b", b"50")
    other = Interference(client, (prefix + b"a", b"0"), (prefix + b"b", b"100"))
    sums: list[int] = []

    async def add_up(stm: Stm) -> int:
        first = int(await stm.get(prefix + b"a") or b"")
        await other.happen()
        sums.append(first + int(await stm.get(prefix + b"b") or b""))
        return sums[-1]

    result = await client.stm(add_up, isolation=isolation)

    if isolation == "read_committed":
        assert (sums, result.value) == ([150], 150)
    elif isolation == "repeatable_reads":
        assert (sums, result.value) == ([150, 100], 100)  # seen, but not committed
    else:
        assert (sums, result.value) == ([100, 100], 100)


@levels
async def test_a_blind_write_over_a_later_one(
    client: AsyncClient, prefix: bytes, isolation: Isolation
) -> None:
    await client.put(prefix + b"read", b"")
    other = Interference(client, (prefix + b"written", b"theirs"))

    async def write(stm: Stm) -> None:
        await stm.get(prefix + b"read")
        await other.happen()
        stm.put(prefix + b"written", b"ours")

    result = await client.stm(write, isolation=isolation)

    assert result.attempts == (2 if isolation == "serializable_snapshot" else 1)
    assert await value(client, prefix + b"written") == b"ours"


@levels
async def test_reads_repeat_and_see_own_writes(
    client: AsyncClient, prefix: bytes, isolation: Isolation
) -> None:
    put = await client.put(prefix, b"before")
    other = Interference(client, (prefix, b"between"))
    seen: list[bytes | None] = []

    async def read_twice(stm: Stm) -> None:
        seen.append(await stm.get(prefix))
        await other.happen()
        seen.append(await stm.get(prefix))
        assert await stm.revision(prefix) >= put.revision
        stm.put(prefix + b"own", b"v")
        seen.append(await stm.get(prefix + b"own"))
        stm.delete(prefix + b"own")
        seen.append(await stm.get(prefix + b"own"))

    await client.stm(read_twice, isolation=isolation)

    assert seen[:4] == [b"before", b"before", b"v", None]
    assert await client.get(prefix + b"own") is None


@pytest.mark.parametrize("isolation", LEVELS[:3])
async def test_a_sum_is_kept_by_many_movers(
    client: AsyncClient, prefix: bytes, isolation: Isolation
) -> None:
    accounts = [prefix + b"%d" % number for number in range(4)]
    for account in accounts:
        await client.put(account, b"100")
    before = client.statistics()

    async def move(stm: Stm, number: int) -> None:
        source, target = accounts[number % 4], accounts[(number * 7 + 1) % 4]
        if source == target:
            return
        amount = int(await stm.get(source) or b"")
        other = int(await stm.get(target) or b"")
        stm.put(source, b"%d" % (amount - 1))
        stm.put(target, b"%d" % (other + 1))

    results = await asyncio.gather(
        *(
            client.stm(lambda stm, n=n: move(stm, n), isolation=isolation, timeout_s=60)
            for n in range(40)
        )
    )

    assert sum([int(await value(client, account)) for account in accounts]) == 400
    after = client.statistics()
    attempts = sum(result.attempts for result in results)
    assert after.stm_attempts - before.stm_attempts == attempts
    assert after.stm_conflicts - before.stm_conflicts == attempts - 40
    assert attempts > 40, "no conflict: this showed nothing"


async def test_giving_up_after_some_attempts(client: AsyncClient, prefix: bytes) -> None:
    async def race(stm: Stm) -> None:
        await stm.get(prefix)
        await client.put(prefix, b"theirs")
        stm.put(prefix, b"ours")

    with pytest.raises(ConflictError) as caught:
        await client.stm(race, attempts_max=3)
    assert caught.value.attempts == 3
    assert await value(client, prefix) == b"theirs"
    with pytest.raises(TimeoutError):
        await client.stm(race, timeout_s=0.2)


async def test_what_the_function_raises_ends_it(client: AsyncClient, prefix: bytes) -> None:
    async def fail(stm: Stm) -> None:
        stm.put(prefix, b"")
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await client.stm(fail)
    assert await client.get(prefix) is None


async def test_a_snapshot_that_is_compacted_away_begins_again(
    fresh_server: Cluster,
) -> None:
    async with AsyncClient(fresh_server.endpoints) as client:
        await client.put(b"a", b"1")
        await client.put(b"b", b"1")
        runs = 0

        async def read(stm: Stm) -> bytes | None:
            nonlocal runs
            runs += 1
            await stm.get(b"a")
            if runs == 1:
                put = await client.put(b"b", b"2")
                await client.compact(put.revision)
            return await stm.get(b"b")

        result = await client.stm(read)

    assert (result.value, result.attempts, runs) == (b"2", 2, 2)


async def test_prefetched_keys_cost_one_call(client: AsyncClient, prefix: bytes) -> None:
    keys = [prefix + b"%d" % number for number in range(10)]
    before = client.statistics().calls

    async def read(stm: Stm) -> list[bytes | None]:
        return [await stm.get(key) for key in keys]

    result = await client.stm(read, prefetch=keys)

    after = client.statistics().calls
    assert result.value == [None] * 10
    assert after["KV/Txn"] - before.get("KV/Txn", 0) == 2  # the fetch and the commit
    assert after.get("KV/Range", 0) == before.get("KV/Range", 0)


async def test_a_commit_without_an_answer_is_not_repeated(server: Cluster, prefix: bytes) -> None:
    async with (
        Proxy(server.endpoints[0]) as proxy,
        AsyncClient([proxy.endpoint, server.endpoints[0]], timeout_s=1) as client,
    ):
        await client.put(prefix, b"0")
        runs = 0

        async def add(stm: Stm) -> None:
            nonlocal runs
            runs += 1
            stm.put(prefix, b"%d" % (int(await stm.get(prefix) or b"") + 1))
            proxy.hold_answers()

        with pytest.raises(OutcomeUnknownError):
            await client.stm(add)
        assert runs == 1


async def test_arguments_are_checked(client: AsyncClient) -> None:
    async def nothing(stm: Stm) -> int:
        return 7

    result = await client.stm(nothing)
    assert (result.value, result.revision, result.attempts) == (7, 0, 1)
    with pytest.raises(ValueError, match="isolation"):
        await client.stm(nothing, isolation="chaos")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="attempts_max"):
        await client.stm(nothing, attempts_max=0)


def test_without_asyncio(server: Cluster, prefix: bytes) -> None:
    def add(stm: SyncStm) -> int:
        after = int(stm.get(prefix) or b"0") + 1
        stm.put(prefix, b"%d" % after)
        return after

    with Client(server.endpoints) as client:
        assert [client.stm(add).value for _ in range(3)] == [1, 2, 3]
        assert client.statistics().stm_attempts == 3
