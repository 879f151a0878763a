"""Benchmarks of kvstore beside etcd, over public interfaces only; nothing that users import."""
