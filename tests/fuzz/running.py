"""A running member: what clients ask of it and what peers send to it, as bytes."""

from __future__ import annotations

import contextlib
import traceback
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgpack

from kvstore.apply.errors import FatalError
from kvstore.pb import rpc_pb2
from kvstore.peer import codec as peer_codec
from kvstore.peer.calls import CALL_FRAME
from kvstore.raft.errors import MalformedChange
from tests.fuzz.member_rig import SELF, TIMEOUT_NS, MemberRig
from tests.fuzz.mutate import pieces


class FuzzCall:
    """What a handler sees of a call."""

    path = "/fuzz"
    peer = "fuzz"  # tests choose others
    peer_certificate = None
    deadline_s = None
    on_cancel = None
    cancelled = False
    unsent_bytes = 0

    def __init__(self, kind: Any = rpc_pb2.WatchResponse) -> None:
        self.kind = kind
        self.answers: list[Any] = []
        self.sent: list[Any] = []

    def metadata(self, name: bytes) -> None:
        return None

    def reply(self, message: bytes) -> None:
        self.answers.append(message)

    def reply_parts(self, parts: Sequence[bytes], size_bytes: int) -> None:
        message = b"".join(parts)
        assert len(message) == size_bytes
        self.reply(message)

    def fail(self, code: int, text: str, metadata: Any = ()) -> None:
        assert 0 < code <= 16
        text.encode()
        self.answers.append((code, text))

    def send(self, message: bytes) -> bool:
        self.sent.append(self.kind.FromString(message))
        return True

    def send_all(self, messages: Sequence[bytes]) -> bool:
        return [self.send(message) for message in messages][-1]

    def finish(self, code: int = 0, text: str = "", metadata: Any = ()) -> None:
        self.answers.append((code, text))


REPLIES: dict[str, Any] = {
    "Range": rpc_pb2.RangeResponse,
    "Put": rpc_pb2.PutResponse,
    "DeleteRange": rpc_pb2.DeleteRangeResponse,
    "Txn": rpc_pb2.TxnResponse,
    "Compact": rpc_pb2.CompactionResponse,
    "Watch": rpc_pb2.WatchResponse,
    "LeaseGrant": rpc_pb2.LeaseGrantResponse,
    "LeaseRevoke": rpc_pb2.LeaseRevokeResponse,
    "Alarm": rpc_pb2.AlarmResponse,
    "LeaseKeepAlive": rpc_pb2.LeaseKeepAliveResponse,
    "LeaseTimeToLive": rpc_pb2.LeaseTimeToLiveResponse,
    "LeaseLeases": rpc_pb2.LeaseLeasesResponse,
    "MemberList": rpc_pb2.MemberListResponse,
    "MemberAdd": rpc_pb2.MemberAddResponse,
    "MemberRemove": rpc_pb2.MemberRemoveResponse,
    "MemberUpdate": rpc_pb2.MemberUpdateResponse,
    "MemberPromote": rpc_pb2.MemberPromoteResponse,
    "Status": rpc_pb2.StatusResponse,
    "HashKV": rpc_pb2.HashKVResponse,
    "MoveLeader": rpc_pb2.MoveLeaderResponse,
}
"""All methods of the API that are served, and what they answer; an input names them by number."""

STREAMS = ("Watch", "LeaseKeepAlive")
CLIENTS = ("LeaseTimeToLive", "MemberRemove", "MemberAdd", "MemberPromote", "Put", "MoveLeader")


