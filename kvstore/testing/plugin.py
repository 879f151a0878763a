"""The pytest plugin: the fixtures `kvstore`, `kvstore_session` and `kvstore_cluster`.

pytest loads this module at its start in every environment that has kvstore installed, so it imports
nothing but pytest itself: the rest comes with the first test that asks for a fixture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvstore.embedded import EmbeddedMember
    from kvstore.testing.cluster import ProcessCluster

_MARKER = """\
kvstore(**options): what the test's `kvstore` fixture is made with, as for kvstore.embed(): \
for example @pytest.mark.kvstore(max_txn_ops=10)"""
_NODES_MAX = 7


def pytest_addoption(parser: pytest.Parser) -> None:
    """Define the settings."""
    group = parser.getgroup("kvstore")
    group.addoption(
        "--kvstore-nodes",
        type=int,
        default=None,
        metavar="N",
        help="members of the kvstore_cluster fixture, 1 to 7 (ini: kvstore_nodes, default 3)",
    )
    parser.addini("kvstore_nodes", "members of the kvstore_cluster fixture", default="3")
    parser.addini(
        "kvstore_fsync",
        "whether the kvstore and kvstore_session fixtures wait for the disk",
        type="bool",
        default=False,
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", _MARKER)


def _options(config: pytest.Config) -> dict[str, Any]:
    return {"fsync": config.getini("kvstore_fsync")}


@pytest.fixture
def kvstore(request: pytest.FixtureRequest) -> Iterator[EmbeddedMember]:
    """A new, empty member of the test's own, inside this process: `endpoint`, `client()`.

    It is made for each test (in some 30 ms), so that nothing of another test is in it: the store is
    at revision 1, without leases, watches and compactions. Writes do not wait for the disk.
    """
    from kvstore.embedded import embed  # noqa: PLC0415 (see above)

    options = _options(request.config)
    for mark in reversed(list(request.node.iter_markers("kvstore"))):  # the closest one last
        options |= mark.kwargs
    with embed(**options) as member:
        yield member


@pytest.fixture(scope="session")
def kvstore_session(request: pytest.FixtureRequest) -> Iterator[EmbeddedMember]:
    """A member for the whole run, never emptied: for fixtures of wider scope."""
    from kvstore.embedded import embed  # noqa: PLC0415 (see above)

    with embed(**_options(request.config)) as member:
        yield member


@pytest.fixture(scope="session")
def _kvstore_processes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ProcessCluster]:
    from kvstore.testing.cluster import ProcessCluster  # noqa: PLC0415 (see above)

    config = request.config
    given = config.getoption("--kvstore-nodes")
    text = config.getini("kvstore_nodes") if given is None else str(given)
    if not text.isdigit() or not 1 <= int(text) <= _NODES_MAX:
        raise pytest.UsageError(f"kvstore_nodes must be 1 to {_NODES_MAX}, not {text!r}")
    with ProcessCluster(int(text), tmp_path_factory.mktemp("kvstore")) as cluster:
        yield cluster


@pytest.fixture
def kvstore_cluster(_kvstore_processes: ProcessCluster) -> Iterator[ProcessCluster]:
    """Three members, each a process of its own: `endpoints`, `client()`, `kill()`, `start()`.

    They are started once in a run (some 2 s). After each test those that were killed are started
    again, and all keys and leases are removed; the store's revision goes on.
    """
    yield _kvstore_processes
    _kvstore_processes.reset()
