"""etcdserverpb.Cluster: the list of members; changing it comes later."""

from __future__ import annotations

from functools import partial

from kvstore.pb import rpc_pb2
from kvstore.rpc import Call
from kvstore.server.cluster import Cluster
from kvstore.server.header import Headers
from kvstore.server.node import Node
from kvstore.server.services.base import Routes, fail, message_with_header, parse


class ClusterService:
    """MemberList."""

    def __init__(self, node: Node, cluster: Cluster, headers: Headers) -> None:
        """Join the parts; `register` offers the methods."""
        self._node = node
        self._cluster = cluster
        self._headers = headers

    def register(self, server: Routes) -> None:
        """Serve the methods."""
        server.unary("/etcdserverpb.Cluster/MemberList", self._list)

    def _list(self, call: Call, data: bytes) -> None:
        request = parse(call, rpc_pb2.MemberListRequest.FromString, data)
        if request is None:
            return
        if request.linearizable:
            self._node.linearizable(partial(self._reply, call))
        else:
            self._reply(call, None)

    def _reply(self, call: Call, error: Exception | None) -> None:
        if error is not None:
            fail(call, error)
            return
        reply = rpc_pb2.MemberListResponse(
            members=[
                rpc_pb2.Member(
                    ID=member.id,
                    name=member.name,
                    peerURLs=member.peer_urls,
                    clientURLs=member.client_urls,
                    isLearner=member.is_learner,
                )
                for member in self._cluster.list()
            ]
        )
        # Replies about members say revision 0, as etcd's do.
        call.reply(message_with_header(self._headers(0), reply))
