"""The import table of docs/architecture.md, checked from the sources."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PURE_LIBRARIES: dict[str, set[str]] = {}
ALLOWED: dict[str, set[str]] = {
    "kvstore.ports": set(),
    "kvstore.compiled": set(),
    "kvstore.raft": set(),
    "kvstore.http2": set(),
    "kvstore.rpc": {"kvstore.http2"},
    "kvstore.pb": set(),
    "kvstore.mvcc": {"kvstore.pb"},
    "kvstore.lease": {"kvstore.pb"},
    "kvstore.auth": {"kvstore.pb"},
    "kvstore.wal": {"kvstore.raft.messages"},
    "kvstore.peer": {"kvstore.raft.messages"},
    "kvstore.apply": {
        "kvstore.mvcc",
        "kvstore.lease",
        "kvstore.auth",
        "kvstore.pb",
        "kvstore.raft.messages",
    },
    "kvstore.server": {
        "kvstore.compiled",
        "kvstore.raft",
        "kvstore.rpc",
        "kvstore.pb",
        "kvstore.mvcc",
        "kvstore.lease",
        "kvstore.auth",
        "kvstore.wal",
        "kvstore.peer",
        "kvstore.apply",
    },
    "kvstore.client": {"kvstore.http2", "kvstore.pb"},
    "kvstore.cli": {"kvstore.compiled", "kvstore.server", "kvstore.client"},
    "kvstore.embedded": {
        "kvstore.server",
        "kvstore.client",
        "kvstore.wal",
        "kvstore.mvcc",
        "kvstore.raft.messages",
    },
    "kvstore.testing": {"kvstore.embedded", "kvstore.cli", "kvstore.client"},
    "netplane.netlink": set(),
    "netplane.nft": {"netplane.netlink", "netplane.subnet.family"},
    "netplane.subnet": {"kvstore.client"},
    "netplane.backend": {
        "netplane.netlink",
        "netplane.subnet.config",
        "netplane.subnet.family",
        "netplane.subnet.fields",
        "netplane.subnet.jsontext",
        "netplane.subnet.lease",
    },
    "netplane.cni": set(),
    "netplane.udp": set(),
    "netplane.agent": {
        "netplane.cni",
        "netplane.backend",
        "netplane.netlink",
        "netplane.nft",
        "netplane.subnet",
        "netplane.udp",
        "kvstore.client",
    },
    "netplane.cli": {
        "netplane.agent",
        "netplane.backend",
        "netplane.cni",
        "netplane.subnet",
        "kvstore.client",
    },
    "bench": {"kvstore.client", "kvstore.cli.bench.plot", "netplane"},
}
OURS = {"kvstore", "netplane", "bench"}
BANNED_IN_RAFT = {
    "asyncio", "io", "logging", "os", "pathlib", "random", "secrets", "socket",
    "subprocess", "threading", "time", "uuid",
}  # fmt: skip
"""The core takes ticks, draws and messages as inputs, so that a run can be repeated."""


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write absolute imports"
            assert node.module is not None
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def sources() -> list[tuple[str, Path]]:
    found = []
    for package in ALLOWED:
        base = ROOT / package.replace(".", "/")
        files = sorted(base.rglob("*.py")) if base.is_dir() else [base.with_suffix(".py")]
        found += [(package, file) for file in files if file.exists() and "micro" not in file.parts]
    return found


@pytest.mark.parametrize(("package", "path"), sources(), ids=lambda item: str(item)[-40:])
def test_imports_follow_the_table(package: str, path: Path) -> None:
    # A package that reaches around the table cannot be simulated, tested or replaced alone.
    ours = {name for name in imports_of(path) if name.split(".")[0] in OURS}
    allowed = ALLOWED[package] | {package}
    if package.startswith("kvstore"):
        allowed |= {"kvstore.ports"}
    strangers = {
        name
        for name in ours
        if not any(name == base or name.startswith(base + ".") for base in allowed)
        and name not in {"kvstore", "kvstore.__version__"}
    }
    strangers = {
        name
        for name in strangers
        # `from kvstore import ports` names an allowed module; `from kvstore.x import y` both.
        if not any(base.startswith(name + ".") for base in allowed)
    }
    assert not strangers, f"{path.relative_to(ROOT)} may not import {sorted(strangers)}"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "kvstore/raft").glob("*.py")), ids=lambda path: path.name
)
def test_the_core_has_no_clock_disk_network_or_randomness(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports_of(path)} & BANNED_IN_RAFT
