"""One Watch RPC: its requests and its watchers; what they are sent is the hub's matter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kvstore.mvcc import watch_encode
from kvstore.pb import rpc_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kvstore.mvcc.watch import WatchHub
    from kvstore.mvcc.watch_state import Watcher

_NO_ID: Final = -1
"""Watch id of a watcher that was not created."""

# Clients match these texts.
_EMPTY_RANGE: Final = "mvcc: watcher range is empty"
_DUPLICATE_ID: Final = "mvcc: duplicate watch ID provided on the WatchStream"
_NEGATIVE_START: Final = "etcdserver: mvcc: required revision has been compacted"


class WatchStream:
    """The watchers of one RPC. `WatchHub.open` makes it."""

    def __init__(
        self,
        hub: WatchHub,
        send: Callable[[bytes], bool],
        send_all: Callable[[Sequence[bytes]], bool],
        authorize: Callable[[bytes, bytes | None], str | None] | None,
    ) -> None:
        self.send = send
        self.send_all = send_all
        self.watchers: dict[int, Watcher] = {}

        self.full = False
        """It has taken its last message for now; its watchers are behind."""

        self._hub = hub
        self._authorize = authorize
        self._next_id = 0
        self._closed = False

    def request(self, message: bytes | rpc_pb2.WatchRequest) -> None:
        """Take a message of the client. Unknown kinds are ignored, as etcd does.

        Raises:
            google.protobuf.message.DecodeError: The bytes are no WatchRequest.
        """
        if self._closed:
            return
        if isinstance(message, bytes):
            message = rpc_pb2.WatchRequest.FromString(message)
        kind = message.WhichOneof("request_union")
        if kind == "create_request":
            self._create(message.create_request)
        elif kind == "cancel_request":
            self._cancel(message.cancel_request.watch_id)
        elif kind == "progress_request":
            self._hub.ask_progress(self)

    def writable(self) -> None:
        """Go on: what was unsent has gone below the low-water mark."""
        if self.full and not self._closed:
            self._hub.emptied(self)

    def close(self) -> None:
        """Forget everything; the RPC has ended. Nothing is sent any more."""
        self._closed = True
        self._hub.close(self)

    def post(self, message: bytes) -> None:
        """Send what is not an event: these answer the client and do not wait for room."""
        if not self._closed and not self.send(message) and not self.full and not self._closed:
            self._hub.filled(self)

    def _create(self, request: rpc_pb2.WatchCreateRequest) -> None:
        hub = self._hub
        start = request.key or b"\x00"
        end: bytes | None = request.range_end
        if end == b"\x00":
            end = None
        if request.start_revision < 0:
            self._refuse(_NEGATIVE_START)
            return
        if self._authorize is not None:
            reason = self._authorize(start, end)
            if reason is not None:
                self._refuse(reason)
                return
        if end and end <= start:
            self._refuse(_EMPTY_RANGE)
            return
        watch_id = request.watch_id
        if watch_id == 0:
            while self._next_id in self.watchers:
                self._next_id += 1
            watch_id = self._next_id
            self._next_id += 1
        elif watch_id in self.watchers:
            self._refuse(_DUPLICATE_ID)
            return

        # Registered before the reply is sent, as sending may fill or end the stream. Events cannot
        # overtake it: they come from later calls.
        created = hub.head(hub.revision) + watch_encode.tag(watch_id) + watch_encode.CREATED
        watcher = hub.add(self, request, watch_id, start, end)
        self.post(created)
        compacted = hub.store.compacted
        if 0 < request.start_revision < compacted and watch_id in self.watchers:
            hub.cancel_compacted(watcher, compacted)

    def _cancel(self, watch_id: int) -> None:
        watcher = self.watchers.get(watch_id)
        if watcher is not None:
            self._hub.cancel(watcher)

    def _refuse(self, reason: str) -> None:
        hub = self._hub
        tag = watch_encode.tag(_NO_ID)
        self.post(hub.head(hub.revision) + tag + watch_encode.refused(reason))
