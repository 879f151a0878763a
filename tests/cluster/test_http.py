"""Operators' probes against a member on a plain port, with every HTTP that curl speaks."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.servers import Kvstore, curl

pytestmark = [pytest.mark.cluster, pytest.mark.curl]

# What curl is told, and the version that must come out. A plain port takes no upgrade to HTTP/2.
VERSIONS = [
    ([], "1.1"),
    (["--http1.1"], "1.1"),
    (["--http2"], "1.1"),
    (["--http2-prior-knowledge"], "2"),
]


@pytest.fixture(scope="module")
def member() -> Iterator[Kvstore]:
    with Kvstore(1) as cluster:
        yield cluster


@pytest.fixture(params=VERSIONS, ids=lambda given: " ".join(given[0]))
def how(request: pytest.FixtureRequest) -> tuple[list[str], str]:
    flags, version = request.param
    return flags, version


def test_health(member: Kvstore, how: tuple[list[str], str]) -> None:
    flags, version = how
    status, body = curl(f"http://{member.endpoints[0]}/health", *flags)
    assert status == f"200 {version}"
    assert json.loads(body) == {"health": "true", "reason": ""}


def test_version(member: Kvstore, how: tuple[list[str], str]) -> None:
    flags, version = how
    status, body = curl(f"http://{member.endpoints[0]}/version", *flags)
    assert status == f"200 {version}"
    assert set(json.loads(body)) >= {"etcdserver", "etcdcluster"}


def test_metrics(member: Kvstore, how: tuple[list[str], str]) -> None:
    flags, version = how
    status, body = curl(f"http://{member.endpoints[0]}/metrics", *flags)
    assert status == f"200 {version}"
    assert b"\netcd_server_has_leader 1.0\n" in body


def test_what_is_not_there_and_what_is_not_allowed(
    member: Kvstore, how: tuple[list[str], str]
) -> None:
    flags, version = how
    url = f"http://{member.endpoints[0]}"
    assert curl(f"{url}/nothing", *flags) == (f"404 {version}", b"404 page not found\n")
    assert curl(f"{url}/health", *flags, "--data", "x")[0] == f"405 {version}"


def test_unknown_kinds_of_grpc_are_415(member: Kvstore) -> None:
    status, _ = curl(
        f"http://{member.endpoints[0]}/etcdserverpb.KV/Range",
        "--http2-prior-knowledge",
        # Without a body: the refusal does not wait for one and ends with RST_STREAM(NO_ERROR), as
        # RFC 9113 8.1 has it, which curl 7.88 takes for an error when it still wants to send.
        *("--data", "", "-H", "content-type: application/grpc-web"),
    )
    assert status == "415 2"
