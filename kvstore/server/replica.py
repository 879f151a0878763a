"""The replicated state of one member, opened from its store file: what entries are applied to."""

from __future__ import annotations

from kvstore.apply.state import open_state
from kvstore.mvcc.marks import AppliedMark
from kvstore.ports import Backend, Change, Disk
from kvstore.server.config import ServerConfig
from kvstore.server.platform import Platform
from kvstore.server.startup import StartError

MAP_SLACK_BYTES = 64 << 20
"""Beyond twice the quota, for the rest of what the file holds."""

INCARNATION_NAME = "incarnation"
REPAIR = (
    "restore the data directory from a copy, or write a number into the file that is larger than "
    "the times the member was ever started, for example 1000000"
)


class Replica:
    """Store, leases, alarms and published members over one backend."""

    def __init__(self, backend: Backend, config: ServerConfig) -> None:
        """Rebuild what lives in memory; about 2 s for a million keys.

        Raises:
            StorageError, ValueError: The stored data is damaged or of a newer format.
        """
        self.backend = backend
        state = open_state(
            backend, minimum_ttl_s=config.lease_ttl_min_s, txn_ops_max=config.max_txn_ops
        )
        self.store = state.store
        self.lessor = state.lessor
        self.alarms = state.alarms
        self.published = state.members
        self.applier = state.applier

    @property
    def applied(self) -> AppliedMark:
        """The log position of the last batch that was sealed; at start, of what is stored."""
        return self.store.applied


def next_incarnation(disk: Disk, folder: str, *, first: bool) -> int:
    """Count this start of the member, durably, and return its number: 1, 2, ...

    In a file of its own: the store may be replaced by another member's snapshot.

    Args:
        disk: Where the file is.
        folder: The data directory.
        first: Whether the log is still empty. Else the file must be there: under a number that was
            used before, an old entry in the log would be taken for the answer to a new request.

    Raises:
        StartError: The file is missing or damaged.
    """
    path = f"{folder}/{INCARNATION_NAME}"
    number = 1
    if disk.exists(path):
        file = disk.open(path)
        content = file.read(0, 32)
        file.close()
        if not content.isdigit():
            raise StartError(f"{path} is damaged (it must hold one number); {REPAIR}")
        number = int(content) + 1
    elif not first:
        raise StartError(f"{path} is missing, but the log is in use; {REPAIR}")
    draft = f"{path}.new"
    if disk.exists(draft):
        disk.remove(draft)
    file = disk.open(draft, create=True)
    file.write(0, [b"%d" % number])
    file.sync()
    file.close()
    disk.rename(draft, path)
    disk.sync_folder(folder)
    return number


def map_size_bytes(config: ServerConfig) -> int:
    """Return the store's bound: twice the quota, so that deletes still work when it is reached."""
    return 2 * config.quota_bytes + MAP_SLACK_BYTES


def create_store(
    platform: Platform, folder: str, name: str, config: ServerConfig, change: Change
) -> None:
    """Make a new store file with one record in it; it has its name when it is whole.

    LMDB writes its first pages without a sync, so a power cut at the first start could leave a
    file that it refuses to open.
    """
    disk = platform.disk
    draft = f"{folder}/{name}.new"
    for leftover in (draft, f"{draft}-lock"):
        if disk.exists(leftover):
            disk.remove(leftover)
    backend = platform.open_backend(draft, map_size_bytes=map_size_bytes(config))
    backend.commit([change])
    backend.close()
    disk.rename(draft, f"{folder}/{name}")
    disk.remove(f"{draft}-lock")
    disk.sync_folder(folder)
