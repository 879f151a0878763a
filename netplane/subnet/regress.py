"""The guard against a registry that was wiped, restored from an older copy, or is another one.

Such a registry gives a complete, valid view with too few peers. Nothing is removed for it at once:
agents put their own leases back, so what really is there comes back within seconds. Pure; the
caller brings the time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from netplane.subnet.family import Subnet
from netplane.subnet.lease import Lease, Peers, View
from netplane.subnet.spans import Spans

GRACE_S = 600.0
_FEW = 3
_SHARE = 0.2
_ASK = ": was it wiped, or restored from an older copy?"


@dataclass(frozen=True, slots=True)
class Known:
    """What an agent goes by; it saves this, so that a restart does not forget."""

    cluster_id: int
    revision: int
    peers: Mapping[Subnet, Lease]
    own: Lease | None = None
    """What the registry said of us."""
    doubt: str = ""
    """Why this is held against what the registry says; "" when it is not."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to program."""

    peers: Mapping[Subnet, Lease]
    """Those of the view, and those that are held."""
    regressed: str
    """Why peers are held although the view lacks them; "" when nothing is held."""
    held: frozenset[Subnet]
    """Peers that the view lacks, or shows as they were before."""
    until_s: float
    """When they are let go; meaningless when nothing is held."""


@dataclass(slots=True)
class Guard:
    """Judges each view against what was known before it."""

    known: Known | None
    """None: nothing is known yet, so the first view is believed."""
    grace_s: float = GRACE_S
    """How long peers are held; `--removal-grace`."""
    saved: Known | None = None
    """What to save: while peers are held after a step back, that it is one is part of it."""
    _reason: str = ""
    _until_s: float = 0.0
    _held: dict[Subnet, Lease] = field(default_factory=dict)
    _untrusted_until: int = 0
    """Values written up to this revision may be older than what is held."""

    def judge(self, view: View, now_s: float) -> Verdict:
        """Return what to program for a view. Call again at `until_s`, with the same view."""
        if self._held and now_s >= self._until_s:
            self.accept()
        self._look(view, now_s)
        self._let_return(view)
        peers = view.peers
        if self._held:
            peers = dict(peers)
            for subnet in self._in_the_way(view):
                peers.pop(subnet, None)
            peers.update(self._held)
        before = self.known
        self.known = Known(view.cluster_id, view.revision, peers, view.own)
        if not self._untrusted_until:
            self.saved = self.known
        else:
            origin = self.saved or before or self.known
            self.saved = replace(origin, peers=self.known.peers, doubt=self._reason)
        return Verdict(self.known.peers, self._reason, frozenset(self._held), self._until_s)

    def _in_the_way(self, view: View) -> Iterator[Subnet]:
        """Find the peers of a view that have something of one that is held."""
        seen = Spans(view.peers)
        for subnet in self._held:
            yield from seen.touched_by(subnet)
        if view.config.second is None:
            return
        owners: dict[Subnet, Subnet] = {
            lease.subnet6: subnet
            for subnet, lease in view.peers.items()
            if lease.subnet6 is not None
        }
        halves = Spans(owners)
        for lease in self._held.values():
            if lease.subnet6 is not None:
                yield from (owners[other] for other in halves.touched_by(lease.subnet6))

    def accept(self) -> None:
        """Believe the registry: let go of all that is held. `netplane ctl accept-view`."""
        if self.known is not None:
            gone = self._held.keys()
            peers = {net: one for net, one in self.known.peers.items() if net not in gone}
            self.known = replace(self.known, peers=peers)
        self._held.clear()
        self._reason = ""
        self._untrusted_until = 0

    def _look(self, view: View, now_s: float) -> None:
        """Find out whether this view is a step back."""
        known = self.known
        if known is None:
            return
        _, gone = Peers.changed(known.peers, view.peers)
        # Only these are looked up: to hash the subnets of a thousand peers, as a set's `difference`
        # does with what is no plain dict, takes longer than to program one of them.
        missing = {
            lease.subnet
            for lease in gone
            if lease.subnet not in view.peers and lease.subnet not in self._held
        }
        reason = step_back(known, view.cluster_id, view.revision)
        other = "" if reason else self._other_history(known, view, gone if missing else ())
        if reason or other:
            # In a store that has counted on from an older copy, what is newer than all that we
            # knew was written there.
            self._untrusted_until = view.revision if reason else known.revision
            reason = reason or other
            suspects = set(known.peers)
        elif len(missing) > max(_FEW, _SHARE * len(known.peers)):
            reason = f"{len(missing)} of {len(known.peers)} peers are missing at once"
            suspects = missing
        elif self._held:
            suspects = missing  # while one is held nobody is let go
        else:
            return
        for subnet in suspects:
            self._held.setdefault(subnet, known.peers[subnet])
        if reason:
            self._reason = reason
            self._until_s = now_s + self.grace_s

    def _other_history(self, known: Known, view: View, gone: Iterable[Lease]) -> str:
        """Say by what the store betrays that it is not the one that we knew, however far it is.

        `gone` are the leases that are others now, where some are missing.

        A store that was wiped, or went back, may have counted past the known revision before we
        look at it.
        """
        if known.doubt:
            return known.doubt  # before a restart, and nothing has settled it
        own, was = view.own, known.own
        if (
            was is not None
            and was.create_revision
            and (
                own is None
                or (own.create_revision != was.create_revision and own.subnet == was.subnet)
            )
        ):
            # Nobody but us writes that key. After a long absence it may just have ended; then
            # others are as they were.
            is_start = self.saved is None
            if not (is_start and any(_is_untouched(view, lease) for lease in known.peers.values())):
                return f"the registry has lost our own lease{_ASK}"
        for lease in gone:
            subnet = lease.subnet
            seen = None if subnet in self._held else view.peers.get(subnet)
            if seen is not None and lease.mod_revision != seen.mod_revision <= known.revision:
                return (
                    f"the registry says that {subnet} was last written at revision "
                    f"{seen.mod_revision}, and was known up to {known.revision} with "
                    f"{lease.mod_revision}{_ASK}"
                )
        return ""

    def _let_return(self, view: View) -> None:
        """Release what the view has again: unchanged, or written since the step back."""
        for subnet, held in list(self._held.items()):
            seen = view.peers.get(subnet)
            if seen is None:
                continue
            if seen.mod_revision > self._untrusted_until or _is_same(seen, held):
                del self._held[subnet]
        if not self._held:
            self._reason = ""
            self._untrusted_until = 0


def step_back(known: Known, cluster_id: int, revision: int) -> str:
    """Say why a registry that tells of these is not the one that was known; "" when it may be."""
    if cluster_id != known.cluster_id:
        return f"the registry is another cluster: {cluster_id:x}, it was {known.cluster_id:x}"
    if revision < known.revision:
        return f"the registry went back from revision {known.revision} to {revision}{_ASK}"
    return ""


def _is_untouched(view: View, lease: Lease) -> bool:
    seen = view.peers.get(lease.subnet)
    return seen is not None and (seen.create_revision, seen.mod_revision) == (
        lease.create_revision,
        lease.mod_revision,
    )


def _is_same(one: Lease, other: Lease) -> bool:
    return _says(one) == _says(other)


def _says(lease: Lease) -> tuple[object, ...]:
    return (
        lease.public_ip,
        lease.backend_type,
        lease.backend_data,
        lease.subnet6,
        lease.public_ip6,
        lease.backend_data6,
    )
