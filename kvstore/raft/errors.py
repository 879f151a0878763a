"""Errors of the consensus core.

RaftError
├── ProposalRefused        nothing was appended; the same call may work later or elsewhere
│   ├── NotLeader          ask `leader` (0: nobody known)
│   ├── Overloaded         too many bytes wait for a quorum
│   ├── Transferring       the leadership is being handed over
│   └── ChangePending      an earlier membership change is not applied yet
├── ChangeRefused          the membership change makes no sense; retrying cannot help
├── TransferRefused        the target cannot become leader
└── MalformedChange        the data of a CHANGE entry is not a membership change
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvstore.raft.messages import MemberId


class RaftError(Exception):
    """Base of all errors that the core raises on purpose."""


class ProposalRefused(RaftError):  # noqa: N818 - the name says what happened
    """The proposal was certainly not appended."""


class NotLeader(ProposalRefused):
    """This member does not lead."""

    def __init__(self, leader: MemberId) -> None:
        super().__init__(f"not the leader; the leader is {leader:x}" if leader else "no leader")
        self.leader = leader


class Overloaded(ProposalRefused):
    """The uncommitted tail is full."""

    def __init__(self, uncommitted_bytes: int, uncommitted_bytes_max: int) -> None:
        super().__init__(
            f"{uncommitted_bytes} bytes wait for a quorum, at most {uncommitted_bytes_max} may"
        )
        self.uncommitted_bytes = uncommitted_bytes
        self.uncommitted_bytes_max = uncommitted_bytes_max


class Transferring(ProposalRefused):
    """The leader is handing over to `target` and takes no proposals."""

    def __init__(self, target: MemberId) -> None:
        super().__init__(f"the leadership is being transferred to {target:x}")
        self.target = target


class ChangePending(ProposalRefused):
    """A membership change must wait for the one before it, or for the leader's first commit."""


class ChangeRefused(RaftError):  # noqa: N818 - the name says what happened
    """The membership change does not fit the current configuration."""


class TransferRefused(RaftError):  # noqa: N818 - the name says what happened
    """The leadership cannot go to the target."""


class MalformedChange(RaftError):  # noqa: N818 - the name says what happened
    """Not the encoding of a membership change, or of a newer version."""
