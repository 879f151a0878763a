"""A session server that does nothing: each put is answered at once, without a store.

What a program over sessions reaches here is the ceiling of the client library itself
(docs/session.md describes the frames). `python -m bench.null_session` prints its port.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import msgpack
import uvloop

from bench import messages
from bench.null_server import RESPONSE_HEADER

OPEN = "/kvstore.Session/Open"
FORMAT = 1
HELLO, CALL, REPLY, PUTS, WRITTEN = 0, 1, 2, 13, 14


def frame(*items: object) -> bytes:
    """Return the message that carries these items."""
    return messages.blob(1, msgpack.packb([FORMAT, *items]))


async def serve_session(requests: AsyncIterator[bytes], _: object) -> AsyncIterator[bytes]:
    """Answer one session."""
    bounds = {
        "operations": 8192,
        "bytes": 32 << 20,
        "frame_bytes": 2 << 20,
        "streams": 1,
        "puts": 1024,
    }
    yield frame([HELLO, {"methods": [messages.PUT], **bounds}])
    async for request in requests:
        body = messages.data(messages.decode(request), 1)
        items = msgpack.unpackb(body)[1:]
        answers = [[REPLY, item[1], RESPONSE_HEADER] for item in items if item[0] == CALL]
        answers += [[WRITTEN, item[1], 2, len(item[4])] for item in items if item[0] == PUTS]
        yield frame(*answers)


async def main() -> None:
    """Serve until killed."""
    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(serve_session)
    service, method = OPEN[1:].split("/")
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {method: handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    sys.exit(uvloop.run(main()))
