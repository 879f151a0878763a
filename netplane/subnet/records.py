"""What lies below the prefix, read key by key: leases, host records, signs of life. No policy.

    <prefix>/config                 the network's configuration
    <prefix>/subnets/<subnet>       leases, Flannel's and ours
    <prefix>/netplane/hosts/<id>    which host has which subnet, written together with its lease
    <prefix>/netplane/alive/<id>    there while that host's agent runs

One listing and one watch of the prefix cover all of it. Flannel reads the first two.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

from netplane.subnet.jsontext import FormatError, parse_object, text_of
from netplane.subnet.lease import Lease, decode_value, parse_name, subnet_name
from netplane.subnet.registry import Change, Head, KeyValue, Listing

PREFIX_DEFAULT = "/coreos.com/network"


@dataclass(frozen=True, slots=True)
class Layout:
    """The keys below a prefix such as `PREFIX_DEFAULT`."""

    prefix: str = PREFIX_DEFAULT

    @property
    def everything(self) -> bytes:
        """What all keys begin with."""
        return self.prefix.rstrip("/").encode() + b"/"

    @property
    def config(self) -> bytes:
        """The configuration's key."""
        return self.everything + b"config"

    @property
    def subnets(self) -> bytes:
        """What the keys of leases begin with."""
        return self.everything + b"subnets/"

    @property
    def hosts(self) -> bytes:
        """What the keys of host records begin with."""
        return self.everything + b"netplane/hosts/"

    @property
    def alive(self) -> bytes:
        """What the keys of signs of life begin with."""
        return self.everything + b"netplane/alive/"

    def lease(self, subnet: IPv4Network) -> bytes:
        """Return the key of a lease."""
        return self.subnets + subnet_name(subnet).encode()

    def host(self, host_id: str) -> bytes:
        """Return the key of a host record."""
        return self.hosts + host_id.encode()

    def life(self, host_id: str) -> bytes:
        """Return the key of a host's sign of life."""
        return self.alive + host_id.encode()


@dataclass(frozen=True, slots=True)
class HostRecord:
    """Which host has a subnet, by an identity that outlives its addresses."""

    host_id: str
    subnet: IPv4Network
    public_ip: IPv4Address
    session: str
    """Drawn at each start of the agent."""
    boot_id: str
    mod_revision: int = 0

    def encode(self) -> bytes:
        """Return the value that says it."""
        return text_of(
            {
                "Subnet": str(self.subnet),
                "PublicIP": str(self.public_ip),
                "Session": self.session,
                "BootID": self.boot_id,
            }
        )


def _decode_host(host_id: str, kv: KeyValue) -> HostRecord:
    fields = parse_object(kv.value)
    subnet, address, session, boot_id = (
        fields.get(name) for name in ("subnet", "publicip", "session", "bootid")
    )
    if not (
        isinstance(subnet, str)
        and isinstance(address, str)
        and isinstance(session, str)
        and isinstance(boot_id, str)
    ):
        raise FormatError("a host record has Subnet, PublicIP, Session and BootID, all text")
    return HostRecord(
        host_id, IPv4Network(subnet), IPv4Address(address), session, boot_id, kv.mod_revision
    )


_NOTHING = Head(0, 0)


