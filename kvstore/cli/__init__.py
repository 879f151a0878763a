"""Command lines: `kvstore` runs members, `kvctl` talks to them."""
