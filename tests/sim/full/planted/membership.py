"""Planted bugs of membership."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from kvstore.raft import leader as leader_module
from kvstore.raft.follower import Follower
from kvstore.raft.leader import Leader
from kvstore.raft.membership import Change, change_configuration
from kvstore.raft.messages import Configuration, Entry
from kvstore.raft.quorum import joint_acknowledged
from kvstore.raft.raft import Raft
from kvstore.server import membership as server_membership
from kvstore.server import reconfig
from kvstore.server.cluster import Cluster
from kvstore.server.farewell import Farewell
from kvstore.server.member import Member
from kvstore.server.membership import Membership
from kvstore.server.reconfig import Request, Sight
from tests.sim.full.members import ONE_CHANGE
from tests.sim.full.planted.bug import FullBug


def changes_side_by_side(self: Leader, data: bytes) -> tuple[int, int]:
    """Append a change while another one is under way."""
    self.pending_change = 0
    return real_propose_change(self, data)


real_propose_change = Leader.propose_change


def in_force_when_appended(self: Leader, data: bytes) -> tuple[int, int]:
    """Follow a change from when it is appended, and never take that back."""
    place = real_propose_change(self, data)
    raft = self.raft
    raft.configuration = change_configuration(raft.configuration, Change.decode(data))
    raft.state.reconfigured()
    return place


def learners_count(self: Leader) -> bool:
    """Commit what as many members hold as there must be voters, learners among them."""
    configuration = self.raft.configuration
    everybody = (*configuration.voters, *configuration.learners)
    held = sorted((self.matched.get(one, 0) for one in everybody), reverse=True)
    index = held[len(configuration.voters) // 2]
    leader_module.joint_acknowledged = lambda *_: index
    try:
        return real_maybe_commit(self)
    finally:
        leader_module.joint_acknowledged = joint_acknowledged


real_maybe_commit = Leader._maybe_commit


def whoever_asks(request: Request, cluster: Cluster, sight: Sight) -> Change:
    """Promote a learner whatever it holds."""
    return real_plan(request, cluster, replace(sight, progress=lambda member: 1.0))


real_plan = reconfig.plan


def change_not_stored(self: Membership, entry: Entry) -> Configuration | None:
    """Follow a change in memory and forget to store it."""
    write, self._write = self._write, lambda record: None
    try:
        return real_apply_change(self, entry)
    finally:
        self._write = write


real_apply_change = Membership.apply


def campaigns_after_removal(self: Raft) -> bool:
    """Hold elections though this member is no voter."""
    return (
        bool(self.configuration.voters)
        and not self.log.snapshot_outstanding
        and not self.is_disk_stalled()
    )


def starts_at_nothing(self: Follower) -> bool:
    """Let a member that joins replay the log over the members that it was told of."""
    return True


def only_goodbye(self: Farewell, entry: Entry, done: Callable[[], None]) -> None:
    """Stay for as long as the answer to the client takes, and no longer."""
    self.entry = entry
    self._later(0.02, done)


async def meets_nobody(self: Member) -> None:
    """Hear of a member that was added after all that this one has, and do not look for it."""


BUGS = (
    FullBug(
        "two membership changes at a time",
        "membership",
        "etcd raft: the one pending change forgotten at a change of leader",
        ((Leader, "propose_change", changes_side_by_side),),
        "members",
        1_200_000,
        frozenset((ONE_CHANGE,)),
        slow=True,
        seeds=(1_000, 3_000),  # from 2_000 it takes the whole budget, which is minutes
    ),
    FullBug(
        "a change is in force when it is appended",
        "membership",
        "rules of the Raft thesis 4.1 without its way back when the entry is lost",
        ((Leader, "propose_change", in_force_when_appended),),
        "members",
        60_000,
    ),
    FullBug(
        "what learners hold counts for the commit",
        "membership",
        "non-voters counted in the quorum",
        ((Leader, "_maybe_commit", learners_count),),
        "members",
        400_000,
        seeds=(5_000, 3_000),  # from 1_000 it takes 326,000 events, from 2_000 more than these
    ),
    FullBug(
        "a learner is promoted whatever it holds",
        "membership",
        "etcd before 3.4: a new voter without a log holds the quorum back",
        ((server_membership, "plan", whoever_asks),),
        "members",
        60_000,
    ),
    FullBug(
        "a membership change is not stored",
        "membership",
        "etcd 3.5: removed members that are back after a restart",
        ((Membership, "apply", change_not_stored),),
        "members",
        60_000,
    ),
    FullBug(
        "a removed member campaigns",
        "membership",
        "Raft thesis 4.2.3: removed servers disrupt the cluster",
        ((Raft, "_may_campaign", campaigns_after_removal),),
        "members",
        120_000,
    ),
    FullBug(
        "a member that joins replays the log",
        "membership",
        "found here: a joining member counted itself as the only voter",
        ((Follower, "_has_start", starts_at_nothing),),
        "members",
        60_000,
    ),
    FullBug(
        "a removed member leaves too early",
        "membership",
        "etcd: a removed leader stops soon, whatever the others know",
        ((Farewell, "begin", only_goodbye),),
        "members",
        1_800_000,
        run_events=5_000,
        liveness=True,
        slow=True,
    ),
    FullBug(
        "a member answers only whom it has heard of",
        "membership",
        "found here: a learner that lay behind never got data of a leader that was added meanwhile",
        ((Member, "_meet", meets_nobody),),
        "members",
        1_800_000,
        run_events=5_000,
        liveness=True,
        slow=True,
        seeds=(2_000,),
    ),
)
