"""What a runtime asks for, and what it gets in each version of CNI."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import Any

import pytest

from netplane.agent.containers.call import (
    Call,
    Previous,
    earlier,
    parse,
    previous,
    valid_attachments,
    wishes,
)
from netplane.agent.containers.errors import CniError
from netplane.agent.containers.records import Key, PortMapping
from netplane.agent.containers.result import Attached, behind, render

VARIABLES = {
    "CNI_COMMAND": "ADD", "CNI_CONTAINERID": "box", "CNI_NETNS": "/n", "CNI_IFNAME": "eth0",
    "CNI_PATH": "/b",
}  # fmt: skip


def call_of(arguments: str = "", **config: Any) -> Call:
    text = json.dumps({"cniVersion": "1.0.0", "name": "net"} | config).encode()
    return parse(VARIABLES | {"CNI_ARGS": arguments}, text)


def test_wishes_of_the_runtime_go_before_those_of_the_arguments() -> None:
    assert wishes(call_of()).addresses == ()
    old = "IgnoreUnknown=1;IP=10.5.1.7;MAC=02:00:00:00:00:07"
    found = wishes(call_of(old))
    assert (found.addresses, found.mac) == ((IPv4Address("10.5.1.7"),), "02:00:00:00:00:07")
    runtime = {"ips": ["10.5.1.8/24"], "mac": "02:00:00:00:00:AA"}
    found = wishes(call_of(old, runtimeConfig=runtime))
    assert (found.addresses, found.mac) == ((IPv4Address("10.5.1.8"),), "02:00:00:00:00:aa")
    found = wishes(call_of(runtimeConfig={"ips": ["fd00::7/64", "10.5.1.8"]}))
    assert set(found.addresses) == {IPv4Address("10.5.1.8"), IPv6Address("fd00::7")}


def test_port_mappings_are_read_as_runtimes_write_them() -> None:
    mappings = [
        {"hostPort": 8080, "containerPort": 80},
        {"hostPort": 53, "containerPort": 5353, "protocol": "UDP", "hostIP": "127.0.0.1"},
        {"hostPort": 53, "containerPort": 53, "protocol": "tcp", "hostIP": "0.0.0.0"},
        # The same port of the other family is another one.
        {"hostPort": 53, "containerPort": 54, "protocol": "tcp", "hostIP": "::"},
        {"hostPort": 53, "containerPort": 55, "protocol": "udp", "hostIP": "0:0::1"},
    ]
    assert wishes(call_of(runtimeConfig={"portMappings": mappings})).ports == (
        PortMapping("tcp", "", 8080, 80),
        PortMapping("udp", "127.0.0.1", 53, 5353),
        PortMapping("tcp", "0.0.0.0", 53, 53),
        PortMapping("tcp", "::", 53, 54),
        PortMapping("udp", "::1", 53, 55),
    )


@pytest.mark.parametrize(
    ("runtime", "code"),
    [
        ([], None),
        (["x"], 7),
        ({"ips": "10.5.1.7"}, 7),
        ({"ips": ["10.5.1"]}, 7),
        ({"ips": ["10.5.1.7", "10.5.1.8"]}, 7),
        ({"ips": ["fd00::1", "fd00::2"]}, 7),
        ({"ips": ["fd00::1%eth0"]}, 7),
        ({"mac": "01:00:00:00:00:01"}, 7),
        ({"mac": 5}, 7),
        ({"portMappings": {}}, None),
        ({"portMappings": {"a": 1}}, 7),
        ({"portMappings": [5]}, 7),
        ({"portMappings": [{"hostPort": 80}]}, 7),
        ({"portMappings": [{"hostPort": "80", "containerPort": 80}]}, 7),
        ({"portMappings": [{"hostPort": 0, "containerPort": 80}]}, 7),
        ({"portMappings": [{"hostPort": 80, "containerPort": 65536}]}, 7),
        ({"portMappings": [{"hostPort": True, "containerPort": 80}]}, 7),
        ({"portMappings": [{"hostPort": 80, "containerPort": True}]}, 7),
        ({"portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "icmp"}]}, 7),
        ({"portMappings": [{"hostPort": 80, "containerPort": 80, "hostIP": "x"}]}, 7),
        ({"portMappings": [{"hostPort": 80, "containerPort": 80, "hostIP": "fe80::1%a"}]}, 7),
        ({"portMappings": [{"hostPort": 80, "containerPort": 80, "hostIP": "224.0.0.1"}]}, 7),
        ({"portMappings": [{"hostPort": 80, "containerPort": 80, "hostIP": "ff02::1"}]}, 7),
        ({"portMappings": [{"hostPort": 80, "containerPort": 80, "hostIP": "255.255.255.255"}]}, 7),
        (
            {
                "portMappings": [
                    {"hostPort": 80, "containerPort": 80, "hostIP": "::"},
                    {"hostPort": 80, "containerPort": 81, "hostIP": "::1"},
                ]
            },
            7,
        ),
        (
            {
                "portMappings": [
                    {"hostPort": 80, "containerPort": 80},
                    {"hostPort": 80, "containerPort": 81, "hostIP": "127.0.0.1"},
                ]
            },
            7,
        ),
    ],
)
def test_wishes_that_make_no_sense_are_refused(runtime: object, code: int | None) -> None:
    call = call_of(runtimeConfig=runtime)
    if code is None:
        assert wishes(call).ports == ()
        return
    with pytest.raises(CniError) as refused:
        wishes(call)
    assert refused.value.code == code


def test_a_list_of_valid_attachments_that_is_none_takes_nothing_away() -> None:
    key = "cni.dev/valid-attachments"
    assert valid_attachments(call_of()) == set()
    listed = [{"containerID": "box", "ifname": "eth1"}]
    assert valid_attachments(call_of(**{key: listed})) == {Key("net", "box", "eth1")}
    for junk in ("x", "", [5], [{}], {}, False, {"containerID": "box"}):
        with pytest.raises(CniError):
            valid_attachments(call_of(**{key: junk}))


IPV4, IPV6 = IPv4Interface("10.5.1.2/24"), IPv6Interface("fd00:5::2/64")
ATTACHED = Attached(
    "npb-default", "02:70:00:00:00:01", "npv1", "02:6f:0a:05:01:02", "eth0", "02:6e:0a:05:01:02",
    "/run/netns/box", 1450, (IPV4,), (IPV4,),
)  # fmt: skip


def test_the_newest_result_tells_all() -> None:
    assert render(ATTACHED, "1.1.0", {"nameservers": ["10.0.0.53"]}) == {
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "npb-default", "mac": "02:70:00:00:00:01", "mtu": 1450},
            {"name": "npv1", "mac": "02:6f:0a:05:01:02", "mtu": 1450},
            {"name": "eth0", "mac": "02:6e:0a:05:01:02", "sandbox": "/run/netns/box", "mtu": 1450},
        ],
        "ips": [{"address": "10.5.1.2/24", "gateway": "10.5.1.1", "interface": 2}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.5.1.1"}],
        "dns": {"nameservers": ["10.0.0.53"]},
    }


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
def test_older_results_have_what_their_version_knows(version: str) -> None:
    result = render(ATTACHED, version, None)
    assert result["cniVersion"] == version
    assert [sorted(one) for one in result["interfaces"]] == [
        ["mac", "name"], ["mac", "name"], ["mac", "name", "sandbox"],
    ]  # fmt: skip
    # Before 1.0.0 an address had to say of which family it is.
    family = [] if version == "1.0.0" else ["version"]
    [ip] = result["ips"]
    assert sorted(ip) == ["address", "gateway", "interface", *family]
    assert ip.get("version", "4") == "4"


def test_a_result_has_both_families_and_the_default_routes_that_there_are() -> None:
    both = replace(ATTACHED, addresses=(IPV4, IPV6), defaults=(IPV6,))
    result = render(both, "0.4.0", None)
    assert result["ips"] == [
        {"version": "4", "address": "10.5.1.2/24", "gateway": "10.5.1.1", "interface": 2},
        {"version": "6", "address": "fd00:5::2/64", "gateway": "fd00:5::1", "interface": 2},
    ]
    assert result["routes"] == [{"dst": "::/0", "gw": "fd00:5::1"}]


def test_what_the_plugins_before_made_stays_in_the_result_and_is_counted_over() -> None:
    before = {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "lo"}, {"name": "ext0", "sandbox": "/n"}],
        "ips": [{"address": "192.0.2.1/24", "interface": 1}],
        "routes": [{"dst": "192.0.2.0/24"}],
        "dns": {"nameservers": ["192.0.2.53"]},
    }
    alone = render(ATTACHED, "1.0.0", None)
    assert behind(earlier(call_of()), alone) == alone
    both = behind(earlier(call_of(prevResult=before)), alone)
    assert both["cniVersion"] == "1.0.0"
    assert both["interfaces"] == [*before["interfaces"], *alone["interfaces"]]
    [theirs, ours] = both["ips"]
    assert theirs == before["ips"][0]
    assert both["interfaces"][ours["interface"]]["name"] == "eth0"
    assert both["routes"] == [*before["routes"], *alone["routes"]]
    assert both["dns"] == before["dns"]
    for junk in ("x", [5], {"ips": {"address": "10.5.1.2"}}):
        with pytest.raises(CniError):
            earlier(call_of(prevResult=junk))


def test_a_previous_result_is_read_for_the_containers_own_interface() -> None:
    result = {
        "interfaces": [
            {"name": "eth0", "mac": "02:00:00:00:00:99"},
            {"name": "eth0", "mac": "02:6E:0A:05:01:02", "sandbox": "/n"},
        ],
        "ips": [
            {"address": "10.5.1.2/24", "interface": 1},
            {"address": "192.0.2.1/24", "interface": 0},
            {"address": "fd00::2/64", "interface": 1},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.5.1.1"}, {"dst": "::/0"}, {"dst": "10.9.0.0/16"}],
    }
    assert previous(call_of(prevResult=result)) == Previous(
        "02:6e:0a:05:01:02",
        (IPv4Interface("10.5.1.2/24"), IPv6Interface("fd00::2/64")),
        (
            (IPv4Network("0.0.0.0/0"), IPv4Address("10.5.1.1")),
            (IPv6Network("::/0"), None),
            (IPv4Network("10.9.0.0/16"), None),
        ),
    )


OURS = {"interfaces": [{"name": "eth0", "sandbox": "/n"}]}


@pytest.mark.parametrize(
    "result",
    [
        None,
        [],
        {},
        {"interfaces": [5]},
        {"interfaces": [{"name": "eth0"}]},
        OURS | {"ips": [{"interface": 0, "address": 5}]},
        OURS | {"routes": [{}]},
        OURS | {"routes": [{"dst": "0.0.0.0/0", "gw": "x"}]},
    ],
)
def test_a_previous_result_that_is_of_no_use_is_refused(result: object) -> None:
    with pytest.raises(CniError) as refused:
        previous(call_of(prevResult=result))
    assert refused.value.code == 7
