"""Many large reads that become ready together are answered a few in each turn of the loop."""

from __future__ import annotations

import pytest

from kvstore.pb import rpc_pb2
from kvstore.server.services.kv import TURN_BYTES_MAX
from tests.fuzz.member_rig import MemberRig
from tests.fuzz.running import FuzzCall

MIB = 1 << 20
READ = rpc_pb2.RangeRequest(key=b"large").SerializeToString()


def reads(member: MemberRig, peer: str, count: int) -> list[FuzzCall]:
    calls = [FuzzCall() for _ in range(count)]
    for call in calls:
        call.peer = peer
        member.handlers["Range"](call, READ)
    return calls


def answered(calls: list[FuzzCall]) -> int:
    return sum(len(call.answers) for call in calls)


@pytest.mark.pure_python  # it replaces a method of the node
def test_one_reader_of_much_does_not_hold_the_turn_nor_the_others() -> None:
    member = MemberRig()
    put = rpc_pb2.PutRequest(key=b"large", value=bytes(MIB))
    member.handlers["Put"](FuzzCall(), put.SerializeToString())
    member.settle()
    member.node.linearizable = lambda done: done(None)  # type: ignore[method-assign]  # at once
    in_a_turn = TURN_BYTES_MAX // MIB

    greedy = reads(member, "greedy", 3 * in_a_turn)
    assert answered(greedy) == in_a_turn
    assert answered(reads(member, "other", 1)) == 1
    greedy[-1].cancelled = True

    for turn in (2, 3):
        member.turn()
        assert answered(greedy) == turn * in_a_turn - (turn == 3)
    member.settle()
    assert [len(call.answers) for call in greedy] == [1] * (3 * in_a_turn - 1) + [0]
    assert answered(reads(member, "greedy", 1)) == 1
