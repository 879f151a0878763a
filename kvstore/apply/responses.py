"""Results to etcd's response bytes, for the member that owes the answer; no state here.

`header` is the encoded ResponseHeader for the result's revision, its first item.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvstore.apply import ops
from kvstore.mvcc.results import (
    encode_delete_range_response,
    encode_put_response,
    encode_txn_response,
)
from kvstore.pb import rpc_pb2

if TYPE_CHECKING:
    from kvstore.apply.applier import Result


def encode(kind: int, result: Result, header: bytes) -> bytes:
    """Return the response message for a result that is no error.

    Args:
        kind: The operation's kind; kinds that no client can ask for have no response.
        result: What `Applier.apply` returned for it.
        header: ResponseHeader bytes with the revision `result[0]`.
    """
    assert type(result) is tuple
    if kind == ops.PUT:
        return encode_put_response(header, result[1])
    if kind == ops.TXN:
        return encode_txn_response(header, result[1])
    if kind == ops.DELETE_RANGE:
        return encode_delete_range_response(header, result[1], result[2])
    head = bytes((0x0A, len(header))) + header
    if kind in (ops.COMPACT, ops.LEASE_REVOKE):
        return head
    if kind == ops.LEASE_GRANT:
        return head + rpc_pb2.LeaseGrantResponse(ID=result[1], TTL=result[2]).SerializeToString()
    if kind == ops.ALARM:
        alarms = [rpc_pb2.AlarmMember(alarm=alarm, memberID=member) for alarm, member in result[1]]
        return head + rpc_pb2.AlarmResponse(alarms=alarms).SerializeToString()
    raise ValueError(f"operation kind {kind} has no response message")
