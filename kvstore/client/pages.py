"""Iterating over a range by pages at one revision; the call that fetches a page is passed in."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from kvstore.client.types import KeyValue, key_value

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from kvstore.pb import rpc_pb2 as pb


class Pages:
    """An asynchronous iterator over the keys of a range. Made by `AsyncClient.get_range`."""

    def __init__(
        self,
        fetch: Callable[[pb.RangeRequest], Awaitable[pb.RangeResponse]],
        request: pb.RangeRequest,
    ) -> None:
        if request.limit < 1:
            raise ValueError(f"page_size must be 1 or more, not {request.limit}")
        self._fetch = fetch
        self._request = request
        self._is_last = False
        self._kvs: deque[KeyValue] = deque()

    @property
    def revision(self) -> int:
        """The revision all keys are read at; 0 before the first is there, unless it was given."""
        return self._request.revision

    @property
    def is_last(self) -> bool:
        """Whether the page fetched last was the last one there is."""
        return self._is_last

    def __aiter__(self) -> Pages:
        return self

    async def __anext__(self) -> KeyValue:
        if not self._kvs:
            self._kvs.extend(await self.next_page())
        if not self._kvs:
            raise StopAsyncIteration
        return self._kvs.popleft()

    async def next_page(self) -> list[KeyValue]:
        """Fetch the next page; an empty one is the end. Instead of iterating, not besides it."""
        if self._is_last:
            return []
        response = await self._fetch(self._request)
        self._is_last = not (response.more and response.kvs)
        # Every further page must read the store that the first one saw.
        self._request.revision = self._request.revision or response.header.revision
        if response.kvs:
            # The key after the last one: nothing fits between a key and itself with a zero byte.
            self._request.key = response.kvs[-1].key + b"\0"
        return [key_value(kv) for kv in response.kvs]
