"""Committed entry data to changes of the store, leases, alarms and members; no clock, no I/O."""
