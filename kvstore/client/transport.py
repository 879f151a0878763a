"""Channels to the endpoints, and the rules for when a call moves on to another; knows no KV terms.

The rules, in one place:

* A call goes to the preferred endpoint; a failure there makes the next one preferred.
* It is repeated, within its deadline, when it certainly was not applied: no connection was there
  to send it on, the member refused it for want of a leader, it asked for a fresh token, or it is a
  learner and there are other endpoints.
* A call that changes nothing is also repeated after any other loss of its answer.
* Every other failure is raised at once; of a write without an answer the outcome is unknown.

Calls and streams travel in a session (`session`) where the server offers one, and else, or when
told so, as gRPC calls of their own. The rules and the errors are the same.
"""

from __future__ import annotations

import asyncio
import random
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from google.protobuf.message import DecodeError, Message

from kvstore.client.counters import Counters
from kvstore.client.endpoint import Endpoint, Secure, Tls
from kvstore.client.errors import (
    LEARNER_TEXT,
    RETRY_WITH_NEW_TOKEN,
    AvailabilityError,
    ClosedError,
    KvError,
    NoLeaderError,
    OutcomeUnknownError,
    PipelineStoppedError,
    PreconditionError,
    ReadFailedError,
    RequestError,
    UnreachableError,
    UnsupportedError,
    WrongLoopError,
    error_from,
    error_from_rpc,
)
from kvstore.client.link import Link
from kvstore.client.methods import AUTHENTICATE, PUT, Method
from kvstore.client.session import Session
from kvstore.client.status import EOF, CallError, ChannelClosedError
from kvstore.client.timeouts import checked_s, positive_s
from kvstore.pb import session_pb2

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from kvstore.pb.rpc_pb2 import PutResponse

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
Result = TypeVar("Result")

PipelineCall: TypeAlias = tuple[Method[Any, Any], Message, bool]
Sent: TypeAlias = "tuple[asyncio.Future[Any], Session, int, Link, str | None, float]"
"""A put that was sent: its answer to come, session and id, link, token, end of its time."""
Mode = Literal["auto", "session", "unary"]

CONNECT_TIMEOUT_S = 2.0
# One endpoint may cost a call this much before the next is tried: a host that drops packets.
_BACKOFF_FIRST_S = 0.025
_BACKOFF_MAX_S = 0.5
_TOKEN_TRIES_MAX = 3
_LAST_EVENTS_S = 0.005
_GROUP_CALLS_MAX = 1024
_GROUP_BYTES_MAX = 1 << 20
# What one entry of the log holds: a longer group would be cut there.
PIPELINE_STOPPED_TEXT = "kvstore: not applied: an operation before it in the pipeline failed"

_PUT_PATH = PUT.path
_NOT_APPLIED = (NoLeaderError, UnreachableError, PipelineStoppedError, ReadFailedError)
_REQUIRE_LEADER = (("hasleader", "true"),)
# A member cut off from its leader refuses at once instead of after etcd's 7 s, with a refusal that
# says "not applied". Without this, failover from a partitioned member would be a timeout.


def parse_answer(
    method: Method[Request, Response], answer: bytes, *, write: bool
) -> Response | KvError:
    """Return the response; an answer that is none is what gRPC makes of it, an INTERNAL error."""
    try:
        return method.response.FromString(answer)
    except DecodeError as error:
        name = method.response.DESCRIPTOR.full_name
        return error_from("INTERNAL", f"the answer is no {name}: {error}", write=write)


