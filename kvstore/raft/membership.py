"""Membership changes, one member at a time: their encoding and their effect on a configuration.

Pure functions. Who may propose a change and when it takes effect is in `leader` and `raft`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import IntEnum

from kvstore.raft.errors import ChangeRefused, MalformedChange
from kvstore.raft.messages import NOBODY, Configuration, MemberId

_HEAD = struct.Struct(">BBQ")  # version, kind, member
_VERSION = 1


class ChangeKind(IntEnum):
    """What a change does."""

    ADD_VOTER = 1
    """Adds a voter, or promotes a learner."""

    ADD_LEARNER = 2
    REMOVE = 3
    UPDATE = 4
    """Nothing for the core: the member's data outside of it (addresses) changes."""


@dataclass(slots=True, frozen=True)
class Change:
    """One membership change; `context` is opaque to the core (addresses, name, request id)."""

    kind: ChangeKind
    member: MemberId
    context: bytes = b""

    def encode(self) -> bytes:
        """Return the data of the `CHANGE` entry."""
        return _HEAD.pack(_VERSION, self.kind, self.member) + self.context

    @classmethod
    def decode(cls, data: bytes) -> Change:
        """Return the change of a `CHANGE` entry. Raises MalformedChange."""
        if len(data) < _HEAD.size:
            raise MalformedChange(f"a membership change has at least {_HEAD.size} bytes")
        version, kind, member = _HEAD.unpack_from(data)
        if version != _VERSION:
            raise MalformedChange(
                f"membership change of version {version}, this release reads {_VERSION}: upgrade it"
            )
        try:
            return cls(ChangeKind(kind), member, bytes(data[_HEAD.size :]))
        except ValueError as error:
            raise MalformedChange(f"unknown kind {kind} of membership change") from error


def change_configuration(configuration: Configuration, change: Change) -> Configuration:
    """Return the configuration after `change`; the same on every member.

    Raises ChangeRefused (the configuration stays) when the change makes no sense. The node passes
    the result to `Raft.applied`.
    """
    member = change.member
    voters, learners = configuration.voters, configuration.learners
    if configuration.outgoing:
        raise ChangeRefused("a joint configuration must be left first")
    if member == NOBODY:
        raise ChangeRefused("member id 0 is reserved")
    if member in configuration.removed:
        raise ChangeRefused(f"member {member:x} was removed; a member id is never used again")
    if not voters:
        raise ChangeRefused("this member does not know the configuration yet")
    known = member in voters or member in learners
    if change.kind is ChangeKind.ADD_VOTER:
        if member in voters:
            raise ChangeRefused(f"member {member:x} is a voter already")
        return replace(
            configuration,
            voters=_with(voters, member),
            learners=_without(learners, member),
        )
    if change.kind is ChangeKind.ADD_LEARNER:
        if known:
            raise ChangeRefused(f"member {member:x} exists already")
        return replace(configuration, learners=_with(learners, member))
    if not known:
        raise ChangeRefused(f"member {member:x} is not in the configuration")
    if change.kind is ChangeKind.UPDATE:
        return configuration
    if voters == (member,):
        raise ChangeRefused(f"member {member:x} is the last voter")
    return replace(
        configuration,
        voters=_without(voters, member),
        learners=_without(learners, member),
        removed=_with(configuration.removed, member),
    )


def _with(ids: tuple[MemberId, ...], member: MemberId) -> tuple[MemberId, ...]:
    return tuple(sorted({*ids, member}))


def _without(ids: tuple[MemberId, ...], member: MemberId) -> tuple[MemberId, ...]:
    return tuple(each for each in ids if each != member)
