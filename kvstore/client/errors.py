"""The error tree of the client, and the one table from etcd's texts to it; no calls are made here.

KvError
├── RequestError               wrong or not allowed; repeating cannot help; nothing was written
│   ├── KeyNotFoundError           ignore_value or ignore_lease on a key that does not exist
│   ├── CompactedError             the revision asked for has been compacted away
│   ├── FutureRevisionError        the revision asked for does not exist yet
│   ├── LeaseNotFoundError         the lease has ended or never was
│   ├── LeaseExistsError           the chosen lease id is taken
│   ├── RequestTooLargeError       more bytes than the server's max_request_bytes
│   ├── PermissionDeniedError      the user may not touch these keys
│   ├── AuthenticationError        wrong name, password or token
│   ├── MemberNotFoundError        no member has that id
│   ├── PreconditionError          the cluster's state does not allow it now
│   └── UnsupportedError           the server does not know the call
├── AvailabilityError          the cluster cannot answer now
│   ├── NoLeaderError              not applied, safe to retry
│   ├── UnreachableError           no endpoint took a connection; never sent, safe to retry
│   ├── OverloadedError            refused at the door; not applied, retry later
│   ├── NoSpaceError               the store is full; not applied
│   ├── CorruptError               a member has found corrupt data and refuses
│   ├── PipelineStoppedError       an operation before it in its pipeline failed; not applied
│   ├── ReadFailedError            a read got no answer in time; nothing was written
│   └── OutcomeUnknownError        may have been applied; retry only if idempotent
├── PipelineError              some operations of a pipeline failed; `results` has each one's end
├── ConflictError              a software transaction met conflicts as often as it was allowed to
├── LeaseLostError             a lease kept alive by this client has ended
├── WrongLoopError             the client belongs to another event loop; nothing was sent
└── ClosedError                the client, or the watch, was closed by its own side
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from kvstore.client.status import CallError

if TYPE_CHECKING:
    from collections.abc import Sequence


class KvError(Exception):
    """Base of all errors of this package.

    `text` is the server's (or gRPC's) own sentence, `grpc_code` the name of its status, such as
    "UNAVAILABLE" ("" when the client made the error itself).
    """

    advice: ClassVar[str] = ""
    """What the caller can do about it; part of `str(error)`."""

    may_have_applied: ClassVar[bool] = False
    """True only where a write may have taken effect although it failed."""

    def __init__(self, text: str, *, grpc_code: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.grpc_code = grpc_code
        self.others: tuple[str, ...] = ()
        """What the other endpoints that were tried have said, each with its name."""

    def __str__(self) -> str:
        text = "; ".join((self.text, *self.others))
        return f"{text} ({self.advice})" if self.advice else text


class RequestError(KvError):
    """The request is wrong or not allowed; repeating it cannot help. Nothing was written."""


class KeyNotFoundError(RequestError):
    """A put with ignore_value or ignore_lease met an absent key. Nothing was written."""

    advice = "ignore_value and ignore_lease need a key that exists"


class CompactedError(RequestError):
    """The revision asked for has been compacted away.

    `requested` is the revision asked for, `compacted` the compaction revision, which is the
    oldest that can still be read; 0 where the server did not say.
    """

    advice = "read the current state and go on from its revision"

    def __init__(
        self, text: str, *, grpc_code: str = "", requested: int = 0, compacted: int = 0
    ) -> None:
        super().__init__(text, grpc_code=grpc_code)
        self.requested = requested
        self.compacted = compacted

    def __str__(self) -> str:
        if not self.compacted:
            return super().__str__()
        return (
            f"revision {self.requested} is compacted; the oldest kept is {self.compacted}"
            f" ({self.advice})"
        )


class FutureRevisionError(RequestError):
    """The revision asked for does not exist yet."""


class LeaseNotFoundError(RequestError):
    """The lease has ended or never was. Nothing was written."""

    advice = "grant a new lease and attach its keys again"


class LeaseExistsError(RequestError):
    """The chosen lease id is taken."""

    advice = "pass lease_id=0 to let the server choose"


class RequestTooLargeError(RequestError):
    """The request has more bytes than the server takes (etcd: 1.5 MiB). Nothing was written."""

    advice = "split it, or raise the server's --max-request-bytes"


class PermissionDeniedError(RequestError):
    """The user lacks the permission for these keys. Nothing was written."""


class AuthenticationError(RequestError):
    """Name, password or token were not accepted. Nothing was written."""

    advice = "check user and password"


class MemberNotFoundError(RequestError):
    """No member of the cluster has that id."""


class PreconditionError(RequestError):
    """The state of the cluster does not allow the request now. Nothing was written."""


class UnsupportedError(RequestError):
    """The server does not know this call."""

    advice = "the server is older than the call, or does not serve it"


class AvailabilityError(KvError):
    """The cluster cannot answer now."""


class NoLeaderError(AvailabilityError):
    """No leader within the time given. Not applied, safe to retry."""

    advice = "not applied; retry when a majority of the members is up"


class UnreachableError(AvailabilityError):
    """No endpoint took a connection. Never sent, so not applied and safe to retry."""

    advice = "nothing was sent; check the endpoints and that the servers run"


class OverloadedError(AvailabilityError):
    """Refused because too many requests wait already. Not applied."""

    advice = "not applied; retry later"


class NoSpaceError(AvailabilityError):
    """The store has reached its quota and takes deletes only. Not applied."""

    advice = "delete or compact, then disarm the NOSPACE alarm"


class CorruptError(AvailabilityError):
    """A member has found that its data differ from the others', and refuses. Not applied."""

    advice = "replace the corrupt member, then disarm the CORRUPT alarm"


