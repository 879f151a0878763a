"""The userspace overlay: a process of its own between a TUN device and a UDP socket."""
