"""Administrators: they add, promote, move and remove members, and bring their machines up.

Each looks at the list of members, does what is left to do (a member that was added needs a
machine), and asks for one change. Every answer is judged by `tests.sim.full.members`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvstore.pb import rpc_pb2
from kvstore.server.config import ServerConfig
from tests.sim.full.machine import Host
from tests.sim.full.rpc import LOST
from tests.sim.invariants import LINEARIZABLE, REAL_TIME, REFUSED
from tests.sim.world import SECOND

if TYPE_CHECKING:
    from tests.sim.full.cluster import FullCluster

CLUSTER = "/etcdserverpb.Cluster/"
UNCHANGED = {
    "connection refused": "no connection",
    "etcdserver: no leader": "no leader",
    "etcdserver: too many requests": "too many requests",
    "etcdserver: rpc not supported for learner": "asked a learner",
    "etcdserver: member not found": "no such member",
    "etcdserver: Peer URLs already exists": "URL exists",
    "etcdserver: can only promote a learner member": "no learner",
    "etcdserver: can only promote a learner member which is in sync with leader": "lagging learner",
    "etcdserver: too many learner members in cluster": "too many learners",
    "etcdserver: unhealthy cluster": "unhealthy",
    "etcdserver: re-configuration failed due to not enough started members": "not enough started",
}
"""Answers that promise that nothing was changed, and what they are called in the counters."""

STORE = "data/store.lmdb"
UNKNOWN = "etcdserver: request timed out"
MEMBERS_MAX = 5


class Operator:
    """One closed loop: list the members, do what is due, ask for a change."""

    def __init__(self, cluster: FullCluster, number: int) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.number = number
        self.settling = False
        """No more changes, only what is left to do."""
        self._round = 0
        self.world.after(self.world.between(0, self._pause_ns()), self._look, 0)

    def _pause_ns(self) -> int:
        return self.cluster.profile.operator_ns

    def _again(self, _: object = None) -> None:
        self._round += 1
        pause_ns = self._pause_ns()
        delay_ns = self.world.between(1, 2 * pause_ns)
        if self.world.chance(0.5):
            # All at the full hour: their changes meet.
            delay_ns = pause_ns - self.world.now_ns % pause_ns
        self.world.after(delay_ns, self._look, self._round)

    def _call(self, method: str, request: Any, answer: Any, *, needs_leader: bool = True) -> None:
        """Call any member; `answer(code, body)` once, LOST when the operator gave up."""
        processes = [host.process for host in self.cluster.hosts if host.process is not None]
        if not processes:
            self._again()
            return
        self._round += 1
        call = self._round
        self.world.events += 1

        def answered(code: int, body: bytes | str) -> None:
            if call == self._round:
                self._round += 1
                answer(code, body)

        self.world.random.choice(processes).server.call(
            CLUSTER + method, request.SerializeToString(), answered, needs_leader=needs_leader
        )
        patience_ns = self.cluster.profile.patience_ns + self.world.between(0, 8) * SECOND
        self.world.after(patience_ns, lambda _: answered(LOST, "gave up"))

    # the list

    def _look(self, round_: int) -> None:
        if round_ != self._round:
            return
        floor = self.cluster.book.floor
        # Who has to bring up a quorum cannot wait for one, and takes an old list for a new one.
        linearizable = self.world.chance(0.6)
        request = rpc_pb2.MemberListRequest(linearizable=linearizable)

        def answer(code: int, body: bytes | str) -> None:
            if code:
                self._check_text("the list", code, str(body))
                self._again()
                return
            members = list(rpc_pb2.MemberListResponse.FromString(body).members)
            if linearizable:
                self._judge_list("the list", members, floor)
            self._act(members)

        self._call("MemberList", request, answer, needs_leader=linearizable)

    def _judge_list(self, what: str, members: list[Any], floor: int) -> None:
        """A list of members must be one that was, and not older than what was shown before."""
        book = self.cluster.book
        listing = tuple((one.ID, tuple(one.peerURLs), one.isLearner) for one in members)
        versions = [at for at, known in enumerate(book.listings) if known == listing]
        if not versions:
            self.cluster.invariants.fail(LINEARIZABLE, f"{what} shows {listing}, which never was")
        elif versions[-1] < floor:
            self.cluster.invariants.fail(
                REAL_TIME, f"{what} shows {listing}, which is older than what was shown before"
            )
        else:
            book.floor = max(book.floor, next(at for at in versions if at >= floor))

    # what is due

    def _act(self, members: list[Any]) -> None:
        for member in members:
            if not member.name:
                self._bring_up(member, members)
        lost = [one for one in members if self.settling and self._knows_nobody(one, members)]
        if lost:
            # As docs/operations.md has it: remove it and add another.
            request = rpc_pb2.MemberRemoveRequest(ID=lost[0].ID)
            self._ask("MemberRemove", request, "removed", rpc_pb2.MemberRemoveResponse)
        elif self.settling or not members:
            self._again()
        else:
            self._change(members)

    def _knows_nobody(self, member: Any, members: list[Any]) -> bool:
        """Tell whether a member waits for its first snapshot from members that are all gone."""
        host = self.cluster.by_member_id.get(member.ID)
        process = host.process if host is not None else None
        if process is None or not process.up or not process.product.cluster.is_joining:
            return False
        others = {one.ID for one in members if one.ID != member.ID}
        return not others & set(process.product.cluster.members)

    def _bring_up(self, member: Any, members: list[Any]) -> None:
        """Start a machine for a member that was added and has not run yet."""
        cluster = self.cluster
        if member.ID in cluster.book.configuration.removed:
            return  # this list is old
        host = cluster.by_address[address_of(member.peerURLs[0])]
        config = joining(cluster, host, member, members)
        if host.member_id != member.ID:
            if host.member_id and host.member_id not in cluster.book.configuration.removed:
                return
            self.world.mark("machine given to a new member")
            self.world.trace(f"operator {self.number}: machine {host.id} becomes {member.ID:x}")
            host.assign(member.ID, config)
        elif host.process is not None:
            return
        elif STORE not in host.disk.paths:
            host.config = config
        host.start()

    # changes

    def _change(self, members: list[Any]) -> None:
        choose = self.world.random.choice
        member = choose(members)
        learners = [one for one in members if one.isLearner]
        free = [host for host in self.cluster.hosts if self._is_free(host, members)]
        kinds = ["update", "remove", "mistake", "forget"]
        if len(members) < MEMBERS_MAX and free:
            kinds += ["add", "add learner", "add learner"] + ["add"] * (len(members) < 3)
        if learners:
            kinds += ["promote"] * 2
        if len(members) > 3:
            kinds += ["remove"] * 2
        kind = choose(kinds)
        if kind == "forget":
            self._forget(member)
        elif kind.startswith("add"):
            host = choose(free)
            host.reserved = True
            url = self._new_url(host)
            request = rpc_pb2.MemberAddRequest(peerURLs=[url], isLearner=kind == "add learner")
            self._ask("MemberAdd", request, kind, rpc_pb2.MemberAddResponse, url)
        elif kind == "promote":
            request = rpc_pb2.MemberPromoteRequest(ID=choose(learners).ID)
            self._ask("MemberPromote", request, "promoted", rpc_pb2.MemberPromoteResponse)
        elif kind == "update":
            url = self._new_url(self.cluster.by_address[address_of(member.peerURLs[0])])
            request = rpc_pb2.MemberUpdateRequest(ID=member.ID, peerURLs=[url])
            self._ask("MemberUpdate", request, "moved", rpc_pb2.MemberUpdateResponse, url)
        elif kind == "remove":
            request = rpc_pb2.MemberRemoveRequest(ID=member.ID)
            self._ask("MemberRemove", request, "removed", rpc_pb2.MemberRemoveResponse)
        else:
            self._mistake(member)

    def _is_free(self, host: Host, members: list[Any]) -> bool:
        removed = self.cluster.book.configuration.removed
        if host.reserved or (host.member_id and host.member_id not in removed):
            return False
        used = {address_of(url) for one in members for url in one.peerURLs}
        return not used & set(host.addresses)

    def _new_url(self, host: Host) -> str:
        """Give a machine one more address, which nobody had before."""
        self.cluster.addresses += 1
        number = self.cluster.addresses
        address = f"10.{1 + number // 250}.{number % 250}.{host.id}"
        host.addresses.append(address)
        self.cluster.by_address[address] = host
        return f"http://{address}:2380"

    def _mistake(self, member: Any) -> None:
        if self.world.chance(0.5):
            request = rpc_pb2.MemberRemoveRequest(ID=member.ID ^ 1)
            self._ask("MemberRemove", request, "removed by mistake", rpc_pb2.MemberRemoveResponse)
        elif self.cluster.profile.operators == 1 and any(
            urls == tuple(member.peerURLs) for _, urls, _ in self.cluster.book.listings[-1]
        ):
            # With others at work the member may move meanwhile. Then the addition is right, and
            # waits for a member that nobody starts.
            request = rpc_pb2.MemberAddRequest(peerURLs=list(member.peerURLs))
            self._ask("MemberAdd", request, "added by mistake", rpc_pb2.MemberAddResponse)
        else:
            self._again()  # nobody has these URLs any more: it would be no mistake

    def _forget(self, member: Any) -> None:
        """Start a member that has run on an empty disk: it must refuse, and gets its disk back."""
        host = self.cluster.by_member_id.get(member.ID)
        others = [one for one in self.cluster.hosts if one is not host and one.member_id]
        if (
            host is None
            or host.config is None
            or host.process is None
            or host.restore is not None
            # Else a member that does not know it may tell that it has never run.
            or not all(knows(one, member.ID) for one in others)
        ):
            self._again()
            return
        members = [
            rpc_pb2.Member(ID=one, peerURLs=urls) for one, urls, _ in self.cluster.book.listings[-1]
        ]
        if rpc_pb2.Member(ID=member.ID, peerURLs=member.peerURLs) not in members:
            self._again()  # moved or removed since the list that this operator goes by
            return
        host.crash()
        kept, config = (host.disk, host.durable, host.inflight, host.applied_seen), host.config
        host.mount()
        host.config = joining(self.cluster, host, member, members)
        host.start()

        def restore() -> None:
            host.crash()
            host.config = config
            host.mount(*kept)
            host.start()

        host.restore = restore
        self.world.after(self.world.between(1, 2 * self._pause_ns()), host.end_mistake)
        self._again()

    def _ask(self, method: str, request: Any, what: str, response: Any, url: str = "") -> None:
        floor = self.cluster.book.floor
        text = f"{method} {str(request).strip()!r}"
        self.world.trace(f"operator {self.number}: {text}")

        def answer(code: int, body: bytes | str) -> None:
            self.world.trace(f"operator {self.number} is told {code}: {body!r}")
            if code:
                self._check_text(text, code, str(body))
                if url and str(body) in UNCHANGED:
                    self.cluster.refused_urls[url] = None
                    if method == "MemberAdd":
                        self.cluster.by_address[address_of(url)].reserved = False
            else:
                self.world.mark(f"member {what}")
                reply = response.FromString(body)
                self._judge_list(text, list(reply.members), floor)
                self._judge_change(text, request, url)
            self._again()

        self._call(method, request, answer, needs_leader=self.world.chance(0.5))

    def _judge_change(self, text: str, request: Any, url: str) -> None:
        """What was acknowledged must be in the book."""
        book = self.cluster.book
        if url:
            done = url in book.urls
        elif isinstance(request, rpc_pb2.MemberRemoveRequest):
            done = request.ID in book.configuration.removed
        elif isinstance(request, rpc_pb2.MemberPromoteRequest):
            done = any(request.ID in one.voters for one in book.configurations)
        elif isinstance(request, rpc_pb2.MemberAddRequest):
            # No mistake after all: whoever had these URLs has moved since that list.
            wanted = tuple(request.peerURLs)
            done = any(urls == wanted for _, urls, _ in book.listings[-1])
        else:
            done = False
        if not done:
            self.cluster.invariants.fail(LINEARIZABLE, f"{text} is acknowledged and did not happen")

    def _check_text(self, text: str, code: int, body: str) -> None:
        if body in UNCHANGED:
            self.world.mark(f"change refused: {UNCHANGED[body]}")
        elif code == LOST or body.startswith(UNKNOWN):
            self.world.mark("change with unknown outcome")
        elif body != "etcdserver: server stopped":
            self.cluster.invariants.fail(LINEARIZABLE, f"{text} fails with {code} {body}")


def knows(host: Host, member: int) -> bool:
    """Tell whether the store of a machine says that a member has run."""
    inode = host.disk.paths.get(STORE)
    return (
        inode is not None
        and inode.store is not None
        and b"member/%016x" % member in inode.store.tables["meta"]
    )


def check_refused(cluster: FullCluster) -> None:
    """At the end: no addition or update that was refused has happened."""
    happened = [url for url in cluster.refused_urls if url in cluster.book.urls]
    if happened:
        cluster.invariants.fail(REFUSED, f"changes to {happened} were refused and are in the log")


def address_of(url: str) -> str:
    """Return the address in a peer URL."""
    return url.removeprefix("http://").partition(":")[0]


def joining(cluster: FullCluster, host: Host, me: Any, members: list[Any]) -> ServerConfig:
    """Return the flags of a member that joins, as `member add` prints them."""
    # An address that a machine once had may have become another member's, by mistake.
    names = {one.ID: f"m{host.id}" if one.ID == me.ID else f"member-{one.ID:x}" for one in members}
    text = ",".join(f"{names[one.ID]}={url}" for one in members for url in one.peerURLs)
    return cluster.config(
        host.id,
        listen_peer_urls=",".join(me.peerURLs),
        initial_cluster=text,
        initial_cluster_state="existing",
    )
