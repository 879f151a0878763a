"""OpenTelemetry spans around calls, for who passes a tracer provider; imports no SDK.

Each call is one span with the attributes of RPC semantic conventions. A watch or keep-alive stream
has no span: it has no end to wait for. Without a provider this module is not in the way of a call.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

from google.protobuf.message import Message

from kvstore.client.carrier import Carrier, View
from kvstore.client.errors import KvError
from kvstore.client.status import NAMES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kvstore.client.methods import Method
    from kvstore.client.transport import PipelineCall

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

SCOPE: Final = "kvstore.client"
_CODES: dict[str, int] = {name: code for code, name in enumerate(NAMES)}


class Traced(View):
    """A transport that makes a span of every call."""

    def __init__(self, carrier: Carrier, tracer_provider: Any) -> None:
        """Get a tracer; raises ImportError where the package opentelemetry-api is missing."""
        # Here, so that only those who trace need the package.
        from opentelemetry import trace  # noqa: PLC0415

        super().__init__(carrier)
        self._tracer: Any = tracer_provider.get_tracer(SCOPE)
        self._kind = trace.SpanKind.CLIENT
        self._error = trace.StatusCode.ERROR

    @contextmanager
    def _span(self, service: str, name: str, **attributes: Any) -> Iterator[Any]:
        server = self.link().endpoint.target
        with self._tracer.start_as_current_span(
            f"{service}/{name}",
            kind=self._kind,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": name,
                "server.address": server.rpartition(":")[0],
                "server.port": int(server.rpartition(":")[2]),
                **attributes,
            },
            set_status_on_exception=False,
        ) as span:
            try:
                yield span
            except KvError as error:
                if error.grpc_code:
                    span.set_attribute("rpc.grpc.status_code", _CODES[error.grpc_code])
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(self._error, error.text)
                raise
            else:
                span.set_attribute("rpc.grpc.status_code", 0)

    async def call(
        self,
        method: Method[Request, Response],
        request: Request,
        *,
        write: bool,
        timeout_s: float | None = None,
        endpoint: str | None = None,
        require_leader: bool = True,
    ) -> Response:
        """As `Carrier.call`."""
        _, service, name = method.path.split("/")
        with self._span(service, name):
            return await super().call(
                method,
                request,
                write=write,
                timeout_s=timeout_s,
                endpoint=endpoint,
                require_leader=require_leader,
            )

    async def pipeline(
        self, calls: Sequence[PipelineCall], timeout_s: float | None = None
    ) -> list[Message | KvError]:
        """As `Carrier.pipeline`."""
        with self._span(
            "kvstore.Session", "Pipeline", **{"kvstore.operations": len(calls)}
        ) as span:
            answers = await super().pipeline(calls, timeout_s)
            failed = sum(isinstance(answer, KvError) for answer in answers)
            if failed:
                span.set_status(self._error, f"{failed} of {len(calls)} operations failed")
            return answers
