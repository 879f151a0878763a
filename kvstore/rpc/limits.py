"""Every bound of the engine in one place, each with its reason; no code."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one server. The defaults suit an etcd client port."""

    message_bytes_max: int = 2 * MIB
    """One request message, after decompression. etcd: --max-request-bytes plus 512 KiB."""

    http_body_bytes_max: int = 4 * MIB
    """One plain HTTP request body. JSON holds bytes as base64, so twice the message limit."""

    concurrent_streams_max: int = 4096
    """Open streams of one connection. A stream of an idle watch takes about 1 KiB."""

    header_list_bytes_max: int = 64 * KIB
    """Names, values and 32 bytes a field (RFC 9113 6.5.2), and also one block as sent."""

    continuation_frames_max: int = 16
    """Per header block: 16 frames of 16 KiB hold four times the largest list."""

    stream_window_bytes: int = 1 * MIB
    """What one stream may send ahead of us."""

    connection_window_bytes: int = 8 * MIB
    """What one connection may send ahead of us."""

    receive_buffer_bytes_max: int = 64 * MIB
    """Incomplete request messages of one connection; the call that goes beyond is refused."""

    received_bytes_max: int = 512 * MIB
    """Incomplete requests of all connections; the call that goes beyond is refused."""

    unfinished_s: float = 30.0
    """Time for a frame, a header block or the client's SETTINGS, once begun. A client that drips
    bytes would hold them for ever otherwise. Looked at every few seconds, so it may be longer."""

    body_s: float = 60.0
    """Time for one request message or plain body, once begun: those who drip share
    `received_bytes_max` with everybody."""

    connections_max: int = 0
    """Open connections; those beyond are closed at once. 0 is no bound. The process needs open
    files for its own work too."""

    stream_high_bytes: int = 256 * KIB
    """`Call.send` returns False above this many unsent bytes of its stream."""

    stream_low_bytes: int = 64 * KIB
    """`StreamHandler.writable` is called below this many."""

    connection_high_bytes: int = 2 * MIB
    """Unsent bytes of one connection above which we stop reading its requests, where they wait for
    the socket and not for WINDOW_UPDATE frames that we would have to read."""

    unsent_bytes_max: int = 512 * MIB
    """Replies of all connections that wait for slow readers; beyond it new ones are refused. So
    they are when one connection holds a quarter of it: the others need the rest."""

    write_turn_bytes: int = 256 * KIB
    """Bytes of DATA that one connection may write in one loop turn, so that a bulk reader does
    not hold the loop. Also the transport's high-water mark."""

    resets_burst: int = 1000
    """Streams that end by RST_STREAM, whoever caused it, before the connection is closed ..."""

    resets_per_s: float = 100.0
    """... and how fast that allowance comes back (CVE-2023-44487, CVE-2025-8671)."""

    junk_burst: int = 2000
    """Frames that bring no work forward (SETTINGS, PRIORITY, empty DATA, unknown types, frames on
    closed streams, needless WINDOW_UPDATE, too large header lists) before the connection is closed
    ..."""

    junk_per_s: float = 200.0
    """... and how fast that allowance comes back (CVE-2019-9512 to 9518)."""

    ping_interval_s: float = 5.0
    """Client pings closer together than this are strikes, as with etcd's GRPCKeepAliveMinTime."""

    ping_strikes_max: int = 2
    """One more strike ends the connection with too_many_pings. As grpc-go."""

    keepalive_s: float = 7200.0
    """Silence after which we ping. etcd's GRPCKeepAliveInterval."""

    keepalive_timeout_s: float = 20.0
    """Silence after that ping before the connection is closed. etcd's GRPCKeepAliveTimeout."""

    handshake_timeout_s: float = 10.0
    """Time for the TLS handshake and the first bytes of the protocol."""

    handshakes_per_turn: int = 4
    """TLS handshake steps in one loop turn. One RSA-2048 step takes about 1 ms."""

    backlog: int = 1024
    """Connections that the kernel queues before we accept them."""
