"""The other members as this one sees them: where to dial, who is alive; follows the membership."""

from __future__ import annotations

import asyncio

from kvstore.peer.link import Endpoint, Links
from kvstore.ports import Clock
from kvstore.raft.membership import Change, ChangeKind
from kvstore.raft.raft import Raft
from kvstore.server.cluster import Cluster
from kvstore.server.config import ServerConfig, parse_urls
from kvstore.server.identity import Member
from kvstore.server.reconfig import Sight

SETTLED_ELECTIONS = 5
"""Connected for so many election timeouts, a member counts as healthy; by default 5 s, as etcd."""

LINGER_S = 2.0
"""A removed member is still sent to for this long: what it asked for, and that it was removed."""


class Peers:
    """Keeps the links as the cluster's members are."""

    def __init__(
        self, links: Links, raft: Raft, cluster: Cluster, config: ServerConfig, clock: Clock
    ) -> None:
        """Join the parts; `refresh` begins to dial."""
        self._links = links
        self._raft = raft
        self._cluster = cluster
        self._config = config
        self._clock = clock
        self._leaving: list[tuple[int, int]] = []
        """Index of the removal, and who: removals that are not in the store on disk yet."""

        self._strangers: dict[int, Member] = {}
        """Members that were added after what we have applied."""

        self._partings: dict[int, asyncio.TimerHandle] = {}
        self._settled_s = SETTLED_ELECTIONS * config.election_timeout / 1000

    def knows(self, member: int) -> bool:
        """Tell whether we dial a member, did so, or never will again."""
        cluster = self._cluster
        return member in cluster.members or member in cluster.removed or member in self._strangers

    def meet(self, member: Member) -> None:
        """Dial a member that another one told us of, until the log or a snapshot tells more."""
        self._strangers[member.id] = member
        self.refresh()

    def refresh(self) -> None:
        """Dial the members that there are now, and those that have not been told that they left."""
        known = {*self._cluster.members, *self._cluster.removed}
        self._strangers = {one: who for one, who in self._strangers.items() if one not in known}
        links = self._links
        leaving = {member for _, member in self._leaving}
        # Of these a snapshot has told, or the store at the start.
        gone = set(self._cluster.removed) - links.removed - leaving
        links.removed |= gone
        kept = {member: links.endpoint(member) for member in (*leaving, *self._partings)}
        links.set_peers(
            {member: endpoint for member, endpoint in kept.items() if endpoint is not None}
            | {
                member.id: Endpoint(url.host, url.port)
                for member in (*self._cluster.list_plain(), *self._strangers.values())
                if member.id != self._raft.id
                for url in [parse_urls("peer URL", member.peer_urls[0])[0]]
            }
        )
        for member in gone:
            links.drop_inbound(member)

    def follow(self, change: Change, index: int) -> None:
        """Take a change that was applied."""
        if change.kind is not ChangeKind.REMOVE:
            self.refresh()
        elif change.member != self._raft.id:
            self._leaving.append((index, change.member))

    def stored(self, index: int) -> None:
        """Part from members whose removal the store on disk has now.

        Not before: who is refused goes, and after a crash we might need its vote to learn once more
        that it was removed.
        """
        while self._leaving and self._leaving[0][0] <= index:
            _, member = self._leaving.pop(0)
            self._links.removed.add(member)
            self._partings[member] = asyncio.get_running_loop().call_later(
                LINGER_S, self._part_from, member
            )

    def close(self) -> None:
        """Dial nobody any more; the links are closed by their owner."""
        for timer in self._partings.values():
            timer.cancel()

    def _part_from(self, member: int) -> None:
        del self._partings[member]
        self.refresh()
        # It dials again and is told; else it could disturb, or wait for us for ever.
        self._links.drop_inbound(member)

    def sight(self) -> Sight:
        """Return how a leader sees the members now."""
        status = self._raft.status()
        peers = {peer.member: peer for peer in status.peers}
        settled_at_s = asyncio.get_running_loop().time() - self._settled_s

        def is_active(member: int) -> bool:
            peer = peers.get(member)
            return (
                peer is not None
                and peer.silent_ticks < self._config.election_ticks
                and self._links.is_up(member)
            )

        def is_settled(member: int) -> bool:
            return is_active(member) and self._links.is_up(member, since_s=settled_at_s)

        def progress(member: int) -> float:
            if member == status.id:
                return 1.0
            peer = peers.get(member)
            return peer.match / status.last_index if peer is not None else 0.0

        return Sight(
            self_id=status.id,
            is_strict=self._config.strict_reconfig_check,
            learners_max=self._config.max_learners,
            is_active=is_active,
            is_settled=is_settled,
            progress=progress,
            now_s=self._clock.wall_ns() // 1_000_000_000,
        )
