"""Pipelines: many operations in one go that take effect in their order; `transport` sends them.

results = await client.pipeline().then(Op.put(b"a", b"1"), Op.get(b"a")).commit()
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from kvstore.client.errors import KvError, PipelineError
from kvstore.client.methods import DELETE_RANGE, PUT, RANGE, TXN, Method
from kvstore.client.types import (
    DeleteResult,
    PutResult,
    RangeResult,
    TxnResult,
    delete_result,
    put_result,
    range_result,
    txn_result,
)

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from kvstore.client.transport import PipelineCall
    from kvstore.client.txn import Op

PipelineResult: TypeAlias = PutResult | DeleteResult | RangeResult | TxnResult
Run: TypeAlias = Callable[
    ["Sequence[PipelineCall]", float | None], Coroutine[Any, Any, "list[Message | KvError]"]
]

_METHODS: dict[str, Method[Any, Any]] = {
    "request_put": PUT,
    "request_range": RANGE,
    "request_delete_range": DELETE_RANGE,
    "request_txn": TXN,
}
_RESULTS: dict[Method[Any, Any], Callable[[Any], PipelineResult]] = {
    PUT: put_result,
    RANGE: range_result,
    DELETE_RANGE: delete_result,
    TXN: txn_result,
}


class Pipeline:
    """Operations that are sent together and take effect one after another, in their order.

    Not a transaction: each is its own revision, and other clients' operations may come between.
    Made by `AsyncClient.pipeline`.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._calls: list[PipelineCall] = []

    def then(self, *operations: Op) -> Pipeline:
        """Add operations. As many as you like: they travel in groups that fit the server."""
        for operation in operations:
            kind = operation.message.WhichOneof("request")
            assert kind is not None
            self._calls.append(
                (_METHODS[kind], getattr(operation.message, kind), operation.is_write)
            )
        return self

    async def commit(self, *, timeout_s: float | None = None) -> list[PipelineResult]:
        """Send them and wait for every answer.

        An operation that is refused as wrong (an absent key with ignore_value ...) does not stop
        the ones behind it. Any other failure does, so that nothing overtakes it: what has not been
        started by then is certainly not applied.

        Args:
            timeout_s: Seconds for the whole pipeline, retries included; None is the client's.

        Returns:
            The results, in the order of the operations.

        Raises:
            PipelineError: Some failed; its ``results`` say which, and how each of them ended.
        """
        answers = await self._run(self._calls, timeout_s)
        results: list[PipelineResult | KvError] = []
        done: list[PipelineResult] = []
        for (method, _, _), answer in zip(self._calls, answers, strict=True):
            if isinstance(answer, KvError):
                results.append(answer)
            else:
                result = _RESULTS[method](answer)
                results.append(result)
                done.append(result)
        if len(done) < len(results):
            raise PipelineError(results)
        return done
