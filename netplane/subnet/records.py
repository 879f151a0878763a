"""What lies below the prefix, read key by key: leases, host records, signs of life. No policy.

    <prefix>/config                 the network's configuration
    <prefix>/subnets/<subnet>       leases, Flannel's and ours
    <prefix>/netplane/hosts/<id>    which host has which subnet, written together with its lease
    <prefix>/netplane/alive/<id>    there while that host's agent runs
    <prefix>/netplane/ipv6/<subnet> written with each lease beside an IPv4 one: see `Layout.mark`

One listing and one watch of the prefix cover all of it. Flannel reads the first two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import IPv6Address, IPv6Network

from netplane.subnet.config import read_config
from netplane.subnet.family import (
    Address,
    Pair,
    Subnet,
    ipv6_address,
    ipv6_network,
    parse_address,
    parse_subnet,
)
from netplane.subnet.fields import text
from netplane.subnet.jsontext import FormatError, parse_object, text_of
from netplane.subnet.lease import Lease, addresses, decode_value, parse_name, public, subnet_name
from netplane.subnet.registry import Change, Head, KeyValue, Listing

PREFIX_DEFAULT = "/coreos.com/network"


@dataclass(frozen=True)
class Layout:
    """The keys below a prefix such as `PREFIX_DEFAULT`."""

    prefix: str = PREFIX_DEFAULT

    @cached_property
    def everything(self) -> bytes:
        """What all keys begin with."""
        return self.prefix.rstrip("/").encode() + b"/"

    @cached_property
    def config(self) -> bytes:
        """The configuration's key."""
        return self.everything + b"config"

    @cached_property
    def subnets(self) -> bytes:
        """What the keys of leases begin with."""
        return self.everything + b"subnets/"

    @cached_property
    def hosts(self) -> bytes:
        """What the keys of host records begin with."""
        return self.everything + b"netplane/hosts/"

    @cached_property
    def alive(self) -> bytes:
        """What the keys of signs of life begin with."""
        return self.everything + b"netplane/alive/"

    def lease(self, subnet: Subnet, subnet6: IPv6Network | None = None) -> bytes:
        """Return the key of a lease."""
        return self.subnets + subnet_name(subnet, subnet6).encode()

    def mark(self, subnet6: IPv6Network) -> bytes:
        """Return the key that everybody writes who takes an IPv6 subnet beside an IPv4 one.

        A lease's key begins with its IPv4 subnet, so it shows by itself that two hosts take one
        of these at once; of the IPv6 subnet behind it only a key of its own can.
        """
        return self.everything + b"netplane/ipv6/" + subnet_name(subnet6).partition("&")[2].encode()

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
    subnet: Subnet
    public_ip: Address
    session: str
    """Drawn at each start of the agent."""
    boot_id: str
    mod_revision: int = 0
    subnet6: IPv6Network | None = None
    """Beside an IPv4 one; so is the next."""
    public_ip6: IPv6Address | None = None

    @property
    def pair(self) -> Pair:
        """Return the subnets of both families."""
        return Pair(self.subnet, self.subnet6)

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Return the addresses of both families."""
        return addresses(self.public_ip, self.public_ip6)

    def encode(self) -> bytes:
        """Return the value that says it."""
        fields = {
            "Subnet": str(self.subnet),
            "PublicIP": str(self.public_ip),
            "Session": self.session,
            "BootID": self.boot_id,
        }
        if self.subnet6 is not None:
            fields["IPv6Subnet"] = str(self.subnet6)
        if self.public_ip6 is not None:
            fields["PublicIPv6"] = str(self.public_ip6)
        return text_of(fields)


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
    subnet6, address6 = text(fields, "IPv6Subnet"), text(fields, "PublicIPv6")
    return HostRecord(
        host_id,
        parse_subnet(subnet),
        parse_address(address),
        session,
        boot_id,
        kv.mod_revision,
        ipv6_network(subnet6) if subnet6 else None,
        ipv6_address(address6) if address6 else None,
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
    subnets: dict[bytes, Pair] = field(default_factory=dict)
    """Of each key that names subnets, whatever its value is."""
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
            pair = self.subnets[key] = parse_name(key.removeprefix(layout.subnets))
            self.leases[key] = decode_value(
                kv.value,
                *pair,
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
        elif key == layout.config:
            read_config(kv.value)

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

    def at(self, pair: Pair) -> Lease | None:
        """Return the lease of exactly these subnets."""
        return self.leases.get(self.layout.lease(*pair))

    def taken(self, version: int) -> Iterator[Subnet]:
        """Return every subnet of a family that somebody has, also of leases of no use."""
        return (
            subnet for pair in self.subnets.values() if (subnet := pair.of(version)) is not None
        )

    def had_before(self, pair: Pair) -> Pair | None:
        """Return what somebody has of a pair that is registered, and had before it was.

        Among ours that does not happen (see `Layout.mark`), but Flannel's hosts write no mark.
        """
        mine = self.layout.lease(*pair)
        if pair.second is None or mine not in self.kvs:
            return None
        created = self.kvs[mine].create_revision
        return next(
            (
                other
                for key, other in self.subnets.items()
                if self.kvs[key].create_revision < created and other.overlaps(pair)
            ),
            None,
        )

    def holder(self, pair: Pair) -> HostRecord | None:
        """Return the host that says it has these subnets; of several the last that said so."""
        found = [host for host in self.hosts.values() if host.pair == pair]
        return max(found, key=lambda host: host.mod_revision, default=None)

    def live_subnets(self) -> frozenset[Pair]:
        """Return the subnets of hosts whose agents run."""
        return frozenset(host.pair for host in self.hosts.values() if host.host_id in self.alive)

    def owner_text(self, pair: Pair) -> str:
        """Name the owner of subnets for an operator.

        Who writes over a lease, as Flannel does, leaves the record of the host that had it.
        """
        lease, host = self.at(pair), self.holder(pair)
        address = public(lease.public_ip) if lease is not None else "an unreadable lease"
        if host is None:
            return address
        if lease is not None and set(host.addresses).isdisjoint(lease.addresses):
            return f"a host without an agent of netplane, {address}"
        return f"host {host.host_id!r}, {address}"


def life_value(session: str) -> bytes:
    """Return the value of a host's sign of life."""
    return text_of({"Session": session})
