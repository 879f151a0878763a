"""Published ports: who reaches a container by the host's address, and who may have which."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator

import pytest

from tests.net.cni.callers import Listener, keeping, published, reach, refuses
from tests.net.cni.runtime import Runtime, finish
from tests.net.namespaces import missing
from tests.net.overlay import Overlay, until

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]
TABLE = "netplane_ports"


@pytest.fixture(scope="module")
def overlay() -> Iterator[Overlay]:
    with Overlay(2) as made:
        yield made


def test_everybody_reaches_a_published_port_and_is_seen_as_who_it_is(
    overlay: Overlay, runtimes: list[Runtime]
) -> None:
    here, there = runtimes
    server = here.box("server").add(runtimeConfig=published(8080))
    near, far = here.box("near").add(), there.box("far").add()
    address, gateway = here.host.address, str(here.agent.subnet[1])
    with Listener(server.namespace) as listener:
        # Another host, a container of another host: by their own addresses.
        assert reach(there.host.namespace, listener, address, 8080) == there.host.address
        assert reach(far.namespace, listener, address, 8080) == far.address
        # This host, by all its addresses.
        assert reach(here.host.namespace, listener, address, 8080) in {address, gateway}
        assert reach(here.host.namespace, listener, "127.0.0.1", 8080) == gateway
        # Who is on the same bridge is answered by the host, or it would be by the container.
        assert reach(near.namespace, listener, address, 8080) == gateway
        assert reach(server.namespace, listener, address, 8080) == gateway
        assert reach(server.namespace, listener, gateway, 8080) == gateway
    assert server.call("DEL").status == 0
    assert refuses(there.host.namespace, address, 8080)
    assert refuses(here.host.namespace, "127.0.0.1", 8080)


def test_a_port_of_one_address_is_of_that_address_only(runtimes: list[Runtime]) -> None:
    here, there = runtimes
    local = here.box("local").add(runtimeConfig=published(8081, host_ip="127.0.0.1"))
    outer = here.box("outer").add(runtimeConfig=published(8081, host_ip=here.host.address))
    with Listener(local.namespace) as inside, Listener(outer.namespace) as outside:
        reach(here.host.namespace, inside, "127.0.0.1", 8081)
        reach(there.host.namespace, outside, here.host.address, 8081)
    said = here.box("none").call("ADD", config={"runtimeConfig": published(8081)})
    assert (said.status, said.content["code"]) == (1, 101)
    said = here.box("none").call(
        "ADD", config={"runtimeConfig": published(8081, host_ip="192.0.2.99")}
    )
    assert (said.status, said.content["code"]) == (1, 7)


def test_containers_do_not_reach_what_the_host_has_for_itself(runtimes: list[Runtime]) -> None:
    # What leads 127.0.0.1 to containers would lead the other way round as well.
    here, _ = runtimes
    box = here.box("box").add(runtimeConfig=published(8082))
    assert here.host.namespace.sysctl("ipv4.conf.npb-default.route_localnet") == "1"
    assert here.host.namespace.sysctl("ipv4.conf.all.route_localnet") == "0"
    with Listener(here.host.namespace, 9000, "127.0.0.1"):
        box.namespace.sysctl("ipv4.conf.all.route_localnet", "1")
        gateway = here.agent.subnet[1]
        box.namespace.ip("addr del 127.0.0.1/8 dev lo", f"route add 127.0.0.1/32 via {gateway}")
        assert refuses(box.namespace, "127.0.0.1", 9000)


def test_a_port_in_use_is_refused_with_who_has_it(runtimes: list[Runtime]) -> None:
    here, _ = runtimes
    first = here.box("first").add(runtimeConfig=published(8083))
    box = here.box("box")
    said = box.call("ADD", config={"runtimeConfig": published(8083)})
    assert (said.status, said.content["code"]) == (1, 101)
    assert "container first" in said.text
    # Of another protocol it is another port.
    assert box.call("ADD", config={"runtimeConfig": published(8083, protocol="udp")}).status == 0
    box.call("DEL")
    with Listener(here.host.namespace, 8084):
        said = box.call("ADD", config={"runtimeConfig": published(8084)})
    assert (said.status, said.content["code"]) == (1, 101)
    assert "process" in said.text
    assert box.links().keys() == {"lo"}
    # What has gone makes room.
    assert box.call("ADD", config={"runtimeConfig": published(8084)}).status == 0
    first.call("DEL")
    assert here.box("third").call("ADD", config={"runtimeConfig": published(8083)}).status == 0


def test_a_port_that_nobody_listens_on_is_refused_with_who_has_it(
    runtimes: list[Runtime],
) -> None:
    here, there = runtimes
    box, place = here.box("box"), here.host.namespace

    def is_refused(port: int, protocol: str) -> bool:
        said = box.call("ADD", config={"runtimeConfig": published(port, protocol=protocol)})
        return said.status == 1 and f"(process {os.getpid()})" in said.text

    with place.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(("0.0.0.0", 8091))
        assert is_refused(8091, "udp")
        holder.connect((there.host.address, 9))
        assert is_refused(8091, "udp")
    with (
        Listener(there.host.namespace, 9001),
        place.socket(socket.AF_INET, socket.SOCK_STREAM) as caller,
    ):
        caller.connect((there.host.address, 9001))
        assert is_refused(caller.getsockname()[1], "tcp")


def test_who_listens_is_named_and_not_who_talks(runtimes: list[Runtime]) -> None:
    here, _ = runtimes
    place = here.host.namespace
    with contextlib.ExitStack() as stack:
        with Listener(place, 8092) as listener:
            caller = stack.enter_context(place.socket(socket.AF_INET, socket.SOCK_STREAM))
            caller.connect(("127.0.0.1", 8092))
            stack.enter_context(listener.socket.accept()[0])
            other = subprocess.Popen(["sleep", "60"], stdin=listener.socket)
        stack.enter_context(other)
        stack.callback(other.kill)
        said = here.box("box").call("ADD", config={"runtimeConfig": published(8092)})
    assert said.content["code"] == 101
    assert f"sleep (process {other.pid})" in said.text


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_port_that_the_runtime_keeps_for_the_container_is_free_for_it(
    runtimes: list[Runtime], protocol: str
) -> None:
    # podman's conmon does, and podman adds a running container again: `network reload`.
    here, _ = runtimes
    box, other = here.box("box"), here.box("other")
    config = {"runtimeConfig": published(8093, protocol=protocol)}
    with keeping(here.host.namespace, 8093, protocol, box.name) as keeper:
        said = other.call("ADD", config=config)
        assert (said.status, said.content["code"]) == (1, 101)
        assert f"(process {keeper.pid})" in said.text
        assert box.call("ADD", config=config).status == 0


def test_a_container_on_two_networks_has_its_port_by_the_first_interface(
    runtimes: list[Runtime],
) -> None:
    # podman hands the ports of a container to each network.
    here, there = runtimes
    box = here.box("box")
    first = {"runtimeConfig": published(8094)}
    second = {**first, "name": "second"}
    address = here.host.address
    for config, ifname in ((first, "eth0"), (second, "eth1")):
        said = box.call("ADD", ifname, config=config)
        assert said.status == 0, said.text
        config["prevResult"] = said.content
    with Listener(box.namespace) as listener:
        reach(there.host.namespace, listener, address, 8094)
    for config, ifname in ((first, "eth0"), (second, "eth1")):
        assert box.call("CHECK", ifname, config=config).status == 0
    # What leads elsewhere in the container is not the same.
    other = {"name": "third", "runtimeConfig": published(8094, 81)}
    said = box.call("ADD", "eth2", config=other)
    assert (said.status, said.content["code"]) == (1, 101)
    assert box.call("DEL", "eth0").status == 0
    assert refuses(there.host.namespace, address, 8094)
    assert box.call("CHECK", "eth1", config=second).status == 0
    assert box.call("DEL", "eth1", config=second).status == 0


def test_parallel_calls_for_one_port_have_one_winner(runtimes: list[Runtime]) -> None:
    here, _ = runtimes
    boxes = [here.box(f"box-{number}") for number in range(5)]
    calls = [box.start("ADD", config={"runtimeConfig": published(8085)}) for box in boxes]
    assert sorted(finish(call).status for call in calls) == [0, 1, 1, 1, 1]
    assert sum("eth0" in box.links() for box in boxes) == 1


def test_a_flow_of_udp_goes_to_the_container_that_has_the_port_now(
    runtimes: list[Runtime],
) -> None:
    # A flow that never pauses would else be led to the old one for ever.
    here, there = runtimes
    with there.host.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for name in ("old", "new"):
            box = here.box(name).add(runtimeConfig=published(8086, protocol="udp"))
            with box.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
                receiver.bind(("0.0.0.0", 80))
                receiver.settimeout(5)
                sender.sendto(name.encode(), (here.host.address, 8086))
                assert receiver.recv(100) == name.encode()
            assert box.call("DEL").status == 0


def test_published_ports_outlive_the_agent_and_are_healed(
    overlay: Overlay, runtimes: list[Runtime]
) -> None:
    here, there = runtimes
    agent = here.agent
    server = here.box("server").add(runtimeConfig=published(8087))
    with Listener(server.namespace) as listener:
        agent.kill()
        reach(there.host.namespace, listener, here.host.address, 8087)
        here.host.namespace.run("nft", "delete", "table", "ip", TABLE)
        assert refuses(there.host.namespace, here.host.address, 8087)
        agent.start()
        agent.wait_ready()
        until(lambda: TABLE in tables(here), 10, "the table is back")
        reach(there.host.namespace, listener, here.host.address, 8087)
        reach(here.host.namespace, listener, "127.0.0.1", 8087)
        # With its bridge goes its setting.
        agent.pause()
        here.host.namespace.ip("link del npb-default")
        here.host.namespace.run("nft", "flush", "ruleset")
        agent.resume()
        until(lambda: TABLE in tables(here) and bool(here.bridge()), 10, "both are back")
        until(
            lambda: here.host.namespace.sysctl("ipv4.conf.npb-default.route_localnet") == "1",
            10, "127.0.0.1 leads to containers again",
        )  # fmt: skip
        reach(here.host.namespace, listener, "127.0.0.1", 8087)


def tables(runtime: Runtime) -> str:
    return runtime.host.namespace.run("nft", "list", "tables")


def test_check_names_a_published_port_that_is_lost(runtimes: list[Runtime]) -> None:
    here, _ = runtimes
    box = here.box("box").add(runtimeConfig=published(8090))
    assert box.call("CHECK").status == 0

    def is_named() -> bool:
        here.host.namespace.run("nft", "flush", "map", "ip", TABLE, "ports")
        said = box.call("CHECK")
        return said.content.get("code") == 103 and "8090" in said.text

    # It is put right sooner than CHECK looks, until that was in vain time and again.
    until(is_named, 30, "CHECK names it")
