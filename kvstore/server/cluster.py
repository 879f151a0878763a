"""Who is a member: the durable list of members with their peer URLs, and what they published."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgpack

from kvstore.apply.members import Members
from kvstore.ports import Change, View
from kvstore.raft.messages import Configuration
from kvstore.server.identity import Member
from kvstore.server.startup import StartError

FORMAT = 1
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

    @classmethod
    def load(cls, view: View, published: Members) -> Cluster:
        """Return what the store holds.

        Raises:
            StartError: Written by a newer release.
        """
        record = view.get(TABLE, KEY)
        if record is None:
            raise StartError(
                "the store does not say who is a member; restore the data directory from a copy"
            )
        fields = msgpack.unpackb(record)
        if fields[0] != FORMAT:
            raise StartError(
                f"the data directory has cluster format {fields[0]}, this release reads {FORMAT}; "
                "start the release that wrote it"
            )
        _, cluster_id, members, removed = fields
        return cls(
            cluster_id,
            {
                member_id: Member(member_id, "", tuple(urls), (), bool(learner))
                for member_id, urls, learner in members
            },
            tuple(removed),
            published,
        )

    def change(self) -> Change:
        """Return the record to store."""
        members = [
            [member.id, list(member.peer_urls), member.is_learner] for member in self.list_plain()
        ]
        record = msgpack.packb([FORMAT, self.cluster_id, members, list(self.removed)])
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

    def configuration(self) -> Configuration:
        """Return the core's view of the members."""
        return Configuration(
            voters=tuple(m.id for m in self.list_plain() if not m.is_learner),
            learners=tuple(m.id for m in self.list_plain() if m.is_learner),
            removed=self.removed,
        )
