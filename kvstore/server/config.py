"""The settings of one member, checked; flags and environment are read in `kvstore.cli`."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from kvstore.server.identity import Member, cluster_id, own_member, parse_initial_cluster
from kvstore.server.logs import LEVELS

QUOTA_DEFAULT = 2 << 30
QUOTA_MAX = 16 << 40
"""Twice of it is mapped, and a process has 128 TiB of addresses."""


class ConfigError(ValueError):
    """A setting cannot be used; the text names the flag and says what to do."""


@dataclass(frozen=True, slots=True)
class Url:
    """A listen or advertise URL, taken apart."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def parse_url(flag: str, text: str) -> Url:
    """Return the parts of `http(s)://HOST:PORT`.

    Raises:
        ConfigError: Anything else, with the flag's name.
    """
    advice = f"{flag}: {text!r} is not of the form http://HOST:PORT or https://HOST:PORT"
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{advice} ({error})") from error
    if parts.scheme not in {"http", "https"} or not parts.hostname or port is None:
        raise ConfigError(advice)
    if parts.path.strip("/") or parts.query:
        raise ConfigError(f"{flag}: {text!r} must not have a path")
    return Url(parts.scheme, parts.hostname, port)


def parse_urls(flag: str, text: str) -> tuple[Url, ...]:
    """Return the URLs of a comma-separated list, at least one."""
    urls = tuple(parse_url(flag, item) for item in text.split(",") if item.strip())
    if not urls:
        raise ConfigError(f"{flag}: at least one URL is needed")
    return urls


