"""Container networks across hosts, kept by a watch on the registry."""
