"""What an agent is told at its start, checked; reads no file and asks no kernel."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from netplane.agent.errors import SettingsError

_INSTANCE = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
"""What fits a file name, the name of a table and a label of a metric."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
UNIX_PATH_BYTES_MAX = 107
"""Linux, unix(7)."""


@dataclass(frozen=True, slots=True)
class Registry:
    """How to reach the registry."""

    endpoints: tuple[str, ...] = ("http://127.0.0.1:2379",)
    prefix: str = "/coreos.com/network"
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    user: str | None = None
    password: str | None = None

    def check(self) -> None:
        """Raise SettingsError for what cannot work."""
        if not any(self.endpoints):
            raise SettingsError("no registry endpoint", "give --etcd-endpoints HOST:PORT,...")
        if not self.prefix.startswith("/") or self.prefix.endswith("/"):
            raise SettingsError(
                f"--etcd-prefix {self.prefix!r} is no absolute path without a slash at its end",
                "write it as /coreos.com/network",
            )
        if (self.cert_file is None) != (self.key_file is None):
            raise SettingsError(
                "--etcd-certfile and --etcd-keyfile go together", "give both or none"
            )
        plain = [name for name in self.endpoints if name.startswith("http://")]
        if plain and (self.ca_file or self.cert_file):
            # Or the password would travel in the clear, where everybody believes it does not.
            raise SettingsError(
                f"endpoint {plain[0]} is not encrypted, so --etcd-cafile and --etcd-certfile mean"
                " nothing to it",
                "write it as https://, or leave the files out",
            )
        if (self.user is None) != (self.password is None):
            raise SettingsError(
                "--etcd-username and --etcd-password go together", "give both or none"
            )


@dataclass(frozen=True, slots=True)
class Settings:
    """What an agent is told."""

    registry: Registry = Registry()
    iface: tuple[str, ...] = ()
    """Names or addresses; the first that is found counts."""
    iface_regex: tuple[str, ...] = ()
    """Tried after `iface`, against names and addresses."""
    public_ip: IPv4Address | None = None
    """What other hosts reach us by. None: the address of the interface."""
    public_ipv6: IPv6Address | None = None
    """The same of IPv6."""
    adopt_flannel: bool = False
    """Take over the device of a Flannel that ran here, with its MAC and routes."""
    subnet_file: Path = Path("/run/flannel/subnet.env")
    healthz_ip: str = "0.0.0.0"  # noqa: S104 (Flannel's default; the port is off unless asked for)
    healthz_port: int = 0
    """0: no health port."""
    instance: str = "default"
    """Tells agents of one host apart: sockets, locks, state, tables of nftables."""
    host_id: str = ""
    """Who we are in the registry, whatever our address. Empty: /etc/machine-id."""
    state_dir: Path = Path("/var/lib/netplane")
    """Outlives a reboot."""
    run_dir: Path = Path("/run/netplane")
    """Does not."""
    removal_grace_s: float = 600.0
    heal_interval_s: float = 10.0
    ip_masq: bool = False
    """Packets that leave the overlay get this host as their source."""
    ip_masq_fully_random_disable: bool = False
    ip_blackhole_route: bool = False
    """Packets to addresses of our subnet that no container has end here."""
    iptables_forward_rules: bool = True
    """Keep two accept rules in the chain FORWARD of iptables."""
    iptables_resync: int = 0
    """Seconds between two looks at the firewall; 0: as `heal_interval_s`."""

    @property
    def table(self) -> str:
        """The table of nftables that is ours."""
        return "netplane" if self.instance == "default" else f"netplane-{self.instance}"

    @property
    def firewall_interval_s(self) -> float:
        """How often the firewall is read though it told no change."""
        return self.iptables_resync or self.heal_interval_s

    @property
    def state_file(self) -> Path:
        """What the agent remembers."""
        return self.state_dir / f"{self.instance}.json"

    @property
    def lock_file(self) -> Path:
        """Held while the agent runs."""
        return self.state_dir / f"{self.instance}.lock"

    @property
    def socket(self) -> Path:
        """Where `netplane ctl` finds the agent."""
        return socket_path(self.run_dir, self.instance)

    @property
    def udp_socket(self) -> Path:
        """Where the agent finds the process of the userspace overlay."""
        return self.run_dir / f"{self.instance}.udp"

    def check(self) -> None:
        """Raise SettingsError for what cannot work."""
        self.registry.check()
        check_instance(self.instance)
        if self.host_id and not _ID.fullmatch(self.host_id):
            raise SettingsError(
                f"--host-id {self.host_id!r} does not fit a key",
                "use up to 63 letters, digits, dots, dashes and underscores",
            )
        for pattern in self.iface_regex:
            try:
                re.compile(pattern)
            except re.error as error:
                raise SettingsError(
                    f"--iface-regex {pattern!r} is no regular expression ({error})",
                    "quote dots and brackets for the shell",
                ) from error
        for flag, address in (("--public-ip", self.public_ip), ("--public-ipv6", self.public_ipv6)):
            if address is not None and (
                address.is_unspecified or address.is_loopback or address.is_multicast
            ):
                raise SettingsError(
                    f"no host can be reached by {flag} {address}",
                    "leave it out for the address of the interface",
                )
        _check_healthz_ip(self.healthz_ip)
        if not 0 <= self.healthz_port < 1 << 16:
            raise SettingsError(
                f"--healthz-port {self.healthz_port} is no port", "0 is off, 65535 the last"
            )
        if self.iptables_resync < 0:
            raise SettingsError(
                f"--iptables-resync {self.iptables_resync} is no time",
                "give seconds; 0 is as --heal-interval",
            )
        for flag, seconds in (
            ("--removal-grace", self.removal_grace_s),
            ("--heal-interval", self.heal_interval_s),
        ):
            if seconds <= 0:
                raise SettingsError(f"{flag} must be longer than nothing", "write 10s, 10m or 1h")
        if len(bytes(self.socket)) > UNIX_PATH_BYTES_MAX:
            raise SettingsError(
                f"the path {self.socket} is too long for a socket", "choose a shorter --run-dir"
            )


def _check_healthz_ip(text: str) -> None:
    # A name would be looked up before anything else is done, signals among them.
    try:
        if text:  # as with Flannel, nothing stands for all addresses
            ip_address(text)
    except ValueError as error:
        raise SettingsError(
            f"--healthz-ip {text!r} is no address", "give one of this host's, or 0.0.0.0 for all"
        ) from error


def check_instance(name: str) -> None:
    """Raise SettingsError for a name that does not fit where instances are named."""
    if not _INSTANCE.fullmatch(name):
        raise SettingsError(
            f"--instance {name!r} does not fit a file name",
            "use up to 31 lower-case letters, digits and dashes",
        )


def socket_path(run_dir: Path, instance: str) -> Path:
    """Return where the agent of an instance listens for `netplane ctl`."""
    return run_dir / f"{instance}.sock"


def cni_socket_path(run_dir: Path, instance: str) -> Path:
    """Return where the agent of an instance listens for the CNI plugin."""
    return run_dir / f"{instance}.cni"


def containers_path(run_dir: Path, instance: str) -> Path:
    """Return where the containers of an instance are written down."""
    return run_dir / f"{instance}.containers.json"
