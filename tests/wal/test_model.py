"""Random lives of a log against a plain model: saves, releases, crashes, reopening."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvstore.raft.messages import AppendWork, HardState
from kvstore.wal import Options, Wal
from tests.wal.building import FOLDER, ME, Model, entries, snapshot, work
from tests.wal.memory_disk import MemoryDisk


class LifeOfALog(RuleBasedStateMachine):
    @initialize(segment_bytes=st.sampled_from([4096, 5000, 20_000]))
    def create(self, segment_bytes: int) -> None:
        self.disk = MemoryDisk()
        self.options = Options(segment_bytes=segment_bytes)
        self.wal = Wal.create(self.disk, FOLDER, ME, self.options)
        self.model = Model()
        self.released = 0
        self.settled = 0
        """No leader replaces entries up to here: they are committed or part of a snapshot."""

    def _save(self, *works: AppendWork) -> None:
        self.wal.save(works)
        self.model = self.model.after(works)

    @rule(count=st.integers(1, 4), size=st.sampled_from([0, 7, 300, 2_000, 9_000]))
    def append(self, count: int, size: int) -> None:
        new = entries(self.model.last[0] + 1, count, term=self.model.state.term, size=size)
        self._save(work(new))

    @rule(count=st.integers(1, 3), back=st.integers(1, 6), data=st.data())
    def replace_the_tail(self, count: int, back: int, data: st.DataObject) -> None:
        first = max(self.settled + 1, self.model.last[0] + 1 - back)
        term = self.model.state.term + 1
        new = entries(first, count, term=term, size=data.draw(st.sampled_from([5, 700])))
        self._save(work(new, state=HardState(term, 0, self.model.state.commit)))

    @rule(vote=st.integers(1, 2**64 - 1))
    def vote(self, vote: int) -> None:
        self._save(work(state=HardState(self.model.state.term + 1, vote, self.model.state.commit)))

    @rule(amount=st.integers(0, 5))
    def commit(self, amount: int) -> None:
        self.settled = max(self.settled, min(self.settled + amount, self.model.last[0]))
        state = self.model.state
        self._save(work(state=HardState(state.term, state.vote, self.settled), sync=False))

    @rule(jump=st.integers(1, 20), after=st.integers(0, 2))
    def install_a_snapshot(self, jump: int, after: int) -> None:
        state = self.model.state
        mark = snapshot(self.model.last[0] + jump, state.term)
        self.settled = mark.index
        new = entries(mark.index + 1, after, term=state.term)
        self._save(work(new, snapshot=mark, state=HardState(state.term, state.vote, mark.index)))

    @rule()
    def several_at_once(self) -> None:
        last, term = self.model.last[0], self.model.state.term
        self._save(
            work(entries(last + 1, 2, term=term)),
            work(state=HardState(term, 1, self.settled), sync=False),
            work(entries(last + 3, 1, term=term, size=900)),
        )

    @rule()
    def prepare(self) -> None:
        self.wal.prepare()

    @precondition(lambda self: self.settled > 0)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, self.settled))
        self.wal.release(index)
        self.released = max(self.released, index)

    @rule(how=st.sampled_from(["close", "kill"]), tear=st.binary(max_size=200))
    def restart(self, how: str, tear: bytes) -> None:
        if how == "close":
            self.wal.close()
        else:
            self.disk.locked.clear()
            self._tear(tear)
        self.wal, found = Wal.open(self.disk, FOLDER, ME, self.options)
        assert self.model.differs(found, released=self.released) is None
        if how == "close":
            assert found.hard_state.commit == min(self.model.state.commit, found.last_index)
        # The commit index may have been lost; the model goes on with what is there.
        self.model.state = found.hard_state

    def _tear(self, junk: bytes) -> None:
        """Put the start of an unfinished batch behind the last one."""
        data = self.disk.files[self.wal._segments[-1].path]
        end = self.wal._end
        data[end : end + len(junk)] = junk[: len(data) - end]

    @invariant()
    def little_is_kept(self) -> None:
        # Released segments are gone from the disk, not only from the books.
        files = [path for path in self.disk.files if path.endswith(".wal")]
        assert len(files) == self.wal.segment_count


TestLifeOfALog = LifeOfALog.TestCase
TestLifeOfALog.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
