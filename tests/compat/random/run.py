"""One program on both members, step by step, up to the first difference."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from kvstore.pb import rpc_pb2
from tests.compat.random.answers import compare_answers, refused_alike
from tests.compat.random.side import ANSWER_S, Failure, Side
from tests.compat.random.steps import (
    Call,
    ChosenLease,
    Expiry,
    KeepAlive,
    Raw,
    Step,
    Watch,
    resolved,
    walk,
)
from tests.compat.random.watching import NO_ID, DifferenceError, Pair

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.compat.random.differences import Met

FENCE = b"~"
"""A key of the runner's own. Behind those of the programs, yet below a 0xff."""

FENCE_ID = 1 << 40
EXPIRING = 77
COMPACTED_TEXT = "etcdserver: mvcc: required revision has been compacted"
EVERYTHING = {"key": b"\0", "range_end": b"\0"}
MORTAL_TTL_S = 60
"""Shorter lives, and ids that the member chooses, are for `Expiry` and `ChosenLease`: their end
would depend on time, and an id in a key on the member."""


class ProgramError(AssertionError):
    """A program has shown a difference; the text says where and which."""


class Run:
    """One program on its way."""

    def __init__(self, sides: tuple[Side, Side], met: Met) -> None:
        self._sides = sides
        self._met = met
        self._base = self._current = 1
        self._begins_at = 1
        """Revision after which the witness sees everything."""

        self._compacted = -1
        self._leases: set[int] = set()
        self._pairs: dict[int, Pair] = {}
        self._keep_alive: list[Any] = []
        self._log: list[tuple[int, Any]] = []

    async def all(self, program: Sequence[Step], *, reset: bool) -> None:
        """Run the program between its preparation and its end."""
        where = "before the program"
        try:
            await self._begin(reset=reset)
            for number, step in enumerate(program, 1):
                where = f"step {number}: {step}"
                await self._step(step)
            where = "after the program"
            await self._finish()
        except DifferenceError as difference:
            raise ProgramError(f"{where}\n{difference}") from difference
        finally:
            for pair in (*self._pairs.values(), self._witness, self._probes):
                await pair.close()
            for stream in self._keep_alive:
                await stream.close()

    async def recovered(self) -> bool:
        """Tell whether the members are still alike, after a difference; end all leases."""
        everything = rpc_pb2.RangeRequest(**EVERYTHING)
        answers = [await side.call(everything) for side in self._sides]
        leases = [await side.call(rpc_pb2.LeaseLeasesRequest()) for side in self._sides]
        if any(isinstance(answer, Failure) for answer in (*answers, *leases)):
            return False
        ids = [sorted(status.ID for status in answer.leases) for answer in leases]
        if answers[0].kvs != answers[1].kvs or ids[0] != ids[1]:
            return False
        if answers[0].header.revision != answers[1].header.revision:
            return False
        for side in self._sides:
            for lease_id in ids[0]:
                await side.call(rpc_pb2.LeaseRevokeRequest(ID=lease_id))
        return True

    async def kept(self) -> None:
        """Compare what the members have, without any change."""
        await self._compare_stores()
        await self._both(rpc_pb2.LeaseLeasesRequest())

    # preparation and end

    async def _begin(self, *, reset: bool) -> None:
        self._witness = Pair(self._sides, "witness")
        self._probes = Pair(self._sides, "probes")
        if reset:
            await self._both(rpc_pb2.DeleteRangeRequest(**EVERYTHING))
        watch = rpc_pb2.WatchCreateRequest(**EVERYTHING, prev_kv=True)
        await self._witness.create(watch, self._current)
        self._begins_at = self._current
        if reset:
            await self._both(rpc_pb2.PutRequest(key=FENCE))
            self._base = self._current
            compact = rpc_pb2.CompactionRequest(revision=self._current)
            await self._both(compact)
            self._compacted = self._base
        await self._catch_up()

    async def _finish(self) -> None:
        await self._barrier()
        for pair in self._pairs.values():
            # Whatever else a stream gets comes before the event of this watcher.
            fence = rpc_pb2.WatchCreateRequest(key=FENCE, watch_id=FENCE_ID)
            await pair.create(fence, self._current)
        await self._both(rpc_pb2.PutRequest(key=FENCE))
        await self._barrier()
        await self._compare_stores()
        for lease in sorted(self._leases):
            await self._both(rpc_pb2.LeaseRevokeRequest(ID=lease))
        await self._barrier()

    async def _compare_stores(self) -> None:
        await self._both(rpc_pb2.RangeRequest(**EVERYTHING))
        await self._both(rpc_pb2.HashKVRequest())

    # steps

    async def _step(self, step: Step) -> None:
        match step:
            case Call(request, pad):
                await self._call(self._resolved(request), pad)
            case Watch(stream, request):
                await self._watch(stream, self._resolved(request))
            case KeepAlive(lease_id):
                await self._renew(lease_id)
            case ChosenLease(ttl_s):
                await self._chosen_lease(ttl_s)
            case Expiry(keys):
                await self._expiry(keys)
            case Raw(path, data):
                answers = await asyncio.gather(*(side.raw(path, data) for side in self._sides))
                refused_alike(step, answers, self._met)

    def _resolved(self, request: Any) -> Any:
        return resolved(
            request, base=self._base, current=self._current, compacted=max(self._compacted, 0)
        )

    async def _both(self, request: Any) -> Any:
        """Send a request to both members and compare the answers; return etcd's."""
        answers = await asyncio.gather(*(side.call(request) for side in self._sides))
        if isinstance(request, rpc_pb2.HashKVRequest):
            answers = await self._settled_hash(request, answers)
        compare_answers(request, answers, self._sides, self._met, self._current, self._compacted)
        theirs = answers[0]
        if not isinstance(theirs, Failure):
            self._current = max(self._current, theirs.header.revision)
        return theirs

    async def _settled_hash(self, request: rpc_pb2.HashKVRequest, answers: list[Any]) -> list[Any]:
        """Return the hashes, asked for again where etcd's depends on time.

        Of a revision at which no key lives etcd hashes whatever its purge has left so far.
        """
        ends_at = asyncio.get_running_loop().time() + ANSWER_S
        alive = rpc_pb2.RangeRequest(**EVERYTHING, count_only=True, revision=request.revision)
        while (
            not any(isinstance(answer, Failure) for answer in answers)
            and answers[0].hash != answers[1].hash
            and asyncio.get_running_loop().time() < ends_at
            and (await self._both(alive)).count == 0
        ):
            await asyncio.sleep(0.02)  # nothing tells when the purge is done
            answers = await asyncio.gather(*(side.call(request) for side in self._sides))
        return answers

    async def _call(self, request: Any, pad: int) -> None:
        if pad:
            request.value = b"x" * pad
        if has_wrong_sort(request):
            # Such a request must not reach etcd: it could carry out a transaction that we refuse.
            self._met("sort option")
            answer = await self._sides[1].call(request)
            if not isinstance(answer, Failure) or answer.code != "INVALID_ARGUMENT":
                raise DifferenceError("a wrong sort option is accepted", "not asked", answer)
            return
        if isinstance(request, rpc_pb2.CompactionRequest):
            await self._compact(request)
            return
        if isinstance(request, rpc_pb2.LeaseGrantRequest) and (
            not request.ID or request.TTL < MORTAL_TTL_S
        ):
            # Not drawn, but left when a field is taken away to make a program small.
            return
        theirs = await self._both(request)
        if isinstance(theirs, Failure):
            return
        if isinstance(request, rpc_pb2.LeaseGrantRequest):
            self._leases.add(request.ID)
        elif isinstance(request, rpc_pb2.LeaseRevokeRequest):
            self._leases.discard(request.ID)

    async def _compact(self, request: rpc_pb2.CompactionRequest) -> None:
        if self._compacted < request.revision <= self._current:
            # Which watchers it cancels, and which values before are still to be had, would
            # depend on how far each has come.
            await self._barrier(settle=True)
        if not isinstance(await self._both(request), Failure):
            self._compacted = request.revision

    async def _renew(self, lease_id: int) -> None:
        if not self._keep_alive:
            self._keep_alive = [side.keep_alive() for side in self._sides]
        request = rpc_pb2.LeaseKeepAliveRequest(ID=lease_id)

        async def answer(stream: Any) -> Any:
            count = len(stream.messages)
            await stream.send(request)
            await stream.wait(lambda: len(stream.messages) > count)
            if stream.ended is None and len(stream.messages) == count + 1:
                return stream.messages[-1]
            return stream.ended or stream.messages[count:]

        answers = await asyncio.gather(*map(answer, self._keep_alive))
        compare_answers(request, answers, self._sides, self._met, self._current, self._compacted)

    async def _chosen_lease(self, ttl_s: int) -> None:
        ids = []
        grants = await asyncio.gather(
            *(side.call(rpc_pb2.LeaseGrantRequest(TTL=ttl_s)) for side in self._sides)
        )
        for grant in grants:
            if not isinstance(grant, Failure):
                ids.append(grant.ID)
                grant.ID = int(grant.ID > 0)
        grant = rpc_pb2.LeaseGrantRequest(TTL=ttl_s)
        compare_answers(grant, grants, self._sides, self._met, self._current, self._compacted)
        if not ids:
            return
        for request in (rpc_pb2.LeaseTimeToLiveRequest(keys=True), rpc_pb2.LeaseRevokeRequest()):
            answers = []
            for side, lease_id in zip(self._sides, ids, strict=True):
                request.ID = lease_id
                answer = await side.call(request)
                if isinstance(answer, rpc_pb2.LeaseTimeToLiveResponse):
                    answer.ID -= lease_id
                answers.append(answer)
            compare_answers(
                request, answers, self._sides, self._met, self._current, self._compacted
            )

    async def _expiry(self, keys: tuple[bytes, ...]) -> None:
        await self._both(rpc_pb2.LeaseGrantRequest(ID=EXPIRING, TTL=1))
        for key in keys:
            await self._both(rpc_pb2.PutRequest(key=key, value=b"mortal", lease=EXPIRING))
        if keys:
            # In one revision, and both say so to the witness.
            await self._catch_up()
            self._current += 1
            await self._catch_up()
        # Without keys nothing tells when it happens, so one must ask.
        ends_at = asyncio.get_running_loop().time() + ANSWER_S
        for side in self._sides:
            while (await side.call(rpc_pb2.LeaseTimeToLiveRequest(ID=EXPIRING))).TTL != -1:
                if asyncio.get_running_loop().time() > ends_at:
                    raise DifferenceError("the lease does not end", side.name, "")
                await asyncio.sleep(0.05)
        await self._both(rpc_pb2.LeaseRevokeRequest(ID=EXPIRING))

    # watches

    async def _watch(self, number: int, request: rpc_pb2.WatchRequest) -> None:
        pair = self._pairs.get(number)
        if pair is None:
            pair = self._pairs[number] = Pair(self._sides, f"stream {number}")
        kind = request.WhichOneof("request_union")
        if kind == "create_request":
            await self._create(pair, request.create_request)
        elif kind == "cancel_request":
            await self._cancel(pair, request.cancel_request.watch_id)
        elif kind == "progress_request":
            await self._progress(pair)
        else:
            await pair.send(request)

    async def _create(self, pair: Pair, request: rpc_pb2.WatchCreateRequest) -> None:
        if request.start_revision < 0:
            self._met("negative start")
            await self._refused_start(pair, request)
            return
        if request.start_revision == self._compacted and self._deleted_at(self._compacted):
            self._met("tombstone at the compaction")
            request.start_revision += 1
        if pair.is_stale(request.watch_id):
            self._met("id of a compacted watcher")
            return
        creation = await pair.create(request, self._current)
        if creation.last is None and 0 < request.start_revision < self._compacted:
            creation.last, creation.canceled = 0, True
            pair.compacted.append(creation)

    async def _refused_start(self, pair: Pair, request: rpc_pb2.WatchCreateRequest) -> None:
        ours = pair.transcripts[1]
        await ours.stream.send(rpc_pb2.WatchRequest(create_request=request))
        count = len(ours.by_creation)

        def replied() -> bool:
            ours.take()
            return len(ours.by_creation) > count

        if not await ours.stream.wait(replied):
            raise DifferenceError("a watch from a negative revision", "not asked", "no reply")
        [reply] = ours.by_creation.pop()
        if not reply.canceled or reply.cancel_reason != COMPACTED_TEXT or reply.watch_id != NO_ID:
            raise DifferenceError("a watch from a negative revision", "not asked", reply)

    async def _cancel(self, pair: Pair, watch_id: int) -> None:
        if any(creation.id == watch_id for creation in pair.compacted):
            self._met("id of a compacted watcher")
            return
        for creation in pair.active():
            if creation.id == watch_id:
                # What it gets before its end would depend on how far each has come.
                await self._barrier()
                creation.last, creation.canceled = self._current, True
        await pair.send(
            rpc_pb2.WatchRequest(cancel_request=rpc_pb2.WatchCancelRequest(watch_id=watch_id))
        )
        await self._barrier()

    async def _progress(self, pair: Pair) -> None:
        active = pair.active()
        if not active or any(each.request.start_revision > self._current for each in active):
            self._met("progress that 3.6 withholds")
            return
        await self._barrier(settle=True)
        pair.progress_asked += 1
        request = rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest())
        await pair.send(request)
        await self._barrier()

    def _deleted_at(self, revision: int) -> bool:
        return any(at == revision and event.type for at, event in self._log)

    async def _catch_up(self) -> None:
        """Wait until the witness has everything, and take its log."""

        def has_all(transcript: Any) -> bool:
            last = transcript.by_creation[0][-1]
            return bool(last.events) and last.header.revision >= self._current

        if self._current > (self._log[-1][0] if self._log else self._begins_at):
            await self._witness.arrived(has_all, f"revision {self._current}")
        self._witness.compare()
        events = (m.events for m in self._witness.transcripts[0].by_creation[0])
        self._log = [(event.kv.mod_revision, event) for batch in events for event in batch]

    async def _barrier(self, *, settle: bool = False) -> None:
        """Wait until all watchers have got all, and compare it.

        `settle`: those too that got nothing must be known to both members as missing nothing. Etcd
        looks every 100 ms. It takes all in one round, so when it has served a later one from the
        past, they are.
        """
        await self._catch_up()
        for pair in self._pairs.values():
            await pair.complete(self._log)
        unsettled = [
            creation
            for pair in self._pairs.values()
            for creation in pair.active()
            if creation.historic and not creation.settled
        ]
        if settle and unsettled:
            number = len(self._probes.creations)
            probe = rpc_pb2.WatchCreateRequest(key=FENCE, start_revision=self._base)
            await self._probes.create(probe, self._current)
            # Its event, or that it is compacted: either comes of such a round.
            await self._probes.arrived(lambda each: len(each.by_creation[number]) > 1, "a probe")
            for creation in unsettled:
                creation.settled = True


def has_wrong_sort(request: Any) -> bool:
    """Tell whether a range in the request has a sort order or target that there is not."""
    return any(
        not 0 <= message.sort_order <= 2 or not 0 <= message.sort_target <= 4
        for message in walk(request)
        if isinstance(message, rpc_pb2.RangeRequest)
    )