@dataclass(slots=True)
class ServerConfig:
    """Settings of one member. Names are etcd's flags with underscores."""

    name: str = "default"
    data_dir: str = ""
    """Empty: `<name>.kvstore`."""

    listen_client_urls: str = "http://localhost:2379"
    advertise_client_urls: str = ""
    """Empty: the listen URLs."""

    listen_peer_urls: str = "http://localhost:2380"
    initial_advertise_peer_urls: str = ""
    """Empty: the listen URLs."""

    initial_cluster: str = ""
    """Empty: this member alone."""

    initial_cluster_state: str = "new"
    initial_cluster_token: str = "etcd-cluster"  # noqa: S105 (a name, not a secret)
    strict_reconfig_check: bool = True
    """Refuse membership changes that could cost the quorum."""

    max_learners: int = 1
    heartbeat_interval: int = 100
    """Milliseconds between heartbeats; also the length of a tick."""

    election_timeout: int = 1000
    """Milliseconds without a leader before an election; the draw is in [1, 2) times this."""

    snapshot_count: int = 10_000
    """Entries kept in the log behind the durable store for slow followers (fewer if large)."""

    quota_backend_bytes: int = 0
    """0: 2 GiB."""

    max_request_bytes: int = 1_572_864
    max_txn_ops: int = 128
    log_level: str = "info"
    metrics: str = "basic"
    """"extensive" adds how long each method's calls took, for some microseconds a call."""

    cert_file: str = ""
    key_file: str = ""
    trusted_ca_file: str = ""
    client_cert_auth: bool = False
    enable_failpoints: bool = False
    """For tests: `kvstore.server.failpoints` may let this member fail on request."""

    client_urls: tuple[Url, ...] = field(init=False, default=())
    peer_urls: tuple[Url, ...] = field(init=False, default=())
    members: list[Member] = field(init=False, default_factory=list)
    member: Member = field(init=False, default=Member(0, "", ()))
    cluster_id: int = field(init=False, default=0)

    def check(self) -> ServerConfig:
        """Fill what is derived and return self.

        Raises:
            ConfigError: A setting is wrong or two do not fit together.
            InitialClusterError: Likewise, in `--initial-cluster`.
        """
        self._check_words()
        self._check_numbers()
        self.data_dir = self.data_dir or f"{self.name}.kvstore"
        self.client_urls = parse_urls("--listen-client-urls", self.listen_client_urls)
        self.peer_urls = parse_urls("--listen-peer-urls", self.listen_peer_urls)
        for flag, urls in (
            ("--listen-client-urls", self.client_urls),
            ("--listen-peer-urls", self.peer_urls),
        ):
            for url in urls:
                self._check_listen(flag, url)
        self.advertise_client_urls = self.advertise_client_urls or self.listen_client_urls
        self.initial_advertise_peer_urls = self.initial_advertise_peer_urls or self.listen_peer_urls
        for flag, text in (
            ("--advertise-client-urls", self.advertise_client_urls),
            ("--initial-advertise-peer-urls", self.initial_advertise_peer_urls),
        ):
            for url in parse_urls(flag, text):
                if url.host in {"0.0.0.0", "::"}:  # noqa: S104 (refused, not bound)
                    raise ConfigError(
                        f"{flag}: {url} cannot be reached from elsewhere; name a real address"
                    )
        self._check_tls()
        self._derive_members()
        return self

    def _check_words(self) -> None:
        if not self.name or set(self.name) & set("=,"):
            raise ConfigError(
                f"--name: {self.name!r} cannot stand in --initial-cluster; use letters and digits"
            )
        if self.initial_cluster_state not in {"new", "existing"}:
            raise ConfigError(
                f"--initial-cluster-state: {self.initial_cluster_state!r} is neither new "
                "nor existing"
            )
        if self.log_level not in LEVELS:
            raise ConfigError(f"--log-level: {self.log_level!r} is none of {', '.join(LEVELS)}")
        if self.metrics not in {"basic", "extensive"}:
            raise ConfigError(f"--metrics: {self.metrics!r} is neither basic nor extensive")

    def _check_numbers(self) -> None:
        if self.heartbeat_interval < 10:
            raise ConfigError("--heartbeat-interval must be at least 10 (milliseconds)")
        if self.election_timeout < 5 * self.heartbeat_interval:
            raise ConfigError(
                f"--election-timeout ({self.election_timeout}) must be at least 5 times "
                f"--heartbeat-interval ({self.heartbeat_interval})"
            )
        if self.election_timeout > 50_000:
            raise ConfigError("--election-timeout must be at most 50000 (milliseconds)")
        for flag, value, smallest in (
            ("--snapshot-count", self.snapshot_count, 1),
            ("--quota-backend-bytes", self.quota_backend_bytes, 0),
            ("--max-request-bytes", self.max_request_bytes, 1024),
            ("--max-txn-ops", self.max_txn_ops, 1),
            ("--max-learners", self.max_learners, 0),
        ):
            if value < smallest:
                raise ConfigError(f"{flag} must be at least {smallest}, not {value}")
        if self.max_request_bytes > 32 << 20:
            raise ConfigError("--max-request-bytes must be at most 33554432 (32 MiB)")
        if self.quota_backend_bytes > QUOTA_MAX:
            raise ConfigError(f"--quota-backend-bytes must be at most {QUOTA_MAX} (16 TiB)")

    @staticmethod
    def _check_listen(flag: str, url: Url) -> None:
        if url.host == "localhost":
            return
        try:
            ipaddress.ip_address(url.host)
        except ValueError:
            raise ConfigError(
                f"{flag}: listening needs an IP address or localhost, not {url.host!r}"
            ) from None

    def _check_tls(self) -> None:
        secure = any(url.scheme == "https" for url in self.client_urls)
        if secure and not (self.cert_file and self.key_file):
            raise ConfigError(
                "--listen-client-urls has an https URL; it needs --cert-file and --key-file"
            )
        if bool(self.cert_file) != bool(self.key_file):
            raise ConfigError("--cert-file and --key-file go together")
        if self.client_cert_auth and not self.trusted_ca_file:
            raise ConfigError("--client-cert-auth needs --trusted-ca-file")
        if not secure and (self.cert_file or self.trusted_ca_file or self.client_cert_auth):
            # etcd ignores the files then, with a warning: an open port that looks closed.
            raise ConfigError(
                "--cert-file, --trusted-ca-file and --client-cert-auth act on https only; write "
                "https:// in --listen-client-urls, or leave them out"
            )
        if any(url.scheme == "https" for url in self.peer_urls):
            raise ConfigError(
                "--listen-peer-urls: https between members is not supported yet; use http and "
                "keep the peer port inside a trusted network"
            )

    def _derive_members(self) -> None:
        advertised = tuple(
            item.strip() for item in self.initial_advertise_peer_urls.split(",") if item.strip()
        )
        text = self.initial_cluster or ",".join(f"{self.name}={url}" for url in advertised)
        self.initial_cluster = text
        self.members = parse_initial_cluster(text, self.initial_cluster_token)
        self.member = own_member(
            text, self.initial_cluster_token, self.name, advertised, self.members
        )
        self.cluster_id = cluster_id([member.id for member in self.members])

    @property
    def quota_bytes(self) -> int:
        """The size at which the store refuses more."""
        return self.quota_backend_bytes or QUOTA_DEFAULT

    @property
    def election_ticks(self) -> int:
        """Ticks of the election timeout."""
        return math.ceil(self.election_timeout / self.heartbeat_interval)

    @property
    def request_timeout_s(self) -> float:
        """How long a request may wait for the cluster: etcd's 5 s and two election timeouts."""
        return 5.0 + 2 * self.election_timeout / 1000

    @property
    def lease_ttl_min_s(self) -> int:
        """The shortest lease: 1.5 election timeouts, so that it survives a change of leader."""
        return math.ceil(1.5 * self.election_timeout / 1000)
