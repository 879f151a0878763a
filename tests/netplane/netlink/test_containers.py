"""Requests about bridges and pairs of devices against an independent encoder."""

from __future__ import annotations

from typing import Any

from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from netplane.netlink import containers
from netplane.netlink.containers import Veth
from netplane.netlink.messages import Request

MAC, OTHER = bytes.fromhex("026e0a050102"), bytes.fromhex("026f0a050102")
PAIR = Veth("npv0123456789ab", OTHER, "eth0", MAC, 1450)


def decoded(request: Request) -> tuple[int, int, dict[str, Any], dict[str, Any]]:
    """Return type, flags, header fields and attributes, as pyroute2 reads the bytes."""
    message = ifinfmsg(request.encode(1))
    message.decode()
    head = {name: message[name] for name in ("index", "flags", "change")}
    kind, flags = message["header"]["type"], message["header"]["flags"]
    return kind, flags, head, plain(message)


def plain(message: Any) -> dict[str, Any]:
    found = {}
    for name, value in message["attrs"]:
        found[name] = plain(value) if isinstance(value, dict) and "attrs" in value else value
    return found


def test_a_bridge_has_a_mac_of_its_own_and_is_up() -> None:
    kind, flags, head, attributes = decoded(containers.make_bridge("npb-default", MAC, 1450))
    assert (kind, flags) == (16, 0x1 | 0x4 | 0x200 | 0x400)
    assert head == {"index": 0, "flags": 1, "change": 1}
    assert attributes == {
        "IFLA_IFNAME": "npb-default", "IFLA_ADDRESS": "02:6e:0a:05:01:02", "IFLA_MTU": 1450,
        "IFLA_LINKINFO": {"IFLA_INFO_KIND": "bridge"},
    }  # fmt: skip


def test_a_pair_comes_with_its_other_end_in_the_namespace() -> None:
    kind, flags, head, attributes = decoded(containers.make_veth(PAIR, 7, 33))
    assert (kind, flags) == (16, 0x1 | 0x4 | 0x200 | 0x400)
    assert head == {"index": 0, "flags": 1, "change": 1}
    info = attributes.pop("IFLA_LINKINFO")
    assert attributes == {
        "IFLA_IFNAME": "npv0123456789ab", "IFLA_ADDRESS": "02:6f:0a:05:01:02", "IFLA_MTU": 1450,
        "IFLA_MASTER": 7,
    }  # fmt: skip
    assert info == {
        "IFLA_INFO_KIND": "veth",
        "IFLA_INFO_DATA": {
            "VETH_INFO_PEER": {
                "IFLA_IFNAME": "eth0", "IFLA_ADDRESS": "02:6e:0a:05:01:02", "IFLA_MTU": 1450,
                "IFLA_NET_NS_FD": 33,
            }
        },
    }  # fmt: skip


def test_a_port_is_named_set_and_put_back() -> None:
    assert decoded(containers.set_port("npv1", "netplane x"))[3] == {
        "IFLA_IFNAME": "npv1",
        "IFLA_IFALIAS": "netplane x",
        "IFLA_LINKINFO": {
            "IFLA_INFO_SLAVE_KIND": "bridge",
            "IFLA_INFO_SLAVE_DATA": {"IFLA_BRPORT_MODE": 1},
        },
    }
    _, _, head, attributes = decoded(containers.make_port(9, 7))
    assert head == {"index": 9, "flags": 1, "change": 1}
    assert attributes == {"IFLA_MASTER": 7}
    kind, _, _, attributes = decoded(containers.remove_link("npv1"))
    assert (kind, attributes) == (17, {"IFLA_IFNAME": "npv1"})
