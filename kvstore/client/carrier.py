"""What the client's parts need of a transport, and a view that passes it on; sends nothing itself.

`transport.Transport` is the one that carries calls. Views in front of it see every call and change
what they are for: `namespace` the keys, `telemetry` nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from google.protobuf.message import Message

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Sequence

    from kvstore.client.counters import Counters
    from kvstore.client.errors import KvError
    from kvstore.client.link import Link
    from kvstore.client.methods import Method
    from kvstore.client.transport import PipelineCall, Sent
    from kvstore.pb.rpc_pb2 import PutResponse

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


class Carrier(Protocol):
    """Carries calls to whichever endpoint serves. Each method is explained in `Transport`."""

    @property
    def links(self) -> list[Link]:
        """The endpoints' links, in the order given."""

    def link(self) -> Link:
        """Return the preferred endpoint's link."""

    @property
    def counters(self) -> Counters:
        """What has been counted so far."""

    @property
    def timeout_s(self) -> float:
        """Seconds a call may take where it does not say itself."""

    @property
    def is_closed(self) -> bool:
        """Whether `close` has been called."""

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
        """Make one unary call."""

    def begin_put(self, payload: bytes) -> Sent | None:
        """Send a plain put in the session that stands; None when `call` has to find its way."""

    async def end_put(self, sent: Sent, answer: Any, payload: bytes) -> PutResponse:
        """Return the response to a put whose answer was more than a revision, as `call` would."""

    async def pipeline(
        self, calls: Sequence[PipelineCall], timeout_s: float | None = None
    ) -> list[Message | KvError]:
        """Make calls that take effect in their order."""

    async def open_stream(self, method: Method[Any, Any]) -> tuple[Link, Any]:
        """Open a stream to the preferred endpoint."""

    def turn_from(self, link: Link) -> None:
        """Prefer the endpoint after this one."""

    def forget_token(self) -> None:
        """Log in again before the next call."""

    async def use_endpoints(self, endpoints: Sequence[str]) -> None:
        """Replace the endpoints."""

    def lose_address(self, address: str) -> int:
        """Give up the connections that come from there; return how many."""

    async def close(self, because: str = "") -> None:
        """Close all channels."""

    def enter(self) -> AbstractEventLoop:
        """Return the running loop, which is the client's from the first use on."""

    def check_loop(self) -> None:
        """Raise WrongLoopError on another loop than the client's."""

    def limit_s(self, timeout_s: float | None) -> float:
        """Return how long a call may take."""

    def is_refused_by_learner(self, failure: KvError) -> bool:
        """Tell whether a learner refused what another endpoint may serve."""


class View:
    """A carrier that passes everything on; the base of those that change or see something."""

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier

    @property
    def links(self) -> list[Link]:
        """As `Carrier.links`."""
        return self._carrier.links

    def link(self) -> Link:
        """As `Carrier.link`."""
        return self._carrier.link()

    @property
    def counters(self) -> Counters:
        """As `Carrier.counters`."""
        return self._carrier.counters

    @property
    def timeout_s(self) -> float:
        """As `Carrier.timeout_s`."""
        return self._carrier.timeout_s

    @property
    def is_closed(self) -> bool:
        """As `Carrier.is_closed`."""
        return self._carrier.is_closed

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
        return await self._carrier.call(
            method,
            request,
            write=write,
            timeout_s=timeout_s,
            endpoint=endpoint,
            require_leader=require_leader,
        )

    def begin_put(self, payload: bytes) -> Sent | None:
        """Let it go by `call`, where views see and change what they are for."""
        return None

    async def end_put(self, sent: Sent, answer: Any, payload: bytes) -> PutResponse:
        """As `Carrier.end_put`."""
        return await self._carrier.end_put(sent, answer, payload)

    async def pipeline(
        self, calls: Sequence[PipelineCall], timeout_s: float | None = None
    ) -> list[Message | KvError]:
        """As `Carrier.pipeline`."""
        return await self._carrier.pipeline(calls, timeout_s)

    async def open_stream(self, method: Method[Any, Any]) -> tuple[Link, Any]:
        """As `Carrier.open_stream`."""
        return await self._carrier.open_stream(method)

    def turn_from(self, link: Link) -> None:
        """As `Carrier.turn_from`."""
        self._carrier.turn_from(link)

    def forget_token(self) -> None:
        """As `Carrier.forget_token`."""
        self._carrier.forget_token()

    async def use_endpoints(self, endpoints: Sequence[str]) -> None:
        """As `Carrier.use_endpoints`."""
        await self._carrier.use_endpoints(endpoints)

    def lose_address(self, address: str) -> int:
        """As `Carrier.lose_address`."""
        return self._carrier.lose_address(address)

    async def close(self, because: str = "") -> None:
        """As `Carrier.close`."""
        await self._carrier.close(because)

    def enter(self) -> AbstractEventLoop:
        """As `Carrier.enter`."""
        return self._carrier.enter()

    def check_loop(self) -> None:
        """As `Carrier.check_loop`."""
        self._carrier.check_loop()

    def limit_s(self, timeout_s: float | None) -> float:
        """As `Carrier.limit_s`."""
        return self._carrier.limit_s(timeout_s)

    def is_refused_by_learner(self, failure: KvError) -> bool:
        """As `Carrier.is_refused_by_learner`."""
        return self._carrier.is_refused_by_learner(failure)
