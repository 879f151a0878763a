"""Subnet leases: what the registry says, and who gets which subnet."""
