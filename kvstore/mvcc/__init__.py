"""The multi-version store: revisions, index, transactions, compaction, hash, snapshots, watches."""
