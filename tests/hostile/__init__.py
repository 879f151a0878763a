"""Hostile clients against real members: floods, bombs, drips, and requests at the limits."""

LINE = "hostile run"
"""The property of a test's report that holds the line of its run."""
