"""Interpreter of the scripts in `tests/raft/scenarios`: runs commands, writes their effects out.

A script is a list of blocks: comment lines, one command, `----`, the recorded output, an empty
line. Nothing happens by itself: the script says when a core's work is taken, when a disk job
ends, which messages arrive and which are lost. `stabilize` does all of it until nothing moves.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from typing import Any

from kvstore.raft.errors import RaftError
from kvstore.raft.membership import Change, ChangeKind
from kvstore.raft.messages import (
    CHANGE,
    AppendRequest,
    AppendResponse,
    AppendWork,
    CommitNotice,
    Entry,
    Forward,
    ForwardRefused,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Message,
    PreVoteRequest,
    PreVoteResponse,
    ReadRequest,
    ReadResponse,
    Ready,
    Role,
    VoteRequest,
    VoteResponse,
)
from tests.raft.network import Network, Node, core


def run(script: str) -> str:
    """Run a script and return it with the outputs that it really has."""
    scenario = Scenario()
    blocks: list[str] = []
    for block in script.strip("\n").split("\n\n"):
        given = block.split("\n----")[0]
        lines = given.split("\n")
        commands = [line for line in lines if not line.startswith("#")]
        if not commands:
            blocks.append(given)
            continue
        assert len(commands) == 1, f"one command per block: {commands}"
        output = scenario.command(commands[0])
        blocks.append("\n".join([given, "----", *(output or ["ok"])]))
    return "\n\n".join(blocks) + "\n"


class Scenario:
    """Members, what is on the wire, and what waits at disks and state machines."""

    def __init__(self) -> None:
        self.network = Network([])
        self.to_apply: dict[int, list[Ready]] = {}
        self.out: list[str] = []
        self.next_forward = 1

    def command(self, line: str) -> list[str]:
        name, *words = shlex.split(line)
        options = dict(word.split("=", 1) for word in words if "=" in word)
        arguments = [word for word in words if "=" not in word]
        self.out = []
        handler: Callable[..., None] = getattr(self, "do_" + name.replace("-", "_"))
        try:
            handler(*arguments, **{key.replace("-", "_"): value for key, value in options.items()})
        except RaftError as error:
            self.out.append(f"{type(error).__name__}: {error}")
        return self.out

    def node(self, member: str | int) -> Node:
        return self.network.nodes[int(member)]

    # --- set-up ---

    def do_cluster(self, size: str, **options: str) -> None:
        voters = ",".join(str(i + 1) for i in range(int(size)))
        for member in range(1, int(size) + 1):
            self.do_member(str(member), **{"voters": voters} | options)

    def do_member(self, member: str, **options: str) -> None:
        given: dict[str, Any] = {}
        for key, value in options.items():
            if key in ("voters", "learners", "log"):
                given[key] = _numbers(value)
            elif key == "compacted":
                index, term = value.split("/")
                given[key] = (int(index), int(term))
            elif key == "apply_before_durable":
                given[key] = value == "1"
            else:
                given[key] = int(value)
        added = Network([core(int(member), **given)])
        self.network.nodes[int(member)] = added.nodes[int(member)]
        self.to_apply[int(member)] = []

    # --- inputs of one core ---

    def do_tick(self, member: str, count: str = "1") -> None:
        for _ in range(int(count)):
            self.node(member).raft.tick()

    def do_campaign(self, member: str) -> None:
        self.node(member).raft.campaign()

    def do_propose(self, member: str, data: str) -> None:
        index, term = self.node(member).raft.propose(data.encode())
        self.out.append(f"appended {index}/{term}")

    def do_forward(self, member: str, data: str) -> None:
        self.node(member).raft.forward(data.encode(), self.next_forward)
        self.out.append(f"forward {self.next_forward}")
        self.next_forward += 1

    def do_change(self, member: str, kind: str, who: str) -> None:
        change = Change(ChangeKind[kind.replace("-", "_").upper()], int(who))
        index, term = self.node(member).raft.propose_change(change)
        self.out.append(f"appended {index}/{term}")

    def do_step_down(self, member: str) -> None:
        self.node(member).raft.step_down()

    def do_read(self, member: str, read_id: str) -> None:
        self.node(member).raft.read(int(read_id))

    def do_transfer(self, member: str, target: str) -> None:
        self.node(member).raft.transfer_leadership(int(target))

    def do_compact(self, member: str, index: str) -> None:
        node = self.node(member)
        node.raft.compact(int(index))
        node.disk.release(node.raft.log.offset)

    def do_unreachable(self, member: str, peer: str) -> None:
        self.node(member).raft.unreachable(int(peer))

    def do_snapshot_sent(self, member: str, peer: str, ok: str) -> None:
        self.node(member).raft.snapshot_sent(int(peer), ok=ok == "yes")

    def do_crash(self, member: str) -> None:
        """Lose everything but the disk, start again; what is on the wire stays there."""
        self.network.nodes[int(member)].jobs.clear()
        old = self.node(member)
        self.network.nodes[int(member)] = Node(
            type(old.raft)(old.raft.config, old.disk.restored()), old.disk
        )
        self.to_apply[int(member)] = []
        self.do_status(member)

    # --- effects of one core ---

    def do_take(self, member: str) -> None:
        """Take one `Ready`: messages go on the wire, the job to the disk, entries wait."""
        if not self._take(int(member)):
            self.out.append("nothing")

    def do_disk(self, member: str, count: str = "1") -> None:
        """End the oldest disk jobs; what they promised goes on the wire."""
        for _ in range(int(count)):
            self._disk(int(member))

    def do_apply(self, member: str) -> None:
        """Apply everything that was handed out."""
        self._apply(int(member))

    def _take(self, member: int) -> bool:
        node = self.node(member)
        ready = node.raft.take()
        if ready is None:
            return False
        self.out.append(f"{member}: {ready.role.name} term={ready.term} leader={ready.leader}")
        self._emit(ready.messages)
        if ready.append is not None:
            node.jobs.append(ready.append)
            self.out.append(f"  disk {_job(ready.append)}")
        if ready.apply:
            self.to_apply[member].append(ready)
            self.out.append(f"  apply {_entries(ready.apply)}")
        self.out += [f"  read {read.read_id} at {read.index}" for read in ready.reads]
        self.out += [f"  refused {forward_id}" for forward_id in ready.refused]
        return True

    def _emit(self, messages: Iterable[Message]) -> None:
        for message in messages:
            if (message.sender, message.target) in self.network.cut:
                self.out.append(f"  lost {describe(message)}")
                continue
            self.network.wire.append(message)
            self.out.append(f"  send {describe(message)}")

    def _disk(self, member: int) -> None:
        node = self.node(member)
        if not node.jobs:
            self.out.append("nothing")
            return
        self.out.append(f"{member}: disk done")
        self._emit(node.finish_job())

    def _apply(self, member: int) -> bool:
        node = self.node(member)
        waiting, self.to_apply[member] = self.to_apply[member], []
        for ready in waiting:
            before = node.raft.configuration
            node.apply(ready)
            self.out.append(f"{member}: applied {ready.apply[-1].index}")
            after = node.raft.configuration
            if after != before:
                self.out.append(f"  voters {list(after.voters)} learners {list(after.learners)}")
        return bool(waiting)

    # --- the wire ---

    def do_deliver(self, member: str, count: str = "999", **options: str) -> None:
        """Deliver what waits for a member (`from=N`, `kind=Name` narrow it)."""
        for message in self._pick(member, int(count), **options):
            self.out.append(f"deliver {describe(message)}")
            self.node(member).raft.step(message)

    def do_drop(self, member: str, count: str = "999", **options: str) -> None:
        """Lose what waits for a member."""
        for message in self._pick(member, int(count), **options):
            self.out.append(f"lost {describe(message)}")

    def _pick(self, member: str, count: int, **options: str) -> list[Message]:
        wire = self.network.wire
        picked = [
            message
            for message in wire
            if message.target == int(member)
            and ("from" not in options or message.sender == int(options["from"]))
            and ("kind" not in options or type(message).__name__ == options["kind"])
        ][:count]
        for message in picked:
            wire.remove(message)
        if not picked:
            self.out.append("nothing")
        return picked

    def do_isolate(self, *members: str) -> None:
        self.network.isolate(*map(int, members))

    def do_heal(self) -> None:
        self.network.heal()

    def do_stabilize(self, *members: str) -> None:
        """Take, write, apply and deliver among some members (all) until nothing moves."""
        chosen = [int(member) for member in members] or list(self.network.nodes)
        for _ in range(1000):
            if not self._round(chosen):
                return
        raise AssertionError("the scenario does not become quiet")

    def do_elect(self, member: str, *voters: str) -> None:
        """Make `member` campaign and win with these voters; stop before it does anything else."""
        raft = self.node(member).raft
        for _ in range(30):
            if raft.role is Role.LEADER:
                break
            if raft.role is Role.FOLLOWER:  # also again, when it learned of a newer term
                raft.campaign()
            self._round([int(member), *map(int, voters)])
        self.network.wire.clear()
        assert raft.role is Role.LEADER, f"{member} was not elected"
        self.out = [f"{member} leads term {raft.term}"]

    def _round(self, chosen: list[int]) -> bool:
        moved = False
        for member in chosen:
            while self._take(member) or self.node(member).jobs or self.to_apply[member]:
                moved = True
                while self.node(member).jobs:
                    self._disk(member)
                self._apply(member)
        for message in list(self.network.wire):
            if message.target in chosen and message.sender in chosen:
                self.network.wire.remove(message)
                moved = True
                self.out.append(f"deliver {describe(message)}")
                self.node(message.target).raft.step(message)
        return moved

    # --- looking ---

    def do_status(self, *members: str) -> None:
        for member in members or map(str, self.network.nodes):
            status = self.node(member).raft.status()
            self.out.append(
                f"{member}: {status.role.name} term={status.term} vote={status.vote} "
                f"leader={status.leader} last={status.last_index} durable={status.durable} "
                f"committed={status.committed} applied={status.applied}"
            )
            self.out += [
                f"  {peer.member}: {peer.state} match={peer.match} next={peer.next} "
                f"inflight={peer.inflight_messages}"
                for peer in status.peers
            ]

    def do_log(self, *members: str) -> None:
        for member in members or map(str, self.network.nodes):
            log = self.node(member).raft.log
            terms = " ".join(str(entry.term) for entry in log.entries)
            start = f"after {log.offset}/{log.offset_term}: " if log.offset else ""
            self.out.append(f"{member}: {start}{terms or '(empty)'} | committed {log.committed}")

    def do_machine(self, *members: str) -> None:
        for member in members or map(str, self.network.nodes):
            data = " ".join(data.decode() for _, data in self.node(member).machine)
            self.out.append(f"{member}: {data or '(empty)'}")


def describe(message: Message) -> str:
    """One line for a message."""
    head = f"{message.sender}->{message.target} {type(message).__name__} t{message.term}"
    match message:
        case PreVoteRequest() | VoteRequest():
            text = f"last={message.last_index}/{message.last_term}"
            if isinstance(message, VoteRequest) and message.transfer:
                text += " transfer"
        case PreVoteResponse() | VoteResponse():
            text = "granted" if message.granted else "refused"
        case AppendRequest():
            text = (
                f"after={message.prev_index}/{message.prev_term} commit={message.commit} "
                f"{_entries(message.entries)}"
            )
        case AppendResponse():
            text = f"{message.index}"
            if message.hint is not None:
                text = f"rejected {message.index} hint={message.hint[0]}/{message.hint[1]}"
        case Heartbeat():
            text = f"commit={message.commit} round={message.round}"
        case HeartbeatResponse() | ReadRequest():
            text = f"round={_number(message.round)}"
        case ReadResponse():
            text = f"round={_number(message.round)} index={message.index}"
        case CommitNotice():
            text = f"{message.commit}"
        case InstallSnapshot():
            snapshot = message.snapshot
            text = f"{snapshot.index}/{snapshot.term} voters={list(snapshot.configuration.voters)}"
        case Forward():
            text = f"id={message.forward_id} {message.data.decode()}"
        case ForwardRefused():
            text = f"id={message.forward_id}"
        case _:
            text = ""
    return f"{head} {text}".rstrip()


def _number(number: int) -> str:
    # A follower's rounds: incarnation and counter.
    return f"{number >> 32}:{number & 0xFFFFFFFF}" if number >> 32 else str(number)


def _entries(some: Iterable[Entry]) -> str:
    return "[" + " ".join(_entry(entry) for entry in some) + "]"


def _entry(entry: Entry) -> str:
    text = f"{entry.index}/{entry.term}"
    if entry.kind == CHANGE:
        change = Change.decode(entry.data)
        return f"{text}:{change.kind.name}({change.member})"
    return f"{text}:{entry.data.decode()}" if entry.data else text


def _job(work: AppendWork) -> str:
    parts = [_entries(work.entries)] if work.entries else []
    if work.snapshot is not None:
        parts.append(f"snapshot={work.snapshot.index}/{work.snapshot.term}")
    if work.hard_state is not None:
        state = work.hard_state
        parts.append(f"term={state.term} vote={state.vote} commit={state.commit}")
    if not work.must_sync:
        parts.append("no sync")
    parts += [f"({describe(message)})" for message in work.messages]
    return " ".join(parts)


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",") if word]
