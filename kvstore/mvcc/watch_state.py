"""Watchers, the groups that share a range, and what is needed of the store; no behaviour here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from kvstore.mvcc import watch_encode
from kvstore.pb import rpc_pb2

if TYPE_CHECKING:
    from kvstore.mvcc.events import Event, Revision
    from kvstore.mvcc.watch_stream import WatchStream


class WatchSource(Protocol):
    """What the hub needs of the store."""

    watched: bool
    """Whether events are wanted. The hub says so; it takes none while it has no watchers."""

    @property
    def revision(self) -> int:
        """Current revision."""

    @property
    def compacted(self) -> int:
        """Revision of the last compaction; -1 before the first."""

    def events_between(self, start: int, end: int, limit: int) -> tuple[list[Revision], int]:
        """Return stored revisions from start to end, at most about `limit` events, and where to
        go on."""

    def prev_kv(self, event: Event) -> bytes | None:
        """Return the KeyValue bytes that an event replaced; None when absent or compacted."""


class Group:
    """All watchers of one range."""

    __slots__ = ("end", "size", "start", "synced")

    def __init__(self, start: bytes, end: bytes | None) -> None:
        self.start = start

        self.end = end
        """Empty for the single key, None for no end."""

        self.size = 0
        """Watchers in any state; at zero the range leaves the matcher."""

        self.synced: dict[Watcher, None] = {}


class Watcher:
    """One watcher of a stream. There are many: it holds references to what is shared."""

    __slots__ = (
        "behind",
        "group",
        "id",
        "next",
        "options",
        "progress_notify",
        "quiet",
        "send",
        "start",
        "stream",
        "synced",
        "tag",
    )

    def __init__(
        self, stream: WatchStream, group: Group, request: rpc_pb2.WatchCreateRequest, watch_id: int
    ) -> None:
        self.stream = stream
        self.group = group
        self.id = watch_id
        self.send = stream.send

        self.tag = watch_encode.tag(watch_id)
        """The watch_id field of its responses."""

        self.options = _options(request)
        """Bits of `kvstore.mvcc.watch_encode`: what its responses are made of."""

        self.start = request.start_revision
        """As the client asked; 0 for "from now on"."""

        self.next = 0
        """Least revision that it has not been served. While synced only a lower bound: `notify`
        writes it for those that it sends something."""

        self.synced = False
        self.behind = False
        self.progress_notify = request.progress_notify

        self.quiet = True
        """Nothing was sent since the last periodic progress."""


def _options(request: rpc_pb2.WatchCreateRequest) -> int:
    options = 0
    for kind in request.filters:
        if kind == rpc_pb2.WatchCreateRequest.NOPUT:
            options |= watch_encode.NOPUT
        elif kind == rpc_pb2.WatchCreateRequest.NODELETE:
            options |= watch_encode.NODELETE
    if request.prev_kv:
        options |= watch_encode.PREV_KV
    if request.fragment:
        options |= watch_encode.FRAGMENT
    return options
