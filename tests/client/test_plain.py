"""Plain puts are written without protobuf, and must be what protobuf writes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.client.plain import plain_put
from kvstore.mvcc.keyvalue import plain_put as is_plain
from kvstore.pb import rpc_pb2

SIZES = [1, 2, 127, 128, 129, 255, 256, 16_383]


@given(st.binary(min_size=1, max_size=127), st.binary(min_size=1, max_size=600))
def test_it_is_what_protobuf_writes(key: bytes, value: bytes) -> None:
    assert plain_put(key, value) == rpc_pb2.PutRequest(key=key, value=value).SerializeToString()


@pytest.mark.parametrize("value_bytes", SIZES)
@pytest.mark.parametrize("key_bytes", [1, 2, 126, 127])
def test_it_is_right_at_the_edges_of_lengths(key_bytes: int, value_bytes: int) -> None:
    key, value = b"k" * key_bytes, b"v" * value_bytes
    plain = plain_put(key, value)
    assert plain == rpc_pb2.PutRequest(key=key, value=value).SerializeToString()
    assert is_plain(plain), "the server would not take it as one"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"", b"v"),
        (b"k", b""),
        (b"k" * 128, b"v"),
        (b"k", b"v" * 16_384),
        ("k", b"v"),
        (b"k", "v"),
        (memoryview(b"k"), b"v"),
        (None, b"v"),
    ],
)
def test_what_protobuf_has_to_judge_is_left_to_it(key: Any, value: Any) -> None:
    assert plain_put(key, value) is None
