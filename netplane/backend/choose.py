"""Which backend a network's configuration asks for; one that is not offered is explained."""

from __future__ import annotations

from netplane.backend import Backend, BackendError, External
from netplane.backend.alloc import AllocBackend
from netplane.backend.host_gw import HostGwBackend
from netplane.backend.udp import SealedUdpBackend, UdpBackend, parse_port
from netplane.backend.vxlan import VxlanBackend, VxlanConfig
from netplane.subnet.config import NetworkConfig

BY_PROCESS = {UdpBackend.type: UdpBackend, SealedUdpBackend.type: SealedUdpBackend}
"""Packets go through a process of ours."""

OFFERED = (VxlanBackend.type, HostGwBackend.type, *BY_PROCESS, AllocBackend.type)

_ENCRYPTED = f"{SealedUdpBackend.type}, which encrypts, or vxlan inside of a VPN between the hosts"
_NOT_OFFERED = {
    "extension": ("it runs commands of the configuration as root on every host", "vxlan"),
    "ipip": ("it has one header less than vxlan, and no other use", "vxlan"),
    "ipsec": ("strongSwan is not driven here", _ENCRYPTED),
    "tencent-vpc": ("it writes the routes of one cloud", "vxlan"),
    "wireguard": ("WireGuard is not set up here", _ENCRYPTED),
}
"""Flannel's other backends: why not, and what to take instead."""


def check(config: NetworkConfig) -> None:
    """Raise BackendError for a backend that is not offered, or fields that it cannot have."""
    kind = config.backend_type
    if kind in OFFERED:
        vxlan(config)
        if kind in BY_PROCESS:
            parse_port(config.backend)
            if config.second is not None or config.network.version != 4:
                raise BackendError(
                    f"the backend {kind!r} carries IPv4 only; leave EnableIPv6 out, or take vxlan"
                )
        return
    why, instead = _NOT_OFFERED.get(kind, ("nobody knows it", " or ".join(OFFERED)))
    raise BackendError(
        f"the network's backend is {kind!r}, which is not offered: {why}; take {instead}"
    )


def vxlan(config: NetworkConfig) -> VxlanConfig | None:
    """Return what is said to a vxlan backend; None: it is another one. Raises BackendError."""
    if config.backend_type != VxlanBackend.type:
        return None
    return VxlanConfig.parse(config.backend)


def port(config: NetworkConfig) -> int:
    """Return the UDP port that packets between hosts go to; 0: they are not wrapped."""
    if config.backend_type in BY_PROCESS:
        return parse_port(config.backend)
    wrapped = vxlan(config)
    return 0 if wrapped is None else wrapped.port


def make(
    config: NetworkConfig,
    *,
    external: External,
    mac: str,
    adopts_flannel: bool = False,
    blackhole: bool = False,
) -> Backend:
    """Make the backend of a network for one host; touches no kernel.

    Args:
        config: the network's.
        external: the interface to the other hosts.
        mac: of our own device, where there is one.
        adopts_flannel: whether what Flannel has made for the same backend becomes ours.
        blackhole: whether packets to addresses of our subnet that no container has end here.

    Raises:
        BackendError: as `check`, or the backend cannot work over this interface.
    """
    check(config)
    parsed = vxlan(config)
    if parsed is not None:
        return VxlanBackend(
            parsed,
            network=config.network,
            subnet_len=config.subnet_len,
            external=external,
            mac=mac,
            adopts_flannel=adopts_flannel,
            blackhole=blackhole,
        )
    if config.backend_type == HostGwBackend.type:
        return HostGwBackend(
            network=config.network,
            subnet_len=config.subnet_len,
            external=external,
            adopts_flannel=adopts_flannel,
            blackhole=blackhole,
        )
    by_process = BY_PROCESS.get(config.backend_type)
    if by_process is not None:
        return by_process(
            config.backend, network=config.network, external=external, blackhole=blackhole
        )
    return AllocBackend(network=config.network, external=external, blackhole=blackhole)
