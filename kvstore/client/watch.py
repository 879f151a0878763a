"""Watching keys: one stream per watcher, resumed on another endpoint without gap or repeat.

What makes the resumption exact: the watcher knows the first revision it has not handed on. A new
stream starts there, and whatever a server sends from before it is dropped.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import deque
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

_QUEUE_MAX = 16
# Responses read ahead of the consumer. When it is full the stream is not read, so a slow consumer
# holds the server back by flow control instead of filling this process.
_TOKEN_TRIES_MAX = 3
_BACKOFF_FIRST_S = 0.05
_BACKOFF_MAX_S = 1.0
_MANUAL_PROGRESS_ID: Final = -1
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
        self._responses: asyncio.Queue[pb.WatchResponse | None] = asyncio.Queue(_QUEUE_MAX)
        self._batches: deque[WatchBatch] = deque()
        self._task: asyncio.Task[None] | None = None
        self._registered = asyncio.Event()
        self._stream: Any = None
        self._write_lock = asyncio.Lock()
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
            raise self._error or ClosedError("the watch was closed")
        self._transport.enter()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="kvstore-watch")
        try:
            async with asyncio.timeout(self._transport.timeout_s):
                await self._registered.wait()
        except TimeoutError:
            await self.aclose()
            raise self._last_failure or UnreachableError("watch: no answer in time") from None
        if not self._is_registered():
            await asyncio.wait({self._task})
            if self._error is None and not self._task.cancelled():
                self._task.result()  # what no one foresaw must not look like an end
            raise self._error or ClosedError("the watch was closed")
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

        For tools that show the protocol; do not mix it with iteration, which reads the same queue.
        """
        if not self._is_over:
            await self.start()
            self._transport.check_loop()
        while True:
            if self._is_over and self._responses.empty():
                if self._error is not None:
                    raise self._error
                if self._task is not None and not self._task.cancelled():
                    self._task.result()  # what no one foresaw must not look like an end
                return None
            response = await self._responses.get()
            if response is not None:
                return response

    async def request_progress(self) -> bool:
        """Ask the server for a progress mark now; it comes as a batch without events.

        Returns False when no stream stands at the moment, and nothing was asked. A server may also
        ignore the request while the watch is catching up: ask again.
        """
        async with self._write_lock:
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
        if self._task is not None:
            self._transport.check_loop()
            self._task.cancel()
            await asyncio.wait({self._task})
        self._is_over = True
        self._registered.set()  # a task that was cancelled before its first step says nothing
        self._batches.clear()
        while not self._responses.empty():
            self._responses.get_nowait()
        self._responses.put_nowait(None)  # a consumer that waits must wake

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        token_tries = 0
        tries = 0
        down_since_s = loop.time()
        try:
            while True:
                registrations_before = self._registrations
                try:
                    await self._serve_one_stream()
                except KvError as failure:
                    if self._registrations > registrations_before:
                        tries = token_tries = 0
                        down_since_s = loop.time()
                    self._last_failure = failure
                    if failure.text in RETRY_WITH_NEW_TOKEN:
                        token_tries += 1
                        self._transport.forget_token()
                        if token_tries >= _TOKEN_TRIES_MAX:
                            raise
                    elif not (
                        isinstance(failure, AvailabilityError)
                        or self._transport.is_refused_by_learner(failure)
                    ):
                        raise
                    limit_s = self._resume_timeout_s
                    if limit_s is not None and loop.time() - down_since_s >= limit_s:
                        raise
                if tries:
                    pause_s = min(_BACKOFF_FIRST_S * 2 ** (tries - 1), _BACKOFF_MAX_S)
                    await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311
                tries = min(tries + 1, 10)
        except KvError as error:
            self._error = error
        finally:
            self._is_over = True
            self._registered.set()
            if not self._responses.full():  # else the consumer does not wait
                self._responses.put_nowait(None)

    async def _serve_one_stream(self) -> None:
        """Register on a new stream and read it until it fails. Always raises."""
        link, stream = await self._transport.open_stream(WATCH)
        try:
            self._request.start_revision = self._next_revision
            await stream.write(pb.WatchRequest(create_request=self._request))
            self._stream = stream
            while True:
                await self._take(await read(stream))
        except CallError as error:
            self._transport.turn_from(link)
            raise error_from_rpc(error, write=False) from error
        except asyncio.InvalidStateError as error:
            self._transport.turn_from(link)
            raise ReadFailedError(
                "the watch stream broke before the watch was registered"
            ) from error
        except ReadFailedError:
            self._transport.turn_from(link)
            raise
        finally:
            self._stream = None
            stream.cancel()

    async def _take(self, response: pb.WatchResponse) -> None:
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
            self._registered.set()
            return
        if not response.events:
            if revision + 1 < self._next_revision:
                return  # a member that lags behind the one before: older than what we handed on
            # A manual mark does not move the point of resumption: etcd before 3.4.25 and 3.5.8
            # answers it while the watch is still catching up.
            if response.watch_id != _MANUAL_PROGRESS_ID:
                self._next_revision = revision + 1
        else:
            if response.events[0].kv.mod_revision < self._next_revision:
                fresh = [
                    event
                    for event in response.events
                    if event.kv.mod_revision >= self._next_revision
                ]
                if not fresh:
                    return
                del response.events[:]
                response.events.extend(fresh)
            self._next_revision = response.events[-1].kv.mod_revision + 1
        await self._responses.put(response)

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
