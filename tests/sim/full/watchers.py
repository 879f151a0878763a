"""Clients of watches, and a validator for each promise of a watch.

The promises are etcd's (robustness `validate/watch.go`): ordered, unique, atomic, reliable,
resumable, bookmarkable, the right previous values, and filters. A watcher knows the first revision
it has not got. Whatever comes is held against the book of facts from there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvstore.pb import kv_pb2, rpc_pb2
from tests.sim.full.truth import Change, from_message

if TYPE_CHECKING:
    from tests.sim.full.cluster import FullCluster
    from tests.sim.full.rpc import StreamCall

WATCH = "/etcdserverpb.Watch/Watch"
ORDERED = "a watch is ordered"
UNIQUE = "a watch delivers an event once"
ATOMIC = "a watch never splits a revision"
RELIABLE = "a watch loses no event"
BOOKMARK = "a progress notification is true"
PREVIOUS = "a watch shows the right previous value"
FILTERED = "a watch filters what it was asked to"
TRUE_EVENT = "a watch shows what happened"
CREATED = "a watch begins where it was asked to"


class Watcher:
    """One watcher, for as long as the run; it goes on on other streams when one breaks."""

    def __init__(self, stream: WatchClient, watch_id: int) -> None:
        world, profile = stream.cluster.world, stream.cluster.profile
        pick = world.random.choice
        key = b"k%02d" % world.between(0, profile.keys - 1)
        self.stream = stream
        self.id = watch_id
        self.key, self.end = pick(((key, b""), (b"k", b"l"), (b"\0", b"\0"), (key, b"k99")))
        self.no_put = world.chance(0.15)
        self.no_delete = not self.no_put and world.chance(0.15)
        self.previous = world.chance(0.5)
        self.fragment = world.chance(0.3)
        self.next = 0
        """First revision not seen; 0 before the first stream has told where it began."""
        self.created = False
        self._fragments: list[kv_pb2.Event] = []

    def request(self) -> bytes:
        """Return what creates it again where it stopped."""
        create = rpc_pb2.WatchCreateRequest(
            key=self.key,
            range_end=self.end,
            start_revision=self.next,
            prev_kv=self.previous,
            fragment=self.fragment,
            progress_notify=True,
            watch_id=self.id,
        )
        if self.no_put:
            create.filters.append(rpc_pb2.WatchCreateRequest.NOPUT)
        if self.no_delete:
            create.filters.append(rpc_pb2.WatchCreateRequest.NODELETE)
        self.created = False
        self._fragments = []
        return rpc_pb2.WatchRequest(create_request=create).SerializeToString()

    def _wanted(self, revision: int) -> list[Change]:
        """Return the events of a revision that it must get."""
        return [
            change
            for change in self.stream.cluster.truth.changes.get(revision, [])
            if self._covers(change.key)
            and not (self.no_put and change.after is not None)
            and not (self.no_delete and change.after is None)
        ]

    def _covers(self, key: bytes) -> bool:
        if not self.end:
            return key == self.key
        return key >= self.key and (self.end == b"\0" or key < self.end)

    def take(self, response: rpc_pb2.WatchResponse) -> None:
        """Judge a response."""
        cluster = self.stream.cluster
        if response.created:
            self.created = True
            if response.canceled:
                self._fail(CREATED, f"it is refused: {response.cancel_reason}")
            if not self.next:
                self.next = response.header.revision + 1
            return
        if response.canceled:
            self._canceled(response)
            return
        if not self.created:
            self._fail(CREATED, "an event comes before the watch is created")
        if not response.events:
            self.bookmark(response.header.revision)
            return
        cluster.world.mark("watch events delivered")
        events = [*self._fragments, *response.events]
        if response.fragment:
            cluster.world.mark("watch response fragmented")
            self._fragments = events
            return
        self._fragments = []
        self._events(events)
        if response.header.revision < self.next - 1:
            self._fail(BOOKMARK, f"header {response.header.revision} is older than its events")

    def _events(self, events: list[kv_pb2.Event]) -> None:
        position = 0
        while position < len(events):
            revision = events[position].kv.mod_revision
            group = []
            while position < len(events) and events[position].kv.mod_revision == revision:
                group.append(events[position])
                position += 1
            if revision < self.next:
                name = UNIQUE if self._wanted(revision) else ORDERED
                self._fail(name, f"revision {revision} comes after {self.next - 1}")
            self._nothing_before(revision, RELIABLE)
            self._revision(revision, group)
            self.next = revision + 1

    def _nothing_before(self, revision: int, name: str) -> None:
        for missing in range(self.next, revision):
            if wanted := self._wanted(missing):
                keys = [one.key for one in wanted]
                self._fail(name, f"it is at {revision} and did not get {keys} of {missing}")

    def _revision(self, revision: int, group: list[kv_pb2.Event]) -> None:
        wanted = self._wanted(revision)
        got = [(event.kv.key, None if event.type else from_message(event.kv)) for event in group]
        expected = [(change.key, change.after) for change in wanted]
        if sorted(key for key, _ in got) != sorted(key for key, _ in expected):
            everything = {c.key for c in self.stream.cluster.truth.changes.get(revision, [])}
            if len(got) < len(expected):
                name = ATOMIC
            elif all(key in everything for key, _ in got):
                name = FILTERED
            else:
                name = TRUE_EVENT
            self._fail(name, f"of revision {revision} it gets {got} and not {expected}")
        if sorted(got, key=_first) != sorted(expected, key=_first):
            self._fail(TRUE_EVENT, f"of revision {revision} it gets {got} and not {expected}")
        before = {change.key: change.before for change in wanted}
        for event in group:
            self._previous(revision, event, before.get(event.kv.key))

    def _previous(self, revision: int, event: kv_pb2.Event, before: object) -> None:
        got = from_message(event.prev_kv) if event.HasField("prev_kv") else None
        if got is None and self.previous and before is not None:
            # What was compacted away cannot be shown.
            if self.stream.cluster.truth.compacted < revision:
                self._fail(PREVIOUS, f"{event.kv.key!r} of {revision} has none, it was {before}")
        elif got is not None and (got != before or not self.previous):
            self._fail(PREVIOUS, f"{event.kv.key!r} of {revision} shows {got} and was {before}")

    def bookmark(self, revision: int) -> None:
        """Take a progress notification: everything up to it was delivered."""
        self.stream.cluster.world.mark("watch progress")
        if not self.next:
            return
        if revision > self.stream.cluster.truth.revision:
            self._fail(BOOKMARK, f"it tells of {revision}, which is yet to come")
        if self._fragments:
            self._fail(ATOMIC, "a progress notification between fragments")
        self._nothing_before(revision + 1, BOOKMARK)
        self.next = max(self.next, revision + 1)

    def _canceled(self, response: rpc_pb2.WatchResponse) -> None:
        cluster = self.stream.cluster
        compacted = response.compact_revision
        if not compacted:
            self._fail(CREATED, f"it is cancelled: {response.cancel_reason}")
        if compacted > cluster.truth.compacted or compacted <= self.next:
            self._fail(
                RELIABLE,
                f"it is at {self.next} and is cancelled for a compaction at {compacted}, "
                f"the last is {cluster.truth.compacted}",
            )
        cluster.world.mark("watch cancelled by compaction")
        self.next = max(self.next, compacted)
        self.stream.create(self)

    def _fail(self, name: str, text: str) -> None:
        options = f"{self.key!r} to {self.end!r}, no_put={self.no_put}, no_delete={self.no_delete}"
        self.stream.cluster.invariants.fail(name, f"watcher of {options}: {text}")


def _first(item: tuple[bytes, object]) -> bytes:
    return item[0]


class WatchClient:
    """A client with one stream at a time and some watchers on it."""

    def __init__(self, cluster: FullCluster, number: int) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.number = number
        self.target = 0
        self.watchers = [Watcher(self, i + 1) for i in range(self.world.between(1, 3))]
        self._stream: StreamCall | None = None
        self.world.after(self.world.between(0, cluster.profile.think_ns), self._connect)

    def _connect(self, _: object = None) -> None:
        if self._stream is not None:
            return
        cluster, profile = self.cluster, self.cluster.profile
        host = cluster.hosts[self.target - 1] if self.target else cluster.choose_host()
        process = host.process
        if process is None or not process.up:
            self.world.after(profile.tick_ns, self._connect)
            return
        self._stream = process.server.open(WATCH, self, profile.room_bytes)
        for watcher in self.watchers:
            self.create(watcher)
        stream = self._stream
        if self.world.chance(0.3):
            # Clients also go away by themselves.
            self.world.after(
                self.world.between(1, 20) * profile.think_ns, lambda _: self._leave(stream)
            )

    def create(self, watcher: Watcher) -> None:
        """Ask for a watcher on the stream."""
        if self._stream is not None:
            self._stream.request(watcher.request())

    def _leave(self, stream: StreamCall) -> None:
        if self._stream is stream and not self.target:
            self._stream = None
            stream.cancel()
            self.world.mark("watch client moved on")
            self._connect()

    def message(self, data: bytes) -> None:
        response = rpc_pb2.WatchResponse.FromString(data)
        profile, world, stream = self.cluster.profile, self.world, self._stream
        if response.watch_id == -1:
            for watcher in self.watchers:
                # Of one whose creation is on its way it says nothing.
                if watcher.created:
                    watcher.bookmark(response.header.revision)
            return
        for watcher in self.watchers:
            if watcher.id == response.watch_id:
                watcher.take(response)
        if stream is None:
            return
        if world.chance(0.05):
            self.ask_progress()
        if world.chance(profile.stalls) and not self.target:
            stream.reading = False
            world.mark("watch client stalled")
            world.after(world.between(1, 10) * profile.think_ns, lambda _: stream.read_on())

    def ask_progress(self) -> None:
        """Ask how far the stream is."""
        if self._stream is not None:
            progress = rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest())
            self._stream.request(progress.SerializeToString())

    def ended(self, code: int, text: str) -> None:
        self._stream = None
        self.world.after(self.cluster.profile.tick_ns, self._connect)

    def settle(self, target: int) -> None:
        """In the last phase: stay at one healthy member."""
        self.target = target
        if self._stream is not None:
            self._stream.reading = True
            stream, self._stream = self._stream, None
            stream.cancel()
        self._connect()

    def is_created(self) -> bool:
        """Tell whether every watcher is there."""
        return all(watcher.created for watcher in self.watchers)

    def is_at(self, revision: int) -> bool:
        """Tell whether every watcher has got everything up to a revision."""
        return all(watcher.next > revision for watcher in self.watchers)
