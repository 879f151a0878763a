"""Watch streams side by side: what must arrive, when it has, and in what form it is compared.

What must arrive is known from a witness, a watcher of everything that both members have: so one can
wait for exactly that much, and no pause is needed. The witness itself is compared message by
message. That nothing more arrives shows at the end of a program, by a last watcher on each stream
whose event comes after all else.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvstore.pb import kv_pb2, rpc_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.compat.random.side import Side, Stream

NO_ID = -1


class DifferenceError(AssertionError):
    """The two members do not agree."""

    def __init__(self, what: str, etcd: Any, ours: Any) -> None:
        super().__init__(f"{what}\netcd: {etcd}\nours: {ours}")


@dataclass
class Creation:
    """One create request, and what its watcher must get."""

    request: rpc_pb2.WatchCreateRequest
    first: int
    """First revision that the watcher may show."""

    historic: bool
    """It starts in the past, so its events are joined (`differences.NORMALISED`)."""

    last: int | None = None
    """Last revision it may show, once it is canceled."""

    canceled: bool = False
    """A message with `canceled` must have come."""

    id: int = NO_ID
    settled: bool = False
    """Both members are known to have it among those that miss nothing."""

    def wants(self, revision: int, event: Any) -> bool:
        """Tell whether the watcher must get an event."""
        request = self.request
        if revision < self.first or (self.last is not None and revision > self.last):
            return False
        hidden = (
            rpc_pb2.WatchCreateRequest.NODELETE
            if event.type == kv_pb2.Event.DELETE
            else rpc_pb2.WatchCreateRequest.NOPUT
        )
        if hidden in request.filters:
            return False
        key, end = request.key or b"\0", request.range_end
        found = event.kv.key
        if not end:
            return bool(found == key)
        return bool(found >= key and (end == b"\0" or found < end))


@dataclass
class Transcript:
    """One member's messages on one stream, sorted by the create request they belong to."""

    stream: Stream
    by_creation: list[list[Any]] = field(default_factory=list)
    progress: list[Any] = field(default_factory=list)
    strays: list[Any] = field(default_factory=list)
    """For watchers that do not exist."""

    _read: int = 0
    _current: dict[int, int] = field(default_factory=dict)

    def take(self) -> None:
        """Sort what has arrived since."""
        messages = self.stream.messages
        while self._read < len(messages):
            message = messages[self._read]
            self._read += 1
            if message.created:
                # Replies to create requests come in the order of the requests.
                if not message.canceled:
                    self._current[message.watch_id] = len(self.by_creation)
                self.by_creation.append([message])
            elif message.watch_id in self._current:
                self.by_creation[self._current[message.watch_id]].append(message)
                if message.canceled:
                    del self._current[message.watch_id]
            elif message.watch_id == NO_ID and not message.events and not message.canceled:
                self.progress.append(message)
            else:
                self.strays.append(message)

    def events(self, number: int) -> int:
        """Return how many events the watcher of a create request has got."""
        return sum(len(message.events) for message in self.by_creation[number])

    def canceled(self, number: int) -> bool:
        """Tell whether the watcher of a create request has ended."""
        return any(message.canceled for message in self.by_creation[number])


def bare(message: Any, term: int) -> Any:
    """Return a copy without the raft term, if that is the one the member had at its start."""
    copy = type(message)()
    copy.CopyFrom(message)
    if copy.header.raft_term == term:
        copy.header.ClearField("raft_term")
    return copy


def joined(messages: Iterable[Any]) -> list[Any]:
    """Return the messages of a watcher with each run of events made one list of events.

    Raises:
        ValueError: A message breaks a promise of etcd's that joining would hide.
    """
    entries: list[Any] = []
    before: Any = None
    for message in messages:
        if not message.events:
            entries.append(message)
            before = None
            continue
        revisions = [event.kv.mod_revision for event in message.events]
        if revisions != sorted(revisions):
            raise ValueError(f"events are out of order: {revisions}")
        if message.header.revision < revisions[-1]:
            raise ValueError(f"the header is below the events: {message}")
        if before is None:
            entries.append([])
        elif not before.fragment and before.events[-1].kv.mod_revision >= revisions[0]:
            raise ValueError(f"a revision is split or repeated: {before} {message}")
        entries[-1].extend(message.events)
        before = message
    if before is not None and before.fragment:
        raise ValueError(f"the last fragment says that there are more: {before}")
    return entries


