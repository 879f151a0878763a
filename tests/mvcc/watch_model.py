"""Random histories of a watch hub against a model that keeps the whole history in plain lists.

What the model demands of every watcher are the guarantees that etcd documents: ordered, unique,
reliable, atomic, resumable, bookmarkable; and the rules for filters, prev_kv, cancellation, future
starts and full streams.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from kvstore.mvcc import watch, watch_encode
from kvstore.pb import kv_pb2, rpc_pb2
from tests.mvcc.watch_rig import Rig

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kvstore.mvcc.watch_stream import WatchStream

KEYS = [b"a", b"b", b"ba", b"c", b"d"]
ENDS = [b"", b"", b"b", b"c", b"e", b"\x00"]
SECOND_NS = 1_000_000_000

keys = st.sampled_from(KEYS)
values = st.binary(max_size=60)
changes = st.lists(st.tuples(keys, st.one_of(st.none(), values)), min_size=1, max_size=4).map(
    lambda pairs: list(dict(pairs).items())
)


@dataclass
class Change:
    """One event as the model knows it."""

    revision: int
    kv: kv_pb2.KeyValue
    deleted: bool
    previous: kv_pb2.KeyValue | None


@dataclass
class ModelWatcher:
    """What a client asked for and got."""

    start: bytes
    end: bytes | None
    from_revision: int
    """Where its events begin."""

    asked_start: int
    filters: list[int]
    prev_kv: bool
    fragment: bool
    received: int = 0
    """How many of its expected events have arrived."""

    covered: int = 0
    """It has certainly been served up to this revision."""

    may_be_behind: bool = False
    pieces: list[Any] = field(default_factory=list)
    """Events of the fragments that have arrived of an unfinished response."""

    def wants(self, change: Change) -> bool:
        key = change.kv.key
        if self.end == b"":
            inside = key == self.start
        else:
            inside = self.start <= key and (self.end is None or key < self.end)
        kind = (
            rpc_pb2.WatchCreateRequest.NODELETE
            if change.deleted
            else (rpc_pb2.WatchCreateRequest.NOPUT)
        )
        return inside and change.revision >= self.from_revision and kind not in self.filters


class ModelStream:
    """The client's end of a stream, which checks each message when it is sent."""

    def __init__(self, model: WatchMachine) -> None:
        self.model = model
        self.watchers: dict[int, ModelWatcher] = {}
        self.announced: list[ModelWatcher | str] = []
        """Replies to creations that must come, in order: the watcher, or the refusal's text."""

        self.canceling: int | None = None
        self.room = 1 << 30
        self.together = False
        """A batch is being taken that began while there was room."""
        self.asked = False
        self.used_ids: set[int] = set()
        self.stream: WatchStream = model.rig.hub.open(self.send, self.send_all)

    def send(self, message: bytes) -> bool:
        response = rpc_pb2.WatchResponse.FromString(message)
        assert response.SerializeToString() == message
        watch_id = response.watch_id
        if response.created:
            self._created(response)
        elif response.canceled:
            self._canceled(response)
        elif response.events:
            self._events(self.watchers[watch_id], response)
        else:
            self._progress(response)
        self.room -= len(message)
        if self.room <= 0:
            for watcher in self.watchers.values():
                watcher.may_be_behind = True
        return self.room > 0

    def send_all(self, messages: Sequence[bytes]) -> bool:
        # What is handed over together counts as one; only its last message may reach the bound.
        assert sum(map(len, messages[:-1])) < watch.LIVE_BATCH_BYTES
        self.together = self.room > 0
        has_room = [self.send(message) for message in messages][-1]
        self.together = False
        return has_room

    def _created(self, response: rpc_pb2.WatchResponse) -> None:
        expected = self.announced.pop(0)
        assert response.header.revision == self.model.revision
        assert not response.events
        if isinstance(expected, str):
            assert (response.watch_id, response.canceled) == (-1, True)
            assert response.cancel_reason == expected
            return
        assert not response.canceled
        assert response.watch_id not in self.watchers
        self.watchers[response.watch_id] = expected

    def _canceled(self, response: rpc_pb2.WatchResponse) -> None:
        watcher = self.watchers.pop(response.watch_id)
        assert not watcher.pieces
        if not self.watchers:
            self.asked = False  # nobody is left for whom progress could be told
        if not response.compact_revision:
            assert self.canceling == response.watch_id
            assert response.header.revision == self.model.revision
            return
        compacted = self.model.compacted
        assert response.compact_revision == compacted
        assert response.header.revision == 0
        assert watcher.may_be_behind, "a watcher that had everything was canceled"
        assert max(watcher.from_revision, watcher.covered + 1) < compacted, (
            "nothing that the watcher needed was compacted"
        )

    def _events(self, watcher: ModelWatcher, response: rpc_pb2.WatchResponse) -> None:
        model = self.model
        assert self.room > 0 or self.together or watcher.pieces, "a full stream got events"
        assert not response.fragment or watcher.fragment
        assert response.header.revision <= model.revision
        assert response.header.revision >= response.events[-1].kv.mod_revision
        expected = [change for change in model.history if watcher.wants(change)]
        for event in response.events:
            assert watcher.received < len(expected), "an event that never was, or came twice"
            change = expected[watcher.received]
            watcher.received += 1
            assert event.kv == change.kv, "not ordered, not unique or not reliable"
            assert (event.type == kv_pb2.Event.DELETE) == change.deleted
            previous = change.previous
            if not watcher.prev_kv or change.revision - 1 < model.compacted:
                previous = None
            assert event.HasField("prev_kv") == (previous is not None)
            if previous is not None:
                assert event.prev_kv == previous
        watcher.pieces = [*watcher.pieces, response] if response.fragment else []
        if not response.fragment:
            last = response.events[-1].kv.mod_revision
            watcher.covered = last
            rest = expected[watcher.received :]
            assert not rest or rest[0].revision > last, "a revision was split"

    def _progress(self, response: rpc_pb2.WatchResponse) -> None:
        revision = response.header.revision
        if response.watch_id == -1:
            assert self.asked
            told = list(self.watchers.values())
            assert told
        else:
            told = [self.watchers[response.watch_id]]
        assert revision <= self.model.revision
        for watcher in told:
            assert revision >= watcher.asked_start, "a progress before the start"
            missing = self.model.missing(watcher)
            assert not missing or missing[0].revision > revision, "not bookmarkable"
            watcher.covered = max(watcher.covered, revision)
        if response.watch_id == -1:
            self.asked = False


