"""The etcd v3 gRPC services on top of a node; no protocol or consensus logic here."""
