"""grpc.health.v1: the whole member is one service, the empty name."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from kvstore.pb import health_pb2
from kvstore.server.errors import Code
from kvstore.server.services.base import Routes, ServiceCall, parse

SERVING = health_pb2.HealthCheckResponse(
    status=health_pb2.HealthCheckResponse.SERVING
).SerializeToString()
UNKNOWN_SERVICE = health_pb2.HealthCheckResponse(
    status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
).SerializeToString()


class HealthService:
    """Check and Watch. A member that answers at all serves; what it lacks, /readyz tells."""

    def register(self, server: Routes) -> None:
        """Serve the methods."""
        server.unary("/grpc.health.v1.Health/Check", self._check)
        server.stream("/grpc.health.v1.Health/Watch", HealthWatch)

    @staticmethod
    def _check(call: ServiceCall, data: bytes) -> None:
        request = parse(call, health_pb2.HealthCheckRequest.FromString, data)
        if request is None:
            return
        if request.service:
            call.fail(Code.NOT_FOUND, "unknown service")
        else:
            call.reply(SERVING)


class HealthWatch:
    """One Watch stream: the state once, then open until either side ends."""

    __slots__ = ("_call",)

    def __init__(self, call: ServiceCall) -> None:
        """Wait for the request."""
        self._call = call

    def message(self, data: bytes) -> None:
        """Answer with the state."""
        try:
            request = health_pb2.HealthCheckRequest.FromString(data)
        except DecodeError as error:
            self._call.fail(Code.INTERNAL, f"grpc: error unmarshalling request: {error}")
            return
        self._call.send(UNKNOWN_SERVICE if request.service else SERVING)

    def half_closed(self) -> None:
        """The client only listens from here on."""

    def cancelled(self) -> None:
        """Nothing is kept."""

    def writable(self) -> None:
        """One message never fills a stream."""
