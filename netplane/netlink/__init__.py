"""The kernel's network objects and the netlink messages about them; no policy."""