class PipelineStoppedError(AvailabilityError):
    """An operation before it in its pipeline failed. Not applied, nor started."""

    advice = "not applied; see how the operations before it ended"


class ReadFailedError(AvailabilityError):
    """A read got no answer within its time. Nothing was written; safe to retry."""


class OutcomeUnknownError(AvailabilityError):
    """The request was sent and no answer came: it may have been applied, now or a moment later.

    Retry only what is idempotent, or guard it by comparing `mod_revision` in a transaction.
    """

    advice = "it may have been applied; read before repeating it"
    may_have_applied = True


class PipelineError(KvError):
    """Some operations of a pipeline failed.

    `results` has one item for each operation, in their order: its result, or the KvError that
    says how it ended. `first` is the first of these errors, and this one's cause.
    """

    def __init__(self, results: Sequence[object]) -> None:
        self.results = list(results)
        failures = [result for result in results if isinstance(result, KvError)]
        self.first: KvError = failures[0]
        position = self.results.index(self.first)
        super().__init__(
            f"{len(failures)} of {len(self.results)} operations failed; the first is number"
            f" {position}: {self.first}",
            grpc_code=self.first.grpc_code,
        )
        self.__cause__ = self.first


class LeaseLostError(KvError):
    """A lease kept alive by this client has ended, or may have: it could not be renewed in time."""

    advice = "its keys are gone or go; grant a new lease"

    def __init__(self, text: str, *, lease_id: int) -> None:
        super().__init__(text)
        self.lease_id = lease_id


class WrongLoopError(KvError, RuntimeError):
    """The client is in use on another event loop, or its own thread would wait for itself.

    Nothing was sent.
    """

    advice = (
        "make an AsyncClient for each event loop, or one kvstore.client.Client, which all threads "
        "may share"
    )


class ConflictError(KvError):
    """A software transaction met a conflict in each of its `attempts`. Nothing was written."""

    advice = "nothing was written; repeat it, or touch fewer keys that others change"

    def __init__(self, text: str, *, attempts: int) -> None:
        super().__init__(text)
        self.attempts = attempts


class ClosedError(KvError):
    """The client, or the watch, was closed by its own side."""

    advice = "make a new client"


LEARNER_TEXT = "etcdserver: rpc not supported for learner"
"""A learner's refusal, before anything was proposed; a voter would serve the call."""

