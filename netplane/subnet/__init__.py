"""Which host has which subnet: configuration, leases and views; knows nothing of the kernel."""
