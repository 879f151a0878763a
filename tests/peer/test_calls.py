"""Questions between members: whose answer is whose."""

from __future__ import annotations

from typing import Any

from kvstore.peer.calls import PeerCalls

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
