"""One member, assembled: opens the data directory, starts and stops the parts in order."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

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
from kvstore.peer.link import Channel, Endpoint, HelloError, Links, SnapshotSink
from kvstore.ports import Backend
from kvstore.raft.config import Config, Restored
from kvstore.raft.messages import AppendWork, Entry, HardState, InstallSnapshot, Role, SnapshotMeta
from kvstore.raft.raft import Raft
from kvstore.rpc import Limits, Server
from kvstore.server.cluster import Cluster
from kvstore.server.config import ServerConfig, Url, parse_urls
from kvstore.server.disk import DiskThread
from kvstore.server.header import Headers
from kvstore.server.http import Http
from kvstore.server.leases import Leases
from kvstore.server.metrics import Metrics
from kvstore.server.node import Node, NodeHooks
from kvstore.server.observe import Observer
from kvstore.server.proposals import Proposals
from kvstore.server.replica import Replica, create_store, next_incarnation, open_backend
from kvstore.server.services.base import LeaderGuard
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
    received_path,
    send,
    settle,
    swap_in,
)
from kvstore.server.startup import StartError, explain_bind, explain_folder
from kvstore.server.storage import TRAILING_BYTES, Storage
from kvstore.wal import Identity, Options, RealDisk, Recovered, Wal, WalError, fatal

log = logging.getLogger("kvstore.member")

GRPC_OVERHEAD = 512 << 10
"""What a message may be larger than --max-request-bytes before gRPC refuses it, as etcd."""

SWITCH_INTERVAL_S = 0.0005
"""How long a busy loop may keep the disk thread from reporting an fsync (docs/decisions)."""

GC_THRESHOLDS = (50_000, 20, 100)
DRAIN_S = 2.0
OLD_STORE_S = 60.0
"""How long a replaced store stays open for readers that are still in it."""


class RealClock:
    """The system's clocks."""

    monotonic_ns = staticmethod(time.monotonic_ns)
    wall_ns = staticmethod(time.time_ns)


