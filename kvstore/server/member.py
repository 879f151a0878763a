"""One member, assembled: opens the data directory, starts and stops the parts in order."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import lmdb

from kvstore.apply import ops
from kvstore.apply.applier import Applied
from kvstore.apply.members import Attributes
from kvstore.lease.clock import LeaseClock
from kvstore.mvcc.errors import RequestError, StorageError
from kvstore.mvcc.hash import HashSlices
from kvstore.mvcc.marks import AppliedMark
from kvstore.mvcc.store import Store
from kvstore.mvcc.watch import WatchHub
from kvstore.pb import rpc_pb2
from kvstore.peer.calls import CALL_FRAME, PeerCalls
from kvstore.peer.describe import encode_description
from kvstore.peer.link import Channel, HelloError, SnapshotSink
from kvstore.ports import Backend
from kvstore.raft.config import Restored
from kvstore.raft.membership import Change, ChangeKind
from kvstore.raft.messages import (
    AppendWork,
    Configuration,
    Entry,
    HardState,
    InstallSnapshot,
    Role,
    SnapshotMeta,
)
from kvstore.raft.raft import Raft
from kvstore.rpc import Limits
from kvstore.server.cluster import Cluster
from kvstore.server.config import ServerConfig, Url
from kvstore.server.errors import TooManyRequestsError
from kvstore.server.failpoints import ENVIRONMENT, FailpointError, Failpoints
from kvstore.server.farewell import GOODBYE_S, Farewell
from kvstore.server.header import Headers
from kvstore.server.http import Http
from kvstore.server.join import (
    ASK_AGAIN_S,
    Start,
    ask_again,
    check_restart,
    found,
    join,
    members_of,
)
from kvstore.server.leases import Leases
from kvstore.server.membership import Membership
from kvstore.server.metrics import Metrics
from kvstore.server.node import Node, NodeHooks
from kvstore.server.observe import Observer
from kvstore.server.peers import Peers
from kvstore.server.platform import Platform, RealPlatform
from kvstore.server.proposals import Proposals
from kvstore.server.replica import Replica, create_store, map_size_bytes, next_incarnation
from kvstore.server.services.base import LeaderGuard, LearnerGuard
from kvstore.server.services.cluster import ClusterService
from kvstore.server.services.health import HealthService
from kvstore.server.services.kv import KvService
from kvstore.server.services.lease import LeaseService
from kvstore.server.services.maintenance import HashDone, MaintenanceService
from kvstore.server.services.session import SessionService
from kvstore.server.services.watch import WatchService
from kvstore.server.services.writes import Writes
from kvstore.server.snapshots import (
    STORE_NAME,
    Incoming,
    SnapshotRefused,
    Transfers,
    received_path,
    send,
    settle,
    swap_in,
)
from kvstore.server.startup import (
    RemovedError,
    StartError,
    check_folder,
    explain_bind,
    explain_folder,
    is_full,
    store_failed,
)
from kvstore.server.storage import TRAILING_BYTES, Storage
from kvstore.wal import Recovered, Wal, WalError

log = logging.getLogger("kvstore.member")

GRPC_OVERHEAD = 512 << 10
"""What a message may be larger than --max-request-bytes before gRPC refuses it, as etcd."""

DRAIN_S = 2.0
PUBLISH_AGAIN_S = 0.2
OLD_STORE_S = 60.0
"""How long a replaced store stays open for readers that are still in it."""


class Member:
    """A member of a cluster in this process. `start`, then `stop` once."""

    def __init__(self, config: ServerConfig, platform: Platform | None = None) -> None:
        """Take checked settings; nothing is opened before `start`."""
        self.config = config
        self.platform: Platform = platform or RealPlatform()
        self.clock = self.platform.clock
        self.random = self.platform.random
        self.id = config.member.id
        self.on_removed: Callable[[RemovedError], None] = _no_matter
        """Called once, when this member was removed from the cluster and is to be stopped."""

        self.failpoints: Failpoints | None = None
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._meeting: set[int] = set()
        """Members that we look for."""
        self.is_learner = False
        """Kept beside the cluster's list: it is looked at for every request."""

        self._removed = False
        self.receiving: set[int] = set()
        """Indexes of the snapshots that are on their way in."""

        self.sending, self.receiving_from = Transfers(), Transfers()
        self.snapshots_sent = 0
        self.snapshots_installed = 0
        self.late_heartbeats = 0

    # start

    async def start(self) -> None:
        """Open the data directory, join the cluster, serve clients.

        Raises:
            StartError: The text says what is wrong and what to do. Nothing was damaged.
        """
        config = self.config
        loop = asyncio.get_running_loop()
        self._set_failpoints()
        self._open_data(await self._begin())
        self.platform.starting()
        self.headers = Headers(self.cluster.cluster_id, self.id)
        self.headers.set_term(self.recovered.hard_state.term)
        self.watches = WatchHub(
            self.store,
            self.headers,
            fragment_bytes=config.max_request_bytes + GRPC_OVERHEAD,
            jitter=lambda bound: self.random.randrange(0, bound),
        )
        self.links = self.platform.links(
            self.cluster.cluster_id,
            self.id,
            self,
            on_lost=self._link_lost,
            on_removed=self._refused_by,
        )
        self.links.on_round_trip = self._round_trip
        self.links.removed.update(self.cluster.removed)
        await self._listen_peers()
        self.disk = self.platform.disk_thread(self.wal, self._saved)
        self.raft = self._build_raft()
        self.node = Node(
            self.raft,
            self.replica.applier,
            Proposals(self.id, self.incarnation, round(config.request_timeout_s * 1e9)),
            self.disk,
            self.links,
            self.clock,
            loop,
            NodeHooks(
                applied=self._applied,
                changed=self._change_committed,
                reconfigured=self._change_applied,
                role=self._role_changed,
                led=self._led,
                snapshot=self._snapshot_wanted,
                fatal=partial(self.platform.fatal, what="this member cannot go on"),
            ),
            round(config.request_timeout_s * 1e9),
        )
        if self.failpoints is not None:
            self.failpoints.member(self)
        self.calls = PeerCalls(self._send_call, self.incarnation)
        self.peers = Peers(self.links, self.raft, self.cluster, config, self.clock)
        self.membership = Membership(
            self.node,
            self.cluster,
            self.calls,
            sight=self.peers.sight,
            write=lambda record: self.store.write(*record),
            changed=self._membership_changed,
            election_timeout_ns=config.election_timeout * 1_000_000,
            timeout_ns=round(config.request_timeout_s * 1e9),
            later=loop.call_later,
        )
        self.farewell = Farewell(
            self.node,
            self.cluster,
            self.calls,
            stored_index=lambda: self._stored_index,
            later=loop.call_later,
        )
        self.lease_clock = LeaseClock(self.replica.lessor)
        self.leases = Leases(
            self.node,
            self.replica.lessor,
            self.lease_clock,
            self.calls,
            election_timeout_ns=config.election_timeout * 1_000_000,
            timeout_ns=round(config.request_timeout_s * 1e9),
            later=loop.call_later,
        )
        self.storage = Storage(
            self.store,
            self.backend,
            mark=self._mark,
            durable_index=lambda: self.raft.log.durable,
            committed=self._committed,
            purged=self._purged,
            fatal=partial(store_failed, config.data_dir, self.platform.fatal),
        )
        self.observer = Observer(self)
        self.metrics = Metrics(self.observer.gauges, self.observer.counters)
        self.peers.refresh()
        self.storage.start()
        if self.cluster.configuration().voters == (self.id,):
            self.raft.campaign()  # nobody else could win: why wait
        for work in (self._tick(), self._publish()):
            self._keep_running(work)
        if self.cluster.is_joining:
            self._keep_running(self._follow_members())
        await self._serve_clients()
        self.platform.started()

    def _set_failpoints(self) -> None:
        if not self.config.enable_failpoints:
            if os.environ.get(ENVIRONMENT):
                raise StartError(f"{ENVIRONMENT} is set, but --enable-failpoints is not")
            return
        try:
            self.failpoints = Failpoints.from_environment(self.random, os.environ)
        except FailpointError as error:
            raise StartError(f"{ENVIRONMENT}: {error}") from error
        self.platform.disk = self.failpoints.disk(self.platform.disk)
        log.warning("failpoints are enabled: this member can be made to lose data")

    async def _begin(self) -> Start | None:
        """Return what a new store begins with; None when there is one."""
        config = self.config
        if self._has_store():
            return None
        check_folder(self.platform.disk, config.data_dir)
        if config.initial_cluster_state == "new":
            return await found(config)
        return await join(config)

    def _has_store(self) -> bool:
        try:
            return self.platform.disk.exists(f"{self.config.data_dir}/{STORE_NAME}")
        except OSError as error:
            raise explain_folder(self.config.data_dir, error) from error

    def _open_data(self, start: Start | None) -> None:
        """Open log and store, or create them; rebuild what lives in memory."""
        config = self.config
        folder = config.data_dir
        try:
            disk, options = self.platform.disk, self.platform.wal_options()
            disk.make_folder(folder)
            path = f"{folder}/{STORE_NAME}"
            if Wal.exists(disk, f"{folder}/wal"):
                identity = start.identity if start else None
                self.wal, self.recovered = Wal.open(disk, f"{folder}/wal", identity, options)
            elif start is None:
                raise StartError(
                    f"--data-dir {folder}: there is a store but no log; restore the wal folder, or "
                    "remove the whole data directory and let the member join again"
                )
            else:
                self.wal = Wal.create(disk, f"{folder}/wal", start.identity, options)
                self.recovered = Recovered(
                    start.identity,
                    hard_state=HardState(0, 0, 0),
                    entries=[],
                    compacted=(0, 0),
                    snapshot=None,
                )
            settle(disk, config, self.recovered.snapshot)
            if start is not None and not disk.exists(path):
                create_store(self.platform, folder, STORE_NAME, config, start.cluster.change())
            self.replica = self._open_replica(path)
            self.cluster = Cluster.load(self.replica.backend, self.replica.published)
            self._check_identity()
            virgin = self.recovered.last_index == 0 and not self.recovered.hard_state.term
            self.incarnation = next_incarnation(disk, folder, first=virgin)
        except OSError as error:
            raise explain_folder(folder, error) from error
        except (WalError, StorageError, ValueError, lmdb.Error) as error:
            if is_full(folder, error):
                raise explain_folder(folder, OSError(errno.ENOSPC, str(error))) from error
            raise StartError(f"--data-dir {folder}: {error}") from error
        if self.recovered.dropped_bytes:
            log.warning("dropped an unfinished batch of %d bytes", self.recovered.dropped_bytes)
        self._check_together()

    def _check_identity(self) -> None:
        """Find out who we are; refuse a removed member and another's data directory."""
        identity = self.recovered.identity
        self.id = identity.member
        if self.id in self.cluster.removed:
            raise RemovedError(self.id, identity.cluster, self.config.data_dir)
        check_restart(self.config, identity, self.cluster)
        self.is_learner = self.cluster.is_learner(self.id)

    def _check_together(self) -> None:
        """Refuse log and store that do not belong together."""
        config = self.config
        applied = self.replica.applied.index
        first, last = self.recovered.compacted[0] + 1, self.recovered.last_index
        if not first - 1 <= applied <= last:
            raise StartError(
                f"--data-dir {config.data_dir}: the store is at entry {applied} but the log holds "
                f"{first} to {last}; files of different times were mixed. Restore both from one "
                "copy, or remove the data directory and let the member join again"
            )
        self._compacted = self.store.compacted
        self._stored_index = applied
        self.used_bytes = self.backend.used_bytes()

    @property
    def store(self) -> Store:
        """The store; another object after a snapshot was installed."""
        return self.replica.store

    @property
    def backend(self) -> Backend:
        """The store's backend; another object after a snapshot was installed."""
        return self.replica.backend

    def _build_raft(self) -> Raft:
        config = self.config
        return self.platform.core(
            {
                "id": self.id,
                "draw_timeout": self.random.randrange,
                "incarnation": self.incarnation,
                "election_ticks": config.election_ticks,
                "apply_before_durable": True,
            },
            Restored(
                hard_state=self.recovered.hard_state,
                entries=self.recovered.entries,
                compacted=self.recovered.compacted,
                configuration=self.cluster.configuration(),
                applied=self.store.applied.index,
            ),
        )

    async def _listen_peers(self) -> None:
        for url in self.config.peer_urls:
            host = "127.0.0.1" if url.host == "localhost" else url.host
            try:
                await self.links.listen(host, url.port)
            except OSError as error:
                raise explain_bind(host, url.port, "--listen-peer-urls", error) from error

    async def _serve_clients(self) -> None:
        config = self.config
        loop = asyncio.get_running_loop()
        self.writes = Writes(
            self.node,
            self.store,
            self.headers,
            size_bytes=lambda: self.used_bytes + self.store.buffered_bytes,
            request_size_max=config.max_request_bytes,
            quota_bytes=config.quota_bytes,
        )
        self.kv = KvService(
            self.writes,
            self.store,
            txn_ops_max=config.max_txn_ops,
            later=loop.call_soon,
            later_s=loop.call_later,
            observe=self.metrics.range.series,
        )
        self.watch_service = WatchService(
            self.watches, lambda: bool(self.node.leader), loop.call_soon
        )
        self.lease_service = LeaseService(
            self.writes, self.leases, self.replica.lessor, self.random
        )
        self.http = Http(self)
        self.server = self.platform.server(
            Limits(message_bytes_max=config.max_request_bytes + GRPC_OVERHEAD),
            self.http.handle,
            self._handler_failed,
        )
        self.sessions = SessionService(
            self.server,
            frame_bytes_max=config.max_request_bytes + GRPC_OVERHEAD,
            together=self.node.proposals.together,
            later=loop.call_soon,
            later_s=loop.call_later,
            time_s=loop.time,
            on_error=self._handler_failed,
        )
        self.health = HealthService()
        guard = LearnerGuard(
            LeaderGuard(self.sessions, lambda: bool(self.node.leader)),
            lambda: self.is_learner,
        )
        for service in (
            self.kv,
            self.watch_service,
            self.lease_service,
            ClusterService(self.node, self.cluster, self.membership, self.headers),
            MaintenanceService(
                self.writes, self.observer.status, self._hash_kv, self.membership.transfer
            ),
            self.health,
        ):
            service.register(guard)
        self.sessions.open_door(self.writes, lambda: bool(self.node.leader) and not self.is_learner)
        self.sessions.register()
        if config.metrics == "extensive":
            self.server.time_calls(self.metrics.handled())
        for url in config.client_urls:
            await self._listen_clients(url)

    async def _listen_clients(self, url: Url) -> None:
        tls = None
        if url.scheme == "https":
            from kvstore.server.tls import server_context  # noqa: PLC0415 (ssl only where used)

            tls = server_context(self.config)
        host = "127.0.0.1" if url.host == "localhost" else url.host
        try:
            await self.server.listen(host, url.port, tls=tls)
        except OSError as error:
            raise explain_bind(host, url.port, "--listen-client-urls", error) from error

    @staticmethod
    def _handler_failed(error: BaseException) -> None:
        log.error("a request handler failed", exc_info=error)

    # stop

    async def stop(self) -> None:
        """Drain clients, hand the leadership over, commit, close."""
        await self._drain()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if hasattr(self, "node"):
            self.node.stop()
        if hasattr(self, "storage"):
            await self.storage.stop()
        if hasattr(self, "peers"):
            self.peers.close()
        if hasattr(self, "links"):
            await self.links.close()
        if hasattr(self, "disk"):
            self.disk.close()
        elif hasattr(self, "wal"):
            self.wal.close()
        if hasattr(self, "replica"):
            self.replica.backend.close()

    async def _drain(self) -> None:
        """Send the clients to other members, and serve no more."""
        if hasattr(self, "server"):
            self.health.drain()
            self.sessions.drain()
            await self.server.drain(DRAIN_S)

    # what the parts call

    def _keep_running(self, work: Coroutine[Any, Any, None]) -> None:
        self._keep(asyncio.get_running_loop().create_task(work))

    def _keep(self, task: asyncio.Task[None]) -> None:
        """Cancel the task when the member stops."""
        self._tasks[task] = None
        task.add_done_callback(self._fatal_if_failed)

    def _fatal_if_failed(self, task: asyncio.Task[None]) -> None:
        """End the process when a task failed without which the member is only half alive."""
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the member failed", exc_info=error)
            self.platform.fatal(error, what="this member cannot go on")

    async def _tick(self) -> None:
        interval_s = self.config.heartbeat_interval / 1000
        loop = asyncio.get_running_loop()
        due = loop.time() + interval_s
        no_leader_ticks = 0
        while True:
            await asyncio.sleep(due - loop.time())
            now = loop.time()
            lag_s = max(0.0, now - due)
            self.metrics.lag.observe(lag_s)
            # etcd's measure: a heartbeat that goes out more than an interval late.
            self.late_heartbeats += lag_s > interval_s and self.node.role is Role.LEADER
            # Missed ticks are not replayed: a pause of ours is no silence of the leader's.
            due = max(due + interval_s, now + interval_s / 2)
            self.node.tick()
            self.leases.tick()
            self.calls.expire(self.clock.monotonic_ns())
            self.membership.expire(self.clock.monotonic_ns())
            self.watches.progress(self.clock.monotonic_ns())
            no_leader_ticks = 0 if self.node.leader else no_leader_ticks + 1
            if no_leader_ticks == 3 * self.config.election_ticks:
                self.watch_service.lost_leader()

    async def _publish(self) -> None:
        """Tell the cluster our name and client URLs until it knows them."""
        urls = tuple(
            item.strip() for item in self.config.advertise_client_urls.split(",") if item.strip()
        )
        wanted = Attributes(self.config.name, urls)
        message = rpc_pb2.Member(ID=self.id, name=wanted.name, clientURLs=urls)
        loop = asyncio.get_running_loop()
        while self.replica.published.attributes.get(self.id) != wanted:
            done: asyncio.Future[object] = loop.create_future()
            try:
                self.node.propose(
                    ops.MEMBER_ATTRIBUTES, message.SerializeToString(), partial(_settle, done)
                )
            except TooManyRequestsError as error:
                # Clients were faster: this is needed once, and it can wait.
                log.info("not published yet: %s", error)
                await asyncio.sleep(PUBLISH_AGAIN_S)
                continue
            result = await done
            if isinstance(result, Exception):
                log.info("not published yet: %s", result)

    async def _follow_members(self) -> None:
        """Ask who is a member until the first snapshot tells.

        All that we were told of at first may go before. Then nobody would get our answers, and who
        needs our vote would wait for ever.
        """
        known = -1
        while self.cluster.is_joining:
            told = await ask_again(self.cluster, self.id)
            members = members_of(told) if told is not None and told.applied > known else {}
            # Who does not know us is behind, or we were removed, which its peers will tell us.
            if told is not None and self.id in members and self.cluster.is_joining:
                known = told.applied
                self.cluster.members = members
                self.cluster.removed = told.removed
                self.store.write(*self.cluster.change())
                self.peers.refresh()
                fields = {"members": len(members)}
                log.info("waiting for data, told of members", extra={"fields": fields})
            await asyncio.sleep(ASK_AGAIN_S)

    async def _meet(self) -> None:
        """Find out where members are that were added after all that we have.

        A leader among such, who gets no answer of ours, cannot bring us what we lack. Whoever
        stays unknown is asked for again when it speaks again.
        """
        told = await ask_again(self.cluster, self.id)
        members = {} if told is None else members_of(told)
        for stranger in self._meeting & members.keys():
            self.peers.meet(members[stranger])
            log.info("told of a member", extra={"fields": {"member": f"{stranger:x}"}})
        await asyncio.sleep(ASK_AGAIN_S)
        self._meeting.clear()

    def receive(self, sender: int, payloads: list[bytes]) -> None:
        """Take what a peer sent on one read (`kvstore.peer.link.Receiver`)."""
        # Who has no data follows the members anyway.
        if not (self.peers.knows(sender) or self.cluster.is_joining):
            if not self._meeting:
                self._keep_running(self._meet())
            self._meeting.add(sender)
        if any(payload[:1] == CALL_HEAD for payload in payloads):
            raft_payloads = []
            for payload in payloads:
                if payload[:1] != CALL_HEAD:
                    raft_payloads.append(payload)
                    continue
                try:
                    self.calls.receive(sender, payload)
                except ValueError as error:
                    log.warning("%s", error)
            payloads = raft_payloads
        if payloads:
            self.node.receive(sender, payloads)

    def snapshot_opened(
        self, sender: int, pause: Callable[[bool], None], answer: Callable[[str], None]
    ) -> SnapshotSink:
        """Begin to receive a snapshot (`kvstore.peer.link.Receiver`)."""
        log.info("receiving a snapshot", extra={"fields": {"member": f"{sender:x}"}})
        end = self.receiving_from.begin(sender)

        def answer_counted(text: str) -> None:
            seconds = end(not text)
            if not text:
                self.metrics.snapshot_receive.series(f"{sender:x}").observe(seconds)
            answer(text)

        incoming = Incoming(self, self.platform, self.config, pause=pause, answer=answer_counted)
        self._keep(incoming.task)
        return incoming

    def snapshot_saved(self, save_s: float, fsync_s: float) -> None:
        """Take note of the times (`kvstore.server.snapshots.Installer`)."""
        self.metrics.snapshot_save.observe(save_s)
        self.metrics.snapshot_fsync.observe(fsync_s)

    def _send_call(self, peer: int, payload: bytes) -> bool:
        return self.links.send(peer, Channel.CONTROL, payload)

    def _round_trip(self, peer: int, seconds: float) -> None:
        self.metrics.round_trip.series(f"{peer:x}").observe(seconds)

    def _link_lost(self, peer: int, channel: Channel) -> None:
        self.node.unreachable(peer)
        if channel is Channel.CONTROL:
            self.calls.lost(peer)

    def _saved(self, works: list[AppendWork], duration_s: float) -> None:
        self.metrics.fsync.observe(duration_s)
        self.node.saved(works)
        self.storage.log_saved()

    def _applied(self, applied: Applied) -> None:
        self.metrics.applied(applied)
        self.watches.notify(self.store.take_events())
        if self.store.compacted != self._compacted:
            self._compacted = self.store.compacted
            self.watches.compacted(self._compacted)
        self.storage.applied()

    def _mark(self) -> AppliedMark:
        return AppliedMark(
            self.node.applied_index, self.node.applied_term or self.replica.applied.term
        )

    def _committed(self, mark: AppliedMark, duration_s: float) -> None:
        self.metrics.commit.observe(duration_s)
        self._stored_index = mark.index
        self.peers.stored(mark.index)
        self.used_bytes = self.backend.used_bytes()
        raft_log = self.raft.log
        release = mark.index - self.config.snapshot_count
        if (excess := raft_log.size_bytes - TRAILING_BYTES) > 0:
            release = max(release, min(mark.index, raft_log.index_to_free(excess)))
        if release > raft_log.offset:
            self.raft.compact(release)
            self.disk.release(release)

    def _purged(self, held_s: float, total_s: float | None) -> None:
        self.metrics.purged(held_s, total_s)

    def _role_changed(self, role: Role, leader: int, term: int) -> None:
        self.headers.set_term(term)
        self.leases.role(role)
        self.membership.role_changed(leader)
        log.info(
            "role changed",
            extra={"fields": {"role": role.name.lower(), "leader": f"{leader:x}", "term": term}},
        )

    def _led(self) -> None:
        self.leases.led()

    # membership

    def _change_committed(self, entry: Entry) -> Configuration | None:
        return self.membership.apply(entry)

    def _change_applied(self, entry: Entry) -> None:
        self.membership.applied(entry)

    def _membership_changed(self, change: Change, entry: Entry) -> None:
        log.info(
            "membership changed",
            extra={"fields": {"change": change.kind.name.lower(), "member": f"{change.member:x}"}},
        )
        self.is_learner = self.cluster.is_learner(self.id)
        self.peers.follow(change, entry.index)
        if change.kind is ChangeKind.REMOVE and change.member == self.id:
            self.storage.held = True
            self.farewell.begin(entry, lambda: self._keep_running(self._leave()))
            asyncio.get_running_loop().call_later(
                GOODBYE_S, lambda: self._keep_running(self._drain())
            )

    async def _leave(self) -> None:
        """The others know of our removal: store it, and go."""
        self.storage.held = False
        await self.storage.barrier()
        self._was_removed()

    def _refused_by(self, peer: int) -> None:
        if self.farewell.refused_by(peer):
            self._was_removed()

    def _was_removed(self) -> None:
        if not self._removed:
            self._removed = True
            self.on_removed(RemovedError(self.id, self.cluster.cluster_id, self.config.data_dir))

    def describe(self, answer: Callable[[bytes], None]) -> None:
        """Tell who is a member (`kvstore.peer.link.Receiver`).

        Without a round: the one who asks may be missing for its quorum.
        """
        if self.cluster.is_joining:
            answer(b"this member waits to join itself")
        else:
            description = self.cluster.description(self.node.applied_index)
            answer(encode_description(description))

    # snapshots

    def _snapshot_wanted(self, request: InstallSnapshot) -> None:
        """Send a snapshot to a peer whose next entry our log no longer has."""
        task = asyncio.get_running_loop().create_task(self._send_snapshot(request))
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)

    async def _send_snapshot(self, request: InstallSnapshot) -> None:
        peer = request.target
        log.info("sending a snapshot", extra={"fields": {"member": f"{peer:x}"}})
        ok = False
        end = self.sending.begin(peer)
        try:
            await self.storage.barrier()
            await send(self.backend, self.links, request)
            ok = True
            self.snapshots_sent += 1
        except (OSError, HelloError, TimeoutError) as error:
            log.warning("snapshot to member %x failed: %s", peer, error or type(error).__name__)
        finally:
            seconds = end(ok)
            if ok:
                self.metrics.snapshot_send.series(f"{peer:x}").observe(seconds)
                self.metrics.backend_snapshot.observe(seconds)
            self.snapshot_sent(peer, ok=ok)

    def snapshot_sent(self, peer: int, *, ok: bool) -> None:
        """Tell the core how a snapshot ended. Here and not only there: failpoints replace it."""
        self.node.snapshot_sent(peer, ok=ok)

    def wants_snapshot(self, meta: SnapshotMeta) -> bool:
        """Tell whether a snapshot would bring us forward (`kvstore.server.snapshots.Installer`)."""
        return not self.node.installing and self.raft.wants_snapshot(meta)

    async def install(self, message: InstallSnapshot) -> bool:
        """Take the received file as our state (`kvstore.server.snapshots.Installer`)."""
        if not self.wants_snapshot(message.snapshot):
            return False
        loop = asyncio.get_running_loop()
        async with self.storage.lock:
            index = message.snapshot.index
            path = received_path(self.config.data_dir, index)
            try:
                replica = await loop.run_in_executor(None, self._open_replica, path)
            except (OSError, StorageError, ValueError, lmdb.Error) as error:
                raise SnapshotRefused(f"the received store cannot be opened: {error}") from error
            if not self.wants_snapshot(message.snapshot):
                replica.backend.close()
                return False
            # From here on the old store takes nothing more. The log marks the snapshot, then the
            # file takes its place.
            if not await self.node.install(message):
                replica.backend.close()
                raise SnapshotRefused("it is from a leader of an earlier term")
            old = self.replica
            try:
                swap_in(self.platform.disk, self.config.data_dir, index)
            except OSError as error:
                self.platform.fatal(error)
            try:
                self._adopt(replica)
            except Exception as error:
                # Some parts follow the new state, some the old one.
                log.exception("a snapshot was adopted in part")
                self.platform.fatal(error, what="this member cannot go on")
        self.snapshots_installed += 1
        # Ranges and hashes under way still read the old file.
        loop.call_later(OLD_STORE_S, old.backend.close)
        log.info("installed a snapshot", extra={"fields": {"index": message.snapshot.index}})
        return True

    def _open_replica(self, path: str) -> Replica:
        backend = self.platform.open_backend(path, map_size_bytes=map_size_bytes(self.config))
        if self.failpoints is not None:
            self.failpoints.backend(backend)
        try:
            return Replica(backend, self.config)
        except BaseException:
            backend.close()
            raise

    def _adopt(self, replica: Replica) -> None:
        """Point every part at the new state and let the node go on."""
        self.replica = replica
        self.cluster.adopt(Cluster.load(replica.backend, replica.published))
        self.is_learner = self.cluster.is_learner(self.id)
        self.storage.store, self.storage.backend = replica.store, replica.backend
        self.writes.store = replica.store
        self.kv.store = replica.store
        self.leases.lessor = self.lease_service.lessor = replica.lessor
        self.lease_clock = self.leases.clock = LeaseClock(replica.lessor)
        self.used_bytes = replica.backend.used_bytes()
        self._compacted = replica.store.compacted
        self._stored_index = replica.applied.index
        self.peers.stored(self._stored_index)
        self.peers.refresh()
        self.node.installed(replica.applier, replica.applied.index, replica.applied.term)
        self.membership.skipped(replica.applied.index)
        self.watches.restored(replica.store)
        self.watch_service.poke()

    def _hash_kv(self, revision: int, done: HashDone) -> None:
        try:
            slices = self.store.hash_slices(revision)
        except RequestError as error:
            done(error)
            return
        self._hash_slice(slices, done, time.perf_counter())

    def _hash_slice(self, slices: HashSlices, done: HashDone, start_s: float) -> None:
        try:
            next(slices)
        except StopIteration:
            self.metrics.hash_by_revision.observe(time.perf_counter() - start_s)
            done(slices.result)
        else:
            asyncio.get_running_loop().call_soon(self._hash_slice, slices, done, start_s)


def _no_matter(_: RemovedError) -> None:
    """Nobody asked to be told."""


CALL_HEAD = bytes([CALL_FRAME])


def _settle(done: asyncio.Future[object], result: object) -> None:
    if not done.done():
        done.set_result(result)
