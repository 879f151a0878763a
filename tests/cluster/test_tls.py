"""A member behind TLS: gRPC clients, curl, and who may come in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore.client import AvailabilityError, Client
from kvstore.client.endpoint import Tls
from tests.certificates import Authority
from tests.servers import Kvstore, curl

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def member(authority: Authority) -> Iterator[Kvstore]:
    certificate, key = authority.issue("server")
    flags = (
        "--cert-file", certificate, "--key-file", key,
        "--trusted-ca-file", authority.file, "--client-cert-auth",
    )  # fmt: skip
    with Kvstore(1, flags=flags, scheme="https") as cluster:
        yield cluster


def test_a_client_with_a_certificate_is_served(member: Kvstore, authority: Authority) -> None:
    certificate, key = authority.issue("client")
    tls = Tls(authority.file, certificate, key)
    with Client([f"https://{member.endpoints[0]}"], tls=tls) as client:
        client.put(b"k", bytes(100_000))
        kv = client.get(b"k")
    assert kv is not None
    assert len(kv.value) == 100_000


def test_a_client_without_a_certificate_is_turned_away(
    member: Kvstore, authority: Authority
) -> None:
    with (
        Client([f"https://{member.endpoints[0]}"], tls=Tls(authority.file), timeout_s=2) as client,
        pytest.raises(AvailabilityError),
    ):
        client.put(b"k", b"v")


def test_a_certificate_of_another_authority_is_turned_away(
    member: Kvstore, authority: Authority, tmp_path: Path
) -> None:
    certificate, key = Authority(tmp_path, "stranger").issue("client")
    tls = Tls(authority.file, certificate, key)
    with (
        Client([f"https://{member.endpoints[0]}"], tls=tls, timeout_s=2) as client,
        pytest.raises(AvailabilityError),
    ):
        client.put(b"k", b"v")


@pytest.mark.curl
@pytest.mark.parametrize("flags", [[], ["--http1.1"], ["--http2"]], ids=" ".join)
@pytest.mark.parametrize("path", ["/health", "/version", "/metrics", "/readyz?verbose"])
def test_curl_is_served_over_both_versions(
    member: Kvstore, authority: Authority, flags: list[str], path: str
) -> None:
    # Over TLS plain curl negotiates HTTP/2: operators' probes must work all the same.
    certificate, key = authority.issue("curl")
    shown = ["--cacert", authority.file, "--cert", certificate, "--key", key]
    status, _ = curl(f"https://{member.endpoints[0]}{path}", *flags, *shown)
    assert status == f"200 {'1.1' if flags == ['--http1.1'] else '2'}"
