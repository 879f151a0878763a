"""The store against a naive one that keeps every version of every key in a list."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvstore.mvcc import keyvalue, revision
from kvstore.mvcc.errors import Compacted
from kvstore.mvcc.marks import AppliedMark
from kvstore.pb import kv_pb2, rpc_pb2
from tests.mvcc.harness import Member, decoded, stored

keys = st.sampled_from([b"a", b"aa", b"b", b"b\0", b"c", b"\xff"])
ends = st.sampled_from([b"", b"\0", b"b", b"c", b"z"])
values = st.sampled_from([b"", b"1", b"22", b"3" * 150])
leases = st.sampled_from([0, 0, 7])


class Model:
    """A dictionary of version lists; None is a deletion."""

    def __init__(self) -> None:
        self.revision = 1
        self.compacted = -1
        self.versions: dict[bytes, list[tuple[int, Any]]] = {}
        self.events: list[tuple[int, int, bytes]] = []

    def at(self, key: bytes, revision: int) -> Any:
        found = None
        for modified, kv in self.versions.get(key, []):
            if modified <= revision:
                found = kv
        return found

    def live(self, revision: int, key: bytes = b"\0", end: bytes = b"\0") -> list[Any]:
        found = [(name, self.at(name, revision)) for name in sorted(self.versions)]
        return [
            kv
            for name, kv in found
            if kv is not None
            and (name == key if not end else key <= name and (end == b"\0" or name < end))
        ]

    def kept(self) -> list[tuple[int, bool, bytes]]:
        """What a finished purge leaves: main revision, deletion or not, key."""
        found = []
        for key, versions in self.versions.items():
            # A key may change twice in one revision: position says which is newer.
            old = [n for n, (main, _) in enumerate(versions) if main <= self.compacted]
            for n, (main, kv) in enumerate(versions):
                if n not in old or (n == old[-1] and (kv is not None or main == self.compacted)):
                    found.append((main, kv is None, key))
        return sorted(found)

    def put(self, key: bytes, value: bytes, lease: int, main: int) -> None:
        before = self.at(key, main)
        kv = kv_pb2.KeyValue(
            key=key,
            value=value,
            lease=lease,
            create_revision=before.create_revision if before else main,
            mod_revision=main,
            version=before.version + 1 if before else 1,
        )
        self.versions.setdefault(key, []).append((main, kv))
        self.events.append((main, 0, key))
        self.revision = main

    def delete(self, key: bytes, end: bytes, main: int) -> list[Any]:
        doomed = self.live(main, key, end)
        for kv in doomed:
            self.versions[kv.key].append((main, None))
            self.events.append((main, 1, kv.key))
            self.revision = main
        return doomed


class StoreMachine(RuleBasedStateMachine):
    kind = "memory"

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.member = Member(self.kind, Path(self.folder.name), 7)
        self.model = Model()
        self.log: list[Any] = []
        """Requests since the last commit: what a node would apply again from its log."""

    def teardown(self) -> None:
        if hasattr(self, "member"):
            self.member.close()
            self.folder.cleanup()

    def apply(self, change: Any) -> Any:
        self.log.append(change)
        return change(self.member.store)

    @rule(key=keys, value=values, lease=leases, prev=st.booleans())
    def put(self, key: bytes, value: bytes, lease: int, prev: bool) -> None:
        before = self.model.at(key, self.model.revision)
        self.model.put(key, value, lease, self.model.revision + 1)
        request = rpc_pb2.PutRequest(key=key, value=value, lease=lease, prev_kv=prev)
        main, prev_kv = self.apply(lambda store: store.put(request))
        assert main == self.model.revision
        assert (decoded([prev_kv])[0] if prev_kv else None) == (before if prev else None)

    @rule(key=keys, end=ends)
    def delete(self, key: bytes, end: bytes) -> None:
        doomed = self.model.delete(key, end, self.model.revision + 1)
        request = rpc_pb2.DeleteRangeRequest(key=key, range_end=end, prev_kv=True)
        revision, deleted, prev_kvs = self.apply(lambda store: store.delete_range(request))
        assert (revision, deleted, decoded(prev_kvs)) == (
            self.model.revision,
            len(doomed),
            doomed,
        )

    @rule(first=keys, second=keys, start=keys, end=ends, value=values)
    def txn(self, first: bytes, second: bytes, start: bytes, end: bytes, value: bytes) -> None:
        # Deletes first, then puts of two keys, nested so that the duplicate rule lets them pass.
        if first == second:
            return
        main = self.model.revision + 1
        self.model.put(first, value, 0, main)
        self.model.put(second, value, 7, main)
        self.model.delete(start, end, main)
        request = rpc_pb2.TxnRequest(
            success=[
                rpc_pb2.RequestOp(
                    request_txn=rpc_pb2.TxnRequest(
                        success=[
                            rpc_pb2.RequestOp(
                                request_put=rpc_pb2.PutRequest(key=first, value=value)
                            ),
                            rpc_pb2.RequestOp(
                                request_put=rpc_pb2.PutRequest(key=second, value=value, lease=7)
                            ),
                        ]
                    )
                ),
                rpc_pb2.RequestOp(
                    request_txn=rpc_pb2.TxnRequest(
                        success=[
                            rpc_pb2.RequestOp(
                                request_delete_range=rpc_pb2.DeleteRangeRequest(
                                    key=start, range_end=end
                                )
                            )
                        ]
                    )
                ),
            ]
        )
        assert self.apply(lambda store: store.txn(request)).revision == main

    @rule()
    def end_the_lease(self) -> None:
        attached = sorted(self.member.leases.keys[7])
        main = self.model.revision + 1
        for key in attached:
            self.model.delete(key, b"", main)
        assert self.apply(lambda store: store.delete_keys(attached)) == self.model.revision

    @rule(back=st.integers(0, 8))
    def compact(self, back: int) -> None:
        revision = max(self.model.revision - back, 0)
        if revision <= self.model.compacted:
            with pytest.raises(Compacted):
                self.member.store.compact(revision)
            return
        self.model.compacted = revision
        self.apply(lambda store: store.compact(revision))

    @rule(records=st.integers(1, 5))
    def purge(self, records: int) -> None:
        self.member.store.purge(records)

    @rule()
    def finish_the_purge(self) -> None:
        self.member.purge()
        self.commit()
        found = [
            (revision.main_of(name), revision.is_tombstone(name), keyvalue.key_of(record))
            for name, record in stored(self.member)
        ]
        assert sorted(found) == self.model.kept()

    @rule()
    def commit(self) -> None:
        self.member.commit()
        self.log.clear()

    @rule()
    def seal_and_die(self) -> None:
        # A batch on its way to the disk is as lost as what was not sealed.
        self.member.store.seal(AppliedMark(self.member.applied + 1, 1))
        self.crash()

    @rule()
    def crash(self) -> None:
        self.member.restart()
        for change in self.log:
            change(self.member.store)

    @rule(key=keys, end=ends, back=st.integers(0, 8))
    def range(self, key: bytes, end: bytes, back: int) -> None:
        revision = self.model.revision - back
        if revision < 1:
            return
        request = {"revision": revision if back else 0}
        if revision < self.model.compacted:
            with pytest.raises(Compacted):
                self.member.range(key, end, **request)
            return
        found = self.member.range(key, end, **request)
        assert decoded(found.kvs) == self.model.live(revision, key, end)
        assert found.count == len(found.kvs)

    @invariant()
    def state_agrees(self) -> None:
        if not hasattr(self, "member"):
            return
        store, model = self.member.store, self.model
        assert (store.revision, store.compacted) == (model.revision, model.compacted)
        assert decoded(self.member.range(b"\0", b"\0").kvs) == model.live(model.revision)
        attached = {kv.key for kv in model.live(model.revision) if kv.lease}
        assert self.member.leases.keys[7] == attached
        start = max(model.compacted + 1, 1)
        events, following = store.events_between(start, 1 << 40, 1 << 40)
        assert [(e.revision, e.kind, e.key) for _, es in events for e in es] == [
            event for event in model.events if event[0] >= start
        ]
        assert following == max(start, model.revision + 1)
        for _, found in events:
            for event in found:
                before = event.revision - 1
                previous = store.prev_kv(event)
                expected = model.at(event.key, before) if before >= model.compacted else None
                assert (decoded([previous])[0] if previous else None) == expected


class LmdbMachine(StoreMachine):
    kind = "lmdb"


TestMemory = StoreMachine.TestCase
TestMemory.settings = settings(
    max_examples=200,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestLmdb = LmdbMachine.TestCase
TestLmdb.settings = settings(
    max_examples=40,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
