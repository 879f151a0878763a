"""Encrypted connections, with and without client certificates, and refusals of wrong ones."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import re
import shutil
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from kvstore.client import AsyncClient, Tls, UnreachableError
from tests.client.conftest import KINDS, class_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import Cluster


def make_certificates(folder: Path) -> None:
    """Write an authority, and a certificate of it for server and client."""
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
    ca = _builder(ca_name, ca_name, ca_key.public_key()).add_extension(
        x509.BasicConstraints(ca=True, path_length=None), critical=True
    )
    _write(folder / "ca.pem", ca.sign(ca_key, hashes.SHA256()))
    for name in ("server", "client"):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        addresses = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        certificate = _builder(subject, ca_name, key.public_key()).add_extension(
            x509.SubjectAlternativeName(addresses), critical=False
        )
        _write(folder / f"{name}.pem", certificate.sign(ca_key, hashes.SHA256()))
        (folder / f"{name}-key.pem").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )


def _builder(subject: x509.Name, issuer: x509.Name, key) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
    )


def _write(path: Path, certificate: x509.Certificate) -> None:
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("certificates")
    make_certificates(path)
    return path


@pytest.fixture(scope="module", params=KINDS)
def strict_server(request: pytest.FixtureRequest, folder: Path) -> Iterator[Cluster]:
    """A member that demands a client certificate."""
    flags = (
        *("--cert-file", str(folder / "server.pem"), "--key-file", str(folder / "server-key.pem")),
        *("--trusted-ca-file", str(folder / "ca.pem"), "--client-cert-auth=true"),
    )
    with class_of(request.param)(1, flags, scheme="https") as cluster:
        yield cluster


async def test_a_client_with_a_certificate_is_served(strict_server: Cluster, folder: Path) -> None:
    tls = Tls(str(folder / "ca.pem"), str(folder / "client.pem"), str(folder / "client-key.pem"))
    [address] = strict_server.endpoints
    for endpoint in (address, f"https://{address}"):
        async with AsyncClient([endpoint], tls=tls) as client, client.watch(b"tls") as watcher:
            put = await client.put(b"tls", b"v")
            assert (await anext(watcher)).revision == put.revision


async def test_wrong_credentials_never_get_through(strict_server: Cluster, folder: Path) -> None:
    [address] = strict_server.endpoints
    authority = str(folder / "ca.pem")
    certificate = (str(folder / "client.pem"), str(folder / "client-key.pem"))
    other_name = Tls(authority, *certificate, server_name="other.example")
    # In words that help, and not OpenSSL's alone.
    attempts = {
        "it wants a client certificate and its key": (f"https://{address}", Tls(authority)),
        "is the file of the right authority given": (address, Tls(None, *certificate)),
        "certificate is not accepted": (address, other_name),
        "does it want TLS? then write https://": (f"http://{address}", None),
    }
    for words, (endpoint, tls) in attempts.items():
        async with AsyncClient([endpoint], tls=tls, timeout_s=0.5) as client:
            with pytest.raises(UnreachableError, match=re.escape(words)):
                await client.put(b"tls", words.encode())


async def test_a_server_without_tls_is_said_to_be_one(server: Cluster) -> None:
    [address] = server.endpoints
    async with AsyncClient([f"https://{address}"], timeout_s=0.5) as client:
        with pytest.raises(UnreachableError, match=r"without TLS\? then write http://"):
            await client.get(b"k")


async def test_a_server_that_hangs_up_is_said_to() -> None:
    # As one does that speaks no TLS; asyncio's own error has no text.
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with AsyncClient([f"https://127.0.0.1:{port}"], timeout_s=0.5) as client:
            with pytest.raises(UnreachableError, match="hung up: is it without TLS"):
                await client.get(b"k")


async def test_a_missing_file_is_named(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.pem"):
        AsyncClient(["127.0.0.1:1"], tls=Tls(str(folder / "absent.pem")))


@pytest.mark.parametrize("which", ["authority", "certificate", "encrypted key"])
def test_a_file_that_is_no_certificate_is_named_and_nobody_is_asked(
    which: str, folder: Path, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("not PEM")
    tls = Tls(str(wrong))
    if which == "certificate":
        tls = Tls(None, str(wrong), str(folder / "client-key.pem"))
    elif which == "encrypted key":
        # OpenSSL would ask whoever is at the terminal for its password, and wait for ever.
        key = serialization.load_pem_private_key((folder / "client-key.pem").read_bytes(), None)
        wrong.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"secret"),
            )
        )
        tls = Tls(None, str(folder / "client.pem"), str(wrong))
    with pytest.raises(OSError, match=r".") as refused:
        AsyncClient(["127.0.0.1:1"], tls=tls)
    assert str(wrong) in refused.value.filename


async def test_files_that_go_while_a_program_runs_keep_it_from_no_other_member(
    strict_server: Cluster, folder: Path, tmp_path: Path
) -> None:
    # As when certificates are replaced, just while the member that we use goes away.
    ours = shutil.copytree(folder, tmp_path / "ours")
    tls = Tls(str(ours / "ca.pem"), str(ours / "client.pem"), str(ours / "client-key.pem"))
    [address] = strict_server.endpoints
    async with AsyncClient(["127.0.0.1:1", address], tls=tls) as client:
        shutil.rmtree(ours)
        await client.put(b"tls", b"other")
