"""What may differ between etcd 3.4 and us, or is not compared: one table, each with its reason.

Our anchor is etcd 3.6 where it differs from Debian's 3.4.23. Whoever makes use of an entry says so
by `met`, so that a run can tell which entries it needed; one that is never needed must leave.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

EXPECTED = {
    "sort option": "3.6 refuses unknown sort orders and targets, 3.4 does what it likes: such "
    "requests go to us alone and must be refused, so that the stores stay equal",
    "negative start": "3.6.6 refuses a watch from a negative revision as compacted, 3.4 starts "
    "anywhere: such watches go to us alone and must be refused",
    "hash at the compaction": "3.4 refuses HashKV at exactly the compaction revision, 3.6 answers",
    "hash_revision": "3.4 does not have the field; ours must be the revision hashed",
    "tombstone at the compaction": "3.4 removes a tombstone exactly at the compaction revision, "
    "3.6 keeps it: a watch from there starts one later",
    "id of a compacted watcher": "etcd still knows the ids of watchers that a compaction has "
    "canceled (it refuses them to others, passes over them, and cancels them again), although "
    "nothing may follow `canceled`: steps that would show that are not sent",
    "progress that 3.6 withholds": "3.4 answers a progress request at once, 3.6 only when all "
    "watchers of a stream that has some are synced and started: it is asked for only then",
    "header of alarms": "3.4 leaves the header of an Alarm reply empty, 3.6 fills it",
    "malformed method name": "a path that is no method is ResourceExhausted in the grpc-go of 3.4, "
    "Unimplemented in that of 3.6",
    "decoder's words": "after `grpc: error unmarshalling request: ` follow the words of the "
    "protobuf library",
}
"""Differences that are meant, and what is done about them."""

NORMALISED = {
    "raft_term": "counted from each member's term at its start: how often a member voted for "
    "itself while it started is no promise",
    "TTL": "the remaining life of a lease depends on the time; two seconds more or less are equal, "
    "and it may not exceed what was granted",
    "chosen lease id": "drawn at random by each member; it must be above zero",
    "keys of a lease": "etcd lists them in the order of a Go map, so they are compared sorted",
    "hash while no key lives": "of a revision without keys etcd hashes whatever its purge has left "
    "so far: then both are asked until they agree",
    "batches of history": "a watcher that starts in the past gets it in batches that depend on "
    "time, with the store's revision of that moment in the header: the events are compared "
    "joined, and of each message that no revision is split (but in fragments) and that the "
    "header is not below the events. A watcher that starts in the future is compared message by "
    "message, its header too",
    "order among watchers": "open in etcd, so messages are compared watcher by watcher",
}
"""What is no promise of etcd's, and how far it is compared all the same."""

NOT_DRAWN = {
    "put that ignores after a deletion of everything": "a put with ignore_value or ignore_lease "
    "of a key that a `from key` deletion of the same transaction took ends an etcd member with a "
    "panic",
    "more than 12 results sorted": "up to 12 Go's sort is stable, beyond it ties come in any order",
    "sizes at the limit": "etcd measures --max-request-bytes on its log entry, which is some "
    "twenty bytes larger than the request that we measure",
    "many revisions of history": "batches begin at 1,000 revisions; `tests/mvcc` covers them",
    "requests in flight together": "their order would be each member's own; the linearizability "
    "checks of `tests/sim` and `tests/cluster` are for that",
}
"""What the programs leave out."""


@dataclass
class Met:
    """How often each entry of the table was made use of."""

    counts: Counter[str] = field(default_factory=Counter)

    def __call__(self, name: str) -> None:
        """Count one use."""
        assert name in EXPECTED, name
        self.counts[name] += 1
