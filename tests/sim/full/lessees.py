"""Clients that hold leases, and what a lease promises them.

Never early: from the call of every grant or renewal that was answered, the lease lives for the
whole time to live (as the fastest clock counts it). Not for ever: who stops renewing loses it, all
keys in one revision (`tests.sim.full.truth`). Who asks after its end is told so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvstore.pb import rpc_pb2
from tests.sim.world import SECOND

if TYPE_CHECKING:
    from tests.sim.full.cluster import FullCluster
    from tests.sim.full.rpc import StreamCall

LEASE = "/etcdserverpb.Lease/"
EARLY = "a lease never ends early"
GONE = "a lease that has ended is not renewed"
GRANTED = "a lease is granted as asked"


class Lessee:
    """Grants a lease, hangs keys on it, renews it for a while, and lets it end or revokes it."""

    def __init__(self, cluster: FullCluster, number: int) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.number = number
        self.lease_id = 0
        self.ttl_s = 0
        self.promised_ns = 0
        """World time until which the lease must live; 0: nothing was promised."""
        self.revoked = False
        """This client asked for the end, so it may come at any time."""
        self.stopped = False
        self.target = 0
        self._renewals = 0
        self._life = 0
        self._stream: StreamCall | None = None
        self._asked_ns: list[tuple[int, bool]] = []
        """Renewals on the stream without an answer: when, and whether the lease had ended."""
        self.world.after(self.world.between(0, SECOND), self._grant, 0)

    # grant

    def _grant(self, life: int) -> None:
        if life != self._life or self.stopped:
            return
        cluster, world = self.cluster, self.world
        self._life += 1
        process = cluster.choose_host().process
        if process is None:
            world.after(cluster.profile.tick_ns, self._grant, self._life)
            return
        cluster.lease_ids += 1
        self.lease_id = cluster.lease_ids
        self.promised_ns = 0
        self.revoked = False
        self._renewals = world.between(0, cluster.profile.renewals)
        life = self._life
        called_ns = world.now_ns
        request = rpc_pb2.LeaseGrantRequest(ID=self.lease_id, TTL=cluster.profile.ttl_s)
        world.after(cluster.profile.patience_ns + SECOND, self._again, life)

        def answer(code: int, body: bytes | str) -> None:
            if life != self._life:
                return
            if code or not isinstance(body, bytes):
                self._again(life)
                return
            reply = rpc_pb2.LeaseGrantResponse.FromString(body)
            if self.lease_id != reply.ID or reply.TTL < request.TTL:
                cluster.invariants.fail(GRANTED, f"asked for {request}, got {reply}")
            self.ttl_s = reply.TTL
            self._promise(called_ns)
            world.mark("lease granted")
            self._life += 1
            for _ in range(world.between(0, 3)):
                self._put()
            self._pause()

        process.server.call(LEASE + "LeaseGrant", request.SerializeToString(), answer)

    def _again(self, life: int) -> None:
        if life == self._life:
            self._life += 1
            self.world.after(self.cluster.profile.tick_ns, self._grant, self._life)

    def _promise(self, called_ns: int) -> None:
        # The fastest clock that may count it down, and by it one tick of rounding.
        ppm = self.cluster.profile.clock_ppm
        life_ns = self.ttl_s * SECOND * (1_000_000 - 2 * ppm) // 1_000_000
        self.promised_ns = max(self.promised_ns, called_ns + life_ns)
        self.check()

    def check(self) -> None:
        """Hold the promise against the book of facts."""
        end = self.cluster.truth.ended.get(self.lease_id)
        if end is not None and not self.revoked and end[0] < self.promised_ns:
            early_ms = (self.promised_ns - end[0]) / 1e6
            self.cluster.invariants.fail(
                EARLY, f"lease {self.lease_id} of {self.ttl_s} s ended {early_ms:.1f} ms early"
            )

    def _put(self) -> None:
        cluster = self.cluster
        process = cluster.choose_host().process
        if process is None:
            return
        cluster.values += 1
        key = b"l%d/%d" % (self.number, self.world.between(0, 2))
        value = b"v%d." % cluster.values
        request = rpc_pb2.PutRequest(key=key, value=value, lease=self.lease_id)
        process.server.call(
            "/etcdserverpb.KV/Put", request.SerializeToString(), lambda code, body: None
        )

    # renewals

    def _pause(self) -> None:
        ttl_ns = self.ttl_s * SECOND
        # A client that renews late trusts its last answer to the end.
        longest_ns = ttl_ns * (9 if self.world.chance(0.3) else 4) // 10
        self.world.after(self.world.between(ttl_ns // 10, longest_ns), self._next, self._life)

    def _next(self, life: int) -> None:
        if life != self._life:
            return
        self.check()
        if self.lease_id in self.cluster.truth.ended or self.stopped:
            self._finish()
        elif self._renewals > 0:
            self._renewals -= 1
            self._renew()
            if self.world.chance(0.2):
                self._put()
            self._pause()
        elif self.world.chance(0.3):
            self._revoke()
        else:
            # Watch it run out; long after its time something is wrong, but that is liveness.
            self._pause()

    def _renew(self) -> None:
        now_ns = self.world.now_ns
        stream = self._stream
        waited_ns = now_ns - self._asked_ns[0][0] if self._asked_ns else 0
        if stream is not None and waited_ns > self.cluster.profile.lease_patience * SECOND:
            # No answer: a client that wants to keep its lease asks another member.
            self._leave(stream)
        if self._stream is None:
            cluster = self.cluster
            process = cluster.choose_host().process
            if process is None or not process.up:
                return
            self._asked_ns = []
            self._stream = process.server.open(LEASE + "LeaseKeepAlive", self, 1 << 20)
            if self.world.chance(0.3):
                stream = self._stream
                self.world.after(self.ttl_s * SECOND, lambda _: self._leave(stream))
        ended = self.lease_id in self.cluster.truth.ended
        self._asked_ns.append((self.world.now_ns, ended))
        request = rpc_pb2.LeaseKeepAliveRequest(ID=self.lease_id)
        self._stream.request(request.SerializeToString())

    def _leave(self, stream: StreamCall) -> None:
        if self._stream is stream:
            self._stream = None
            stream.cancel()

    def message(self, data: bytes) -> None:
        reply = rpc_pb2.LeaseKeepAliveResponse.FromString(data)
        if not self._asked_ns:
            return
        # Answers may overtake each other; the oldest question is the safe one to count from.
        called_ns, ended = self._asked_ns.pop(0)
        if self.lease_id != reply.ID:
            return
        truth = self.cluster.truth
        if reply.TTL > 0:
            self.world.mark("lease renewed")
            if ended:
                self.cluster.invariants.fail(
                    GONE, f"lease {reply.ID} had ended and is renewed for {reply.TTL} s"
                )
            self._promise(called_ns)
        elif reply.ID in truth.leases:
            self.cluster.invariants.fail(GONE, f"lease {reply.ID} lives and is said to be gone")

    def ended(self, code: int, text: str) -> None:
        self._stream = None

    # the end

    def _revoke(self) -> None:
        cluster = self.cluster
        process = cluster.choose_host().process
        if process is not None:
            self.revoked = True
            self.world.mark("lease revoked by its client")
            request = rpc_pb2.LeaseRevokeRequest(ID=self.lease_id)
            process.server.call(
                LEASE + "LeaseRevoke", request.SerializeToString(), lambda code, body: None
            )
        self._pause()

    def _finish(self) -> None:
        if not self.revoked and self.promised_ns:
            self.world.mark("lease expired")
        self._life += 1
        if self._stream is not None:
            stream, self._stream = self._stream, None
            stream.cancel()
        self.world.after(self.cluster.profile.tick_ns, self._grant, self._life)
