"""What there should be against what there is: pure. `reconcile` reads and writes the kernel."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address

from netplane.backend import Scope, Step
from netplane.backend.versions import SetVersion
from netplane.backend.vxlan import overhead_bytes
from netplane.netlink.decode import Link
from netplane.netlink.kernel import Change
from netplane.netlink.messages import IPV6_BYTES, NetObject
from netplane.netlink.monitor import ObjectChange
from netplane.netlink.objects import (
    BLACKHOLE,
    BOOT,
    PROTOCOL,
    Address,
    FdbEntry,
    Identity,
    KernelObject,
    Neighbour,
    Route,
    Sysctl,
    Uplink,
    VxlanLink,
    identity,
)

Item = Address | Neighbour | FdbEntry | Route
"""What lives on a link."""

ORDER = {Address: 0, Neighbour: 1, FdbEntry: 2, Route: 3}
"""In which order they are written: no route leads to where nothing answers. Removed in reverse."""


class Desired:
    """The objects that there should be, by what is done about them.

    Args:
        objects: all of them; no two with one identity.
        before: what was desired until now.
        step: how they come from that, if it is known.
    """

    def __init__(
        self,
        objects: AbstractSet[KernelObject],
        before: Desired | None = None,
        step: Step | None = None,
    ) -> None:
        self.objects = objects
        self.before: Desired | None = None
        if before is not None and step is not None and self._goes_on(before, step):
            return
        # A thousand peers are thousands of items: they are looked at once.
        others = [item for item in objects if type(item) not in ORDER]
        items: frozenset[Item] = frozenset(objects).difference(others)  # type: ignore[assignment]
        self.items = SetVersion(items)
        links = [item for item in others if isinstance(item, VxlanLink)]
        assert len(links) <= 1, "one reconciler keeps one link"
        self.link = links[0] if links else None
        # Forwarding last: the moment it is on, the default route of router advertisements goes
        # from every interface that was not told before to go on listening to them. That of single
        # links after that of all, which changes theirs.
        self.sysctls = sorted(
            (item for item in others if isinstance(item, Sysctl)),
            key=lambda item: ("forward" in item.name, "/conf/" in item.name, item),
        )
        self.uplink = next((item for item in others if isinstance(item, Uplink)), None)

    def _goes_on(self, before: Desired, step: Step) -> bool:
        """Take over what is the same; False: more differs than items, or the step is another's."""
        came, gone = step.came, step.gone
        if step.since is not before.objects:
            return False
        if not ORDER.keys() >= {*map(type, came), *map(type, gone)}:
            return False
        self.link, self.sysctls, self.uplink = before.link, before.sysctls, before.uplink
        self.came: AbstractSet[Item] = came  # type: ignore[assignment]  # checked just now
        self.gone: AbstractSet[Item] = gone  # type: ignore[assignment]
        self.items = before.items.next(self.came, self.gone)
        if "identities" in before.__dict__:
            # In place, as nobody asks for those of before any more: of a thousand few are others.
            self.identities = before.__dict__.pop("identities")
            self.identities.difference_update(map(identity, self.gone))
            self.identities.update(map(identity, self.came))
        self.before = before
        before.before = None  # or all that ever was would be kept
        return True

    @cached_property
    def identities(self) -> set[Identity]:
        """Of the items, to look up what became of them."""
        return set(map(identity, self.items))

    def changes(self, actual: AbstractSet[Item], *, remove: bool) -> list[Change]:
        """Return the writes from what there is to this; see `difference`."""
        if self.before is not None and actual is self.before.items:
            return difference(self.came, self.gone, remove=remove)
        # Sets of Python's own: their differences are found in a tenth of the time.
        return difference(self.items.whole(), frozenset(actual), remove=remove)


def is_ours(item: Item, scope: Scope) -> bool:
    """Tell whether we may remove an object that nobody desires. All others are foreign."""
    match item:
        case Route():
            if item.protocol != PROTOCOL:
                return False
            # Other instances have their own links, and share the external interface. Where we have
            # no link, what leads over any other is of an external interface that we had before.
            is_shared = item.link == scope.external or item.kind == BLACKHOLE or not scope.link
            return _is_on_ours(item, scope) or (
                is_shared and _within(item.destination, item.prefix_len, scope)
            )
        case Neighbour():
            return _is_on_ours(item, scope) and item.protocol == PROTOCOL
        case FdbEntry():
            # The kernel keeps no protocol number for these.
            return _is_on_ours(item, scope)
        case Address():
            return _is_on_ours(item, scope) and _within(item.address, item.prefix_len, scope)


