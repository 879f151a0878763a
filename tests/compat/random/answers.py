"""Compares two unary answers; the first is etcd's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvstore.pb import rpc_pb2
from tests.compat.random.side import Failure
from tests.compat.random.watching import DifferenceError, bare

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.compat.random.differences import Met
    from tests.compat.random.side import Side

UNANSWERED = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"}
MALFORMED = "grpc: error unmarshalling request: "
COMPACTED = Failure("OUT_OF_RANGE", "etcdserver: mvcc: required revision has been compacted")
TTL_TOLERANCE_S = 2


def compare_answers(
    request: Any,
    answers: Sequence[Any],
    sides: Sequence[Side],
    met: Met,
    current: int,
    compacted: int,
) -> None:
    """Compare whole answers, but for what the table of differences names.

    Args:
        request: As it was sent.
        answers: Etcd's and ours: messages or failures.
        sides: Of the answers.
        met: Counts what the table was needed for.
        current: The members' revision before the request.
        compacted: The members' last compaction, -1 for none.

    Raises:
        DifferenceError: They differ, or nobody answered.
    """
    for answer in answers:
        if isinstance(answer, Failure) and answer.code in UNANSWERED:
            # Two members that do not answer agree on nothing.
            raise DifferenceError("no answer", *answers)
    theirs, ours = (
        bare(answer, side.term) if hasattr(answer, "header") else answer
        for answer, side in zip(answers, sides, strict=True)
    )
    if isinstance(request, rpc_pb2.HashKVRequest):
        if isinstance(ours, rpc_pb2.HashKVResponse):
            if ours.hash_revision != (request.revision or current):
                raise DifferenceError("hash_revision", request, ours)
            if theirs == COMPACTED and ours.hash_revision == compacted:
                met("hash at the compaction")
                return
            met("hash_revision")
            ours.ClearField("hash_revision")
    elif isinstance(ours, rpc_pb2.AlarmResponse) and isinstance(theirs, rpc_pb2.AlarmResponse):
        if not theirs.HasField("header"):
            met("header of alarms")
            if ours.header.revision != current:
                raise DifferenceError("header", theirs, ours)
            ours.ClearField("header")
    elif isinstance(ours, rpc_pb2.LeaseTimeToLiveResponse) and type(ours) is type(theirs):
        for answer in (theirs, ours):
            answer.keys.sort()
        if abs(theirs.TTL - ours.TTL) <= TTL_TOLERANCE_S and 0 < ours.TTL <= ours.grantedTTL:
            ours.TTL = theirs.TTL
    if theirs != ours:
        raise DifferenceError("the answers differ", theirs, ours)


def refused_alike(step: Any, answers: Sequence[Any], met: Met) -> None:
    """Compare the answers to bytes that are no request of the API.

    Raises:
        DifferenceError: One was accepted, or they are refused differently.
    """
    theirs, ours = answers
    if theirs == ours and isinstance(ours, Failure) and ours.code not in UNANSWERED:
        return
    if all(
        isinstance(answer, Failure)
        and answer.code == "INTERNAL"
        and answer.text.startswith(MALFORMED)
        for answer in answers
    ):
        met("decoder's words")
        return
    if (
        theirs.text == ours.text
        and theirs.text.startswith("malformed method name")
        and ours.code == "UNIMPLEMENTED"
    ):
        met("malformed method name")
        return
    raise DifferenceError("refused differently", theirs, ours)
