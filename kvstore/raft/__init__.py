"""The consensus core: a pure Raft state machine. No clock, socket, file, thread or randomness."""

from kvstore.raft.config import Config, Restored
from kvstore.raft.errors import (
    ChangePending,
    ChangeRefused,
    MalformedChange,
    NotLeader,
    Overloaded,
    ProposalRefused,
    RaftError,
    TransferRefused,
    Transferring,
)
from kvstore.raft.membership import Change, ChangeKind, change_configuration
from kvstore.raft.raft import Raft
from kvstore.raft.status import PeerStatus, Status

__all__ = [
    "Change",
    "ChangeKind",
    "ChangePending",
    "ChangeRefused",
    "Config",
    "MalformedChange",
    "NotLeader",
    "Overloaded",
    "PeerStatus",
    "ProposalRefused",
    "Raft",
    "RaftError",
    "Restored",
    "Status",
    "TransferRefused",
    "Transferring",
    "change_configuration",
]
