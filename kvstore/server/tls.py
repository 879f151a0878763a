"""TLS of the client port from the certificate flags."""

from __future__ import annotations

import ssl

from kvstore.server.config import ServerConfig
from kvstore.server.startup import StartError


def server_context(config: ServerConfig) -> ssl.SSLContext:
    """Return the context of the client port.

    Raises:
        StartError: A file cannot be read or does not hold what its flag says.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        context.load_cert_chain(config.cert_file, config.key_file)
    except (OSError, ssl.SSLError) as error:
        raise StartError(
            f"--cert-file {config.cert_file}, --key-file {config.key_file}: cannot be used: {error}"
        ) from error
    if config.trusted_ca_file:
        try:
            context.load_verify_locations(config.trusted_ca_file)
        except (OSError, ssl.SSLError) as error:
            raise StartError(
                f"--trusted-ca-file {config.trusted_ca_file}: cannot be used: {error}"
            ) from error
        # As etcd does: who names an authority wants clients checked, with --client-cert-auth or
        # without.
        context.verify_mode = ssl.CERT_REQUIRED
    return context
