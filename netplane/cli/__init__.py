"""Command lines of netplane."""
