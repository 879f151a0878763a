"""What members publish of themselves through the log: names, client URLs, the cluster version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from kvstore.pb import rpc_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstore.ports import View

_TABLE: Final = "meta"
_PREFIX: Final = b"member/"
_PREFIX_END: Final = b"member0"
_VERSION_KEY: Final = b"cluster_version"


class Attributes(NamedTuple):
    """What a member tells about itself once it has started."""

    name: str
    client_urls: tuple[str, ...]


class Members:
    """Published attributes. Who is a member, and with which peer URLs, is Raft's matter.

    Args:
        write: Puts a record into the store's write buffer: table, key, value or None to delete.
    """

    def __init__(self, write: Callable[[str, bytes, bytes | None], None]) -> None:
        self.attributes: dict[int, Attributes] = {}
        self.cluster_version = ""
        """Like `3.6.0`; empty until the first leader has decided it."""
        self._write = write

    def restore(self, view: View) -> None:
        """Replace everything by what is stored in `view`."""
        self.attributes = {}
        for _, record in view.scan(_TABLE, _PREFIX, _PREFIX_END):
            member = rpc_pb2.Member.FromString(record)
            self.attributes[member.ID] = Attributes(member.name, tuple(member.clientURLs))
        self.cluster_version = (view.get(_TABLE, _VERSION_KEY) or b"").decode()

    def publish(self, member: rpc_pb2.Member) -> None:
        """Take what a member says of itself."""
        self.attributes[member.ID] = Attributes(member.name, tuple(member.clientURLs))
        record = rpc_pb2.Member(ID=member.ID, name=member.name, clientURLs=member.clientURLs)
        self._write(_TABLE, _key(member.ID), record.SerializeToString(deterministic=True))

    def forget(self, member_id: int) -> None:
        """Drop the attributes of a removed member; nothing happens when there are none."""
        if self.attributes.pop(member_id, None) is not None:
            self._write(_TABLE, _key(member_id), None)

    def set_cluster_version(self, version: str) -> None:
        """Take the version that all members can speak."""
        self.cluster_version = version
        self._write(_TABLE, _VERSION_KEY, version.encode())


def _key(member_id: int) -> bytes:
    return b"%s%016x" % (_PREFIX, member_id)
