"""`kvctl bench`: load from concurrent clients, measured and reported; knows no etcd internals."""