class Member:
    """A member of a cluster in this process. `start`, then `stop` once."""

    def __init__(self, config: ServerConfig) -> None:
        """Take checked settings; nothing is opened before `start`."""
        self.config = config
        self.clock = RealClock()
        self.random = random.SystemRandom()
        self.id = config.member.id
        self._tasks: set[asyncio.Task[None]] = set()
        self.snapshots_sent = 0
        self.snapshots_installed = 0

    # start

    async def start(self) -> None:
        """Open the data directory, join the cluster, serve clients.

        Raises:
            StartError: The text says what is wrong and what to do. Nothing was damaged.
        """
        config = self.config
        loop = asyncio.get_running_loop()
        self._open_data()
        # The disk thread reports an fsync through the interpreter lock; a loop saturated with
        # reads would keep it waiting for many default intervals of 5 ms.
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self.headers = Headers(self.cluster.cluster_id, self.id)
        self.headers.set_term(self.recovered.hard_state.term)
        self.watches = WatchHub(
            self.store,
            self.headers,
            fragment_bytes=config.max_request_bytes + GRPC_OVERHEAD,
            jitter=lambda bound: self.random.randrange(0, bound),
        )
        self.links = Links(
            self.cluster.cluster_id, self.id, self, self.random, on_lost=self._link_lost
        )
        await self._listen_peers()
        self.disk = DiskThread(self.wal, loop.call_soon_threadsafe, self._saved)
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
                changed=self._membership_changed,
                role=self._role_changed,
                led=self._led,
                snapshot=self._snapshot_wanted,
                fatal=partial(fatal, what="this member cannot go on"),
            ),
            round(config.request_timeout_s * 1e9),
        )
        self.calls = PeerCalls(self._send_call)
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
        )
        self.observer = Observer(self)
        self.metrics = Metrics(self.observer.gauges, self.observer.counters)
        self.links.set_peers(self._peer_endpoints())
        self.storage.start()
        if self.cluster.configuration().voters == (self.id,):
            self.raft.campaign()  # nobody else could win: why wait
        for work in (self._tick(), self._publish()):
            task = loop.create_task(work)
            task.add_done_callback(_fatal_if_failed)
            self._tasks.add(task)
        await self._serve_clients()
        # What exists now lives as long as the process; collections need not look at it again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)

    def _open_data(self) -> None:
        """Open log and store, or create them; rebuild what lives in memory."""
        config = self.config
        folder = config.data_dir
        try:
            disk = self._real_disk = RealDisk()
            disk.make_folder(folder)
            identity = Identity(config.cluster_id, self.id)
            path = f"{folder}/{STORE_NAME}"
            if Wal.exists(disk, f"{folder}/wal"):
                self.wal, self.recovered = Wal.open(disk, f"{folder}/wal", identity, Options())
            elif Path(path).exists():
                raise StartError(
                    f"--data-dir {folder}: there is a store but no log; restore the wal folder, or "
                    "remove the whole data directory and let the member join again"
                )
            else:
                self.wal = Wal.create(disk, f"{folder}/wal", identity, Options())
                self.recovered = Recovered(
                    identity,
                    hard_state=HardState(0, 0, 0),
                    entries=[],
                    compacted=(0, 0),
                    snapshot=None,
                )
            settle(disk, config, self.recovered.snapshot)
            if not Path(path).exists():
                first = Cluster(config.cluster_id, {m.id: m for m in config.members}, ())
                create_store(disk, folder, STORE_NAME, config, first.change())
            self.replica = Replica(open_backend(path, config), config)
            self.cluster = Cluster.load(self.replica.backend, self.replica.published)
            self.incarnation = next_incarnation(disk, folder)
        except OSError as error:
            raise explain_folder(folder, error) from error
        except (WalError, StorageError, ValueError, lmdb.Error) as error:
            raise StartError(f"--data-dir {folder}: {error}") from error
        if self.recovered.dropped_bytes:
            log.warning("dropped an unfinished batch of %d bytes", self.recovered.dropped_bytes)
        self._check_together()

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
        return Raft(
            Config(
                id=self.id,
                draw_timeout=self.random.randrange,
                incarnation=self.incarnation,
                election_ticks=config.election_ticks,
                apply_before_durable=True,
            ),
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

    def _peer_endpoints(self) -> dict[int, Endpoint]:
        return {
            member.id: Endpoint(url.host, url.port)
            for member in self.cluster.list_plain()
            if member.id != self.id
            for url in [parse_urls("peer URL", member.peer_urls[0])[0]]
        }

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
        )
        self.watch_service = WatchService(
            self.watches, lambda: bool(self.node.leader), loop.call_soon
        )
        self.lease_service = LeaseService(
            self.writes, self.leases, self.replica.lessor, self.random
        )
        self.http = Http(self)
        self.server = Server(
            limits=Limits(message_bytes_max=config.max_request_bytes + GRPC_OVERHEAD),
            http=self.http.handle,
            on_error=self._handler_failed,
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
        guard = LeaderGuard(self.sessions, lambda: bool(self.node.leader))
        for service in (
            self.kv,
            self.watch_service,
            self.lease_service,
            ClusterService(self.node, self.cluster, self.headers),
            MaintenanceService(self.writes, self.observer.status, self._hash_kv),
            HealthService(),
        ):
            service.register(guard)
        self.sessions.register()
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
        if hasattr(self, "server"):
            self.sessions.drain()
            await self.server.drain(DRAIN_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if hasattr(self, "node"):
            self.node.stop()
        if hasattr(self, "storage"):
            await self.storage.stop()
        if hasattr(self, "links"):
            await self.links.close()
        if hasattr(self, "disk"):
            self.disk.close()
        elif hasattr(self, "wal"):
            self.wal.close()
        if hasattr(self, "replica"):
            self.replica.backend.close()

    # what the parts call

    async def _tick(self) -> None:
        interval_s = self.config.heartbeat_interval / 1000
        loop = asyncio.get_running_loop()
        due = loop.time() + interval_s
        no_leader_ticks = 0
        while True:
            await asyncio.sleep(due - loop.time())
            now = loop.time()
            self.metrics.lag.observe(max(0.0, now - due))
            # Missed ticks are not replayed: a pause of ours is no silence of the leader's.
            due = max(due + interval_s, now + interval_s / 2)
            self.node.tick()
            self.leases.tick()
            self.calls.expire(self.clock.monotonic_ns())
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
            self.node.propose(
                ops.MEMBER_ATTRIBUTES, message.SerializeToString(), partial(_settle, done)
            )
            result = await done
            if isinstance(result, Exception):
                log.info("not published yet: %s", result)

    def receive(self, sender: int, payloads: list[bytes]) -> None:
        """Take what a peer sent on one read (`kvstore.peer.link.Receiver`)."""
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
        return Incoming(self, self._real_disk, self.config, pause=pause, answer=answer)

    def _send_call(self, peer: int, payload: bytes) -> bool:
        return self.links.send(peer, Channel.CONTROL, payload)

    def _link_lost(self, peer: int, channel: Channel) -> None:
        self.node.unreachable(peer)
        if channel is Channel.CONTROL:
            self.calls.lost(peer)

    def _saved(self, works: list[AppendWork], duration_s: float) -> None:
        self.metrics.fsync.observe(duration_s)
        self.node.saved(works)
        self.storage.log_saved()

    def _applied(self, applied: Applied) -> None:
        events = self.store.take_events()
        if events:
            self.watches.notify(events)
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
        self.used_bytes = self.backend.used_bytes()
        raft_log = self.raft.log
        release = mark.index - self.config.snapshot_count
        if (excess := raft_log.size_bytes - TRAILING_BYTES) > 0:
            release = max(release, min(mark.index, raft_log.index_to_free(excess)))
        if release > raft_log.offset:
            self.raft.compact(release)
            self.disk.release(release)

    def _role_changed(self, role: Role, leader: int, term: int) -> None:
        self.headers.set_term(term)
        self.leases.role(role)
        log.info(
            "role changed",
            extra={"fields": {"role": role.name.lower(), "leader": f"{leader:x}", "term": term}},
        )

    def _led(self) -> None:
        self.leases.led()

    def _membership_changed(self, entry: Entry) -> None:
        raise AssertionError(f"entry {entry.index}: membership changes are not offered yet")

    # snapshots

    def _snapshot_wanted(self, request: InstallSnapshot) -> None:
        """Send a snapshot to a peer whose next entry our log no longer has."""
        task = asyncio.get_running_loop().create_task(self._send_snapshot(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send_snapshot(self, request: InstallSnapshot) -> None:
        peer = request.target
        log.info("sending a snapshot", extra={"fields": {"member": f"{peer:x}"}})
        ok = False
        try:
            await self.storage.barrier()
            await send(self.backend, self.links, request, self.cluster.configuration())
            ok = True
            self.snapshots_sent += 1
        except (OSError, HelloError, TimeoutError) as error:
            log.warning("snapshot to member %x failed: %s", peer, error or type(error).__name__)
        finally:
            self.node.snapshot_sent(peer, ok=ok)

    def wants_snapshot(self, meta: SnapshotMeta) -> bool:
        """Tell whether a snapshot would bring us forward (`kvstore.server.snapshots.Installer`)."""
        return not self.node.installing and self.raft.wants_snapshot(meta)

    async def install(self, message: InstallSnapshot) -> None:
        """Take the received file as our state (`kvstore.server.snapshots.Installer`)."""
        if not self.wants_snapshot(message.snapshot):
            return
        loop = asyncio.get_running_loop()
        async with self.storage.lock:
            index = message.snapshot.index
            path = received_path(self.config.data_dir, index)
            try:
                replica = await loop.run_in_executor(None, self._open_replica, path)
            except (StorageError, ValueError, lmdb.Error) as error:
                raise SnapshotRefused(f"the received store cannot be opened: {error}") from error
            if not self.wants_snapshot(message.snapshot):
                replica.backend.close()
                return
            # From here on the old store takes nothing more. The log marks the snapshot, then the
            # file takes its place.
            await self.node.install(message)
            try:
                swap_in(self._real_disk, self.config.data_dir, index)
            except OSError as error:
                fatal(error)
            old = self.replica
            self._adopt(replica)
        self.snapshots_installed += 1
        # Ranges and hashes under way still read the old file.
        loop.call_later(OLD_STORE_S, old.backend.close)
        log.info("installed a snapshot", extra={"fields": {"index": message.snapshot.index}})

    def _open_replica(self, path: str) -> Replica:
        return Replica(open_backend(path, self.config), self.config)

    def _adopt(self, replica: Replica) -> None:
        """Point every part at the new state and let the node go on."""
        self.replica = replica
        self.cluster.published = replica.published
        self.storage.store, self.storage.backend = replica.store, replica.backend
        self.writes.store = replica.store
        self.kv.store = replica.store
        self.leases.lessor = self.lease_service.lessor = replica.lessor
        self.lease_clock = self.leases.clock = LeaseClock(replica.lessor)
        self.used_bytes = replica.backend.used_bytes()
        self._compacted = replica.store.compacted
        self.node.installed(replica.applier, replica.applied.index, replica.applied.term)
        self.watches.restored(replica.store)
        self.watch_service.poke()

    def _hash_kv(self, revision: int, done: HashDone) -> None:
        try:
            slices = self.store.hash_slices(revision)
        except RequestError as error:
            done(error)
            return
        self._hash_slice(slices, done)

    def _hash_slice(self, slices: HashSlices, done: HashDone) -> None:
        try:
            next(slices)
        except StopIteration:
            done(slices.result)
        else:
            asyncio.get_running_loop().call_soon(self._hash_slice, slices, done)


CALL_HEAD = bytes([CALL_FRAME])


def _fatal_if_failed(task: asyncio.Task[None]) -> None:
    """End the process when a task failed without which the member is only half alive."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a task of the member failed", exc_info=error)
        fatal(error, what="this member cannot go on")


def _settle(done: asyncio.Future[object], result: object) -> None:
    if not done.done():
        done.set_result(result)
