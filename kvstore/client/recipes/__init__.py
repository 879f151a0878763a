"""What programs build from keys, leases and watches: one recipe to a module, none is imported here.

Keys are laid out as etcd's Go client lays them out (its packages `concurrency` and `recipe`), so
that programs of both, and `etcdctl lock` and `etcdctl elect`, exclude and see each other.
"""
