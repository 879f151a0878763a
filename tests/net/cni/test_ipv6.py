"""Containers of networks with IPv6, beside IPv4 or alone: what `ip` and packets say."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from ipaddress import IPv6Network, ip_address
from typing import Any, cast

import pytest

from tests.net.cni.callers import Listener, keeping, published, reach, refuses
from tests.net.cni.damage import (
    BREAKS,
    BREAKS_OF_FAMILY,
    HEALED,
    HEALED_OF_FAMILY,
    is_named_by_check,
    is_put_right,
)
from tests.net.cni.runtime import Runtime, finish
from tests.net.namespaces import missing
from tests.net.overlay import DUAL, NETWORK, ONLY_IPV6, Overlay, until
from tests.net.packets import ping, ping_all

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]
OUTSIDE = "fd77::ffff"
FLAGS = ("--ip-masq", "--ip-blackhole-route", "--heal-interval", "1h")
ETH_P_ALL = 3
MTU = 1430


@pytest.fixture(scope="module", params=[DUAL, ONLY_IPV6], ids=["dual", "only-ipv6"])
def overlay(request: pytest.FixtureRequest) -> Iterator[Overlay]:
    with Overlay(2, network=request.param, flags=FLAGS) as made:
        yield made


@pytest.fixture
def runtime(runtimes: list[Runtime]) -> Runtime:
    return runtimes[0]


def subnet6(runtime: Runtime) -> IPv6Network:
    return cast("IPv6Network", runtime.agent.subnets.all()[-1])


def ipv6_of(link: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        one for one in link.get("addr_info", ())
        if one["family"] == "inet6" and one["scope"] == "global"
    ]  # fmt: skip


@pytest.mark.parametrize("version", ["0.4.0", "1.1.0"])
def test_a_container_has_an_address_of_each_family_and_reaches_everybody(
    runtimes: list[Runtime], version: str
) -> None:
    runtime, other = runtimes
    near, far = runtime.box("near").add(), other.box("far").add()
    box = runtime.box("box")
    # Runtimes may have it off by default.
    box.namespace.sysctl("ipv6.conf.default.disable_ipv6", "1")
    said = box.call("ADD", version=version)
    assert said.status == 0, said.text
    # At once: no second in which it is looked whether somebody else has the address.
    assert None not in ping_all(
        [(box, far.of(6)), (box, near.of(6)), (box, OUTSIDE), (far, box.of(6))]
    )
    subnets = runtime.agent.subnets.all()
    ips, routes = said.content["ips"], said.content["routes"]
    gateways = [str(subnet[1]) for subnet in subnets]
    assert [one["gateway"] for one in ips] == gateways
    assert [one.get("version") for one in ips] == [
        str(subnet.version) if version == "0.4.0" else None for subnet in subnets
    ]
    anywhere = {4: "0.0.0.0/0", 6: "::/0"}
    assert routes == [{"dst": anywhere[subnet.version], "gw": str(subnet[1])} for subnet in subnets]
    link = box.links()["eth0"]
    [own] = ipv6_of(link)
    assert f"{own['local']}/{own['prefixlen']}" == ips[-1]["address"]
    assert not own.keys() & {"tentative", "dadfailed"}
    assert link["mtu"] == MTU
    [default] = box.namespace.json("ip", "-j", "-6", "route", "show", "default")
    assert default["gateway"] == gateways[-1]
    port = runtime.ports()[said.content["interfaces"][1]["name"]]
    assert port["ifalias"].split()[1] == ",".join(one["address"] for one in ips)
    assert [one["local"] for one in ipv6_of(runtime.bridge())] == [gateways[-1]]
    # Any container could tell the others, and the host, that it is a router.
    assert box.namespace.sysctl("ipv6.conf.eth0.accept_ra") == "0"
    assert runtime.host.namespace.sysctl("ipv6.conf.npb-default.accept_ra") == "0"
    with Listener(far.namespace, address="::") as listener:
        assert reach(box.namespace, listener, far.of(6), 80) == box.of(6)
    with Listener(runtime.host.namespace, 9000, runtime.host.address6) as listener:
        # The overlay knows no other host's own address, so that one sees this host.
        assert reach(far.namespace, listener, runtime.host.address6, 9000) == other.host.address6
    assert box.call("CHECK", version=version).status == 0
    for _ in range(2):
        assert box.call("DEL", version=version).status == 0
    assert box.links().keys() == {"lo"}
    assert runtime.noted() == {"near"}


def test_twenty_calls_at_once_share_no_address(runtime: Runtime) -> None:
    boxes = [runtime.box(f"box-{number}") for number in range(20)]
    calls = [box.start("ADD") for box in boxes]
    for box, call in zip(boxes, calls, strict=True):
        said = finish(call)
        assert said.status == 0, said.text
        box.result = said.content
    assert len({box.of(6) for box in boxes}) == 20
    assert runtime.collect(boxes[0]).status == 0
    assert runtime.noted() == {"box-0"}


def test_addresses_are_as_wished_or_refused(runtime: Runtime) -> None:
    subnet = subnet6(runtime)
    wanted = str(subnet[1 << 40])
    box = runtime.box("box").add(runtimeConfig={"ips": [wanted]})
    assert box.of(6) == wanted
    assert ping(box, str(subnet[1])) is not None
    other = runtime.box("other")
    for refused, word in ((wanted, "box"), ("fd99::2", "not in"), (str(subnet[1]), "itself")):
        said = other.call("ADD", config={"runtimeConfig": {"ips": [refused]}})
        assert (said.status, said.content["code"]) == (1, 101)
        assert word in said.text
    assert other.links().keys() == {"lo"}
    both = [str(subnet[200]) for subnet in runtime.agent.subnets.all()]
    other.add(runtimeConfig={"ips": both})
    assert [one["address"].partition("/")[0] for one in other.result["ips"]] == both


@pytest.mark.parametrize("name", BREAKS_OF_FAMILY)
def test_check_names_what_ipv6_lacks(runtime: Runtime, name: str) -> None:
    is_named_by_check(runtime, 6, BREAKS[name])


@pytest.mark.parametrize("name", HEALED_OF_FAMILY)
def test_what_somebody_changes_of_ipv6_is_put_right(runtimes: list[Runtime], name: str) -> None:
    is_put_right(runtimes, 6, HEALED[name])


def test_packets_to_nobody_end_here_and_those_of_containers_do_not(
    overlay: Overlay, runtimes: list[Runtime]
) -> None:
    # The default route may lead to a router that has the network behind this host: for ever.
    here, there = runtimes
    boxes = [here.box("box").add(), here.box("near").add(), there.box("far").add()]
    nobody = str(subnet6(here)[0x1234])
    place = here.host.namespace

    def reached() -> list[float | None]:
        return ping_all([(one, two.of(6)) for one in boxes for two in boxes if one is not two])

    def leave() -> bool:
        """Tell whether packets to nobody leave this host, whoever sends them."""
        with overlay.rig.underlay.socket(
            socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)
        ) as heard:
            heard.bind((here.host.port, ETH_P_ALL))
            heard.setblocking(False)
            senders = [*boxes, here.host]
            assert ping_all([(one, nobody) for one in senders], timeout_s=0.3) == [None] * 4
            found = False
            with contextlib.suppress(BlockingIOError):
                while True:
                    found |= heard.recv(2048)[14 + 24 :][:16] == ip_address(nobody).packed
            return found

    assert None not in reached()
    assert not leave()
    here.agent.pause()
    try:
        place.ip("link set npb-default down")
        assert not leave()
        # And would: the way there is no other.
        place.run("ip", "-6", "route", "del", "blackhole", str(subnet6(here)))
        assert leave()
    finally:
        here.agent.resume()
    until(lambda: None not in reached(), 10, "containers are reached again")
    assert not leave()


def test_without_its_file_the_kernel_tells_both_addresses(runtime: Runtime) -> None:
    agent, box = runtime.agent, runtime.box("box").add()
    agent.kill()
    (agent.folder / "default.containers.json").write_text("{")
    agent.start()
    agent.wait_ready()
    for one in box.result["ips"]:
        said = runtime.box("other").call("ADD", config={"runtimeConfig": {"ips": [one["address"]]}})
        assert (said.status, said.content["code"]) == (1, 101)
        assert "container box" in said.text
    assert box.call("CHECK").status == 0


def test_everybody_reaches_a_published_port_by_ipv6(runtimes: list[Runtime]) -> None:
    here, there = runtimes
    server = here.box("server").add(runtimeConfig=published(8080))
    near, far = here.box("near").add(), there.box("far").add()
    address, gateway = here.host.address6, str(subnet6(here)[1])
    with Listener(server.namespace, address="::") as listener:
        assert reach(there.host.namespace, listener, address, 8080) == there.host.address6
        assert reach(here.host.namespace, listener, address, 8080) in {address, gateway}
        # The kernel leads nothing from there elsewhere; who tries goes on with 127.0.0.1 at once.
        with pytest.raises(ConnectionRefusedError):
            reach(here.host.namespace, listener, "::1", 8080)
        for box in (near, server):
            assert reach(box.namespace, listener, address, 8080) == gateway
        assert reach(far.namespace, listener, address, 8080) in {
            far.of(6), there.host.address6,
        }  # fmt: skip
        here.agent.kill()
        here.host.namespace.run("nft", "delete", "table", "ip6", "netplane_ports")
        assert refuses(there.host.namespace, address, 8080)
        here.agent.start()
        here.agent.wait_ready()
        until(lambda: not refuses(there.host.namespace, address, 8080), 10, "it is published again")
    assert server.call("CHECK").status == 0
    assert server.call("DEL").status == 0
    assert refuses(there.host.namespace, address, 8080)


def test_a_port_of_ipv6_is_of_its_address_and_has_one_holder(runtimes: list[Runtime]) -> None:
    here, there = runtimes
    gateway = str(subnet6(here)[1])
    local = here.box("local").add(runtimeConfig=published(8081, host_ip=gateway))
    outer = here.box("outer").add(runtimeConfig=published(8081, host_ip=here.host.address6))
    with (
        Listener(local.namespace, address="::") as inside,
        Listener(outer.namespace, address="::") as outside,
    ):
        reach(here.host.namespace, inside, gateway, 8081)
        reach(there.host.namespace, outside, here.host.address6, 8081)
    said = here.box("none").call("ADD", config={"runtimeConfig": published(8082, host_ip="::1")})
    assert (said.status, said.content["code"]) == (1, 2)
    for host_ip in ("", "::"):
        said = here.box("none").call(
            "ADD", config={"runtimeConfig": published(8081, host_ip=host_ip)}
        )
        assert (said.status, said.content["code"]) == (1, 101)
    with Listener(here.host.namespace, 8084, "::1"):
        said = here.box("none").call("ADD", config={"runtimeConfig": published(8084)})
    assert (said.status, said.content["code"]) == (1, 101)
    assert "process" in said.text
    # Of the other family it is another port, where there is that family.
    box = here.box("ipv4")
    said = box.call("ADD", config={"runtimeConfig": published(8081, host_ip="0.0.0.0")})
    if len(here.agent.subnets.all()) > 1:
        assert said.status == 0, said.text
    else:
        assert (said.status, said.content["code"]) == (1, 7)
        assert box.links().keys() == {"lo"}


def test_a_port_that_the_runtime_keeps_of_ipv4_is_not_free_of_ipv6(runtime: Runtime) -> None:
    # podman keeps what is for all addresses of IPv4 alone.
    box, place = runtime.box("box"), runtime.host.namespace
    config = {"runtimeConfig": published(8093)}
    with keeping(place, 8093, "tcp", box.name):
        with Listener(place, 8093, "::1"):
            said = box.call("ADD", config=config)
        assert (said.status, said.content["code"]) == (1, 101)
        assert f"(process {os.getpid()})" in said.text
        assert box.call("ADD", config=config).status == 0


def test_a_flow_of_udp_goes_to_the_container_that_has_the_port_now(
    runtimes: list[Runtime],
) -> None:
    here, there = runtimes
    with there.host.namespace.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        for name in ("old", "new"):
            box = here.box(name).add(runtimeConfig=published(8086, protocol="udp"))
            with box.namespace.socket(socket.AF_INET6, socket.SOCK_DGRAM) as receiver:
                receiver.bind(("::", 80))
                receiver.settimeout(5)
                sender.sendto(name.encode(), (here.host.address6, 8086))
                assert receiver.recv(100) == name.encode()
            assert box.call("DEL").status == 0


def test_containers_from_before_a_network_had_ipv6_keep_what_they_have() -> None:
    with Overlay(1, network=DUAL) as overlay:
        [agent] = overlay.agents
        # The hosts have IPv6, and the network at first has not.
        overlay.ctl("init", NETWORK, "--force")
        agent.terminate()
        agent.start()
        agent.wait_ready()
        with Runtime(agent) as runtime:
            old = runtime.box("old").add()
            assert len(old.result["ips"]) == 1
            overlay.ctl("init", DUAL, "--force")
            agent.terminate()
            agent.start()
            agent.wait_ready()
            new = runtime.box("new").add()
            assert len(new.result["ips"]) == 2
            assert old.call("CHECK").status == 0
            assert ping(new, old.address) is not None
            assert ping(new, str(subnet6(runtime)[1])) is not None
            assert ipv6_of(old.links()["eth0"]) == []
            agent.ctl("drain")
            until(lambda: not agent.is_running, 10, "the agent ends")
            assert (runtime.bridge(), runtime.ports()) == ({}, {})
