"""A Raft-replicated, strictly serializable key-value store that speaks the etcd v3 protocol."""

__version__ = "0.1.0"