class Pair:
    """One stream of a program, to both members."""

    def __init__(self, sides: tuple[Side, Side], name: str) -> None:
        self.name = name
        self.creations: list[Creation] = []
        self.progress_asked = 0
        self.compacted: list[Creation] = []
        """Those whose watchers a compaction has canceled."""

        self._sides = sides
        self.transcripts = [Transcript(side.watch()) for side in sides]

    async def send(self, request: rpc_pb2.WatchRequest) -> None:
        """Send a message to both."""
        await asyncio.gather(*(each.stream.send(request) for each in self.transcripts))

    async def create(self, request: rpc_pb2.WatchCreateRequest, current: int) -> Creation:
        """Create a watcher on both and wait for the replies."""
        start = request.start_revision
        creation = Creation(
            request, first=start or current + 1, historic=0 < start <= current, settled=False
        )
        self.creations.append(creation)
        await self.send(rpc_pb2.WatchRequest(create_request=request))
        await self.arrived(lambda each: len(each.by_creation) >= len(self.creations), "a reply")
        replies = [each.by_creation[-1][0] for each in self.transcripts]
        if replies[0].watch_id != replies[1].watch_id or replies[0].canceled != replies[1].canceled:
            raise DifferenceError(f"{self.name}: reply to a create request", *replies)
        creation.id = replies[0].watch_id
        if replies[0].canceled:
            creation.last, creation.canceled = 0, True
        return creation

    def is_stale(self, watch_id: int) -> bool:
        """Tell whether etcd would refuse, or pass over, the id of a watcher that is compacted."""
        if watch_id:
            return any(creation.id == watch_id for creation in self.compacted)
        return any(creation.request.watch_id for creation in self.compacted)

    def active(self) -> list[Creation]:
        """Return those whose watchers live."""
        return [creation for creation in self.creations if creation.last is None]

    async def arrived(self, ready: Any, what: str) -> None:
        """Wait until both transcripts are `ready`."""
        done = []
        for each in self.transcripts:

            def is_ready(each: Transcript = each) -> bool:
                each.take()
                return bool(ready(each))

            done.append(each.stream.wait(is_ready))
        if not all(await asyncio.gather(*done)):
            raise DifferenceError(f"{self.name}: {what} does not come", *self._shown())

    async def complete(self, log: list[tuple[int, Any]]) -> None:
        """Wait until all that must come has come, and compare it."""
        wanted = [
            sum(1 for revision, event in log if creation.wants(revision, event))
            for creation in self.creations
        ]

        def ready(each: Transcript) -> bool:
            return len(each.progress) >= self.progress_asked and all(
                each.events(number) >= wanted[number]
                and (each.canceled(number) or not creation.canceled)
                for number, creation in enumerate(self.creations)
            )

        await self.arrived(ready, f"what is missing of {wanted} events")
        self.compare()

    def compare(self) -> None:
        """Compare all that has come."""
        theirs, ours = self._normal()
        # One more of one member's is a reply that the other still owes: seen when it is waited for.
        for number, (left, right) in enumerate(zip(theirs[0], ours[0], strict=False)):
            if left != right:
                raise DifferenceError(f"{self.name}: watcher {number}", left, right)
        if theirs[1:] != ours[1:]:
            raise DifferenceError(f"{self.name}: progress or strays", theirs[1:], ours[1:])

    def _normal(self) -> list[Any]:
        forms = []
        for side, transcript in zip(self._sides, self.transcripts, strict=True):
            transcript.take()
            watchers = []
            for number, messages in enumerate(transcript.by_creation):
                plain = [bare(message, side.term) for message in messages]
                historic = number < len(self.creations) and self.creations[number].historic
                try:
                    watchers.append(joined(plain) if historic else plain)
                except ValueError as error:
                    raise DifferenceError(
                        f"{self.name}: watcher {number} of {side.name}: {error}", *self._shown()
                    ) from error
            progress = [bare(message, side.term) for message in transcript.progress]
            strays = [bare(message, side.term) for message in transcript.strays]
            if transcript.stream.ended is not None:
                strays.append(transcript.stream.ended)
            forms.append((watchers, progress, strays))
        return forms

    def _shown(self) -> list[Any]:
        return [each.stream.messages or each.stream.ended for each in self.transcripts]

    async def close(self) -> None:
        """End both streams."""
        for each in self.transcripts:
            await each.stream.close()
