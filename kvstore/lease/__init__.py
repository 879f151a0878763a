"""Leases: the replicated book, and the leader's clock that ends them; no I/O, no time source."""
