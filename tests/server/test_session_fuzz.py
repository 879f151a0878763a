"""Whatever bytes a client sends: no exception escapes, and the books of the session stay right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import msgpack
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvstore.pb import session_pb2 as pb
from kvstore.server.services.session import TURN_ITEMS, SessionService
from tests.rpc.conftest import Service
from tests.server.session_rig import KvHold


class Wire:
    """The end of the engine that a session sees; takes what would go out."""

    def __init__(self) -> None:
        self.peer = "test"
        self.peer_certificate = None
        self.unsent_bytes = 0
        self.items: list[Any] = []
        self.ended: tuple[int, str] | None = None
        self.pauses = 0

    def metadata(self, name: bytes) -> None:
        return None

    def send(self, message: bytes) -> bool:
        assert self.ended is None, "a frame behind the end"
        self.items += msgpack.unpackb(pb.Frame.FromString(message).body)[1:]
        return True

    def fail(self, code: int = 0, text: str = "") -> None:
        assert self.ended is None
        self.ended = (code, text)

    finish = fail

    def pause_receiving(self) -> None:
        assert self.pauses == 0
        self.pauses = 1

    def resume_receiving(self) -> None:
        assert self.pauses == 1
        self.pauses = 0


class Turns:
    """A loop that runs when told to."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.soon: list[Callable[[], None]] = []
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def later(self, callback: Callable[..., None], *arguments: Any) -> None:
        self.soon.append(lambda: callback(*arguments))

    def later_s(self, delay_s: float, callback: Callable[[], None]) -> None:
        self.timers.append((self.now_s + delay_s, callback))

    def run(self) -> None:
        while self.soon:
            soon, self.soon = self.soon, []
            for callback in soon:
                callback()

    def advance(self, seconds: float) -> None:
        self.now_s += seconds
        due = [callback for at_s, callback in self.timers if at_s <= self.now_s]
        self.timers = [timer for timer in self.timers if timer[0] > self.now_s]
        for callback in due:
            callback()
        self.run()


class Routes:
    def unary(self, path: str, handler: Any) -> None: ...

    def stream(self, path: str, handler: Any) -> None: ...


