"""Watching keys: one stream per watcher, resumed on another endpoint without gap or repeat.

What makes the resumption exact: the watcher knows the first revision it has not handed on. A new
stream starts there, and whatever a server sends from before it is dropped.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import deque
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, Self

from kvstore.client.errors import (
    RETRY_WITH_NEW_TOKEN,
    AvailabilityError,
    ClosedError,
    CompactedError,
    KvError,
    ReadFailedError,
    UnreachableError,
    error_from,
    error_from_rpc,
)
from kvstore.client.methods import WATCH
from kvstore.client.status import CallError
from kvstore.client.timeouts import checked_s
from kvstore.client.transport import read
from kvstore.client.types import Event, WatchBatch, key_value
from kvstore.pb import kv_pb2
from kvstore.pb import rpc_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from kvstore.client.carrier import Carrier
    from kvstore.client.link import Link

_TOKEN_TRIES_MAX = 3
_BACKOFF_FIRST_S = 0.05
_BACKOFF_MAX_S = 1.0
_MANUAL_PROGRESS_ID: Final = -1
_BREAKS = (CallError, asyncio.InvalidStateError, ReadFailedError)
# How a stream ends that is not cancelled here.
_GO_STATUS = re.compile(r"rpc error: code = (\w+) desc = (.*)", re.DOTALL)


class Watcher:
    """An asynchronous iterator over the changes of some keys. Made by `AsyncClient.watch`.

    Use it in `async with`, which returns once the server has registered the watch; or iterate
    right away and `aclose()` it afterwards. Iteration ends only when the watcher is closed here or
    by an error: `CompactedError` (the revisions to resume from are gone), another `RequestError`
    (no permission ...) or, after `resume_timeout_s` without a server, an `AvailabilityError`.
    """

    def __init__(
        self,
        transport: Carrier,
        request: pb.WatchCreateRequest,
        *,
        resume_timeout_s: float | None,
    ) -> None:
        self._transport = transport
        self._request = request
        if resume_timeout_s is not None:
            checked_s("resume_timeout_s", resume_timeout_s)
        self._resume_timeout_s = resume_timeout_s
        self._next_revision: int = request.start_revision
        self._batches: deque[WatchBatch] = deque()
        self._stream: Any = None
        """Where the watch is registered; whoever iterates reads it. None: nowhere."""
        self._link: Link | None = None
        """Of the stream."""
        self._task: asyncio.Task[None] | None = None
        """Looks for a server. It goes on when the wait for it is cancelled."""
        self._kept: deque[pb.WatchResponse] = deque()
        """What a stream still held that ended while nobody read."""
        self._rest: asyncio.Task[None] | None = None
        """Takes it."""
        self._reading = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._error: KvError | None = None
        self._last_failure: KvError | None = None
        self._is_over = False
        self._registrations = 0

    @property
    def resumptions(self) -> int:
        """How often the watch has moved to a new stream."""
        return max(self._registrations - 1, 0)

    @property
    def next_revision(self) -> int:
        """First revision not yet received; start a later watch here to go on without a gap."""
        return self._next_revision

    def _is_registered(self) -> bool:
        return self._registrations > 0

    async def start(self) -> Watcher:
        """Register the watch, if it is not yet, and wait until the server says so.

        Raises UnreachableError or NoLeaderError when no endpoint took it within the client's
        timeout, and what the server refuses it with.
        """
        if self._is_registered():
            return self
        if self._is_over:
            self._tell_end()
            raise ClosedError("the watch was closed")
        self._transport.enter()
        try:
            async with asyncio.timeout(self._transport.timeout_s):
                await self._found()
        except TimeoutError:
            await self.aclose()
            raise self._last_failure or UnreachableError("watch: no answer in time") from None
        if not self._is_registered():
            self._tell_end()
            raise ClosedError("the watch was closed")
        return self

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Watcher:
        return self

    async def __anext__(self) -> WatchBatch:
        """Return the next revision's changes, or a progress mark; wait for it as long as it takes.

        Cancelling the wait loses nothing.
        """
        while not self._batches:
            response = await self.next_response()
            if response is None:
                raise StopAsyncIteration
            self._batches.extend(_split(response))
        return self._batches.popleft()

    async def next_response(self) -> pb.WatchResponse | None:
        """Return the next response as the server sent it, less what was seen; None when closed.

        For tools that show the protocol; do not mix it with iteration, which reads the same stream.
        """
        if not self._is_over:
            await self.start()
            self._transport.check_loop()
        async with self._reading:
            while not self._kept:
                if self._is_over:
                    self._tell_end()
                    return None
                if self._stream is None:
                    await self._found()
                    continue
                response = await self._read(self._stream)
                if response is not None:
                    return response
            return self._kept.popleft()

    def _tell_end(self) -> None:
        """Raise what ended the watch, if it was not closed here."""
        if self._error is not None:
            raise self._error
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()  # what no one foresaw must not look like an end

    async def request_progress(self) -> bool:
        """Ask the server for a progress mark now; it comes as a batch without events.

        Returns False when no stream stands at the moment, and nothing was asked. A server may also
        ignore the request while the watch is catching up: ask again.
        """
        async with self._writing:
            if self._stream is None:
                return False
            try:
                await self._stream.write(
                    pb.WatchRequest(progress_request=pb.WatchProgressRequest())
                )
            except (CallError, asyncio.InvalidStateError):
                return False  # the reader meets the same end and resumes
            return True

    async def aclose(self) -> None:
        """End the watch; what was received and not yet read is dropped."""
        if self._task is not None or self._stream is not None:
            self._transport.check_loop()
        self._is_over = True
        self._batches.clear()
        self._kept.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        self._leave()  # a consumer that waits wakes

    async def _found(self) -> None:
        """Wait until the watch is registered, or over."""
        if self._task is None:
            self._seek(None)
        assert self._task is not None
        await asyncio.wait({self._task})

    async def _read(self, stream: Any) -> pb.WatchResponse | None:
        """Return what is next in the stream; None: no news, or its end, which was seen to."""
        response: pb.WatchResponse
        try:
            response = await read(stream)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            self._is_over = True  # not we were cancelled, but the stream, by a close
        except _BREAKS as error:
            if self._stream is stream:
                assert self._link is not None
                self._transport.turn_from(self._link)
                self._lose(_failure(error))
        else:
            try:
                if self._is_news(response):
                    return response
            except KvError as failure:
                self._lose(failure)
        return None

    def _has_ended(self, stream: Any) -> None:
        """Resume also while nobody reads: what comes meanwhile may be compacted before they do."""
        if self._stream is stream:
            self._rest = asyncio.create_task(self._take_rest(stream))

    async def _take_rest(self, stream: Any) -> None:
        async with self._reading:  # whoever waits in there meets the end themselves
            while self._stream is stream:
                response = await self._read(stream)
                if response is not None:
                    self._kept.append(response)

    def _seek(self, failure: KvError | None) -> None:
        self._task = asyncio.create_task(self._register_somewhere(failure), name="kvstore-watch")

    def _lose(self, failure: KvError) -> None:
        """Give the stream up, and look for another where that helps."""
        self._leave()
        self._seek(failure)

    def _leave(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.cancel()

    async def _register_somewhere(self, failure: KvError | None) -> None:
        """Register the watch at a server that takes it; `failure` ended the registration before."""
        loop = asyncio.get_running_loop()
        token_tries = 0
        tries = 0
        down_since_s = loop.time()
        try:
            while True:
                if failure is not None:
                    self._last_failure = failure
                    if failure.text in RETRY_WITH_NEW_TOKEN:
                        token_tries += 1
                        self._transport.forget_token()
                        if token_tries >= _TOKEN_TRIES_MAX:
                            raise failure
                    elif not (
                        isinstance(failure, AvailabilityError)
                        or self._transport.is_refused_by_learner(failure)
                    ):
                        raise failure
                    limit_s = self._resume_timeout_s
                    if limit_s is not None and loop.time() - down_since_s >= limit_s:
                        raise failure
                    if tries:
                        pause_s = min(_BACKOFF_FIRST_S * 2 ** (tries - 1), _BACKOFF_MAX_S)
                        await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311
                    tries = min(tries + 1, 10)
                try:
                    await self._register()
                except KvError as error:
                    failure = error
                else:
                    self._task = None
                    return
        except KvError as error:
            self._error = error
        finally:
            self._is_over = self._is_over or self._stream is None

    async def _register(self) -> None:
        """Register the watch on a new stream, from the first revision that is missing."""
        link, stream = await self._transport.open_stream(WATCH)
        try:
            self._request.start_revision = self._next_revision
            await stream.write(pb.WatchRequest(create_request=self._request))
            before = self._registrations
            while self._registrations == before:
                self._is_news(await read(stream))
            self._stream, self._link = stream, link
            stream.on_end(partial(self._has_ended, stream))
        except _BREAKS as error:
            self._transport.turn_from(link)
            raise _failure(error) from error
        finally:
            if self._stream is not stream:
                stream.cancel()

    def _is_news(self, response: pb.WatchResponse) -> bool:
        """Take over how far a response goes; False: there is nothing in it to be handed on.

        Raises what ended the watch at the server.
        """
        if response.canceled:
            raise self._cancellation(response)
        revision = response.header.revision
        if response.created:
            # With start 0 the watch begins after the revision it was registered at. From here on
            # that revision is ours, so that a break before the first event leaves no gap.
            self._next_revision = self._next_revision or revision + 1
            self._registrations += 1
            self._transport.counters.watch_registrations += 1
            self._transport.counters.watch_resumptions += self._registrations > 1
            return False
        if not response.events:
            if revision + 1 < self._next_revision:
                return False  # a member that lags behind the one before: we handed on more than it
            # A manual mark does not move the point of resumption: etcd before 3.4.25 and 3.5.8
            # answers it while the watch is still catching up.
            if response.watch_id != _MANUAL_PROGRESS_ID:
                self._next_revision = revision + 1
            return True
        if response.events[0].kv.mod_revision < self._next_revision:
            fresh = [
                event for event in response.events if event.kv.mod_revision >= self._next_revision
            ]
            if not fresh:
                return False
            del response.events[:]
            response.events.extend(fresh)
        self._next_revision = response.events[-1].kv.mod_revision + 1
        return True

    def _cancellation(self, response: pb.WatchResponse) -> KvError:
        if response.compact_revision:
            return CompactedError(
                "etcdserver: mvcc: required revision has been compacted",
                grpc_code="OUT_OF_RANGE",
                requested=self._next_revision,
                compacted=response.compact_revision,
            )
        reason = response.cancel_reason or "the server cancelled the watch without a reason"
        status = _GO_STATUS.fullmatch(reason)
        if status is None:
            # Not UNKNOWN: what no table names must end the watch, not be tried for ever.
            return error_from("INVALID_ARGUMENT", reason, write=False)
        code = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", status[1]).upper()
        return error_from(code, status[2], write=False)


def _failure(error: Exception) -> KvError:
    """Say of a stream's end what it means for a watch."""
    if isinstance(error, CallError):
        return error_from_rpc(error, write=False)
    if isinstance(error, ReadFailedError):
        return error
    return ReadFailedError("the watch stream broke before the watch was registered")


def _split(response: pb.WatchResponse) -> Iterator[WatchBatch]:
    """Cut a response into revisions; a server may put many into one."""
    if not response.events:
        yield WatchBatch(response.header.revision, ())
    for revision, events in groupby(response.events, lambda event: event.kv.mod_revision):
        yield WatchBatch(revision, tuple(_event(event) for event in events))


def _event(event: kv_pb2.Event) -> Event:
    previous = key_value(event.prev_kv) if event.HasField("prev_kv") else None
    return Event(
        "DELETE" if event.type == kv_pb2.Event.DELETE else "PUT", key_value(event.kv), previous
    )
