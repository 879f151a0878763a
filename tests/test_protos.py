"""The committed protobuf modules are what proto/ generates, and say what etcd's wire says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from kvstore.pb import rpc_pb2

ROOT = Path(__file__).parent.parent


def test_the_committed_modules_are_what_the_sources_generate(tmp_path: Path) -> None:
    # A field edited by hand in the generated code would be lost at the next generation.
    subprocess.run(
        [ROOT / "proto/generate", tmp_path],
        env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"},
        check=True,
        capture_output=True,
    )
    generated = {path.name: path.read_text() for path in (tmp_path / "kvstore/pb").iterdir()}
    committed = {path.name: path.read_text() for path in (ROOT / "kvstore/pb").glob("*_pb2.py*")}
    assert generated == committed


def test_field_numbers_that_clients_depend_on() -> None:
    # Spot checks of the oddest: a gap, a number far out, capital letters.
    assert rpc_pb2.WatchResponse.DESCRIPTOR.fields_by_name["events"].number == 11
    assert rpc_pb2.Compare.DESCRIPTOR.fields_by_name["range_end"].number == 64
    assert rpc_pb2.LeaseGrantRequest.DESCRIPTOR.fields_by_name["TTL"].number == 1
    services = rpc_pb2.DESCRIPTOR.services_by_name
    assert {name: len(service.methods) for name, service in services.items()} == {
        "KV": 6,
        "Watch": 1,
        "Lease": 5,
        "Cluster": 5,
        "Maintenance": 8,
        "Auth": 17,
    }
