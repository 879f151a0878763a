"""Help for tests of programs that use a kvstore: the pytest plugin and what its fixtures give."""
