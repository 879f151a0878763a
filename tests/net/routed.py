"""Routes to neighbours, of either family: those there are, those there should be, and damage."""

from __future__ import annotations

from tests.net.overlay import AgentProcess, Overlay
from tests.net.rig import UNDERLAY, UNDERLAY6, Host

HEALED_WITHIN_S = 1.0
ROUTER = {4: f"{UNDERLAY}.255.254", 6: f"{UNDERLAY6}::ffff"}
LENGTH = {4: 16, 6: 64}
ADDRESS_BACK = "ip addr replace {address}/{length} dev eth0 {nodad}"
DEFAULT_BACK = "ip route replace default via {router}"

DRIFTS = {
    "a route is deleted": ("ip route del {subnet}",),
    "routes are flushed": ("ip -{version} route flush proto 181",),
    "a route leads elsewhere": ("ip route replace {subnet} via {router} proto 181",),
    # Of IPv6 the kernel takes the addresses away with the link, and does not put them back.
    "the interface goes down and up": (
        "ip link set eth0 down", "ip link set eth0 up", ADDRESS_BACK, DEFAULT_BACK,
    ),
}  # fmt: skip
DRIFTS4 = DRIFTS | {
    # Routes of IPv6 stay then.
    "its address goes and comes back": (
        "ip addr del {address}/{length} dev eth0", ADDRESS_BACK, DEFAULT_BACK,
    ),
}  # fmt: skip


def address_of(host: Host, version: int) -> str:
    """Return a host's own address of a family."""
    return host.address if version == 4 else host.address6


def subnet_of(agent: AgentProcess, version: int) -> str:
    """Return the subnet that a host has of a family."""
    return str(agent.subnets.of(version))


def routes(host: Host, version: int = 4, protocol: int = 181) -> set[tuple[str, str, str]]:
    """Return destination, gateway (or what it is instead of a way) and interface of each."""
    found = host.namespace.json("ip", f"-{version}", "-j", "route", "show", "proto", str(protocol))
    return {(one["dst"], one.get("gateway") or one["type"], one["dev"]) for one in found}


def wanted(overlay: Overlay, agent: AgentProcess, version: int = 4) -> set[tuple[str, str, str]]:
    """Return the routes to all peers."""
    others = [one for one in overlay.agents if one is not agent]
    return {(subnet_of(one, version), address_of(one.host, version), "eth0") for one in others}


def drift(overlay: Overlay, agent: AgentProcess, *commands: str, version: int = 4) -> None:
    """Do damage on an agent's host, or undo it; {subnet} is the second agent's."""
    names = {
        "version": version,
        "address": address_of(agent.host, version),
        "length": LENGTH[version],
        "nodad": "nodad" if version == 6 else "",
        "router": ROUTER[version],
        "subnet": subnet_of(overlay.agents[1], version),
    }
    for command in commands:
        agent.host.namespace.run(*command.format(**names).split())


def refused(agent: AgentProcess) -> dict[str, str]:
    """Return which peers it says that it cannot serve, and why."""
    found: dict[str, str] = agent.status()["kernel"]["refused"]
    return found
