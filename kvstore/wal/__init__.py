"""The durable log of one member. Not here: what the entries mean, and when to fsync what."""

from kvstore.wal.codec import Identity
from kvstore.wal.disk import RealDisk
from kvstore.wal.errors import (
    EXIT_DISK,
    BrokenError,
    CorruptError,
    FormatError,
    IdentityError,
    LockedError,
    LogExistsError,
    NoLogError,
    WalError,
    fatal,
)
from kvstore.wal.log import Options, Wal
from kvstore.wal.recovery import Recovered, check_identity

__all__ = [
    "EXIT_DISK",
    "BrokenError",
    "CorruptError",
    "FormatError",
    "Identity",
    "IdentityError",
    "LockedError",
    "LogExistsError",
    "NoLogError",
    "Options",
    "RealDisk",
    "Recovered",
    "Wal",
    "WalError",
    "check_identity",
    "fatal",
]