class Machine:
    """One session without a network."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.wire = Wire()
        self.service = Service()
        kv = KvHold()
        self.kv = kv
        sessions = SessionService(
            Routes(),
            frame_bytes_max=2 << 20,
            together=kv.together,
            later=self.turns.later,
            later_s=self.turns.later_s,
            time_s=lambda: self.turns.now_s,
            on_error=self.service.errors.append,
        )
        self.service.register(sessions)  # type: ignore[arg-type]
        kv.register(sessions)
        self.sessions = sessions
        self.session = sessions._open(self.wire)  # type: ignore[arg-type]
        self.turns.run()
        self.wire.items.clear()

    def take(self, body: bytes) -> None:
        if self.wire.ended is None:
            self.session.message(pb.Frame(body=body).SerializeToString())
            self.turns.run()
        self.check()

    def check(self) -> None:
        session = self.session
        calls, streams = session.calls, session.streams
        assert session.unanswered_bytes == sum(call.size_bytes for call in calls.values())
        assert self.sessions.queued_bytes == sum(each.unsent_bytes for each in streams.values())
        if self.wire.ended is not None:
            assert not calls
            assert not streams
            assert session not in self.sessions.sessions
            assert self.wire.ended[0] in {3, 12}
            assert self.wire.ended[1].startswith("session: ")
        ends = Counter(item[1] for item in self.wire.items if item[0] in {pb.REPLY, pb.END})
        assert all(count == 1 for count in ends.values()), "an operation ended twice"
        assert not set(ends) & {*calls, *streams}, "ended, and still there"


small = st.integers(-2, 14)
payloads = st.one_of(st.binary(max_size=12), st.sampled_from([b"3 10", b"2 70000", b"7"]))
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(1 << 63), (1 << 64) - 1), st.floats(),
              st.text(max_size=4), payloads),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)  # fmt: skip
flags = st.sampled_from([0, 1, 2])
windows = st.sampled_from([0, 1, 100_000])
ids = st.integers(1, 40)
plausible = st.one_of(
    st.tuples(st.just(pb.CALL), ids, small, st.sampled_from([0, 1, 50]), flags, payloads),
    st.tuples(st.just(pb.OPEN), ids, small, flags, windows),
    st.tuples(st.just(pb.MESSAGE), ids, payloads),
    st.tuples(st.just(pb.HALF_CLOSE), ids),
    st.tuples(st.just(pb.CANCEL), ids),
    st.tuples(st.just(pb.CREDIT), ids, st.sampled_from([1, 50_000])),
    st.tuples(st.just(pb.METADATA), st.dictionaries(st.text(max_size=3), st.text(max_size=3))),
    st.tuples(
        st.just(pb.PIPELINE),
        ids,
        st.sampled_from([0, 50]),
        flags,
        st.lists(st.tuples(st.integers(9, 12), payloads), max_size=4),
    ),
)
bodies = st.one_of(
    st.binary(max_size=60),
    anything.map(msgpack.packb),
    st.lists(anything, max_size=4).map(lambda items: msgpack.packb([1, *items])),
    st.lists(plausible, max_size=6).map(lambda items: msgpack.packb([1, *items])),
)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
@example(b"\x0a\x01")
def test_no_message_of_any_bytes_gets_an_exception_out(data: bytes) -> None:
    machine = Machine()
    machine.session.message(data)
    machine.turns.run()
    machine.check()


@settings(max_examples=150, deadline=None)
@given(st.lists(bodies, max_size=4))
@example([b"\xc7\x0c\xff" + bytes(12)])  # a timestamp, which msgpack would make an object of
@example([b"\x91" * 2000 + b"\x01"])  # deep nesting
@example([b"\xdd\xff\xff\xff\xff"])  # an array that claims 4 billion items
def test_malformed_frames_end_the_session_and_nothing_else(frames: list[bytes]) -> None:
    machine = Machine()
    for body in frames:
        machine.take(body)


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_every_operation_ends_once_whatever_happens_around_it(data: st.DataObject) -> None:
    # Ids in order, so that sequences get far; answers, time and the end come in between.
    machine = Machine()
    next_id = 1
    for _ in range(data.draw(st.integers(1, 8))):
        items = []
        for item in data.draw(st.lists(plausible, max_size=5)):
            if item[0] in {pb.CALL, pb.OPEN, pb.PIPELINE}:
                items.append((item[0], next_id, *item[2:]))
                next_id += len(item[4]) if item[0] == pb.PIPELINE else 1
            elif item[0] == pb.METADATA:
                items.append(item)
            elif next_id > 1:
                items.append((item[0], 1 + item[1] % (next_id - 1), *item[2:]))
        machine.take(msgpack.packb([1, *items]))
        held = [*machine.service.held, *(call for _, _, call in machine.kv.calls)]
        for call in data.draw(st.lists(st.sampled_from(held), max_size=4)) if held else []:
            code = data.draw(st.sampled_from([0, 3, 14]))
            if code:
                call.fail(code, "text")
            else:
                call.reply(b"answer")
            machine.turns.run()
            machine.check()
        machine.turns.advance(data.draw(st.sampled_from([0.0, 0.06])))
        machine.check()
    if machine.wire.ended is None:
        machine.session.cancelled()
        machine.turns.run()
        assert not machine.session.calls
        assert not machine.session.streams
        assert machine.sessions.queued_bytes == 0


def test_the_end_of_the_clients_half_waits_for_the_items_before_it() -> None:
    # A long frame is taken in slices; the engine tells of the half-close between them.
    machine = Machine()
    methods = {served.path: number for number, served in enumerate(machine.sessions.methods)}
    count = 3 * TURN_ITEMS
    echo = methods["/t.Test/Echo"]
    calls = [(pb.CALL, number, echo, 0, 0, b"") for number in range(1, count)]
    chat = (pb.OPEN, count, methods["/t.Test/Chat"], 0, 1000)
    machine.session.message(pb.Frame(body=msgpack.packb([1, *calls, chat])).SerializeToString())
    machine.session.half_closed()
    machine.turns.run()
    assert [item[1] for item in machine.wire.items] == list(range(1, count + 1))
    assert machine.wire.ended == (0, "")
