"""Addresses of members and the TLS files to reach them; opens no connection."""

from __future__ import annotations

import re
import ssl
from typing import NamedTuple

_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.%a-z]+\]").fullmatch


class Tls(NamedTuple):
    """Files (PEM) for encrypted connections.

    Attributes:
        ca_file: Certificates that sign the servers'. None takes the system's.
        cert_file: This client's certificate, for servers that ask for one. Needs `key_file`.
        key_file: The private key of `cert_file`.
        server_name: Name to expect in the servers' certificates instead of the endpoint's host.
    """

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    server_name: str | None = None

    def read(self) -> Secure:
        """Read the files. Raises OSError when one cannot be read or used."""
        for path in (self.ca_file, self.cert_file, self.key_file):
            if path is not None:
                open(path, "rb").close()
        used = self.ca_file
        try:
            context = ssl.create_default_context(cafile=used)
            if self.cert_file is not None:
                used = f"{self.cert_file} with {self.key_file}"
                # Without a password OpenSSL asks at the terminal for that of a key that has one.
                context.load_cert_chain(self.cert_file, self.key_file, password="")
        except ssl.SSLError as error:
            error.filename = used
            raise
        context.set_alpn_protocols(["h2"])
        return Secure(context, self.server_name)


class Secure(NamedTuple):
    """What `Tls` says, read."""

    context: ssl.SSLContext
    server_name: str | None


class Endpoint(NamedTuple):
    """One member's client address."""

    target: str
    """`host:port` as gRPC takes it."""
    secure: bool

    @classmethod
    def parse(cls, text: str, *, secure_default: bool = False) -> Endpoint:
        """Read `host:port`, `http://host:port` or `https://host:port`.

        Without a scheme the endpoint is secure when the client was given TLS files
        (`secure_default`). Raises ValueError for anything else.
        """
        if not isinstance(text, str):
            raise ValueError(  # noqa: TRY004 (one class for every wrong endpoint)
                f"endpoint {text!r}: write it as text, such as '127.0.0.1:2379'"
            )
        secure = secure_default
        rest = text.strip()
        scheme, separator, after = rest.partition("://")
        if separator:
            if scheme not in {"http", "https"}:
                raise ValueError(f"endpoint {text!r}: the scheme must be http or https")
            secure = scheme == "https"
            rest = after
        rest = rest.rstrip("/")
        host, colon, port = rest.rpartition(":")
        is_port = port.isascii() and port.isdigit() and 0 < int(port) <= 65535
        if not (colon and is_port and _HOST(host)):
            raise ValueError(f"endpoint {text!r}: write it as host:port, such as 127.0.0.1:2379")
        return cls(rest, secure)
