"""Microbenchmarks of the hot parts; the one place of `bench` that may import the packages."""
