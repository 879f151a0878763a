"""The log: its arithmetic against simple models, and what its durable mark may claim."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.raft.log import ENTRY_OVERHEAD_BYTES, RaftLog, entries_bytes
from kvstore.raft.messages import (
    CHANGE,
    NORMAL,
    AppendWork,
    Configuration,
    Entry,
    SnapshotMeta,
)
from tests.raft.network import entries

TERMS = st.lists(st.integers(1, 5), max_size=12).map(sorted)


def log_of(*terms: int, compacted: tuple[int, int] = (0, 0), committed: int = 0) -> RaftLog:
    return RaftLog(
        entries(*terms, first=compacted[0] + 1),
        compacted=compacted,
        committed=committed,
        applied=compacted[0],
        apply_before_durable=False,
    )


def hand_over(log: RaftLog) -> AppendWork:
    """Give everything to the disk, as the core does."""
    snapshot, log.snapshot = log.snapshot, None
    given_entries = log.take_unhanded()
    work = AppendWork(given_entries, None, snapshot, True, [], log.handed)
    log.outstanding.append(work)
    return work


@given(TERMS, st.integers(0, 12), st.integers(0, 15), st.integers(0, 6))
def test_newest_match_candidate(terms: list[int], cut: int, index: int, term: int) -> None:
    cut = min(cut, len(terms))
    log = log_of(*terms[cut:], compacted=(cut, terms[cut - 1] if cut else 0))
    # The model walks back one by one over everything still known.
    found = None
    for candidate in range(min(index, len(terms)), cut - 1, -1):
        at = terms[candidate - 1] if candidate else 0
        if at <= term:
            found = (candidate, at)
            break
    result = log.newest_match_candidate(index, term)
    if found is not None:
        assert result == found
    else:
        # Nothing retained agrees: whatever is named must lie before it.
        assert result[0] < cut or result == (0, 0)
        assert result[1] == 0


@given(TERMS, st.integers(0, 12), st.integers(1, 14), st.integers(1, 15))
def test_slice_bounds(terms: list[int], start: int, count: int, size: int) -> None:
    log = log_of(*terms)
    start = start + 1
    if start > len(terms):
        return
    each = len(b"1.1") + ENTRY_OVERHEAD_BYTES
    chunk, size_bytes = log.slice(start, log.last_index, entries_max=count, bytes_max=size * each)
    assert chunk
    assert [entry.index for entry in chunk] == list(range(start, start + len(chunk)))
    assert len(chunk) <= count
    assert size_bytes == entries_bytes(chunk)
    assert len(chunk) == 1 or size_bytes <= size * each
    more = log.entries[start + len(chunk) - 1 : start + len(chunk)]
    assert not more or len(chunk) == count or size_bytes + entries_bytes(more) > size * each


def test_an_entry_larger_than_the_bound_travels_alone() -> None:
    log = log_of()
    log.extend([Entry(1, 1, NORMAL, b"x" * 100), Entry(2, 1, NORMAL, b"y")])
    chunk, _ = log.slice(1, 2, entries_max=9, bytes_max=50)
    assert [entry.index for entry in chunk] == [1]


def test_terms_at_and_around_the_ends() -> None:
    log = log_of(3, 4, compacted=(5, 2))
    assert [log.term(index) for index in range(4, 9)] == [None, 2, 3, 4, None]


def test_compaction_keeps_the_term_before_the_first_entry() -> None:
    # A1, 13: the next append is checked against it.
    log = log_of(1, 2, 3, committed=3)
    log.applying = log.applied = 3
    log.compact(2)
    assert (log.offset, log.offset_term, log.matches(2, 2)) == (2, 2, True)
    assert log.size_bytes == entries_bytes(log.entries)
    log.compact(1)  # less than before: nothing
    assert log.offset == 2
    log.compact(3)
    assert (log.entries, log.last_index, log.last_term, log.size_bytes) == ([], 3, 3, 0)


def test_compaction_stops_at_what_is_applied() -> None:
    log = log_of(1, 1, committed=2)
    with pytest.raises(AssertionError, match="not applied"):
        log.compact(1)


def test_a_gap_is_refused_at_start() -> None:
    broken = [*entries(1, 1), *entries(1, first=4)]
    with pytest.raises(AssertionError, match="belongs"):
        RaftLog(broken, compacted=(0, 0), committed=0, applied=0, apply_before_durable=False)


def test_a_store_ahead_of_the_log_is_refused_at_start() -> None:
    with pytest.raises(AssertionError, match="ahead"):
        RaftLog(entries(1), compacted=(0, 0), committed=0, applied=2, apply_before_durable=False)


def test_an_unapplied_change_is_seen_only_between_applied_and_committed() -> None:
    log = log_of(1, 1)
    log.extend([Entry(3, 1, CHANGE, b"")])
    assert not log.has_unapplied_change()
    log.commit_to(3)
    assert log.has_unapplied_change()
    log.applying = log.applied = 3
    assert not log.has_unapplied_change()


def test_disk_jobs_must_finish_in_order() -> None:
    log = log_of()
    log.extend(entries(1))
    hand_over(log)
    log.extend(entries(1, first=2))
    second = hand_over(log)
    with pytest.raises(AssertionError, match="order"):
        log.finished(second)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 6), st.integers(1, 3)),
        st.tuples(st.just("again"), st.integers(0, 6), st.integers(1, 3)),
        st.tuples(st.just("hand"), st.just(0), st.just(0)),
        st.tuples(st.just("done"), st.just(0), st.just(0)),
        st.tuples(st.just("restore"), st.integers(1, 9), st.just(0)),
    ),
    max_size=60,
)


@given(STEPS)
def test_the_durable_mark_never_claims_what_the_disk_does_not_have(
    steps: list[tuple[str, int, int]],
) -> None:
    # The ABA guard, against a disk that is simulated: entries come, are replaced and come back
    # while writes are under way, in any order.
    log = log_of()
    disk: dict[int, Entry] = {}
    term = 1
    versions: dict[int, list[Entry]] = {}
    for step, position, count in steps:
        if step in ("append", "again"):
            previous = min(log.committed + position, log.last_index)
            if step == "again" and previous + 1 in versions and position % 2:
                # An entry of the past comes back, as from a leader that still has it.
                old = versions[previous + 1][0]
                before = log.term(previous)
                if before is None or old.term < before:
                    continue
                log.append([old])
            else:
                term += 1
                log.append(entries(*[term] * count, first=previous + 1))
            for entry in log.entries:
                known = versions.setdefault(entry.index, [])
                if entry not in known:
                    known.append(entry)
        elif step == "restore" and not log.snapshot_outstanding:
            index = log.committed + position
            log.restore(SnapshotMeta(index, term, Configuration((1,))))
            versions = {}
        elif step == "hand":
            hand_over(log)
        elif log.outstanding:
            work = log.outstanding[0]
            if work.snapshot is not None:
                disk = {}
            if work.entries:
                disk = {i: e for i, e in disk.items() if i < work.entries[0].index}
                disk.update((entry.index, entry) for entry in work.entries)
            log.finished(work)
        assert log.durable <= log.handed <= log.last_index
        for entry in log.entries[: max(log.durable - log.offset, 0)]:
            assert disk.get(entry.index) == entry
    # And it is not merely careful: when everything is written, everything is durable.
    hand_over(log)
    while log.outstanding:
        log.finished(log.outstanding[0])
    assert log.durable == log.last_index