ERROR_CLASSES: dict[str, type[KvError]] = {
    # INVALID_ARGUMENT
    "etcdserver: key is not provided": RequestError,
    "etcdserver: key not found": KeyNotFoundError,
    "etcdserver: value is provided": RequestError,
    "etcdserver: lease is provided": RequestError,
    "etcdserver: too many operations in txn request": RequestError,
    "etcdserver: duplicate key given in txn request": RequestError,
    "etcdserver: invalid client api version": RequestError,
    "etcdserver: invalid sort option": RequestError,
    "etcdserver: given member URLs are invalid": RequestError,
    "etcdserver: request is too large": RequestTooLargeError,
    "etcdserver: user name is empty": AuthenticationError,
    "etcdserver: role name is empty": RequestError,
    "etcdserver: authentication failed, invalid user ID or password": AuthenticationError,
    "etcdserver: permission not given": RequestError,
    "etcdserver: invalid auth management": RequestError,
    "etcdserver: revision of auth store is old": AuthenticationError,
    "etcdserver: wrong downgrade target version format": RequestError,
    "etcdserver: invalid downgrade target version": RequestError,
    # NOT_FOUND
    "etcdserver: requested lease not found": LeaseNotFoundError,
    "etcdserver: member not found": MemberNotFoundError,
    # PERMISSION_DENIED, UNAUTHENTICATED
    "etcdserver: permission denied": PermissionDeniedError,
    "etcdserver: invalid auth token": AuthenticationError,
    "auth: authentication failed, password was given for no password user": AuthenticationError,
    # RESOURCE_EXHAUSTED ("too many requests" travels as UNKNOWN from etcd)
    "etcdserver: mvcc: database space exceeded": NoSpaceError,
    "etcdserver: too many requests": OverloadedError,
    # FAILED_PRECONDITION
    "etcdserver: lease already exists": LeaseExistsError,
    "etcdserver: member ID already exist": PreconditionError,
    "etcdserver: Peer URLs already exists": PreconditionError,
    "etcdserver: re-configuration failed due to not enough started members": PreconditionError,
    "etcdserver: can only promote a learner member": PreconditionError,
    "etcdserver: can only promote a learner member which is in sync with leader": PreconditionError,
    "etcdserver: too many learner members in cluster": PreconditionError,
    "etcdserver: cluster ID mismatch": PreconditionError,
    "etcdserver: root user does not exist": PreconditionError,
    "etcdserver: root user does not have root role": PreconditionError,
    "etcdserver: user name already exists": PreconditionError,
    "etcdserver: user name not found": PreconditionError,
    "etcdserver: role name already exists": PreconditionError,
    "etcdserver: role name not found": PreconditionError,
    "etcdserver: role is not granted to the user": PreconditionError,
    "etcdserver: permission is not granted to the role": PreconditionError,
    "etcdserver: authentication is not enabled": PreconditionError,
    "etcdserver: not leader": PreconditionError,
    "etcdserver: not capable": PreconditionError,
    LEARNER_TEXT: PreconditionError,
    "etcdserver: bad leader transferee": PreconditionError,
    "etcdserver: cluster version not found during downgrade": PreconditionError,
    "etcdserver: cluster has a downgrade job in progress": PreconditionError,
    "etcdserver: no inflight downgrade job": PreconditionError,
    # OUT_OF_RANGE
    "etcdserver: mvcc: required revision has been compacted": CompactedError,
    "etcdserver: mvcc: required revision is a future revision": FutureRevisionError,
    "etcdserver: too large lease TTL": RequestError,
    # UNAVAILABLE, refused before anything was proposed
    "etcdserver: no leader": NoLeaderError,
    "etcdserver: unhealthy cluster": AvailabilityError,
    "raft proposal dropped": NoLeaderError,
    # UNAVAILABLE, after the proposal left: the outcome is open
    "etcdserver: leader changed": OutcomeUnknownError,
    "etcdserver: server stopped": OutcomeUnknownError,
    "etcdserver: request timed out": OutcomeUnknownError,
    "etcdserver: request timed out, possibly due to previous leader failure": OutcomeUnknownError,
    "etcdserver: request timed out, possibly due to connection lost": OutcomeUnknownError,
    "etcdserver: request timed out, waiting for the applied index took too long": (
        OutcomeUnknownError
    ),
    # ABORTED, sessions only
    "kvstore: not applied: an operation before it in the pipeline failed": PipelineStoppedError,
    # DATA_LOSS
    "etcdserver: corrupt cluster": CorruptError,
    # UNKNOWN: the watch's own refusals, which arrive as cancel_reason
    "mvcc: watcher range is empty": RequestError,
    "mvcc: duplicate watch ID provided on the WatchStream": RequestError,
    "mvcc: watcher has a negative start revision": RequestError,
}
"""etcd's exact text to the class a caller meets. Text first: etcd sends some with a wrong code."""

_CLASS_OF_CODE: dict[str, type[KvError]] = {
    "INVALID_ARGUMENT": RequestError,
    "NOT_FOUND": RequestError,
    "ALREADY_EXISTS": PreconditionError,
    "PERMISSION_DENIED": PermissionDeniedError,
    "UNAUTHENTICATED": AuthenticationError,
    "FAILED_PRECONDITION": PreconditionError,
    "OUT_OF_RANGE": RequestError,
    "UNIMPLEMENTED": UnsupportedError,
}
# Every code not named here leaves the outcome of a write open: the safe reading.

_TOO_LARGE = ("message larger than max", "larger than max message size")
# grpc-go's and gRPC core's words for a request that the transport itself refuses.

_NEVER_SENT = ("failed to connect to all addresses", "DNS resolution failed", "empty address list")
# gRPC core fails a call with these only when no connection was there to send it on. Should the
# words change, the error becomes OutcomeUnknownError, which is the safe side.

RETRY_WITH_NEW_TOKEN = frozenset(
    {
        "etcdserver: invalid auth token",
        "etcdserver: user name is empty",
        "etcdserver: revision of auth store is old",
    }
)
"""Refusals that a fresh token cures; the request was not applied."""


def error_from(code: str, text: str, *, write: bool) -> KvError:
    """Build the error for a gRPC status.

    Args:
        code: Name of the status code, such as "UNAVAILABLE".
        text: The status message as received.
        write: Whether the request can change something. What leaves the outcome of a write
            open is an `OutcomeUnknownError` for a write and a `ReadFailedError` for a read.
    """
    kind = ERROR_CLASSES.get(text)
    if kind is None:
        kind = _CLASS_OF_CODE.get(code, OutcomeUnknownError)
        if code == "UNAVAILABLE" and any(words in text for words in _NEVER_SENT):
            kind = UnreachableError
        elif code == "RESOURCE_EXHAUSTED" and any(words in text for words in _TOO_LARGE):
            kind = RequestTooLargeError
    if kind is OutcomeUnknownError and not write:
        kind = ReadFailedError
    return kind(text, grpc_code=code)


def error_from_rpc(error: CallError, *, write: bool) -> KvError:
    """Build the error for what a call ended with."""
    return error_from(error.name, error.text, write=write)
