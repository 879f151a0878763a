"""Questions between members: whose answer is whose."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from kvstore.peer.calls import CALL_FRAME, PeerCalls

ASKER, LEADER = 1, 2


def test_an_answer_to_the_process_before_a_restart_answers_nobody() -> None:
    # The leader answers a renewal late. Meanwhile the asking member was restarted and asks of
    # another lease: with the same number, that lease would count as renewed and end early.
    to_leader: list[bytes] = []
    to_asker: list[bytes] = []

    def asking(incarnation: int) -> PeerCalls:
        return PeerCalls(lambda _, payload: to_leader.append(payload) or True, incarnation)

    leader = PeerCalls(lambda _, payload: to_asker.append(payload) or True, 1)
    late: list[Any] = []
    leader.handlers["renew"] = lambda sender, body, reply: late.append((body, reply))
    answers: list[Any] = []

    asking(1).call(LEADER, "renew", 7, answers.append, 10**9)
    restarted = asking(2)
    restarted.call(LEADER, "renew", 8, answers.append, 10**9)
    for payload in to_leader:
        leader.receive(ASKER, payload)
    for lease, reply in late:
        reply(lease)
    for payload in to_asker:
        restarted.receive(LEADER, payload)

    assert answers == [8]


@pytest.mark.parametrize("is_reply", [True, False])
@pytest.mark.parametrize(
    ("call_id", "kind"), [({}, "renew"), ("1", "renew"), (1, {}), (1, None), ((1, {}), "renew")]
)
def test_a_frame_of_odd_types_is_malformed(is_reply: bool, call_id: object, kind: object) -> None:
    calls = PeerCalls(lambda _peer, _payload: True, 1)
    frame = bytes([CALL_FRAME]) + msgpack.packb([is_reply, call_id, kind, None])

    with pytest.raises(ValueError, match="malformed call from member 2"):
        calls.receive(2, frame)
