"""Judges of histories that clients saw; they know neither the simulator nor processes."""