def requests(data: bytes) -> None:
    """Requests in order, each behind a byte that names its method: one proper answer for each."""
    member = MemberRig()
    assert member.handlers.keys() == REPLIES.keys()
    names = tuple(REPLIES)
    calls = {name: FuzzCall(REPLIES[name]) for name in STREAMS}
    streams = {name: member.handlers[name](calls[name]) for name in STREAMS}
    asked = 0
    for part in pieces(data):
        if not part:
            continue
        name = names[part[0] % len(names)]
        if name in STREAMS:
            asked += name == "LeaseKeepAlive" and not calls[name].answers
            streams[name].message(part[1:])
            member.settle()
            continue
        call = FuzzCall(REPLIES[name])
        member.handlers[name](call, part[1:])
        member.settle()
        while not call.answers:  # it waits for its deadline
            member.tick()
            assert member.now_ns < 2 * TIMEOUT_NS * len(data), f"{name} is never answered"
        [answer] = call.answers
        if isinstance(answer, bytes):
            call.kind.FromString(answer)
    kept_alive = calls["LeaseKeepAlive"]
    assert len(kept_alive.sent) + len(kept_alive.answers) >= asked
    streams["Watch"].cancelled()
    assert member.hub.statistics().watchers == 0


class WrongIndex(Exception):  # noqa: N818 (the name says what happened)
    """The core counts entries as applied that the state machine has not seen."""


def member(data: bytes) -> None:
    """What peers send to a running member of three, each behind a byte that says what it is.

    Nothing raises but what proves that log or state are wrong, as etcd panics. Every question of a
    peer and every request of a client is answered once.
    """
    rig = MemberRig(3)
    questions: Counter[int] = Counter()
    calls: list[FuzzCall] = []
    try:
        for part in pieces(data):
            if part:
                happen(rig, part[0], part[1:], questions, calls)
                if rig.raft.log.applied != rig.node.applied_index:
                    raise WrongIndex(rig.raft.log.applied, rig.node.applied_index)
        rig.end()
    except Exception as error:
        if not says_what_is_wrong(error):
            raise
        return  # the member has ended
    assert Counter(rig.answers) == questions
    assert all(len(call.answers) == 1 for call in calls), [call.answers for call in calls]


def says_what_is_wrong(error: Exception) -> bool:
    """Tell whether it is one of the errors with which a member ends on purpose."""
    frames = traceback.extract_tb(error.__traceback__)
    is_invariant = isinstance(error, AssertionError) and "kvstore/raft/" in frames[-1].filename
    return is_invariant or isinstance(error, (FatalError, MalformedChange))


def happen(
    rig: MemberRig, what: int, body: bytes, questions: Counter[int], calls: list[FuzzCall]
) -> None:
    """Let one thing happen to a member: a message, a question, an answer, a client, a while."""
    sender = 2 + what % 2
    match what // 2 % 6:
        case 0:  # a message of the core; its term is made one that is looked at
            with contextlib.suppress(peer_codec.CodecError):
                message = peer_codec.decode(body[1:])
                message.sender, message.target = sender, SELF
                if body[0] % 3:
                    message.term = rig.raft.term + body[0] % 3 - 1
                rig.hear(sender, [peer_codec.encode(message)])
        case 1:  # a question, or any answer
            with contextlib.suppress(ValueError, TypeError, msgpack.UnpackException):
                is_reply, call_id, kind, _ = msgpack.unpackb(body, use_list=False)
                if not is_reply and isinstance(call_id, int) and isinstance(kind, str):
                    questions[call_id] += 1
            rig.hear(sender, [bytes((CALL_FRAME,)) + body])
        case 2:  # the right answer to nothing that was asked: to the newest question
            with contextlib.suppress(ValueError, TypeError, msgpack.UnpackException):
                answer = msgpack.unpackb(body, use_list=False)
                call_id = rig.calls._next_id - 1
                frame = msgpack.packb([True, call_id, "", answer])
                rig.hear(rig.node.leader or sender, [bytes((CALL_FRAME,)) + frame])
        case 3:
            name = CLIENTS[what // 12 % len(CLIENTS)]
            call = FuzzCall(REPLIES[name])
            calls.append(call)
            rig.handlers[name](call, body)
            rig.settle()
        case 4:
            for _ in range(1 + len(body) % 40):
                rig.tick()
        case _:
            rig.node.unreachable(sender)
            rig.calls.lost(sender)
            rig.settle()