class WatchMachine(RuleBasedStateMachine):
    """The hub over a real store, and the model beside it."""

    def __init__(self) -> None:
        super().__init__()
        # Small bounds, so that short histories meet them.
        self._bounds = {
            (watch_encode, "BATCH_BYTES_MAX"): 300,
            (watch, "_EVENTS_READ"): 2,
            (watch, "_EVENTS_MAX"): 6,
            (watch, "_WATCHERS_MAX"): 3,
        }
        for (module, name), bound in list(self._bounds.items()):
            self._bounds[module, name] = getattr(module, name)
            setattr(module, name, bound)
        self.rig = Rig(fragment_bytes=250, progress_interval_ns=SECOND_NS)
        self.now_ns = 1
        self.revision = 1
        self.compacted = -1
        self.history: list[Change] = []
        self.live: dict[bytes, kv_pb2.KeyValue] = {}
        self.streams: list[ModelStream] = []

        self.doubled: set[int] = set()
        """Revisions that changed a key twice. A compaction right there keeps the second change
        only, so the model does not compact there."""

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            self.restore_bounds()

    def restore_bounds(self) -> None:
        for (module, name), value in self._bounds.items():
            setattr(module, name, value)

    @initialize()
    def first_stream(self) -> None:
        self.open_stream()

    def missing(self, watcher: ModelWatcher) -> list[Change]:
        return [change for change in self.history if watcher.wants(change)][watcher.received :]

    # the model's own store

    def _apply(self, pairs: list[tuple[bytes, bytes | None]]) -> None:
        """Change keys in one revision, in order."""
        revision = self.revision + 1
        before = dict(self.live)
        changed = False
        for key, value in pairs:
            current = self.live.get(key)
            if value is None:
                if current is None:
                    continue
                del self.live[key]
                kv = kv_pb2.KeyValue(key=key, mod_revision=revision)
            else:
                kv = kv_pb2.KeyValue(
                    key=key,
                    value=value,
                    create_revision=current.create_revision if current else revision,
                    mod_revision=revision,
                    version=current.version + 1 if current else 1,
                )
                self.live[key] = kv
            created = value is not None and kv.create_revision == revision
            previous = None if created else before.get(key)
            self.history.append(Change(revision, kv, value is None, previous))
            changed = True
        if changed:
            self.revision = revision

    # changes

    @rule(entry=st.lists(changes, min_size=1, max_size=3))
    def entry(self, entry: list[list[tuple[bytes, bytes | None]]]) -> None:
        """Some transactions in one log entry."""
        for pairs in entry:
            request = rpc_pb2.TxnRequest()
            for key, value in pairs:
                if value is None:
                    request.success.add().request_delete_range.key = key
                else:
                    put = rpc_pb2.PutRequest(key=key, value=value)
                    request.success.add().request_put.MergeFrom(put)
            self._apply(pairs)
            self.rig.store.txn(request)
        self.notify()

    @rule(key=keys, value=values)
    def clear_and_put(self, key: bytes, value: bytes) -> None:
        """The one transaction that may change a key twice: delete all there is, put one."""
        request = rpc_pb2.TxnRequest()
        request.success.add().request_delete_range.MergeFrom(
            rpc_pb2.DeleteRangeRequest(key=b"\x00", range_end=b"\x00")
        )
        request.success.add().request_put.MergeFrom(rpc_pb2.PutRequest(key=key, value=value))
        if key in self.live:
            self.doubled.add(self.revision + 1)
        self._apply([(present, None) for present in sorted(self.live)] + [(key, value)])
        self.rig.store.txn(request)
        self.notify()

    def notify(self) -> None:
        self.rig.notify()
        assert self.rig.store.revision == self.rig.hub.revision == self.revision

    @rule(back=st.integers(0, 3))
    def compact(self, back: int) -> None:
        revision = self.revision - back
        if revision > max(self.compacted, 0) and revision not in self.doubled:
            self.compacted = revision
            self.rig.compact(revision)

    # clients

    @rule()
    def open_stream(self) -> None:
        if len(self.streams) < 3:
            self.streams.append(ModelStream(self))

    @rule(
        which=st.integers(0, 2),
        key=st.sampled_from([b"", *KEYS]),
        end=st.sampled_from(ENDS),
        start=st.one_of(st.just(0), st.integers(-1, 12), st.integers(0, 4)),
        relative=st.booleans(),
        filters=st.sampled_from([[], [], [0], [1], [0, 1]]),
        prev_kv=st.booleans(),
        fragment=st.booleans(),
        progress=st.booleans(),
        watch_id=st.sampled_from([0, 0, 0, 1, 5]),
    )
    def create(
        self,
        which: int,
        key: bytes,
        end: bytes,
        start: int,
        relative: bool,
        filters: list[int],
        prev_kv: bool,
        fragment: bool,
        progress: bool,
        watch_id: int,
    ) -> None:
        stream = self.streams[which % len(self.streams)]
        if relative and start > 0:
            start = max(1, self.revision + 2 - start)
        first = key or b"\x00"
        last = None if end == b"\x00" else end
        expected: ModelWatcher | str
        if start < 0:
            expected = "etcdserver: mvcc: required revision has been compacted"
        elif last and last <= first:
            expected = "mvcc: watcher range is empty"
        elif watch_id and watch_id in stream.watchers:
            expected = "mvcc: duplicate watch ID provided on the WatchStream"
        else:
            expected = ModelWatcher(
                first,
                last,
                from_revision=start or self.revision + 1,
                asked_start=start,
                filters=filters,
                prev_kv=prev_kv,
                fragment=fragment,
                may_be_behind=start != 0 or stream.room <= 0,
            )
        stream.announced.append(expected)
        request = rpc_pb2.WatchCreateRequest(
            key=key,
            range_end=end,
            start_revision=start,
            filters=filters,  # type: ignore[arg-type]
            prev_kv=prev_kv,
            fragment=fragment,
            progress_notify=progress,
            watch_id=watch_id,
        )
        stream.stream.request(rpc_pb2.WatchRequest(create_request=request))
        assert not stream.announced, "a creation was not answered at once"

    @rule(which=st.integers(0, 2), watch_id=st.integers(0, 5))
    def cancel(self, which: int, watch_id: int) -> None:
        stream = self.streams[which % len(self.streams)]
        stream.canceling = watch_id
        request = rpc_pb2.WatchCancelRequest(watch_id=watch_id)
        stream.stream.request(rpc_pb2.WatchRequest(cancel_request=request))
        stream.canceling = None
        assert watch_id not in stream.watchers

    @rule(which=st.integers(0, 2))
    def close(self, which: int) -> None:
        if len(self.streams) > 1:
            self.streams.pop(which % len(self.streams)).stream.close()

    @rule(which=st.integers(0, 2), room=st.integers(1, 600))
    def slow_down(self, which: int, room: int) -> None:
        stream = self.streams[which % len(self.streams)]
        stream.room = min(stream.room, room)

    @rule(which=st.integers(0, 2), room=st.sampled_from([1, 200, 1 << 30]))
    def read(self, which: int, room: int) -> None:
        stream = self.streams[which % len(self.streams)]
        stream.room = room
        stream.stream.writable()

    @rule(which=st.integers(0, 2))
    def ask_progress(self, which: int) -> None:
        stream = self.streams[which % len(self.streams)]
        if stream.watchers:
            stream.asked = True
        request = rpc_pb2.WatchProgressRequest()
        stream.stream.request(rpc_pb2.WatchRequest(progress_request=request))

    @rule()
    def pass_time(self) -> None:
        self.now_ns += 2 * SECOND_NS
        self.rig.hub.progress(self.now_ns)

    # the hub's turn

    @rule(revisions=st.integers(1, 4))
    def catch_up_a_little(self, revisions: int) -> None:
        self.rig.hub.catch_up(revisions)

    @rule()
    def settle(self) -> None:
        """Everybody reads everything: now nothing may be missing."""
        hub = self.rig.hub
        for _ in range(2000):
            for stream in self.streams:
                if stream.room <= 0:
                    stream.room = 1 << 30
                    stream.stream.writable()
            if not hub.has_work and all(stream.room > 0 for stream in self.streams):
                break
            hub.catch_up(3)
        else:
            raise AssertionError("catching up does not end")
        for stream in self.streams:
            for watcher in stream.watchers.values():
                assert not self.missing(watcher), "not reliable: an event is missing"
                assert not watcher.pieces
                watcher.covered = max(watcher.covered, self.revision)
                watcher.may_be_behind = watcher.asked_start > self.revision + 1
            ready = all(w.asked_start <= self.revision for w in stream.watchers.values())
            if stream.watchers and ready:
                assert not stream.asked, "progress was asked for and not told"
        assert hub.statistics().behind == 0


