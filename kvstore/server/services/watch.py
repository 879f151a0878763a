"""etcdserverpb.Watch: one RPC stream to one watch stream; the rules are in `kvstore.mvcc.watch`."""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.message import DecodeError

from kvstore.mvcc.watch import WatchHub
from kvstore.mvcc.watch_stream import WatchStream
from kvstore.pb import rpc_pb2
from kvstore.server.errors import Code
from kvstore.server.services.base import Routes, ServiceCall


class WatchService:
    """The Watch method of one member."""

    def __init__(
        self,
        hub: WatchHub,
        has_leader: Callable[[], bool],
        later: Callable[[Callable[[], None]], object],
    ) -> None:
        """Join the parts.

        Args:
            hub: Matches changes to watchers.
            has_leader: Tells whether this member follows or is a leader.
            later: `loop.call_soon`.
        """
        # In order, as a set is not: a simulated run is to be a function of its seed.
        self.streams: dict[WatchCall, None] = {}
        self.hub = hub
        self._has_leader = has_leader
        self._later = later
        self._catching_up = False

    def register(self, server: Routes) -> None:
        """Serve the method."""
        server.stream("/etcdserverpb.Watch/Watch", self._open)

    def _open(self, call: ServiceCall) -> WatchCall:
        watch = WatchCall(self, call)
        self.streams[watch] = None
        if watch.needs_leader and not self._has_leader():
            watch.end(Code.UNAVAILABLE, "etcdserver: no leader")
        return watch

    def poke(self) -> None:
        """Serve watchers that are behind, a slice a turn, until none is."""
        if self.hub.has_work and not self._catching_up:
            self._catching_up = True
            self._later(self._catch_up)

    def _catch_up(self) -> None:
        self._catching_up = False
        if self.hub.catch_up():
            self.poke()

    def lost_leader(self) -> None:
        """No leader for three election timeouts: end the streams that asked for one."""
        for watch in [watch for watch in self.streams if watch.needs_leader]:
            watch.end(Code.UNAVAILABLE, "etcdserver: no leader")


class WatchCall:
    """The handler of one Watch stream."""

    __slots__ = ("_call", "_service", "_stream", "needs_leader")

    def __init__(self, service: WatchService, call: ServiceCall) -> None:
        """Open a watch stream that sends on `call`."""
        self._service = service
        self._call = call
        self._stream: WatchStream | None = service.hub.open(call.send, call.send_all)
        self.needs_leader = call.metadata(b"hasleader") == b"true"

    def message(self, data: bytes) -> None:
        """Take a create, cancel or progress request."""
        if self._stream is None:
            return
        try:
            request = rpc_pb2.WatchRequest.FromString(data)
        except DecodeError as error:
            self.end(Code.INTERNAL, f"grpc: error unmarshalling request: {error}")
            return
        self._stream.request(request)
        self._service.poke()

    def half_closed(self) -> None:
        """The client asks for nothing more; it still gets its events, as from etcd."""

    def cancelled(self) -> None:
        """The client is gone."""
        self._close()

    def writable(self) -> None:
        """Go on where a slow reader was left."""
        if self._stream is not None:
            self._stream.writable()
            self._service.poke()

    def end(self, code: int, text: str) -> None:
        """End the stream with an error."""
        self._close()
        self._call.fail(int(code), text)

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        self._service.streams.pop(self, None)
