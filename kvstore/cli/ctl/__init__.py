"""The commands of kvctl, one module for each group; the entry point is `kvstore.cli.kvctl`."""
