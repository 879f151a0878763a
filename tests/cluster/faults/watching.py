"""Watchers on bare gRPC streams, which resume by their own rule: what a client library would hide
(repeats, split revisions) is seen here."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import Any

import grpc
import grpc.aio

from kvstore.client.methods import WATCH
from kvstore.pb import kv_pb2
from kvstore.pb import rpc_pb2 as pb
from tests.validate.history import Batch, Event, History, Kv, Watch

HAS_LEADER = (("hasleader", "true"),)
"""So a watch of a member that has lost its leader ends, and goes on elsewhere."""

PROGRESS_S = 0.7
OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)


def kv_of(message: kv_pb2.KeyValue) -> Kv:
    return Kv(
        message.key,
        message.value,
        message.create_revision,
        message.mod_revision,
        message.version,
        message.lease,
    )


class Watching:
    """One watcher over all its streams; `record` is what the judges get."""

    def __init__(
        self,
        history: History,
        record: Watch,
        endpoints: list[str],
        rng: random.Random,
        *,
        moves: bool,
        sleeps: bool = False,
        silence_s: float = 3,
    ) -> None:
        """Begin with `run`.

        Args:
            history: Gives the order of what arrives.
            record: What to ask for; takes what comes.
            endpoints: Members in the order they are tried.
            rng: When to move on.
            moves: Change to another member every few seconds, for no reason.
            silence_s: Move on when nothing has come for so long.
            sleeps: Stay away between two streams for so long that compaction overtakes it.
        """
        self.record = record
        self.next = record.first
        history.watches.append(record)
        self._history = history
        self._endpoints = endpoints
        self._channels = [grpc.aio.insecure_channel(target, OPTIONS) for target in endpoints]
        self._rng = rng
        self._moves = moves
        self._sleeps = sleeps
        self._silence_s = silence_s
        self.awake = asyncio.Event()
        """Set: no more sleep."""

    async def run(self) -> None:
        """Watch until cancelled."""
        turn = 0
        try:
            while True:
                channel = self._channels[turn % len(self._channels)]
                try:
                    await self._serve(channel)
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.05)
                turn += 1
                if self._sleeps:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(self._rng.uniform(1, 5)):
                            await self.awake.wait()
        finally:
            for channel in self._channels:
                await channel.close()

    async def _serve(self, channel: grpc.aio.Channel) -> None:
        stream: Any = channel.stream_stream(
            WATCH.path,
            request_serializer=WATCH.request.SerializeToString,
            response_deserializer=WATCH.response.FromString,
        )(metadata=HAS_LEADER)
        record = self.record
        filters = []
        if not record.puts:
            filters.append(pb.WatchCreateRequest.NOPUT)
        if not record.deletes:
            filters.append(pb.WatchCreateRequest.NODELETE)
        create = pb.WatchCreateRequest(
            key=record.start,
            range_end=record.end,
            start_revision=self.next,
            prev_kv=record.prev_kv,
            filters=filters,
        )
        record.streams.append((len(record.batches), self.next))
        progress: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(self._rng.uniform(1, 4) if self._moves else None):
                await stream.write(pb.WatchRequest(create_request=create))
                progress = asyncio.create_task(self._ask(stream))
                # Silence for long may be a member that is cut off and cannot say so.
                while True:
                    async with asyncio.timeout(self._silence_s):
                        response = await stream.read()
                    if response is grpc.aio.EOF or not self._take(response):
                        return
        except (TimeoutError, asyncio.InvalidStateError):
            return
        finally:
            if progress is not None:
                progress.cancel()
            stream.cancel()

    @staticmethod
    async def _ask(stream: Any) -> None:
        try:
            while True:
                await asyncio.sleep(PROGRESS_S)
                await stream.write(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # the reader meets the same end

    def _take(self, response: pb.WatchResponse) -> bool:
        """Note a response; False when the server has ended the watch."""
        record = self.record
        if response.canceled:
            if response.compact_revision:
                # What the compaction itself has kept, a watch may still begin at.
                start, self.next = self.next, max(self.next, response.compact_revision)
                record.compacted.append((start, self.next))
            return False
        if response.created:
            return True
        events = tuple(
            Event(
                event.type == kv_pb2.Event.PUT,
                kv_of(event.kv),
                kv_of(event.prev_kv) if event.HasField("prev_kv") else None,
            )
            for event in response.events
        )
        revision = response.header.revision
        record.batches.append(Batch(self._history.tick(), time.monotonic(), revision, events))
        if events:
            self.next = max(self.next, events[-1].kv.mod + 1)
        else:
            self.next = max(self.next, revision + 1)
        return True
