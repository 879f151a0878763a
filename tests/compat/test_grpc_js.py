"""@grpc/grpc-js, whose HTTP/2 is that of Node.js: a put, a refusal, a large range, a watch."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.servers import Kvstore

HERE = Path(__file__).parent / "grpc_js"
ROOT = Path(__file__).parents[2]
INSTALLED = ROOT / "build" / "grpc_js" / "node_modules"

pytestmark = [pytest.mark.cluster, pytest.mark.node]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the client saw of one member."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (Debian packages nodejs and npm)")
    install = subprocess.run(
        [HERE / "install"], capture_output=True, text=True, timeout=100, check=False
    )
    if install.returncode != 0:
        pytest.skip(f"@grpc/grpc-js could not be installed: {install.stderr.strip()[-500:]}")
    # Our .proto files name each other by the folder of their Python modules.
    folder = tmp_path_factory.mktemp("proto")
    (folder / "kvstore").mkdir()
    (folder / "kvstore" / "pb").symlink_to(ROOT / "proto")
    with Kvstore(1) as member:
        client = subprocess.run(
            ["node", HERE / "client.js", member.endpoints[0], folder],
            env={**os.environ, "NODE_PATH": str(INSTALLED)},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert client.returncode == 0, client.stderr
    answers: dict[str, Any] = json.loads(client.stdout)
    return answers


def test_a_put_is_read_back(seen: dict[str, Any]) -> None:
    assert seen["put"] == {"revision": 2, "value": "1"}


def test_a_refusal_keeps_its_code_and_text(seen: dict[str, Any]) -> None:
    assert seen["refused"] == {"code": 3, "details": "etcdserver: request is too large"}


def test_a_range_of_100_mib_arrives_whole(seen: dict[str, Any]) -> None:
    values = hashlib.sha256(b"".join(bytes([number]) * 1_560_000 for number in range(68)))
    assert seen["largeRange"] == {"count": 68, "values": 68, "sha256": values.hexdigest()}


def test_a_watch_delivers_every_event_in_order(seen: dict[str, Any]) -> None:
    events = [["PUT", "js/watched/k", str(number), number + 1] for number in range(10)]
    assert seen["watch"] == {"events": events, "code": 1}  # ended by its own cancel
