"""One member: joins consensus, log, store, leases and RPC to clocks, sockets and threads."""