def is_flannels(item: Item, scope: Scope) -> bool:
    """Tell whether an object is one of Flannel's that we adopt, whoever may have written it."""
    if scope.adopts and item.link == scope.link:
        # What the kernel gives every device of IPv6 by itself is nobody's.
        return not (isinstance(item, Address) and ip_address(item.address).is_link_local)
    return (
        isinstance(item, Route)
        and (item.link, item.protocol) == (scope.external, BOOT)
        and item.prefix_len == scope.adopts_routes
        and bool(item.gateway)
        and _within(item.destination, item.prefix_len, scope)
    )


def _is_on_ours(item: Item, scope: Scope) -> bool:
    # Routes over links that we do not know name none, as a scope without a device does.
    return bool(scope.link) and item.link == scope.link


def difference(
    desired: AbstractSet[Item], actual: AbstractSet[Item], *, remove: bool = True
) -> list[Change]:
    """Return the writes from what there is to what there should be, in their order.

    What replaces comes before what is removed, so a peer that changes is never without a path.
    Without `remove` only what is in the way of something desired goes.
    """
    missing, extra = desired - actual, actual - desired
    ordered = sorted(missing, key=_order)
    if not extra:
        return [Change(item) for item in ordered]
    left: Iterable[Item] = extra
    written: list[Change] = []
    if ordered:
        # More than one may have an identity: what others have appended.
        named = [(identity(item), item) for item in extra]
        replaced = dict(named)
        kept = set()
        for item in ordered:
            name = identity(item)
            kept.add(name)
            before = replaced.get(name)
            if before is not None and _is_in_its_own_way(item, before):
                written += [Change(before, removed=True), Change(item)]
            else:
                written.append(Change(item, replace=before is not None))
        left = [item for name, item in named if name not in kept]
        # The kernel takes no address of this host for a gateway: not our own one of before, whose
        # subnet has come to be another host's.
        gateways = {item.gateway for item in ordered if isinstance(item, Route)}
        first = [item for item in left if isinstance(item, Address) and item.address in gateways]
        if first:
            written[:0] = [Change(item, removed=True) for item in first]
            left = [item for item in left if item not in first]
    if not remove:
        return written
    removed = sorted(left, key=_order, reverse=True)
    return written + [Change(item, removed=True) for item in removed]


def leads_nowhere(change: Change) -> bool:
    """Tell whether packets go as before until a route comes, too."""
    return not (change.removed or change.replace or isinstance(change.item, Route))


def _is_in_its_own_way(item: Item, before: Item) -> bool:
    """Tell whether the kernel refuses a route for the one that it replaces.

    For IPv6 it looks up the gateway, even one that is said to be on the link, and finds that by
    the old route to be behind another.
    """
    return (
        isinstance(item, Route)
        and item.onlink
        and len(item.gateway) == IPV6_BYTES
        and item.link != before.link
    )


def is_rival(found: Route, refused: Route) -> bool:
    """Tell whether the route that leads to a destination now is why the kernel refuses ours."""
    if found.protocol == PROTOCOL:
        return False
    if (found.destination, found.prefix_len) == (refused.destination, refused.prefix_len):
        return True
    # One that leads to more than that has the gateway behind it, too; the kernel excepts defaults.
    return 0 < found.prefix_len < refused.prefix_len and _is_in_its_own_way(refused, found)


@dataclass(frozen=True, slots=True)
class LinkPlan:
    """What is to be done about our link."""

    remove: bool = False
    make: bool = False
    adopt: Link | None = None
    """This one gets the name of ours; what else is to be done is planned after it."""
    set: bool = False
    refused: str = ""
    """In words for an operator. Nothing is to be done then."""


