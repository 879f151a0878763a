"""Asking a member who is a member, before one belongs to the cluster; nothing is decided here.

The question is a hello on channel DESCRIBE. The answer is one frame: `MAGIC`, the protocol version
and msgpack `[cluster_id, applied, members, removed]`, each member `[id, peer_urls, is_learner,
is_started]`; or a text that says why there is no answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from dataclasses import dataclass

import msgpack

from kvstore.peer.link import (
    FRAME_SIZE_MAX,
    HELLO_TIMEOUT_S,
    MAGIC,
    PROTOCOL_VERSION,
    Channel,
    Endpoint,
    Hello,
    HelloError,
    encode_hello,
    frame,
)

_HEAD = MAGIC + bytes([PROTOCOL_VERSION])


@dataclass(frozen=True, slots=True)
class Described:
    """One member, as a running member knows it."""

    id: int
    peer_urls: tuple[str, ...]
    is_learner: bool
    is_started: bool
    """It has run and published its name."""


@dataclass(frozen=True, slots=True)
class Description:
    """A running cluster."""

    cluster_id: int
    applied: int
    """The log index as of which this is so; the newest of several answers counts."""

    members: tuple[Described, ...]
    removed: tuple[int, ...]


def encode_description(description: Description) -> bytes:
    """Return the payload of an answer."""
    members = [
        [member.id, list(member.peer_urls), member.is_learner, member.is_started]
        for member in description.members
    ]
    body: bytes = msgpack.packb(
        [description.cluster_id, description.applied, members, list(description.removed)]
    )
    return _HEAD + body


def decode_description(payload: bytes) -> Description:
    """Return what the payload of an answer says.

    Raises:
        HelloError: A refusal (the text is the member's own), or malformed.
    """
    if payload[:4] != _HEAD:
        raise HelloError(payload.decode(errors="replace"))
    try:
        cluster_id, applied, members, removed = msgpack.unpackb(payload[4:])
        return Description(
            int(cluster_id),
            int(applied),
            tuple(
                Described(int(number), tuple(map(str, urls)), bool(learner), bool(started))
                for number, urls, learner, started in members
            ),
            tuple(map(int, removed)),
        )
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise HelloError(f"malformed description: {error}") from error


async def ask(endpoint: Endpoint, tls: ssl.SSLContext | None = None) -> Description:
    """Ask the member that listens there.

    Raises:
        OSError: Nobody listens there, or the connection broke.
        HelloError: No member of ours, or it cannot say now.
        TimeoutError: No answer within twice `HELLO_TIMEOUT_S`.
    """
    async with asyncio.timeout(2 * HELLO_TIMEOUT_S):
        reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port, ssl=tls)
        try:
            writer.write(frame(encode_hello(Hello(0, 0, 0, Channel.DESCRIBE))))
            size = int.from_bytes(await reader.readexactly(4))
            if size > FRAME_SIZE_MAX:
                raise HelloError(f"a frame of {size} bytes is not ours")
            return decode_description(await reader.readexactly(size))
        except asyncio.IncompleteReadError as error:
            raise ConnectionResetError("the connection ended before the answer") from error
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
