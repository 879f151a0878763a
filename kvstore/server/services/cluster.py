"""etcdserverpb.Cluster: the list of members, and changing it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from kvstore.pb import rpc_pb2
from kvstore.server.cluster import Cluster
from kvstore.server.config import ConfigError, parse_url
from kvstore.server.errors import BAD_URLS, RefusedRequestError
from kvstore.server.header import Headers
from kvstore.server.identity import Member
from kvstore.server.membership import Membership
from kvstore.server.node import Node
from kvstore.server.reconfig import Action, Request
from kvstore.server.services.base import Routes, ServiceCall, fail, message_with_header, parse


class ClusterService:
    """MemberList, MemberAdd, MemberRemove, MemberUpdate and MemberPromote."""

    def __init__(
        self, node: Node, cluster: Cluster, membership: Membership, headers: Headers
    ) -> None:
        """Join the parts; `register` offers the methods."""
        self._node = node
        self._cluster = cluster
        self._membership = membership
        self._headers = headers

    def register(self, server: Routes) -> None:
        """Serve the methods."""
        prefix = "/etcdserverpb.Cluster/"
        server.unary(prefix + "MemberList", self._list)
        server.unary(prefix + "MemberAdd", self._add)
        server.unary(prefix + "MemberRemove", self._remove)
        server.unary(prefix + "MemberUpdate", self._update)
        server.unary(prefix + "MemberPromote", self._promote)

    def _list(self, call: ServiceCall, data: bytes) -> None:
        request = parse(call, rpc_pb2.MemberListRequest.FromString, data)
        if request is None:
            return
        if request.linearizable:
            self._node.linearizable(partial(self._listed, call))
        else:
            self._listed(call, None)

    def _listed(self, call: ServiceCall, error: Exception | None) -> None:
        if error is not None:
            fail(call, error)
        else:
            self._reply(call, rpc_pb2.MemberListResponse())

    def _add(self, call: ServiceCall, data: bytes) -> None:
        request = parse(call, rpc_pb2.MemberAddRequest.FromString, data)
        if request is not None:
            action = Action.ADD_LEARNER if request.isLearner else Action.ADD
            self._change(call, action, 0, request.peerURLs, rpc_pb2.MemberAddResponse)

    def _remove(self, call: ServiceCall, data: bytes) -> None:
        request = parse(call, rpc_pb2.MemberRemoveRequest.FromString, data)
        if request is not None:
            self._submit(call, Request(Action.REMOVE, request.ID), rpc_pb2.MemberRemoveResponse)

    def _update(self, call: ServiceCall, data: bytes) -> None:
        request = parse(call, rpc_pb2.MemberUpdateRequest.FromString, data)
        if request is not None:
            response = rpc_pb2.MemberUpdateResponse
            self._change(call, Action.UPDATE, request.ID, request.peerURLs, response)

    def _promote(self, call: ServiceCall, data: bytes) -> None:
        request = parse(call, rpc_pb2.MemberPromoteRequest.FromString, data)
        if request is not None:
            self._submit(call, Request(Action.PROMOTE, request.ID), rpc_pb2.MemberPromoteResponse)

    def _change(
        self, call: ServiceCall, action: Action, member: int, urls: Any, response: Callable[[], Any]
    ) -> None:
        """Submit a change that names peer URLs, if they are some."""
        try:
            found = tuple(sorted({str(parse_url("peer URL", url)) for url in urls}))
        except ConfigError:
            found = ()
        if not found:
            fail(call, RefusedRequestError(*BAD_URLS))
        else:
            self._submit(call, Request(action, member, found), response)

    def _submit(self, call: ServiceCall, request: Request, response: Callable[[], Any]) -> None:
        self._membership.submit(request, partial(self._changed, call, response))

    def _changed(
        self, call: ServiceCall, response: Callable[[], Any], answer: int | Exception
    ) -> None:
        if isinstance(answer, Exception):
            fail(call, answer)
            return
        reply = response()
        if isinstance(reply, rpc_pb2.MemberAddResponse) and answer in self._cluster.members:
            reply.member.CopyFrom(_message(self._cluster.members[answer]))
        self._reply(call, reply)

    def _reply(self, call: ServiceCall, reply: Any) -> None:
        reply.members.extend(_message(member) for member in self._cluster.list())
        # Replies about members say revision 0, as etcd's do.
        call.reply(message_with_header(self._headers(0), reply))


def _message(member: Member) -> rpc_pb2.Member:
    return rpc_pb2.Member(
        ID=member.id,
        name=member.name,
        peerURLs=member.peer_urls,
        clientURLs=member.client_urls,
        isLearner=member.is_learner,
    )
