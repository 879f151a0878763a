"""Errors of the store; the wire texts live in the server's one table, not here.

MvccError
├── RequestError            the request is wrong; nothing was changed, retrying cannot help
│   ├── KeyNotProvided      an empty key
│   ├── KeyNotFound         ignore_value or ignore_lease on an absent key; an empty operation
│   ├── ValueProvided       a value beside ignore_value
│   ├── LeaseProvided       a lease beside ignore_lease
│   ├── LeaseNotFound       the lease has ended or never was
│   ├── TooManyOps          more operations in a transaction than the limit
│   ├── DuplicateKey        a transaction changes one key twice
│   ├── InvalidSort         an unknown sort order or target
│   └── RevisionError       the revision cannot be read
│       ├── Compacted       it has been compacted away
│       └── FutureRevision  it does not exist yet
└── StorageError            the stored data cannot be used; the text says what to do
    ├── CorruptStore        a record that must exist is missing or damaged
    ├── NewerFormat         written by a later release
    └── BadSnapshot         a received snapshot is damaged or incomplete
"""

# ruff: noqa: N818 - the names are those of the wire's error table


class MvccError(Exception):
    """Base of what the store raises."""


class RequestError(MvccError):
    """The request cannot be carried out. Nothing was changed."""


class KeyNotProvided(RequestError):
    """The key is empty."""


class KeyNotFound(RequestError):
    """`ignore_value` or `ignore_lease` on an absent key, or an operation without content."""


class ValueProvided(RequestError):
    """A value was given together with `ignore_value`."""


class LeaseProvided(RequestError):
    """A lease was given together with `ignore_lease`."""


class LeaseNotFound(RequestError):
    """The lease does not exist."""

    def __init__(self, lease_id: int) -> None:
        super().__init__(f"lease {lease_id} does not exist")
        self.lease_id = lease_id


class TooManyOps(RequestError):
    """The transaction holds more operations than the limit."""


class DuplicateKey(RequestError):
    """The transaction would change one key twice."""

    def __init__(self, key: bytes) -> None:
        super().__init__(f"key {key!r} is changed twice in one transaction")
        self.key = key


class InvalidSort(RequestError):
    """The sort order or target is none of the defined ones."""


class RevisionError(RequestError):
    """The revision asked for cannot be read."""


class Compacted(RevisionError):
    """The revision has been compacted away."""

    def __init__(self, requested: int, compacted: int) -> None:
        super().__init__(f"revision {requested} is compacted; the oldest readable is {compacted}")
        self.requested = requested
        self.compacted = compacted


class FutureRevision(RevisionError):
    """The revision does not exist yet."""

    def __init__(self, requested: int, current: int) -> None:
        super().__init__(f"revision {requested} is ahead of the store, which is at {current}")
        self.requested = requested
        self.current = current


class StorageError(MvccError):
    """The stored data cannot be used."""


class CorruptStore(StorageError):
    """A record that must exist is missing or damaged."""


class NewerFormat(StorageError):
    """The data was written by a release whose format this one does not know."""

    def __init__(self, what: str, found: int, supported: int) -> None:
        super().__init__(
            f"{what} has format {found}; this release reads formats up to {supported}. "
            "Start the release that wrote it"
        )
        self.found = found
        self.supported = supported


class BadSnapshot(StorageError):
    """A received snapshot is damaged, incomplete or out of order; nothing was installed."""
