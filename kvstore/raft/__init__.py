"""The consensus core: a pure Raft state machine. No clock, socket, file, thread or randomness."""
