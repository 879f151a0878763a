"""Coverage-guided fuzzing of everything that takes bytes from outside (docs/testing.md)."""
