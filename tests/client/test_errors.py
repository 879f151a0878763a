"""The error table: every text of etcd to its class, and what a code alone means."""

from __future__ import annotations

import pytest

from kvstore.client import (
    AuthenticationError,
    AvailabilityError,
    CompactedError,
    CorruptError,
    FutureRevisionError,
    KeyNotFoundError,
    KvError,
    LeaseExistsError,
    LeaseNotFoundError,
    MemberNotFoundError,
    NoLeaderError,
    NoSpaceError,
    OutcomeUnknownError,
    OverloadedError,
    PermissionDeniedError,
    PreconditionError,
    ReadFailedError,
    RequestError,
    RequestTooLargeError,
    UnreachableError,
    UnsupportedError,
)
from kvstore.client.errors import error_from

# Written out again from the protocol reference, not taken from the code.
EXPECTED: dict[type[KvError], tuple[str, list[str]]] = {
    RequestError: (
        "INVALID_ARGUMENT",
        [
            "key is not provided",
            "value is provided",
            "lease is provided",
            "too many operations in txn request",
            "duplicate key given in txn request",
            "invalid client api version",
            "invalid sort option",
            "given member URLs are invalid",
            "role name is empty",
            "permission not given",
            "invalid auth management",
            "wrong downgrade target version format",
            "invalid downgrade target version",
            "too large lease TTL",
        ],
    ),
    KeyNotFoundError: ("INVALID_ARGUMENT", ["key not found"]),
    RequestTooLargeError: ("INVALID_ARGUMENT", ["request is too large"]),
    AuthenticationError: (
        "INVALID_ARGUMENT",
        [
            "user name is empty",
            "authentication failed, invalid user ID or password",
            "revision of auth store is old",
            "invalid auth token",
        ],
    ),
    LeaseNotFoundError: ("NOT_FOUND", ["requested lease not found"]),
    MemberNotFoundError: ("NOT_FOUND", ["member not found"]),
    PermissionDeniedError: ("PERMISSION_DENIED", ["permission denied"]),
    NoSpaceError: ("RESOURCE_EXHAUSTED", ["mvcc: database space exceeded"]),
    OverloadedError: ("UNKNOWN", ["too many requests"]),
    LeaseExistsError: ("FAILED_PRECONDITION", ["lease already exists"]),
    PreconditionError: (
        "FAILED_PRECONDITION",
        [
            "member ID already exist",
            "Peer URLs already exists",
            "re-configuration failed due to not enough started members",
            "can only promote a learner member",
            "can only promote a learner member which is in sync with leader",
            "too many learner members in cluster",
            "cluster ID mismatch",
            "root user does not exist",
            "root user does not have root role",
            "user name already exists",
            "user name not found",
            "role name already exists",
            "role name not found",
            "role is not granted to the user",
            "permission is not granted to the role",
            "authentication is not enabled",
            "not leader",
            "not capable",
            "rpc not supported for learner",
            "bad leader transferee",
            "cluster version not found during downgrade",
            "cluster has a downgrade job in progress",
            "no inflight downgrade job",
        ],
    ),
    CompactedError: ("OUT_OF_RANGE", ["mvcc: required revision has been compacted"]),
    FutureRevisionError: ("OUT_OF_RANGE", ["mvcc: required revision is a future revision"]),
    NoLeaderError: ("UNAVAILABLE", ["no leader"]),
    AvailabilityError: ("UNAVAILABLE", ["unhealthy cluster"]),
    OutcomeUnknownError: (
        "UNAVAILABLE",
        [
            "leader changed",
            "server stopped",
            "request timed out",
            "request timed out, possibly due to previous leader failure",
            "request timed out, possibly due to connection lost",
            "request timed out, waiting for the applied index took too long",
        ],
    ),
    CorruptError: ("DATA_LOSS", ["corrupt cluster"]),
}
CASES = [(kind, code, text) for kind, (code, texts) in EXPECTED.items() for text in texts]


@pytest.mark.parametrize(("kind", "code", "text"), CASES)
def test_each_text_has_its_class(kind: type[KvError], code: str, text: str) -> None:
    # The text decides: etcd sends some of them as UNKNOWN.
    for sent_as in (code, "UNKNOWN"):
        error = error_from(sent_as, f"etcdserver: {text}", write=True)
        assert type(error) is kind
        assert error.text == f"etcdserver: {text}"
        assert error.grpc_code == sent_as
        assert f"etcdserver: {text}" in str(error)


@pytest.mark.parametrize(("kind", "code", "text"), CASES)
def test_only_an_open_outcome_of_a_write_may_have_applied(
    kind: type[KvError], code: str, text: str
) -> None:
    assert error_from(code, f"etcdserver: {text}", write=True).may_have_applied == (
        kind is OutcomeUnknownError
    )
    as_read = error_from(code, f"etcdserver: {text}", write=False)
    assert not as_read.may_have_applied
    assert type(as_read) is (ReadFailedError if kind is OutcomeUnknownError else kind)


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        ("UNAVAILABLE", "failed to connect to all addresses; last error: ...", UnreachableError),
        ("UNAVAILABLE", "DNS resolution failed for nowhere:2379: ...", UnreachableError),
        ("UNAVAILABLE", "Socket closed", OutcomeUnknownError),
        ("UNAVAILABLE", "etcdserver: a text of the future", OutcomeUnknownError),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", OutcomeUnknownError),
        ("INTERNAL", "Received RST_STREAM with error code 2", OutcomeUnknownError),
        ("UNKNOWN", "Stream removed", OutcomeUnknownError),
        ("CANCELLED", "", OutcomeUnknownError),
        ("ABORTED", "", OutcomeUnknownError),
        ("DATA_LOSS", "", OutcomeUnknownError),
        (
            "RESOURCE_EXHAUSTED",
            "grpc: received message larger than max (9 vs. 8)",
            RequestTooLargeError,
        ),
        ("RESOURCE_EXHAUSTED", "", OutcomeUnknownError),
        ("UNIMPLEMENTED", "unknown method", UnsupportedError),
        ("INVALID_ARGUMENT", "etcdserver: a text of the future", RequestError),
        ("NOT_FOUND", "", RequestError),
        ("UNAUTHENTICATED", "", AuthenticationError),
        ("PERMISSION_DENIED", "", PermissionDeniedError),
        ("FAILED_PRECONDITION", "", PreconditionError),
        ("OUT_OF_RANGE", "", RequestError),
    ],
)
def test_an_unknown_text_is_judged_by_its_code(code: str, text: str, kind: type[KvError]) -> None:
    assert type(error_from(code, text, write=True)) is kind


def test_classes_are_grouped_by_what_the_caller_may_do() -> None:
    for kind in (CompactedError, LeaseNotFoundError, PermissionDeniedError, UnsupportedError):
        assert issubclass(kind, RequestError)
    for kind in (NoLeaderError, UnreachableError, OutcomeUnknownError, ReadFailedError):
        assert issubclass(kind, AvailabilityError)
