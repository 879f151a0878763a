"""grpc.health.v1: the whole member is one service, the empty name."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from kvstore.pb import health_pb2
from kvstore.server.errors import Code
from kvstore.server.services.base import Routes, ServiceCall, parse

_Response = health_pb2.HealthCheckResponse
SERVING = _Response(status=_Response.SERVING).SerializeToString()
NOT_SERVING = _Response(status=_Response.NOT_SERVING).SerializeToString()
UNKNOWN_SERVICE = _Response(status=_Response.SERVICE_UNKNOWN).SerializeToString()


class HealthService:
    """Check and Watch. A member serves until it is told to stop.

    As in etcd, a lost leader changes nothing: serializable reads are served. What a member lacks,
    /readyz tells.
    """

    def __init__(self) -> None:
        """Serve from the start: clients come only when the member is ready."""
        self.state = SERVING
        self.watches: dict[HealthWatch, None] = {}
        """Those that were told the state and wait for the next."""

    def register(self, server: Routes) -> None:
        """Serve the methods."""
        server.unary("/grpc.health.v1.Health/Check", self._check)
        server.stream("/grpc.health.v1.Health/Watch", self._watch)

    def drain(self) -> None:
        """Tell that the member is about to stop, so that clients go elsewhere before it has."""
        self.state = NOT_SERVING
        for watch in self.watches:
            watch.tell(self.state)

    def _check(self, call: ServiceCall, data: bytes) -> None:
        request = parse(call, health_pb2.HealthCheckRequest.FromString, data)
        if request is None:
            return
        if request.service:
            call.fail(Code.NOT_FOUND, "unknown service")
        else:
            call.reply(self.state)

    def _watch(self, call: ServiceCall) -> HealthWatch:
        return HealthWatch(self, call)


class HealthWatch:
    """One Watch stream: the state now and at each change, until either side ends it."""

    __slots__ = ("_call", "_service")

    def __init__(self, service: HealthService, call: ServiceCall) -> None:
        """Wait for the request."""
        self._service = service
        self._call = call

    def message(self, data: bytes) -> None:
        """Answer with the state."""
        try:
            request = health_pb2.HealthCheckRequest.FromString(data)
        except DecodeError as error:
            self._call.fail(Code.INTERNAL, f"grpc: error unmarshalling request: {error}")
            return
        if request.service:
            self.tell(UNKNOWN_SERVICE)
        else:
            self._service.watches[self] = None
            self.tell(self._service.state)

    def tell(self, state: bytes) -> None:
        """Send a state."""
        self._call.send(state)

    def half_closed(self) -> None:
        """The client only listens from here on."""

    def cancelled(self) -> None:
        """The client is gone."""
        self._service.watches.pop(self, None)

    def writable(self) -> None:
        """A few messages never fill a stream."""
