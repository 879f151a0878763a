"""HTTP/2 and gRPC server engine on asyncio; knows nothing of kvstore."""

from kvstore.rpc.call import Call, StreamHandler
from kvstore.rpc.engine import HttpHandler
from kvstore.rpc.limits import Limits
from kvstore.rpc.plain import HttpRequest, HttpResponse
from kvstore.rpc.server import Server, Statistics

__all__ = [
    "Call",
    "HttpHandler",
    "HttpRequest",
    "HttpResponse",
    "Limits",
    "Server",
    "Statistics",
    "StreamHandler",
]
