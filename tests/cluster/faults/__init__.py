"""Real members under real faults: networks that are cut, processes that die, disks that fail."""

LINE = "fault run"
"""The property of a test's report that holds the line of its run."""
