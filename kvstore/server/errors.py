"""The wire's error table: every error a client can meet, with etcd's code and text.

One place, because Go clients match the text and all others the code. Source: etcd-semantics 2.11.

ServerError
├── NotAppliedError         certainly not applied, safe to retry
│   ├── NoLeaderError
│   ├── TooManyRequestsError
│   ├── RequestTooLargeError
│   └── StoppedError
├── TimedOutError           outcome unknown: it may have been applied
└── RefusedRequestError     wrong request or wrong member; a text and code of the table
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar

from kvstore.apply import errors as apply_errors
from kvstore.lease import errors as lease_errors
from kvstore.mvcc import errors as mvcc_errors


class Code(IntEnum):
    """gRPC status codes."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class ServerError(Exception):
    """Base of what the server itself answers."""

    code = Code.UNKNOWN
    text = "etcdserver: unknown error"

    def __init__(self) -> None:
        super().__init__(self.text)


class NotAppliedError(ServerError):
    """The request was certainly not applied."""


class NoLeaderError(NotAppliedError):
    """No leader took the request in time."""

    code = Code.UNAVAILABLE
    text = "etcdserver: no leader"


class TooManyRequestsError(NotAppliedError):
    """A queue is full."""

    # etcd means ResourceExhausted but sends Unknown by mistake; Go restores the code from the
    # text, others profit from the right one.
    code = Code.RESOURCE_EXHAUSTED
    text = "etcdserver: too many requests"


class RequestTooLargeError(NotAppliedError):
    """The request exceeds --max-request-bytes."""

    code = Code.INVALID_ARGUMENT
    text = "etcdserver: request is too large"


class NoSpaceError(NotAppliedError):
    """The quota would be exceeded."""

    code = Code.RESOURCE_EXHAUSTED
    text = "etcdserver: mvcc: database space exceeded"


class StoppedError(NotAppliedError):
    """The member shuts down."""

    code = Code.UNAVAILABLE
    text = "etcdserver: server stopped"


class TimedOutError(ServerError):
    """The request may or may not have been applied."""

    code = Code.UNAVAILABLE
    TEXTS: ClassVar[dict[str, str]] = {
        "": "etcdserver: request timed out",
        "leader": "etcdserver: request timed out, possibly due to previous leader failure",
        "connection": "etcdserver: request timed out, possibly due to connection lost",
        "snapshot": "etcdserver: request timed out, possibly due to connection lost",
        "applied": "etcdserver: request timed out, waiting for the applied index took too long",
        "stopped": "etcdserver: request timed out",
    }

    def __init__(self, cause: str = "") -> None:
        self.text = self.TEXTS[cause]
        super().__init__()


class RefusedRequestError(NotAppliedError):
    """A refusal by code and text of the table."""

    def __init__(self, code: Code, text: str) -> None:
        self.code = code
        self.text = text
        super().__init__()


class TransferTimedOutError(ServerError):
    """The target did not take the leadership over in time; it may yet."""

    text = "etcdserver: request timed out, leader transfer took too long"


NOT_LEADER = (Code.FAILED_PRECONDITION, "etcdserver: not leader")
BAD_TRANSFEREE = (Code.FAILED_PRECONDITION, "etcdserver: bad leader transferee")
BAD_URLS = (Code.INVALID_ARGUMENT, "etcdserver: given member URLs are invalid")
MEMBER_NOT_FOUND = (Code.NOT_FOUND, "etcdserver: member not found")
MEMBER_EXISTS = (Code.FAILED_PRECONDITION, "etcdserver: member ID already exist")
PEER_URL_EXISTS = (Code.FAILED_PRECONDITION, "etcdserver: Peer URLs already exists")
# etcd sends this one as Unknown by mistake, see TooManyRequestsError.
NOT_ENOUGH_STARTED = (
    Code.FAILED_PRECONDITION,
    "etcdserver: re-configuration failed due to not enough started members",
)
MEMBER_NOT_LEARNER = (Code.FAILED_PRECONDITION, "etcdserver: can only promote a learner member")
LEARNER_NOT_READY = (
    Code.FAILED_PRECONDITION,
    "etcdserver: can only promote a learner member which is in sync with leader",
)
TOO_MANY_LEARNERS = (Code.FAILED_PRECONDITION, "etcdserver: too many learner members in cluster")
NOT_FOR_LEARNER = (Code.FAILED_PRECONDITION, "etcdserver: rpc not supported for learner")
UNHEALTHY = (Code.UNAVAILABLE, "etcdserver: unhealthy cluster")
LEASE_NOT_FOUND = (Code.NOT_FOUND, "etcdserver: requested lease not found")
COMPACTED = (
    Code.OUT_OF_RANGE,
    "etcdserver: mvcc: required revision has been compacted",
)

TABLE: dict[type[Exception], tuple[Code, str]] = {
    mvcc_errors.KeyNotProvided: (Code.INVALID_ARGUMENT, "etcdserver: key is not provided"),
    mvcc_errors.KeyNotFound: (Code.INVALID_ARGUMENT, "etcdserver: key not found"),
    mvcc_errors.ValueProvided: (Code.INVALID_ARGUMENT, "etcdserver: value is provided"),
    mvcc_errors.LeaseProvided: (Code.INVALID_ARGUMENT, "etcdserver: lease is provided"),
    mvcc_errors.LeaseNotFound: LEASE_NOT_FOUND,
    mvcc_errors.TooManyOps: (
        Code.INVALID_ARGUMENT,
        "etcdserver: too many operations in txn request",
    ),
    mvcc_errors.DuplicateKey: (
        Code.INVALID_ARGUMENT,
        "etcdserver: duplicate key given in txn request",
    ),
    mvcc_errors.InvalidSort: (Code.INVALID_ARGUMENT, "etcdserver: invalid sort option"),
    mvcc_errors.Compacted: COMPACTED,
    mvcc_errors.FutureRevision: (
        Code.OUT_OF_RANGE,
        "etcdserver: mvcc: required revision is a future revision",
    ),
    lease_errors.LeaseNotFound: LEASE_NOT_FOUND,
    lease_errors.LeaseExists: (Code.FAILED_PRECONDITION, "etcdserver: lease already exists"),
    lease_errors.LeaseTTLTooLarge: (Code.OUT_OF_RANGE, "etcdserver: too large lease TTL"),
    apply_errors.NoSpace: (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded"),
    apply_errors.Corrupt: (Code.DATA_LOSS, "etcdserver: corrupt cluster"),
    apply_errors.StaleTerm: (Code.UNAVAILABLE, "etcdserver: leader changed"),
    apply_errors.MalformedRequest: (
        Code.INTERNAL,
        "grpc: error unmarshalling request",
    ),
}


def wire_error(error: Exception) -> tuple[Code, str]:
    """Return code and text for an error of the table.

    Raises:
        KeyError: The error is not of the table: a defect, and the caller must not hide it.
    """
    if isinstance(error, ServerError):
        return error.code, error.text
    return TABLE[type(error)]
