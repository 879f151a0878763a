"""Links that delay, lose, duplicate, reorder, cut one way, clog and slow down encoded bytes.

A link carries bytes only: nobody can share an object with a peer, and what was sent cannot change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappush

from tests.sim.world import World


@dataclass(slots=True)
class LinkOptions:
    """How every link of a run behaves while no fault touches it."""

    delay_ns: int
    jitter_bits: int
    """A message takes `delay_ns` plus up to 2**jitter_bits ns more."""
    loss: float
    duplication: float
    late_bits: int
    """A duplicate comes up to 2**late_bits ns after the original."""
    in_order: bool
    """True: as one TCP connection. False: messages overtake each other."""


class Link:
    """One direction between two members."""

    __slots__ = ("clogged", "cut", "extra_ns", "held", "last_ns")

    def __init__(self) -> None:
        self.cut = False
        self.clogged = False
        self.extra_ns = 0
        self.held: list[bytes] = []
        self.last_ns = 0


class Network:
    """All links; members are numbered from 1."""

    def __init__(self, world: World, members: int, options: LinkOptions) -> None:
        self._world = world
        self.options = options
        self.members = members
        self.links = [[Link() for _ in range(members + 1)] for _ in range(members + 1)]
        self.receivers: list[Callable[[bytes], None]] = []
        """By member id; index 0 is unused."""
        self.lost: Callable[[int, int], None] | None = None
        """Told (source, target) of each message that met a cut, as a broken connection would."""
        self.faultless = False

    def send(self, source: int, target: int, frame: bytes) -> None:
        """Carry one frame, if no fault is in its way."""
        link = self.links[source][target]
        if link.cut or link.clogged:
            if not link.cut:
                link.held.append(frame)
            elif self.lost is not None:
                self.lost(source, target)
            return
        world, options = self._world, self.options
        rng = world.random
        at = world.now_ns + options.delay_ns + rng.getrandbits(options.jitter_bits) + link.extra_ns
        if options.in_order:
            # Equal times keep their order through the heap's sequence number.
            if at < link.last_ns:
                at = link.last_ns
            else:
                link.last_ns = at
        receive = self.receivers[target]
        if not self.faultless:
            fate = rng.random()
            if fate < options.loss:
                return
            if fate > 1 - options.duplication:
                world.at(at + rng.getrandbits(options.late_bits), receive, frame)
        # `world.at` without the call: half of all events pass here.
        world.sequence = sequence = world.sequence + 1
        heappush(world.heap, (at, sequence, receive, frame))

    # faults; all of them may be repeated and overlap

    def cut(self, source: int, target: int) -> None:
        """Lose everything from `source` to `target` from now on; what is under way arrives."""
        self.links[source][target].cut = True

    def isolate(self, member: int, *, inbound: bool = True, outbound: bool = True) -> None:
        """Cut a member off, in one or both directions."""
        for other in range(1, self.members + 1):
            if other != member:
                if inbound:
                    self.cut(other, member)
                if outbound:
                    self.cut(member, other)

    def split(self, one_side: list[int], *, both_ways: bool = True) -> None:
        """Cut the links that leave `one_side`, and those that enter it if `both_ways`."""
        for member in one_side:
            for other in range(1, self.members + 1):
                if other not in one_side:
                    self.cut(member, other)
                    if both_ways:
                        self.cut(other, member)

    def rejoin(self, member: int) -> None:
        """Repair every cut that touches a member."""
        for other in range(1, self.members + 1):
            self.links[other][member].cut = False
            self.links[member][other].cut = False

    def clog(self, source: int, target: int) -> None:
        """Hold messages back until `unclog`."""
        self.links[source][target].clogged = True

    def unclog(self, source: int, target: int) -> None:
        """Send on what a clogged link held."""
        link = self.links[source][target]
        link.clogged = False
        held, link.held = link.held, []
        for frame in held:
            self.send(source, target, frame)

    def slow(self, source: int, target: int, extra_ns: int) -> None:
        """Add to a link's delay; 0 ends it."""
        self.links[source][target].extra_ns = extra_ns

    def heal(self) -> None:
        """End every fault: cuts, clogs and slowness."""
        for source in range(1, self.members + 1):
            for target in range(1, self.members + 1):
                self.links[source][target].cut = False
                self.links[source][target].extra_ns = 0
                self.unclog(source, target)
