"""Real members under real faults: networks that are cut, processes that die, disks that fail."""