def walk(seed: int, steps: int) -> None:
    """Take a long random way through the machine; hypothesis finds short ones."""
    draw = random.Random(seed)
    machine = WatchMachine()

    def pairs() -> list[tuple[bytes, bytes | None]]:
        chosen = draw.sample(KEYS, draw.randint(1, 4))
        return [(key, draw.choice([None, value(), value()])) for key in chosen]

    def value() -> bytes:
        return draw.randbytes(draw.choice([1, 20, 80]))

    def create() -> None:
        machine.create(
            which=draw.randrange(3),
            key=draw.choice([b"", *KEYS]),
            end=draw.choice(ENDS),
            start=draw.choice([0, -1, 1, 2, 3, 4, 6, draw.randint(1, machine.revision + 4)]),
            relative=draw.random() < 0.7,
            filters=draw.choice([[], [], [0], [1], [0, 1]]),
            prev_kv=draw.random() < 0.5,
            fragment=draw.random() < 0.5,
            progress=draw.random() < 0.5,
            watch_id=draw.choice([0, 0, 0, 1, 5]),
        )

    ways: list[tuple[int, Callable[[], None]]] = [
        (24, lambda: machine.entry([pairs() for _ in range(draw.randint(1, 3))])),
        (2, lambda: machine.clear_and_put(draw.choice(KEYS), value())),
        (5, lambda: machine.compact(draw.randint(0, 4))),
        (1, machine.open_stream),
        (12, create),
        (4, lambda: machine.cancel(draw.randrange(3), draw.randrange(6))),
        (1, lambda: machine.close(draw.randrange(3))),
        (12, lambda: machine.slow_down(draw.randrange(3), draw.choice([1, 1, 50, 300, 700]))),
        (12, lambda: machine.read(draw.randrange(3), draw.choice([1, 200, 600, 1 << 30]))),
        (4, lambda: machine.ask_progress(draw.randrange(3))),
        (6, machine.pass_time),
        (16, lambda: machine.catch_up_a_little(draw.randint(1, 4))),
        (3, machine.settle),
    ]
    try:
        machine.first_stream()
        weights = [weight for weight, _ in ways]
        for _ in range(steps):
            draw.choices(ways, weights)[0][1]()
            if len(machine.history) > 400:
                break  # comparing is quadratic in it
        machine.settle()
    finally:
        machine.restore_bounds()
