"""Container networks across hosts: subnet leases and routes as Flannel has them, kept healed."""
