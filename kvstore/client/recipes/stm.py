"""Software transactional memory: a function over keys, run again until nothing interfered.

Reads are made one by one as the function asks; its writes are kept here and sent in one
transaction, under the condition that what was read has not changed. The levels are those of etcd's
Go client:

| level | reads within one run | commit fails when |
|---|---|---|
| serializable_snapshot | all at the revision of the first | a key read or written has changed |
| serializable | all at the revision of the first | a key read has changed |
| repeatable_reads | each at its own moment, then the same | a key read has changed |
| read_committed | each at its own moment, then the same | never |

So what the function sees at `repeatable_reads` may never have been true at once, though such a run
is not committed; a write of a key that was not read overwrites another's at `serializable` and
below; and updates are lost, and invariants over several keys break, only at `read_committed`.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Generic, Literal, NamedTuple, TypeVar

from kvstore.client.errors import CompactedError, ConflictError
from kvstore.client.recipes.waiting import found
from kvstore.client.txn import Comparison, Op, compare

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from kvstore.client.aio import AsyncClient
    from kvstore.client.types import KeyValue

Value = TypeVar("Value")
Isolation = Literal["serializable_snapshot", "serializable", "repeatable_reads", "read_committed"]
LEVELS: tuple[Isolation, ...] = (
    "serializable_snapshot",
    "serializable",
    "repeatable_reads",
    "read_committed",
)
_AT_ONE_REVISION = ("serializable_snapshot", "serializable")

_BACKOFF_FIRST_S = 0.002
_BACKOFF_MAX_S = 0.25


class StmResult(NamedTuple, Generic[Value]):
    """What a software transaction came to."""

    value: Value
    """What the function returned in the run that was committed."""
    revision: int
    """Store revision of the commit; 0 when there was nothing to commit."""
    attempts: int
    """How often the function ran; `attempts - 1` runs met a conflict."""


class Stm:
    """The store as one run of a transaction's function sees it."""

    def __init__(
        self,
        client: AsyncClient,
        isolation: Isolation,
        known: dict[bytes, KeyValue | None],
        revision: int,
    ) -> None:
        self._client = client
        self._isolation = isolation
        self._known = known
        self._revision = revision
        """The store's when it was first read; 0 before that."""
        self._reads: dict[bytes, KeyValue | None] = {}
        self._writes: dict[bytes, tuple[bytes | None, int]] = {}

    async def get(self, key: bytes) -> bytes | None:
        """Return a key's value, or None when it is absent; this run's own writes included."""
        if key in self._writes:
            return self._writes[key][0]
        kv = await self._read(key)
        return None if kv is None else kv.value

    async def revision(self, key: bytes) -> int:
        """Return the revision that last changed a key before this run; 0 when it is absent."""
        kv = await self._read(key)
        return 0 if kv is None else kv.mod_revision

    def put(self, key: bytes, value: bytes, *, lease: int = 0) -> None:
        """Store a value when the transaction commits."""
        self._writes[key] = (value, lease)

    def delete(self, key: bytes) -> None:
        """Delete a key when the transaction commits."""
        self._writes[key] = (None, 0)

    async def fetch(self, keys: Iterable[bytes]) -> None:
        """Read several keys in one call, for later `get`s to find."""
        missing = [key for key in keys if key not in self._reads and key not in self._known]
        if not missing or (self._revision and self._isolation in _AT_ONE_REVISION):
            return  # a transaction reads the present only: later reads at one revision go singly
        result = await self._client.txn().then(*map(Op.get, missing)).commit()
        self._revision = self._revision or result.revision
        for position, key in enumerate(missing):
            kvs = found(result, position)
            self._known[key] = kvs[0] if kvs else None

    async def _read(self, key: bytes) -> KeyValue | None:
        if key in self._reads:
            return self._reads[key]
        if key not in self._known:
            at = self._revision if self._isolation in _AT_ONE_REVISION else 0
            # The first read fixes the revision. Further ones are linearizable too: a member that
            # lags behind would not know that revision.
            result = await self._client.range(key, revision=at)
            self._revision = self._revision or result.revision
            self._known[key] = result.kvs[0] if result.kvs else None
        self._reads[key] = self._known[key]
        return self._reads[key]

    def conditions(self) -> list[Comparison]:
        """Return what must hold for the run to be committed."""
        if self._isolation == "read_committed":
            return []
        conditions = [
            compare(key).mod_revision == (0 if kv is None else kv.mod_revision)
            for key, kv in self._reads.items()
        ]
        if self._isolation == "serializable_snapshot" and self._revision:
            conditions += [
                compare(key).mod_revision < self._revision + 1
                for key in self._writes
                if key not in self._reads
            ]
        return conditions

    def operations(self) -> list[Op]:
        """Return the writes."""
        return [
            Op.delete(key) if value is None else Op.put(key, value, lease=lease)
            for key, (value, lease) in self._writes.items()
        ]

    def keys_read(self) -> list[bytes]:
        """Return the keys whose values were used."""
        return list(self._reads)


async def run_stm(
    client: AsyncClient,
    function: Callable[[Stm], Awaitable[Value]],
    *,
    isolation: Isolation,
    prefetch: Iterable[bytes],
    attempts_max: int | None,
    timeout_s: float | None,
    on_attempt: Callable[[bool], None],
) -> StmResult[Value]:
    """Run a function until it commits. Explained at `AsyncClient.stm`.

    `on_attempt` is told of each run whether it met a conflict.
    """
    if isolation not in LEVELS:
        raise ValueError(f"isolation must be one of {LEVELS}, not {isolation!r}")
    if attempts_max is not None and attempts_max < 1:
        raise ValueError(f"attempts_max must be 1 or more, not {attempts_max}")
    known: dict[bytes, KeyValue | None] = {}
    keys = tuple(prefetch)
    revision = attempts = 0
    async with asyncio.timeout(timeout_s):
        while True:
            attempts += 1
            stm = Stm(client, isolation, known, revision)
            known, revision = {}, 0
            try:
                await stm.fetch(keys)
                value = await function(stm)
                committed, revision, known = await _commit(client, stm)
            except CompactedError:
                committed = False  # the revision of the first read is gone: begin at a new one
            on_attempt(not committed)
            if committed:
                return StmResult(value, revision, attempts)
            if attempts == attempts_max:
                raise ConflictError(f"{attempts} runs met a conflict", attempts=attempts)
            # Nothing after the first conflict, whose values came with the refusal; then longer
            # and longer, at random, so that those who collide do not meet again.
            bound_s = min(_BACKOFF_FIRST_S * (2.0 ** min(attempts - 1, 16) - 1), _BACKOFF_MAX_S)
            await asyncio.sleep(random.uniform(0, bound_s))  # noqa: S311


async def _commit(client: AsyncClient, stm: Stm) -> tuple[bool, int, dict[bytes, KeyValue | None]]:
    """Commit a run; return whether it was, at which revision, and if not what its keys hold now."""
    conditions, operations = stm.conditions(), stm.operations()
    if not conditions and not operations:
        return True, 0, {}
    keys = stm.keys_read()
    # The reads also make a transaction that writes nothing linearizable: etcd answers one of
    # conditions alone from what the member happens to have.
    gets = [Op.get(key) for key in keys]
    result = await client.txn().when(*conditions).then(*operations).otherwise(*gets).commit()
    if result.succeeded:
        return True, result.revision, {}
    now = {}
    for position, key in enumerate(keys):
        kvs = found(result, position)
        now[key] = kvs[0] if kvs else None
    return False, result.revision, now
