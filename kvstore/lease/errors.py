"""Errors of the lessor, all of the wire table; the server's table holds etcd's texts.

LeaseError
├── LeaseNotFound       the lease has ended or never was
├── LeaseExists         a grant asked for an id in use
└── LeaseTTLTooLarge    a grant asked for more than 9,000,000,000 seconds
"""

# ruff: noqa: N818 - the names are those of the wire's error table


class LeaseError(Exception):
    """A lease request was refused; nothing was changed."""

    def __init__(self, lease: int) -> None:
        super().__init__(f"{type(self).__name__}: lease {lease:016x}")
        self.lease = lease


class LeaseNotFound(LeaseError):
    """The lease has ended or never was."""


class LeaseExists(LeaseError):
    """A grant asked for an id that is in use."""


class LeaseTTLTooLarge(LeaseError):
    """A grant asked for a longer life than etcd allows."""
