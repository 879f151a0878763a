"""Whether a lease can be used at all, by itself: pure, and blind to the other leases."""

from __future__ import annotations

from netplane.subnet.config import NetworkConfig, Range
from netplane.subnet.family import is_within
from netplane.subnet.fields import VNI_MAX
from netplane.subnet.lease import MAC, Lease, address_problem, packed_mac

NO_DATA = "BackendData is missing"
NO_DATA6 = "BackendV6Data is missing"


def lasting_problem(lease: Lease, config: NetworkConfig, macs: tuple[str, str]) -> str:
    """Say what is wrong with a lease, of what does not change with what is ours; "" for nothing.

    Args:
        lease: Whole: where one half is wrong, neither is used.
        config: The network's.
        macs: Our own of each family, lower case; "" for backends without.
    """
    reason = _half_problem(lease, config, config.first, macs[0])
    if reason or config.second is None:
        return reason
    second = lease.second()
    if second is None:
        lacks = "subnet" if lease.subnet6 is None else "PublicIPv6"
        return f"it has no {lacks}, and the network has IPv6Network {config.second.network}"
    return _half_problem(second, config, config.second, macs[1])


def _half_problem(lease: Lease, config: NetworkConfig, given: Range, own_mac: str) -> str:
    if not is_within(lease.subnet, given.network):
        return f"subnet {lease.subnet} is outside of {given.prefix}Network {given.network}"
    reason = address_problem(lease.public_ip, given)
    if reason:
        return reason
    # Flannel leaves the type of udp and alloc out.
    wanted = "" if config.backend_type in ("udp", "alloc") else config.backend_type
    if lease.backend_type != wanted:
        return f"its backend is {lease.backend_type or 'udp'!r}, ours {config.backend_type!r}"
    return _vxlan_problem(lease, config, given, own_mac) if config.backend_type == "vxlan" else ""


def _vxlan_problem(lease: Lease, config: NetworkConfig, given: Range, own_mac: str) -> str:
    data = lease.backend_data
    if not isinstance(data, dict):
        return NO_DATA6 if given is config.second else NO_DATA
    vni, mac = data.get("VNI"), data.get("VtepMAC")
    if not isinstance(vni, int) or isinstance(vni, bool) or not 1 <= vni <= VNI_MAX:
        return f"VNI {vni!r} is no number from 1 to {VNI_MAX}"
    if vni != config.vni:
        return f"its VNI is {vni}, ours {config.vni}"
    if packed_mac(mac) is None:
        if not isinstance(mac, str) or not MAC.fullmatch(mac):
            return f"VtepMAC {mac!r} is no MAC address"
        return f"VtepMAC {mac} is no address of one interface"
    assert isinstance(mac, str)
    if mac.lower() == own_mac:
        return f"VtepMAC {mac} is our own"
    return ""
