"""Errors of the apply stage; the wire texts live in the server's one table, not here.

ApplyError
├── RefusedError            a result: every member reaches the same verdict, nothing was changed
│   ├── NoSpace             the NOSPACE alarm is active
│   ├── Corrupt             the CORRUPT alarm is active
│   ├── MalformedRequest    the payload is not the protobuf message of its kind
│   └── StaleTerm           a leader's own decision that reached the log in a later term
└── FatalError              this member cannot go on; the process ends with the text
    ├── BadEntry            the entry's bytes are not an operation batch
    ├── NewerFormat         written by a later release
    └── ApplyFailed         an operation raised what no member may raise
"""

# ruff: noqa: N818 - the names are those of the wire's error table


class ApplyError(Exception):
    """Base of what applying can meet."""


class RefusedError(ApplyError):
    """The operation was refused; a result, not a failure. Nothing was changed."""


class NoSpace(RefusedError):
    """The NOSPACE alarm is active: nothing that stores more is accepted."""


class Corrupt(RefusedError):
    """The CORRUPT alarm is active: nothing but alarm changes is accepted."""


class MalformedRequest(RefusedError):
    """The payload does not parse.

    A result and not a failure: bytes that a client chose must never end every member at once,
    should the edge let them through unparsed.
    """


class StaleTerm(RefusedError):
    """A decision of one leader stands in another's term; no client ever sees this."""


class FatalError(ApplyError):
    """This member cannot apply the entry and must not skip it."""


class BadEntry(FatalError):
    """The entry is not an operation batch; the log's checksum passed, so its writer was wrong."""


class NewerFormat(FatalError):
    """The entry was written by a release whose format this one does not know."""

    def __init__(self, found: int, supported: int) -> None:
        super().__init__(
            f"an entry has operation format {found}; this release reads formats up to {supported}. "
            "Start the release that wrote it, or upgrade this member before the others write"
        )
        self.found = found
        self.supported = supported


class ApplyFailed(FatalError):
    """An operation raised something outside the wire table: the state may be wrong now."""

    def __init__(self, index: int, position: int, kind: object, cause: BaseException) -> None:
        super().__init__(
            f"entry {index}, operation {position} (kind {kind}) could not be applied: "
            f"{type(cause).__name__}: {cause}"
        )
        self.index = index
        self.position = position
        self.kind = kind
