"""Well-formed messages between members that make no sense: what mutation of bytes seldom makes.

Numbers lie near those of a young cluster or at the end of their range, contents are of any type.
"""

from __future__ import annotations

import random
from typing import Any

import msgpack

from kvstore.apply import ops
from kvstore.pb import rpc_pb2
from kvstore.peer.codec import encode
from kvstore.raft.membership import Change, ChangeKind
from kvstore.raft.messages import (
    AppendRequest,
    AppendResponse,
    CommitNotice,
    Configuration,
    Entry,
    Forward,
    ForwardRefused,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Message,
    PreVoteRequest,
    PreVoteResponse,
    ReadRequest,
    ReadResponse,
    SnapshotMeta,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from kvstore.server.cluster import encode_urls
from tests.fuzz.mutate import joined

MESSAGE, QUESTION, ANSWER, CLIENT, WHILE, LOST = range(0, 12, 2)
"""What a piece of an input is (`tests.fuzz.running.happen`); one more: of the other peer."""

AS_IT_IS, OF_NOW, OF_NEXT = b"\0", b"\1", b"\2"
CLIENT_KINDS = 12
"""Between one method of a client and the next."""

URLS = ("http://m4:2380", "http://m2:2380", "x")
REQUESTS = (
    rpc_pb2.LeaseTimeToLiveRequest(ID=7),
    rpc_pb2.MemberRemoveRequest(ID=3),
    rpc_pb2.MemberAddRequest(peerURLs=URLS[:1], isLearner=True),
    rpc_pb2.MemberPromoteRequest(ID=4),
    rpc_pb2.PutRequest(key=b"k"),
    rpc_pb2.MoveLeaderRequest(targetID=2),
)


def core(term: bytes, message: Message, *, other: bool = False) -> bytes:
    """Return a piece: a message of the core."""
    return bytes((MESSAGE + other,)) + term + encode(message)


def asked(number: int, request: Any) -> bytes:
    """Return a piece: a request of a client."""
    return bytes((CLIENT + CLIENT_KINDS * number,)) + bytes(request.SerializeToString())


ELECTED = (
    bytes((WHILE,)) + bytes(11),
    core(OF_NEXT, PreVoteResponse(2, 1, 1, granted=True)),
    core(OF_NOW, VoteResponse(2, 1, 1, granted=True)),
    core(OF_NOW, AppendResponse(2, 1, 1, 1, None)),
)
"""How the member becomes the leader."""


class Oddities:
    """Draws inputs for `tests.fuzz.running.member`."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self._pick = draw.choice

    def input(self) -> bytes:
        """Return some things that happen, half of the time to a leader."""
        pieces = [self._piece() for _ in range(self._draw.randrange(1, 25))]
        return joined(*(ELECTED if self._draw.random() < 0.5 else ()), *pieces)

    def _number(self) -> int:
        near = self._draw.randrange(12)
        return self._pick((0, 0, 1, 1, 2, 3, near, (1 << 32) + near, 1 << 62, (1 << 63) - 1))

    def _anything(self, depth: int = 0) -> Any:
        draw = self._draw
        match draw.randrange(8 if depth < 4 else 6):
            case 0 | 1:
                return self._pick((1, -1)) * self._number()
            case 2:
                return self._pick((float("inf"), float("nan"), 1.5, -0.0))
            case 3:
                return self._pick(("", "refused", "applied", "elsewhere", *URLS))
            case 4:
                return draw.randbytes(draw.randrange(4))
            case 5:
                return self._pick((True, False, None))
            case 6:
                return {self._pick((1, "a", b"b")): self._anything(depth + 1)}
            case _:
                return [self._anything(depth + 1) for _ in range(draw.randrange(5))]

    def _piece(self) -> bytes:
        draw, number = self._draw, self._number
        other = draw.randrange(2)
        match draw.randrange(10):
            case 0:
                call_id = self._pick((9, 9, (1 << 32) + draw.randrange(3)))
                kind = self._pick(("renew", "remaining", "member", "farewell", "x"))
                change = [draw.randrange(7), number(), [self._pick(URLS)]]
                body = self._pick((self._anything(), 7, change, [number(), number()]))
                is_reply = draw.random() < 0.3
                return bytes((QUESTION + other,)) + msgpack.packb([is_reply, call_id, kind, body])
            case 1:
                refused = ["refused", number(), "x"]
                applied = ["applied", number(), number()]
                body = self._pick((self._anything(), refused, applied, ["elsewhere"], number()))
                return bytes((ANSWER + other,)) + msgpack.packb(body)
            case 2:
                method = draw.randrange(len(REQUESTS))
                return asked(method, REQUESTS[method])
            case 3:
                return bytes((WHILE,)) + bytes(draw.randrange(40))
            case 4:
                return bytes((LOST + other,))
            case _:
                term = self._pick((AS_IT_IS, OF_NOW, OF_NOW, OF_NOW, OF_NEXT))
                return core(term, self._message(), other=bool(other))

    def _data(self) -> bytes:
        draw, number = self._draw, self._number
        match draw.randrange(5):
            case 0:
                return draw.randbytes(draw.randrange(20))
            case 1:
                kinds = range(draw.randrange(3))
                batch = [(draw.randrange(16), draw.randbytes(draw.randrange(12))) for _ in kinds]
                return ops.encode_batch(number(), draw.randrange(3), number(), batch)
            case 2:
                return bytes(msgpack.packb(self._anything()))
            case 3:
                context = self._pick((b"", encode_urls(URLS[:1]), draw.randbytes(3)))
                return Change(self._pick(list(ChangeKind)), draw.randrange(1, 6), context).encode()
            case _:
                return b""

    def _message(self) -> Message:
        draw, number = self._draw, self._number
        ids = (2, 1, number())
        yes = draw.random() < 0.7
        index = number()
        match draw.randrange(16):
            case 0:
                return PreVoteRequest(*ids, index, number())
            case 1:
                return PreVoteResponse(*ids, yes)
            case 2:
                return VoteRequest(*ids, index, number(), yes)
            case 3:
                return VoteResponse(*ids, yes)
            case 4 | 5 | 6:
                terms = (1, 1, 2, number())
                entries = [
                    Entry(index + 1 + at, self._pick(terms), self._pick((0, 0, 1)), self._data())
                    for at in range(draw.randrange(4))
                ]
                return AppendRequest(*ids, index, self._pick((0, *terms)), number(), entries)
            case 7:
                return AppendResponse(*ids, index, self._pick((None, None, (number(), number()))))
            case 8:
                return Heartbeat(*ids, index, number())
            case 9:
                return HeartbeatResponse(*ids, number())
            case 10:
                return CommitNotice(*ids, index)
            case 11:
                voters, outgoing, learners, removed = (
                    tuple(sorted(draw.sample(range(1, 6), draw.randrange(4)))) for _ in range(4)
                )
                configuration = Configuration(voters, outgoing, learners, removed)
                return InstallSnapshot(*ids, SnapshotMeta(index, number(), configuration))
            case 12:
                return TimeoutNow(*ids)
            case 13:
                return Forward(*ids, number(), draw.randrange(2), self._data())
            case 14:
                return self._pick((ForwardRefused(*ids, number()), ReadRequest(*ids, number())))
            case _:
                return ReadResponse(*ids, (1 << 32) + draw.randrange(3), self._pick((None, index)))
