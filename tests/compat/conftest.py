"""Runs the command list once per cluster and session; each cluster on the same ports in turn."""

from __future__ import annotations

import shutil

import pytest

from bench.clusters import ETCD, KVSTORE, Cluster, Ports, available, choose_ports
from tests.compat.commands import COMMANDS
from tests.compat.runner import Etcdctl, Transcript


def need(*programs: str) -> None:
    """Skip when a program is not installed, and say which."""
    for program in programs:
        if shutil.which(program) is None:
            package = {"etcd": "etcd-server", "etcdctl": "etcd-client"}[program]
            pytest.skip(f"{program} is not installed (Debian package {package})")


@pytest.fixture(scope="session")
def ports() -> list[Ports]:
    """Return the ports that all clusters use, one after the other: ids are hashes of them."""
    return choose_ports(3)


def transcript(kind: str, ports: list[Ports]) -> Transcript:
    """Run the whole list on a fresh cluster."""
    with Cluster(kind, ports=ports) as cluster:
        return Etcdctl([f"http://{member.target}" for member in cluster.members]).run_all(COMMANDS)


@pytest.fixture(scope="session")
def etcd_transcript(ports: list[Ports]) -> Transcript:
    """Return what etcd answers."""
    need("etcd", "etcdctl")
    return transcript(ETCD, ports)


@pytest.fixture(scope="session")
def our_transcript(ports: list[Ports]) -> Transcript:
    """Return what we answer."""
    need("etcdctl")
    if reason := available(KVSTORE):
        pytest.skip(f"our server does not start: {reason}")
    return transcript(KVSTORE, ports)
