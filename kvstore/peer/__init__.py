"""Frames and links between members. Consensus messages cross here; what they mean is in `raft`."""