@dataclass(slots=True)
class Registered:
    """Everything below the prefix at one revision; changed by listings and by a watch."""

    layout: Layout
    head: Head = _NOTHING
    history: int = 0
    """Counts the steps back: what was heard before one says nothing about what is now."""
    kvs: dict[bytes, KeyValue] = field(default_factory=dict)
    subnets: dict[bytes, IPv4Network] = field(default_factory=dict)
    """Of each key that names a subnet, whatever its value is."""
    leases: dict[bytes, Lease] = field(default_factory=dict)
    """By key; those with a sound value only."""
    hosts: dict[str, HostRecord] = field(default_factory=dict)
    alive: dict[str, str] = field(default_factory=dict)
    """Host id -> session of the agent that runs there."""
    junk: dict[bytes, str] = field(default_factory=dict)
    """Keys that cannot be read, and why."""
    _changed: set[bytes] | None = field(default=None, compare=False)

    def take_changed(self) -> set[bytes] | None:
        """Return the keys that became others since the last call; None: any may have."""
        changed, self._changed = self._changed, set()
        return changed

    def load(self, listing: Listing) -> None:
        """Replace everything; a head of another cluster, or an older one, is a step back."""
        before, after = self.head, listing.head
        if before.cluster_id and (
            after.cluster_id != before.cluster_id or after.revision < before.revision
        ):
            self.history += 1
        new = Registered(self.layout, after)
        for kv in listing.kvs:
            new.put(kv)
        self.head, self.kvs, self.subnets = new.head, new.kvs, new.subnets
        self.leases, self.hosts, self.alive, self.junk = (
            new.leases, new.hosts, new.alive, new.junk,
        )  # fmt: skip
        self._changed = None

    def apply(self, revision: int, changes: Iterable[Change]) -> None:
        """Take over what a revision changed. What is known already is no harm."""
        if revision <= self.head.revision:
            return  # a listing has shown what came of it
        for change in changes:
            known = self.kvs.get(change.key)
            if known is not None and known.mod_revision >= revision:
                continue  # our own write, noted when it was acknowledged
            if change.kv is None:
                self.drop(change.key)
            else:
                self.put(change.kv)
        self.head = Head(self.head.cluster_id, revision)

    def put(self, kv: KeyValue) -> None:
        """Take over one key."""
        self.drop(kv.key)
        self._note_changed(kv.key)
        self.kvs[kv.key] = kv
        try:
            self._read(kv)
        except ValueError as error:
            self.junk[kv.key] = str(error)

    def _read(self, kv: KeyValue) -> None:
        layout, key = self.layout, kv.key
        if key.startswith(layout.subnets):
            subnet = self.subnets[key] = parse_name(key.removeprefix(layout.subnets))
            self.leases[key] = decode_value(
                kv.value,
                subnet,
                key=key,
                create_revision=kv.create_revision,
                mod_revision=kv.mod_revision,
                expires=kv.lease_id != 0,
            )
        elif key.startswith(layout.hosts):
            host_id = key.removeprefix(layout.hosts).decode()
            self.hosts[host_id] = _decode_host(host_id, kv)
        elif key.startswith(layout.alive):
            self.alive[key.removeprefix(layout.alive).decode()] = str(
                parse_object(kv.value).get("session")
            )

    def drop(self, key: bytes) -> None:
        """Forget one key."""
        if self.kvs.pop(key, None) is None:
            return
        self._note_changed(key)
        self.subnets.pop(key, None)
        self.leases.pop(key, None)
        self.junk.pop(key, None)
        if key.startswith(self.layout.hosts):
            self.hosts.pop(key.removeprefix(self.layout.hosts).decode(errors="replace"), None)
        elif key.startswith(self.layout.alive):
            self.alive.pop(key.removeprefix(self.layout.alive).decode(errors="replace"), None)

    def _note_changed(self, key: bytes) -> None:
        if self._changed is not None:
            self._changed.add(key)

    def mod_revision(self, key: bytes) -> int:
        """Return which revision wrote a key; 0 for none, as the store compares it."""
        kv = self.kvs.get(key)
        return 0 if kv is None else kv.mod_revision

    def at(self, subnet: IPv4Network) -> Lease | None:
        """Return the lease of exactly this subnet."""
        return self.leases.get(self.layout.lease(subnet))

    def holder(self, subnet: IPv4Network) -> HostRecord | None:
        """Return the host that says it has this subnet; of several the last that said so."""
        found = [host for host in self.hosts.values() if host.subnet == subnet]
        return max(found, key=lambda host: host.mod_revision, default=None)

    def live_subnets(self) -> frozenset[IPv4Network]:
        """Return the subnets of hosts whose agents run."""
        return frozenset(host.subnet for host in self.hosts.values() if host.host_id in self.alive)

    def owner_text(self, subnet: IPv4Network) -> str:
        """Name a subnet's owner for an operator."""
        lease, host = self.at(subnet), self.holder(subnet)
        address = f"PublicIP {lease.public_ip}" if lease is not None else "an unreadable lease"
        return address if host is None else f"host {host.host_id!r}, {address}"


def life_value(session: str) -> bytes:
    """Return the value of a host's sign of life."""
    return text_of({"Session": session})
