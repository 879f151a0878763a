"""One member without sockets, files and time: core, node, state machine and services are real.

The disk saves at once, the loop is a list, the clock stands until it is told to go on. What leaves
for peers is kept; a member of three hears from two others what a test gives it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import msgpack

from kvstore.apply.state import open_state
from kvstore.lease.clock import LeaseClock
from kvstore.mvcc.backend_memory import MemoryBackend
from kvstore.mvcc.hash import HashSlices
from kvstore.mvcc.watch import WatchHub
from kvstore.pb import rpc_pb2
from kvstore.peer.calls import CALL_FRAME, PeerCalls
from kvstore.peer.link import Channel
from kvstore.raft.config import Config, Restored
from kvstore.raft.messages import AppendWork, Configuration, Entry, InstallSnapshot, Role
from kvstore.raft.raft import Raft
from kvstore.server.cluster import Cluster, Member
from kvstore.server.farewell import Farewell
from kvstore.server.header import Headers
from kvstore.server.leases import Leases
from kvstore.server.member import Member as Product
from kvstore.server.membership import Membership
from kvstore.server.metrics import Metrics
from kvstore.server.node import Node, NodeHooks
from kvstore.server.proposals import Proposals
from kvstore.server.reconfig import Sight
from kvstore.server.services.cluster import ClusterService
from kvstore.server.services.kv import KvService
from kvstore.server.services.lease import LeaseService
from kvstore.server.services.maintenance import HashDone, MaintenanceService
from kvstore.server.services.watch import WatchService
from kvstore.server.services.writes import Writes

SELF = 1
TICK_NS = 100_000_000
TIMEOUT_NS = 7_000_000_000
ELECTION_NS = 1_000_000_000
TURNS_MAX = 10_000


class Endless(Exception):  # noqa: N818 (the name says what happened)
    """Turn follows turn for ever."""


class MemberRig:
    """The parts of `kvstore.server.member.Member` between its sockets and its files."""

    receive = Product.receive
    """As the product sorts what a peer sends into calls and messages of the core."""

    def __init__(self, members: int = 1) -> None:
        """Start as the first of so many voters."""
        self.now_ns = 0
        self.clock = self
        self.inflight = 0
        self.soon: list[Callable[[], object]] = []
        self.timers: list[tuple[int, Callable[[], object]]] = []
        self.works: list[AppendWork] = []
        self.answers: list[int] = []
        """Ids of the questions of peers that were answered."""

        self.stored_index = 0
        self.handlers: dict[str, Callable[..., Any]] = {}
        self.state = open_state(MemoryBackend(), minimum_ttl_s=1)
        self.store = self.state.store
        ids = range(1, members + 1)
        self.cluster = Cluster(
            1,
            {one: Member(one, "", (f"http://m{one}:2380",), (), is_learner=False) for one in ids},
            removed=(),
            published=self.state.members,
        )
        self.raft = Raft(
            Config(id=SELF, draw_timeout=lambda start, _stop: start, apply_before_durable=True),
            Restored(configuration=Configuration(tuple(ids))),
        )
        headers = Headers(1, SELF)
        self.hub = WatchHub(self.store, headers)
        self.node = Node(
            self.raft, self.state.applier, Proposals(SELF, 1, TIMEOUT_NS), self, self, self, self,
            NodeHooks(
                applied=self._applied,
                changed=self._change_committed,
                reconfigured=self._change_applied,
                role=self._role,
                led=self._led,
                snapshot=self._snapshot_wanted,
                fatal=lambda _error: None,  # it is raised as well
            ),
            TIMEOUT_NS,
        )  # fmt: skip
        self.calls = PeerCalls(self._send_call, 1)
        # Nobody is there who could tell of a stranger; the simulator has some.
        self.peers = SimpleNamespace(knows=lambda _: True)
        self.membership = Membership(
            self.node, self.cluster, self.calls,
            sight=self._sight, write=lambda record: self.store.write(*record),
            changed=self._membership_changed, election_timeout_ns=ELECTION_NS,
            timeout_ns=TIMEOUT_NS, later=self.call_later,
        )  # fmt: skip
        self.farewell = Farewell(
            self.node, self.cluster, self.calls,
            stored_index=lambda: self.stored_index, later=self.call_later,
        )  # fmt: skip
        self.leases = Leases(
            self.node, self.state.lessor, LeaseClock(self.state.lessor), self.calls,
            election_timeout_ns=ELECTION_NS, timeout_ns=TIMEOUT_NS, later=self.call_later,
        )  # fmt: skip
        self._serve(headers)
        if members == 1:
            self.raft.campaign()
            self.node.tick()
            self.settle()
            assert self.node.role is Role.LEADER

    def _serve(self, headers: Headers) -> None:
        writes = Writes(
            self.node, self.store, headers,
            size_bytes=lambda: 0, request_size_max=2 << 20, quota_bytes=1 << 30,
        )  # fmt: skip
        self.watch = WatchService(self.hub, lambda: bool(self.node.leader), self.call_soon)
        for service in (
            KvService(
                writes, self.store, txn_ops_max=128, later=self.call_soon,
                later_s=self.call_later, observe=Metrics(lambda: (), lambda: ()).range.series,
            ),
            self.watch,
            LeaseService(writes, self.leases, self.state.lessor, random.Random(1)),  # type: ignore[arg-type]
            ClusterService(self.node, self.cluster, self.membership, headers),
            MaintenanceService(
                writes, rpc_pb2.StatusResponse, self._hash_kv, self.membership.transfer
            ),
        ):  # fmt: skip
            service.register(self)  # type: ignore[attr-defined]

    # what the parts are given

    def unary(self, path: str, handler: Callable[..., Any]) -> None:
        self.handlers[path.rpartition("/")[2]] = handler

    stream = unary

    def call_soon(self, callback: Callable[..., object], *arguments: Any) -> None:
        self.soon.append(partial(callback, *arguments))

    def call_later(self, after_s: float, callback: Callable[..., object], *arguments: Any) -> None:
        self.timers.append((self.now_ns + round(after_s * 1e9), partial(callback, *arguments)))

    def monotonic_ns(self) -> int:
        return self.now_ns

    def submit(self, work: AppendWork) -> None:
        self.works.append(work)

    def send(self, peer: int, channel: Channel, payload: bytes) -> bool:
        return True

    def _send_call(self, peer: int, payload: bytes) -> bool:
        assert payload[0] == CALL_FRAME
        is_reply, call_id, _, _ = msgpack.unpackb(payload[1:])
        if is_reply:
            self.answers.append(call_id)
        return True

    def _applied(self, applied: Any) -> None:
        self.hub.notify(self.store.take_events())

    def _role(self, role: Role, leader: int, term: int) -> None:
        self.leases.role(role)
        self.membership.role_changed(leader)

    def _led(self) -> None:
        self.leases.led()

    def _change_committed(self, entry: Entry) -> Configuration | None:
        return self.membership.apply(entry)

    def _change_applied(self, entry: Entry) -> None:
        self.membership.applied(entry)

    def _membership_changed(self, change: Any, entry: Entry) -> None:
        if SELF not in self.cluster.members:
            self.farewell.begin(entry, lambda: None)

    def _snapshot_wanted(self, request: InstallSnapshot) -> None:
        self.call_soon(partial(self.node.snapshot_sent, request.target, ok=False))

    def _hash_kv(self, revision: int, done: HashDone) -> None:
        def hash_all(slices: HashSlices, done: HashDone, _start_s: float) -> None:
            for _ in slices:
                pass
            done(slices.result)

        member: Any = SimpleNamespace(store=self.store, _hash_slice=hash_all)
        Product._hash_kv(member, revision, done)

    def _sight(self) -> Sight:
        return Sight(
            self_id=SELF, is_strict=False, learners_max=1, is_active=lambda _: True,
            is_settled=lambda _: True, progress=lambda _: 1.0, now_s=0,
        )  # fmt: skip

    # what a test does

    def turn(self) -> None:
        """Run one turn of the loop, and let the disk finish."""
        soon, self.soon = self.soon, []
        for callback in soon:
            callback()
        works, self.works = self.works, []
        if works:
            self.node.saved(works)
        while self.hub.has_work and self.hub.catch_up():
            pass
        if self.store.purging:
            self.store.purge(100)

    def settle(self) -> None:
        """Run turns until none is due: it must come to an end."""
        for _ in range(TURNS_MAX):
            if not self.soon and not self.works and not self.store.purging:
                return
            self.turn()
        raise Endless

    def tick(self) -> None:
        """Let a tick pass, as `Member._tick` does."""
        self.now_ns += TICK_NS
        due = [timer for timer in self.timers if timer[0] <= self.now_ns]
        self.timers = [timer for timer in self.timers if timer[0] > self.now_ns]
        for _, callback in due:
            callback()
        self.node.tick()
        self.leases.tick()
        self.calls.expire(self.now_ns)
        self.membership.expire(self.now_ns)
        self.settle()

    def hear(self, sender: int, payloads: Sequence[bytes]) -> None:
        """Take frames of a peer."""
        self.receive(sender, list(payloads))  # type: ignore[arg-type]
        self.settle()

    def end(self) -> None:
        """Let everything that waits come to its end: by its deadline, or with the member."""
        for _ in range(2 * TIMEOUT_NS // TICK_NS):
            self.tick()
        self.node.stop()
        self.settle()