class Transport:
    """All endpoints of one cluster, and one identity."""

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        user: str | None,
        password: str | None,
        tls: Tls | None,
        timeout_s: float,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        mode: Mode = "auto",
    ) -> None:
        if mode not in {"auto", "session", "unary"}:
            raise ValueError(f'transport must be "auto", "session" or "unary", not {mode!r}')
        if isinstance(endpoints, str) or not endpoints:
            raise ValueError("endpoints must be a list with at least one host:port")
        self._tls = tls
        self._mode = mode
        self._secure: Secure | None = None
        self.links = [self._link(self._parse(text)) for text in endpoints]
        self._others: dict[Endpoint, Link] = {}
        self.timeout_s = positive_s("timeout_s", timeout_s)
        self._connect_timeout_s = positive_s("connect_timeout_s", connect_timeout_s)
        self._preferred = 0
        self._user = user
        self._password = password or ""
        self._token: str | None = None
        self._is_login_due = user is not None
        self._login_lock = asyncio.Lock()
        self._metadata: tuple[tuple[str, str], ...] = _REQUIRE_LEADER
        self._has_streamed = False
        self.is_closed = False
        self.counters = Counters()
        self._closed_because = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0

    def enter(self) -> asyncio.AbstractEventLoop:
        """Return the running loop, which is the client's from the first use on.

        Raises ClosedError, or WrongLoopError on another loop: what lives on the first one would
        never wake a task of this one.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop or self.is_closed:
            if self.is_closed:
                raise ClosedError(f"the client is closed{self._closed_because}")
            self.check_loop()
            self._loop = loop
            self._loop_thread = get_ident()
        return loop

    def check_loop(self) -> None:
        """Raise WrongLoopError on another loop than the client's; a closed client is no error."""
        if self._loop is not None and asyncio.get_running_loop() is not self._loop:
            raise WrongLoopError("the client was first used on another event loop")

    def limit_s(self, timeout_s: float | None) -> float:
        """Return how long a call may take. Raises UnreachableError when there is no time."""
        if timeout_s is None:
            return self.timeout_s
        if checked_s("timeout_s", timeout_s) <= 0:
            raise UnreachableError(f"timeout_s is {timeout_s:g}: no time left to send")
        return timeout_s

    def _parse(self, text: str) -> Endpoint:
        return Endpoint.parse(text, secure_default=self._tls is not None)

    def _link(self, endpoint: Endpoint) -> Link:
        if endpoint.secure and self._secure is None:
            # Once, before anything is sent: a file that is replaced while a program runs must not
            # fail the first call to the member that takes over.
            self._secure = (self._tls or Tls()).read()
        return Link(endpoint, self._secure, self.turn_from)

    def link(self) -> Link:
        """Return the preferred endpoint's link."""
        return self.links[self._preferred]

    def link_to(self, endpoint: str) -> Link:
        """Return the link to one endpoint, which need not be among the client's own."""
        wanted = self._parse(endpoint)
        for link in self.links:
            if link.endpoint == wanted:
                return link
        if wanted not in self._others:
            self._others[wanted] = self._link(wanted)
        return self._others[wanted]

    def turn_from(self, link: Link) -> None:
        """Prefer the endpoint after this one, unless another caller has moved on already."""
        link.is_ready = False
        if self.links[self._preferred] is link:
            self._preferred = (self._preferred + 1) % len(self.links)
            self.counters.failovers += len(self.links) > 1

    def is_refused_by_learner(self, failure: KvError) -> bool:
        """Tell whether a learner refused what another endpoint may serve (etcd #12641)."""
        return failure.text == LEARNER_TEXT and len(self.links) > 1

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
        """Make one unary call, following the rules at the top of this module.

        Args:
            method: What to call.
            request: Its message.
            write: Whether the call can change something; it is then never repeated once its
                outcome is open.
            timeout_s: Seconds for the whole call, retries included; None is the client's.
            endpoint: Ask this endpoint and no other.
            require_leader: Let a member without a leader refuse at once. False for what a member
                answers alone.
        """
        loop = self.enter()
        limit_s = self.timeout_s if timeout_s is None else self.limit_s(timeout_s)
        self.counters.calls[method.path] += 1
        flags = session_pb2.NO_FLAG if require_leader else session_pb2.ANY_MEMBER
        if endpoint is None and not self._is_login_due:
            # The way of nearly every call: a session stands. Everything else is in `_repeat`.
            link = self.links[self._preferred]
            session = link.session
            if session is not None and link.is_ready and method.path in session.methods:
                payload = request.SerializeToString()
                if len(payload) <= session.payload_bytes_max:
                    token = self._token
                    deadline_s = session.time_s() + limit_s
                    try:
                        return await self._in_session(
                            session, method, payload, write, flags, deadline_s, limit_s
                        )
                    except KvError as failure:
                        first = (link, token, failure)
                    attempt = partial(self._attempt, method, request, write, flags)
                    return await self._repeat(attempt, deadline_s, first=first)
        attempt = partial(self._attempt, method, request, write, flags)
        return await self._repeat(attempt, loop.time() + limit_s, endpoint)

    def begin_put(self, payload: bytes) -> Sent | None:
        """Send a plain put in the session that stands; None when `call` has to find its way."""
        link = self.links[self._preferred]
        session = link.session
        loop = self._loop
        if (
            session is None
            or loop is None
            or not (link.is_ready and session.takes_puts)
            or self._is_login_due
            or self.is_closed
            # As asking for the running loop, which is a system call each time in Python 3.11.
            or self._loop_thread != get_ident()
            or not loop.is_running()
            or len(payload) > session.payload_bytes_max
        ):
            return None
        self.counters.calls[_PUT_PATH] += 1
        deadline_s = session.time_s() + self.timeout_s
        future = session.submit_put(payload, deadline_s, self.timeout_s)
        return future, session, session.last_id, link, self._token, deadline_s

    async def end_put(self, sent: Sent, answer: Any, payload: bytes) -> PutResponse:
        """Return the response to a put whose answer was more than a revision, as `call` would."""
        _, _, _, link, token, deadline_s = sent
        if answer.__class__ is bytes:
            parsed = parse_answer(PUT, answer, write=True)
            if not isinstance(parsed, KvError):
                return parsed
            failure = parsed
        else:
            failure = self._unless_closed(answer.error(write=True), write=True)
        request = PUT.request.FromString(payload)
        attempt = partial(self._attempt, PUT, request, True, session_pb2.NO_FLAG)
        return await self._repeat(attempt, deadline_s, first=(link, token, failure))

    async def _repeat(
        self,
        attempt: Callable[[Link, float], Awaitable[Result]],
        deadline_s: float,
        endpoint: str | None = None,
        first: tuple[Link, str | None, KvError] | None = None,
    ) -> Result:
        """Attempt until it succeeds or the rules forbid it; `first` is how one has failed."""
        loop = asyncio.get_running_loop()
        own_link = None if endpoint is None else self.link_to(endpoint)
        attempts = 0
        token_tries = 0
        failure: KvError
        before: KvError | None = None
        said: dict[str, KvError] = {}
        while True:
            if first is not None:
                (link, token, failure), first = first, None
            else:
                link = own_link or self.links[self._preferred]
                token = self._token
                try:
                    await self._make_ready(link, deadline_s, may_open=own_link is None)
                    token = self._token
                    left_s = deadline_s - loop.time()
                    if left_s <= 0:
                        raise UnreachableError(f"{link.endpoint.target}: no time left to send")
                    return await attempt(link, left_s)
                except KvError as error:
                    # Cut short by the deadline, it says less than the attempt before it did.
                    is_cut = isinstance(error, UnreachableError) and loop.time() >= deadline_s
                    failure = before if is_cut and before is not None else error

            if failure is not before:
                said[link.endpoint.target] = failure
            before = failure
            if failure.text in RETRY_WITH_NEW_TOKEN and self._user is not None:
                token_tries += 1
                if token_tries >= _TOKEN_TRIES_MAX:
                    raise self._counted(failure)
                if token == self._token:
                    self._is_login_due = True
                continue
            goes_elsewhere = own_link is None and self.is_refused_by_learner(failure)
            if isinstance(failure, AvailabilityError) or goes_elsewhere:
                if own_link is None:
                    self.turn_from(link)
                else:
                    link.is_ready = False
            if not goes_elsewhere and not isinstance(
                failure, (NoLeaderError, UnreachableError, ReadFailedError)
            ):
                raise self._counted(failure)
            attempts += 1
            pause_s = self._pause_s(attempts, 1 if own_link else len(self.links))
            if loop.time() + pause_s >= deadline_s:
                failure.others = tuple(
                    f"{target}: {other.text.removeprefix(f'{target}: ')}"
                    for target, other in said.items()
                    if other is not failure
                )
                raise self._counted(failure)
            self.counters.retries += 1
            await asyncio.sleep(pause_s)

    def _counted(self, failure: KvError) -> KvError:
        self.counters.failures[type(failure).__name__] += 1
        return failure

    async def pipeline(
        self, calls: Sequence[PipelineCall], timeout_s: float | None = None
    ) -> list[Message | KvError]:
        """Make calls that take effect in their order; return each one's answer or error.

        In a session a group of them is one item. Without sessions they are made one by one.
        """
        deadline_s = self.enter().time() + self.limit_s(timeout_s)
        self.counters.pipelined += len(calls)
        answers: list[Message | KvError] = []
        while len(answers) < len(calls):
            rest = calls[len(answers) :]
            try:
                ended = await self._repeat(partial(self._group, rest), deadline_s)
            except KvError as error:
                ended = [error]
            answers += ended
            # Of a group, whatever is not wrong by itself stops what is behind it.
            if any(isinstance(each, KvError) and not is_final(each) for each in ended):
                break
        stopped = PipelineStoppedError(PIPELINE_STOPPED_TEXT, grpc_code="ABORTED")
        return answers + [stopped] * (len(calls) - len(answers))

    async def _group(
        self, calls: Sequence[PipelineCall], link: Link, left_s: float
    ) -> list[Message | KvError]:
        """Make as many of the calls as one item holds; raises when none of them was applied."""
        session = link.session
        group = [] if session is None else _first_group(calls, session)
        if session is None or not group:
            method, request, write = calls[0]
            flags = session_pb2.NO_FLAG
            return [await self._attempt(method, request, write, flags, link, left_s)]
        deadline_s = session.time_s() + left_s
        futures = session.submit_pipeline(group, deadline_s, left_s)
        first_id = session.last_id - len(group) + 1
        answers: list[Message | KvError] = []
        try:
            for future, (method, _, write) in zip(futures, calls, strict=False):
                answer = await future
                if isinstance(answer, bytes):
                    answers.append(parse_answer(method, answer, write=write))
                else:
                    answers.append(self._unless_closed(answer.error(write=write), write=write))
        except asyncio.CancelledError:
            for call_id in range(first_id, session.last_id + 1):
                session.cancel(call_id)
            raise
        if all(
            isinstance(answer, KvError)
            and (
                isinstance(answer, _NOT_APPLIED)
                or is_stale(answer)
                or self.is_refused_by_learner(answer)
            )
            for answer in answers
        ):
            # Nothing of it took effect, so all of it may be repeated without changing the order.
            assert isinstance(answers[0], KvError)
            raise answers[0]
        return answers

    async def _make_ready(self, link: Link, deadline_s: float, *, may_open: bool) -> None:
        """Connect, log in, and open the session, as far as that is still to be done."""
        loop = asyncio.get_running_loop()
        if self.is_closed:
            raise ClosedError(f"the client is closed{self._closed_because}")
        if not link.is_ready:
            left_s = deadline_s - loop.time()
            await link.connect(min(max(left_s, 0.0), self._connect_timeout_s))
        if self._is_login_due:
            await self._login(link, deadline_s - loop.time())
        if link.session is None and self._mode != "unary" and (may_open or self._mode != "auto"):
            await self._open_session(link, deadline_s - loop.time())

    async def _open_session(self, link: Link, left_s: float) -> None:
        if link.is_without_sessions and self._mode == "auto":
            return
        self._has_streamed = True
        try:
            await link.open_session(self._metadata, min(max(left_s, 0.0), self._connect_timeout_s))
        except UnsupportedError:
            if self._mode == "session":
                raise

    async def _in_session(
        self,
        session: Session,
        method: Method[Any, Response],
        payload: bytes,
        write: bool,
        flags: int,
        deadline_s: float,
        left_s: float,
    ) -> Response:
        number = session.methods[method.path]
        future = session.submit(number, payload, deadline_s, left_s, flags)
        call_id = session.last_id
        try:
            answer = await future
        except asyncio.CancelledError:
            session.cancel(call_id)
            raise
        if answer.__class__ is bytes:
            parsed = parse_answer(method, answer, write=write)
            if isinstance(parsed, KvError):
                raise parsed
            return parsed
        raise self._unless_closed(answer.error(write=write), write=write)

    async def _attempt(
        self,
        method: Method[Request, Response],
        request: Request,
        write: bool,
        flags: int,
        link: Link,
        left_s: float,
    ) -> Response:
        """Make a call once, in the session if there is one that can take it."""
        session = link.session
        if session is not None and method.path in session.methods:
            payload = request.SerializeToString()
            if len(payload) <= session.payload_bytes_max:
                deadline_s = session.time_s() + left_s
                return await self._in_session(
                    session, method, payload, write, flags, deadline_s, left_s
                )
        try:
            metadata = self._metadata[1:] if flags & session_pb2.ANY_MEMBER else self._metadata
            response: Response = await link.unary(method)(
                request, timeout_s=left_s, metadata=metadata
            )
            return response
        except CallError as error:
            raise error_from_rpc(error, write=write) from error
        except (ChannelClosedError, asyncio.CancelledError):
            # gRPC cancels what is under way when a channel closes; a cancel of the caller's
            # own task is not ours to turn into an error.
            task = asyncio.current_task()
            if not self.is_closed or (task is not None and task.cancelling()):
                raise
            raise self._unless_closed(ClosedError(""), write=write) from None

    def _unless_closed(self, failure: KvError, *, write: bool) -> KvError:
        """Return what a call ended with; once the client is closed, that that was the reason."""
        if not self.is_closed:
            return failure
        closed = f"the client was closed before the answer came{self._closed_because}"
        return OutcomeUnknownError(closed) if write else ClosedError(closed)

    @staticmethod
    def _pause_s(attempts: int, endpoint_count: int) -> float:
        """Wait nothing while some endpoint is untried, then twice as long after every round."""
        rounds, rest = divmod(attempts, endpoint_count)
        if rest:
            return 0.0
        # Jitter, so that the clients of a restarted cluster do not return in step.
        return min(_BACKOFF_FIRST_S * 2.0**rounds, _BACKOFF_MAX_S) * random.uniform(0.5, 1.0)  # noqa: S311

    async def _login(self, link: Link, timeout_s: float) -> None:
        async with self._login_lock:
            if not self._is_login_due:
                return
            request = AUTHENTICATE.request(name=self._user or "", password=self._password)
            try:
                response = await link.unary(AUTHENTICATE)(request, timeout_s=max(timeout_s, 0.0))
            except CallError as error:
                failure = error_from_rpc(error, write=False)
                if isinstance(failure, ReadFailedError):
                    # The caller's own request has not been sent yet.
                    raise UnreachableError(
                        f"login at {link.endpoint.target}: {failure.text}"
                    ) from error
                # A name given to a cluster that asks for none is no error, as in etcd's client.
                if not isinstance(failure, PreconditionError):
                    raise failure from error
                self._token = None
                self._metadata = _REQUIRE_LEADER
            else:
                self._token = response.token
                self._metadata = (*_REQUIRE_LEADER, ("token", response.token))
                for each in (*self.links, *self._others.values()):
                    if each.session is not None:
                        each.session.set_metadata({"token": response.token})
            self._is_login_due = False
            self.counters.logins += 1

    async def open_stream(self, method: Method[Any, Any]) -> tuple[Link, Any]:
        """Open a stream to the preferred endpoint.

        Raises UnreachableError after having turned to the next endpoint, and what the login raises.
        """
        deadline_s = self.enter().time() + self.timeout_s
        link = self.link()
        try:
            await self._make_ready(link, deadline_s, may_open=True)
        except AvailabilityError:
            self.turn_from(link)
            raise
        self._has_streamed = True
        session = link.session
        if session is not None and method.path in session.methods:
            return link, session.open_stream(method)
        return link, link.stream(method, self._metadata)

    async def use_endpoints(self, endpoints: Sequence[str]) -> None:
        """Replace the endpoints; the preferred one stays so if it is among them.

        Links to others stay open for what is under way on them, until the client closes.
        """
        preferred = self.link()
        links = [self.link_to(text) for text in endpoints]
        if not links:
            raise ValueError("endpoints must be a list with at least one host:port")
        for link in self.links:
            if link not in links:
                self._others[link.endpoint] = link
        for link in links:
            self._others.pop(link.endpoint, None)
        self.links[:] = links
        self._preferred = links.index(preferred) if preferred in links else 0

    def lose_address(self, address: str) -> int:
        """As `Carrier.lose_address`."""
        self.enter()
        links = (*self.links, *self._others.values())
        return sum(link.lose_address(address) for link in links)

    def forget_token(self) -> None:
        """Log in again before the next call."""
        self._is_login_due = self._user is not None

    async def close(self, because: str = "") -> None:
        """Close all channels; calls under way fail, and they and later ones say why."""
        if self.is_closed:
            return
        self.enter()
        self._closed_because = f": {because}" if because else ""
        self.is_closed = True
        for link in (*self.links, *self._others.values()):
            await link.close()
        if self._has_streamed:
            # The last event of a cancelled stream comes from gRPC's own thread, and nothing tells
            # when. Should the loop be closed by then, gRPC logs an error from the next loop.
            await asyncio.sleep(_LAST_EVENTS_S)


def is_final(error: KvError) -> bool:
    """Tell whether an operation of a pipeline was refused for itself, and others may follow."""
    return isinstance(error, RequestError) and not is_stale(error)


def is_stale(answer: object) -> bool:
    """Tell whether a call was refused for its token."""
    return isinstance(answer, KvError) and answer.text in RETRY_WITH_NEW_TOKEN


def _first_group(calls: Sequence[PipelineCall], session: Session) -> list[tuple[int, bytes]]:
    """Encode what fits one item; nothing when the first call cannot travel in a session."""
    group: list[tuple[int, bytes]] = []
    size_bytes = 0
    for method, request, _ in calls[:_GROUP_CALLS_MAX]:
        number = session.methods.get(method.path)
        payload = request.SerializeToString()
        size_bytes += len(payload)
        if (
            number is None
            or len(payload) > session.payload_bytes_max
            or (group and size_bytes > min(_GROUP_BYTES_MAX, session.payload_bytes_max))
        ):
            break
        group.append((number, payload))
    return group


async def read(stream: Any) -> Any:
    """Return the next message of a stream; a server that just ends it has failed too."""
    response = await stream.read()
    if response is EOF:
        raise ReadFailedError("the server ended the stream")
    return response
