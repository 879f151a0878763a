"""ReadIndex bookkeeping: which reads wait for which round, on the leader and on a follower.

Builds no messages and knows no quorum; `leader` and `follower` do. On both sides at most one round
is outstanding, what arrives meanwhile forms the next, and a number is never used for two rounds.
"""

from __future__ import annotations

from kvstore.raft.messages import Index, MemberId


class LeaderReads:
    """Reads of one leadership: the leader's own, and rounds that followers forwarded."""

    __slots__ = (
        "acknowledged",
        "begun_tick",
        "index",
        "outstanding",
        "round",
        "serving",
        "serving_peers",
        "waiting",
        "waiting_peers",
    )

    def __init__(self) -> None:
        self.waiting: list[int] = []
        self.waiting_peers: dict[MemberId, int] = {}
        """The newest round of each follower. An older one of the same follower is replaced: a
        follower has one outstanding round, so it has given the older one up."""

        self.serving: list[int] = []
        self.serving_peers: dict[MemberId, int] = {}
        self.round = 0
        """Number of the newest round; heartbeats carry it. Only ever grows."""

        self.outstanding = False
        self.index: Index = 0
        """Commit index when the outstanding round began."""

        self.begun_tick = 0
        self.acknowledged: dict[MemberId, int] = {}
        """Highest round that each member has answered."""

    def begin(self, index: Index, tick: int, leader: MemberId) -> None:
        """Start a round for everything that waits."""
        assert not self.outstanding
        self.serving, self.waiting = self.waiting, []
        self.serving_peers, self.waiting_peers = self.waiting_peers, {}
        self._number(index, tick, leader)

    def replace(self, index: Index, tick: int, leader: MemberId) -> None:
        """Give the outstanding round up and ask again, for what waits meanwhile as well."""
        self.serving += self.waiting
        self.serving_peers |= self.waiting_peers
        self.waiting = []
        self.waiting_peers = {}
        self._number(index, tick, leader)

    def _number(self, index: Index, tick: int, leader: MemberId) -> None:
        self.round += 1
        self.index = index
        self.begun_tick = tick
        self.outstanding = True
        self.acknowledged[leader] = self.round

    def finish(self) -> tuple[list[int], dict[MemberId, int]]:
        """End the outstanding round; return the own reads and the followers' rounds it served."""
        served, peers = self.serving, self.serving_peers
        self.serving, self.serving_peers = [], {}
        self.outstanding = False
        return served, peers

    def pending(self) -> int:
        """Return how many own reads wait."""
        return len(self.waiting) + len(self.serving)


class FollowerReads:
    """Reads of a follower under one leader."""

    __slots__ = ("asked", "asked_tick", "round", "waiting")

    def __init__(self) -> None:
        self.waiting: list[int] = []
        self.asked: list[int] = []
        """Reads of the outstanding round; empty when none is."""

        self.round = 0
        self.asked_tick = 0

    def ask(self, number: int, tick: int) -> None:
        """Put everything into a new round; an outstanding one is given up."""
        self.asked += self.waiting
        self.waiting = []
        self.round = number
        self.asked_tick = tick

    def answered(self) -> list[int]:
        """End the outstanding round and return its reads."""
        served, self.asked = self.asked, []
        return served

    def pending(self) -> int:
        """Return how many reads wait."""
        return len(self.waiting) + len(self.asked)
