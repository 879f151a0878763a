"""Applying committed puts, reading keys back and encoding the replies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from bench import messages
from bench.load import key, value_of
from kvstore.apply import ops, responses
from kvstore.apply.state import State, open_state
from kvstore.mvcc.backend_memory import MemoryBackend
from kvstore.mvcc.marks import AppliedMark
from kvstore.mvcc.results import encode_range_response
from kvstore.pb import rpc_pb2
from kvstore.server.header import Headers

BATCH = 64
KEYS = 10_000


@dataclass
class Entry:
    """A committed entry."""

    index: int
    data: bytes
    term: int = 1


class Loaded:
    """A state with 10 k keys, and the next entry's index."""

    def __init__(self) -> None:
        self.backend = MemoryBackend()
        self.state: State = open_state(self.backend, minimum_ttl_s=2)
        self.index = 0
        for first in range(0, KEYS, 1_000):
            self.state.applier.apply(self.entry(first, 1_000))
            self.settle()

    def entry(self, first: int, count: int) -> Entry:
        """Return an entry that puts `count` keys, in an order that is not theirs."""
        self.index += 1
        batch = [
            (ops.PUT, messages.put(key((first + 37 * number) % KEYS), value_of(256)))
            for number in range(count)
        ]
        return Entry(self.index, ops.encode_batch(1, 1, 1, batch))

    def settle(self) -> None:
        """Do what the node does beside: hand out the events, commit the write buffer."""
        store = self.state.store
        store.take_events()
        batch = store.seal(AppliedMark(self.index, 1))
        if batch is not None:
            self.backend.commit(batch.changes(), batch.puts)
            store.committed(batch)


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    """Return a state with 10 k keys."""
    return Loaded()


def test_encode_batch(per_operation: Callable[..., Any]) -> None:
    """Build the entry's bytes from 64 requests."""
    batch = [(ops.PUT, messages.put(key(number), value_of(256))) for number in range(BATCH)]

    assert per_operation(lambda: ops.encode_batch(1, 1, 1, batch), BATCH, tuple)


def test_apply_puts(loaded: Loaded, per_operation: Callable[..., Any]) -> None:
    """Apply one entry of 64 puts to 10 k keys."""

    def setup() -> tuple[Entry]:
        loaded.settle()
        return (loaded.entry(loaded.index * 61 % KEYS, BATCH),)

    applied = per_operation(loaded.state.applier.apply, BATCH, setup)

    assert all(type(result) is tuple for result in applied.results)


def test_encode_put_replies(per_operation: Callable[..., Any]) -> None:
    """Encode 64 PutResponses, each with a revision of its own."""
    headers = Headers(1 << 62, 1 << 61)
    headers.set_term(3)
    results = [(1_000_000 + number, None) for number in range(BATCH)]

    def encode() -> bytes:
        reply = b""
        for result in results:
            reply = responses.encode(ops.PUT, result, headers(result[0]))
        return reply

    reply = per_operation(encode, BATCH, tuple)

    assert rpc_pb2.PutResponse.FromString(reply).header.revision == results[-1][0]


def test_read_one_key(loaded: Loaded, per_operation: Callable[..., Any]) -> None:
    """Parse, read and encode 64 ranges of one key."""
    headers = Headers(1 << 62, 1 << 61)
    requests = [messages.range_(key(97 * number % KEYS)) for number in range(BATCH)]
    store = loaded.state.store

    def read() -> bytes:
        reply = b""
        for request in requests:
            result = store.range(rpc_pb2.RangeRequest.FromString(request))
            reply = encode_range_response(headers(result.revision), result)
        return reply

    reply = per_operation(read, BATCH, tuple)

    assert messages.range_reply(reply).pairs == [(key(97 * 63 % KEYS), value_of(256))]