def plan_link(
    desired: VxlanLink,
    own: Link | None,
    parent: Link | None,
    others: Iterable[Link],
    adopts: str = "",
    index: int = 0,
) -> LinkPlan:
    """Compare our link with the one that has its name.

    Args:
        others: all vxlan devices; ours may be among them.
        adopts: the name of one that may become ours.
        index: of ours, whatever its name is by now; 0: not known.
    """
    if parent is None:
        return LinkPlan(refused=f"there is no interface {desired.parent}")
    if own is not None and own.vxlan is None:
        return LinkPlan(
            refused=f"{own.name} is somebody else's {own.kind or 'hardware'} interface; rename it"
        )
    other = occupant(others, desired.name, desired.vni, desired.port, len(desired.local))
    if other is not None:
        if own is None and (other.name == adopts or other.index == index):
            return LinkPlan(adopt=other)
        return LinkPlan(refused=occupied_text(other, desired.name, desired.mac))
    if own is None:
        return LinkPlan(make=True)
    found = own.vxlan
    assert found is not None
    # What the kernel cannot change, or not without leaving entries behind.
    wanted = (desired.vni, parent.index, desired.local, desired.port, desired.learning, desired.gbp)
    if wanted != (found.vni, found.parent, found.local, found.port, found.learning, found.gbp):
        return LinkPlan(remove=True, make=True)
    if found.group:
        return LinkPlan(remove=True, make=True)
    return LinkPlan(set=(desired.mac, desired.mtu, True) != (own.mac, own.mtu, own.up))


def external_problems(wanted: VxlanLink, external: Link, addresses: Iterable[Address]) -> list[str]:
    """Say what the external interface, with its addresses, no longer has of what our link needs."""
    problems = []
    name = external.name
    if wanted.local not in {item.address for item in addresses}:
        problems.append(
            f"{Address(name, wanted.local, 32)} is gone, and packets leave with it as their source:"
            " put it back, or give the interface another"
        )
    needed = wanted.mtu + overhead_bytes(wanted.local)
    if external.mtu < needed:
        problems.append(
            f"{name} has MTU {external.mtu}, and large packets need {needed}: set it back, or lower"
            " Backend.MTU"
        )
    return problems


def link_problem(name: str, link: Link | None) -> str:
    """Say why no route can lead over an interface; "" when one can."""
    if link is None:
        return f"there is no interface {name}"
    return "" if link.up else f"{name} is down, and no route leads over it: ip link set {name} up"


def uplink_problem(wanted: Uplink, link: Link | None, addresses: Iterable[Address]) -> str:
    """Say why peers are not reached over the interface to the other hosts; "" when they are."""
    name = wanted.name
    problem = link_problem(name, link)
    if not problem and wanted.address not in {item.address for item in addresses}:
        problem = (
            f"{Address(name, wanted.address, len(wanted.address) * 8)} is gone, and the others send"
            " to it: put it back, or give the interface another"
        )
    return problem


def occupant(
    links: Iterable[Link], name: str, vni: int, port: int, address_bytes: int = 4
) -> Link | None:
    """Return the device under another name that has this VNI and port: there can be one only.

    One over IPv4 and one over IPv6, to be exact.
    """
    for link in links:
        vxlan = link.vxlan
        if (
            link.name != name
            and vxlan is not None
            and (vxlan.vni, vxlan.port) == (vni, port)
            and len(vxlan.local or vxlan.group or bytes(4)) == address_bytes
        ):
            return link
    return None


def occupied_text(link: Link, name: str, mac: bytes) -> str:
    """Say of a device with our VNI and port that it is in the way of ours, and what helps."""
    vxlan = link.vxlan
    assert vxlan is not None
    text = f"device {link.name} has VNI {vxlan.vni} and port {vxlan.port} already;"
    if link.name in {f"flannel.{vxlan.vni}", f"flannel-v6.{vxlan.vni}"}:
        text += " to go on with what Flannel has there, stop flanneld and give --adopt-flannel;"
    elif link.mac == mac:
        return (
            f"{text} by its MAC it is {name}, renamed: give it its name back (ip link set"
            f" {link.name} name {name}; Linux before 6.2 wants it down for that)"
        )
    return f"{text} remove it (ip link del {link.name}) or choose another VNI"


def is_drift(change: ObjectChange, desired: Desired, scope: Scope) -> bool:
    """Tell whether a change takes the kernel away from what is desired.

    Our own writes do not, so their echoes need no other mark. Some carry none: forwarding entries.
    """
    item = change.item
    if isinstance(item, Address) and item.link == scope.external:
        # Routes through it may have gone without a word, or can be made at last.
        return True
    if change.removed:
        return identity(item) in desired.identities
    if item in desired.items:
        return False
    return is_ours(item, scope) or identity(item) in desired.identities


def _order(change: NetObject) -> int:
    return ORDER[type(change)]


def _within(packed: bytes, prefix_len: int, scope: Scope) -> bool:
    for network, length in scope.networks:
        if len(network) == len(packed) and prefix_len >= length:
            shift = len(packed) * 8 - length
            if int.from_bytes(packed) >> shift == int.from_bytes(network) >> shift:
                return True
    return False
