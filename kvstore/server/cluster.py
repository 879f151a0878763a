"""Who is a member: the durable list of members with their peer URLs, and what they published."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgpack

from kvstore.apply.members import Members
from kvstore.peer.describe import Described, Description
from kvstore.ports import Change, View
from kvstore.raft.errors import MalformedChange
from kvstore.raft.membership import Change as MemberChange
from kvstore.raft.membership import ChangeKind
from kvstore.raft.messages import Configuration
from kvstore.server.identity import Member
from kvstore.server.startup import StartError

FORMAT = 2
CONTEXT_FORMAT = 1
TABLE = "meta"
KEY = b"cluster"


@dataclass(slots=True)
class Cluster:
    """The members of one cluster as this member knows them."""

    cluster_id: int
    members: dict[int, Member]
    removed: tuple[int, ...]
    published: Members | None = None
    """Names and client URLs, from the log."""

    is_joining: bool = False
    """What is here was told by a running member; the configuration is unknown to us until a
    snapshot brings it."""

    @classmethod
    def load(cls, view: View, published: Members | None) -> Cluster:
        """Return what the store holds.

        Raises:
            StartError: Written by a newer release.
        """
        record = view.get(TABLE, KEY)
        if record is None:
            raise StartError(
                "the store is empty: it does not say who is a member; restore the data directory "
                "from a copy"
            )
        fields = msgpack.unpackb(record)
        if fields[0] == 1:
            fields = [*fields, False]  # of before members could join
        elif fields[0] != FORMAT:
            raise StartError(
                f"the data directory has cluster format {fields[0]}, this release reads {FORMAT}; "
                "start the release that wrote it"
            )
        _, cluster_id, members, removed, is_joining = fields
        return cls(
            cluster_id,
            {
                member_id: Member(member_id, "", tuple(urls), (), bool(learner))
                for member_id, urls, learner in members
            },
            tuple(removed),
            published,
            bool(is_joining),
        )

    def adopt(self, other: Cluster) -> None:
        """Become what another record says: a snapshot has replaced the store."""
        self.members, self.removed = other.members, other.removed
        self.published, self.is_joining = other.published, other.is_joining

    def apply(self, change: MemberChange) -> None:
        """Follow a committed change that the core has accepted."""
        member = self.members.get(change.member)
        if change.kind is ChangeKind.REMOVE:
            del self.members[change.member]
            self.removed = tuple(sorted({*self.removed, change.member}))
            if self.published is not None:
                self.published.forget(change.member)
        elif change.kind is ChangeKind.UPDATE:
            assert member is not None
            urls = decode_urls(change.context)
            self.members[change.member] = replace(member, peer_urls=urls)
        elif member is not None:
            self.members[change.member] = replace(member, is_learner=False)
        else:
            is_learner = change.kind is ChangeKind.ADD_LEARNER
            self.members[change.member] = Member(
                change.member, "", decode_urls(change.context), (), is_learner
            )

    def change(self) -> Change:
        """Return the record to store."""
        members = [
            [member.id, list(member.peer_urls), member.is_learner] for member in self.list_plain()
        ]
        record = msgpack.packb(
            [FORMAT, self.cluster_id, members, list(self.removed), self.is_joining]
        )
        return TABLE, KEY, record

    def list_plain(self) -> list[Member]:
        """Return the members by id, without what they published."""
        return sorted(self.members.values(), key=lambda member: member.id)

    def list(self) -> list[Member]:
        """Return the members by id with names and client URLs where they are known."""
        listed = []
        for member in self.list_plain():
            attributes = self.published.attributes.get(member.id) if self.published else None
            if attributes is None:
                listed.append(member)
            else:
                listed.append(
                    replace(member, name=attributes.name, client_urls=attributes.client_urls)
                )
        return listed

    def is_learner(self, member_id: int) -> bool:
        """Tell whether this member does not vote yet."""
        member = self.members.get(member_id)
        return member is not None and member.is_learner

    def description(self, applied: int) -> Description:
        """Return what a member that wants to join is told; `applied` is the log index of this."""
        return Description(
            self.cluster_id,
            applied,
            tuple(
                Described(each.id, each.peer_urls, each.is_learner, bool(each.name))
                for each in self.list()
            ),
            self.removed,
        )

    def configuration(self) -> Configuration:
        """Return the core's view of the members."""
        if self.is_joining:
            return Configuration(voters=())
        return Configuration(
            voters=tuple(m.id for m in self.list_plain() if not m.is_learner),
            learners=tuple(m.id for m in self.list_plain() if m.is_learner),
            removed=self.removed,
        )


def encode_urls(urls: tuple[str, ...]) -> bytes:
    """Return the context of a change that names a member's peer URLs."""
    context: bytes = msgpack.packb([CONTEXT_FORMAT, list(urls)])
    return context


def decode_urls(context: bytes) -> tuple[str, ...]:
    """Return the peer URLs of a change.

    Raises:
        MalformedChange: Written by a newer release, or not by `encode_urls`.
    """
    try:
        version, urls = msgpack.unpackb(context)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise MalformedChange(f"a membership change has no list of peer URLs: {error}") from error
    if version != CONTEXT_FORMAT:
        raise MalformedChange(
            f"a membership change has format {version}, this release reads {CONTEXT_FORMAT}; "
            "upgrade this member"
        )
    if not isinstance(urls, list) or not urls or not all(isinstance(url, str) for url in urls):
        raise MalformedChange(f"a membership change has {urls!r} for peer URLs")
    return tuple(urls)
