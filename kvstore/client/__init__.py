"""Public client library for kvstore and etcd: the names users import, and nothing else."""

from kvstore.client.aio import AsyncClient
from kvstore.client.counters import Statistics
from kvstore.client.endpoint import Tls
from kvstore.client.errors import (
    AuthenticationError,
    AvailabilityError,
    ClosedError,
    CompactedError,
    ConflictError,
    CorruptError,
    FutureRevisionError,
    KeyNotFoundError,
    KvError,
    LeaseExistsError,
    LeaseLostError,
    LeaseNotFoundError,
    MemberNotFoundError,
    NoLeaderError,
    NoSpaceError,
    OutcomeUnknownError,
    OverloadedError,
    PermissionDeniedError,
    PipelineError,
    PipelineStoppedError,
    PreconditionError,
    ReadFailedError,
    RequestError,
    RequestTooLargeError,
    UnreachableError,
    UnsupportedError,
    WrongLoopError,
)
from kvstore.client.keys import TO_THE_END, prefix_end
from kvstore.client.lease import Lease
from kvstore.client.pages import Pages
from kvstore.client.pipeline import Pipeline
from kvstore.client.recipes.barrier import Barrier, DoubleBarrier
from kvstore.client.recipes.cache import Cache, CacheStatistics
from kvstore.client.recipes.election import Election, Leadership, Observer
from kvstore.client.recipes.lock import Lock, ReadWriteLock
from kvstore.client.recipes.mirror import Mirror, MirrorBatch
from kvstore.client.recipes.multiwatch import MultiWatcher, Span
from kvstore.client.recipes.queue import PriorityQueue, Queue
from kvstore.client.recipes.stm import Isolation, Stm, StmResult
from kvstore.client.sync import Client
from kvstore.client.txn import Op, Txn, compare
from kvstore.client.types import (
    Alarm,
    DeleteResult,
    Event,
    HashKv,
    KeyValue,
    LeaseGrant,
    LeaseTimeToLive,
    Member,
    PutResult,
    RangeResult,
    Status,
    TxnResult,
    WatchBatch,
)
from kvstore.client.watch import Watcher

__all__ = [
    "TO_THE_END",
    "Alarm",
    "AsyncClient",
    "AuthenticationError",
    "AvailabilityError",
    "Barrier",
    "Cache",
    "CacheStatistics",
    "Client",
    "ClosedError",
    "CompactedError",
    "ConflictError",
    "CorruptError",
    "DeleteResult",
    "DoubleBarrier",
    "Election",
    "Event",
    "FutureRevisionError",
    "HashKv",
    "Isolation",
    "KeyNotFoundError",
    "KeyValue",
    "KvError",
    "Leadership",
    "Lease",
    "LeaseExistsError",
    "LeaseGrant",
    "LeaseLostError",
    "LeaseNotFoundError",
    "LeaseTimeToLive",
    "Lock",
    "Member",
    "MemberNotFoundError",
    "Mirror",
    "MirrorBatch",
    "MultiWatcher",
    "NoLeaderError",
    "NoSpaceError",
    "Observer",
    "Op",
    "OutcomeUnknownError",
    "OverloadedError",
    "Pages",
    "PermissionDeniedError",
    "Pipeline",
    "PipelineError",
    "PipelineStoppedError",
    "PreconditionError",
    "PriorityQueue",
    "PutResult",
    "Queue",
    "RangeResult",
    "ReadFailedError",
    "ReadWriteLock",
    "RequestError",
    "RequestTooLargeError",
    "Span",
    "Statistics",
    "Status",
    "Stm",
    "StmResult",
    "Tls",
    "Txn",
    "TxnResult",
    "UnreachableError",
    "UnsupportedError",
    "WatchBatch",
    "Watcher",
    "WrongLoopError",
    "compare",
    "prefix_end",
]
