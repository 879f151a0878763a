"""The ResponseHeader bytes that every reply begins with; nothing else."""

from __future__ import annotations

from kvstore.mvcc.keyvalue import varint


class Headers:
    """Builds headers of one member; all fields but the revision change rarely and are ready."""

    __slots__ = ("_before", "_last", "_last_revision", "_term", "cluster_id", "member_id")

    def __init__(self, cluster_id: int, member_id: int) -> None:
        """Start in term 0."""
        self.cluster_id = cluster_id
        self.member_id = member_id
        self._before = b"\x08" + varint(cluster_id) + b"\x10" + varint(member_id)
        self._term = b""
        self._last_revision = -1
        self._last = b""

    def set_term(self, term: int) -> None:
        """Take the term of all headers from now on."""
        self._term = b"\x20" + varint(term) if term else b""
        self._last_revision = -1

    def __call__(self, revision: int) -> bytes:
        """Return the bytes of a header (protobuf leaves out a revision of 0)."""
        if revision != self._last_revision:
            field = b"\x18" + varint(revision) if revision else b""
            self._last = self._before + field + self._term
            self._last_revision = revision
        return self._last
