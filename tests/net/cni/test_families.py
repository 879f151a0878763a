"""A network that loses a family under its containers, and gets it back."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from tests.net.cni.callers import Listener, published, reach, refuses
from tests.net.cni.runtime import Box, Runtime
from tests.net.namespaces import missing
from tests.net.overlay import DUAL, NETWORK, ONLY_IPV6, Overlay, until
from tests.net.packets import Flow, ping, ping_all
from tests.net.rig import Host

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]
FLAGS = ("--ip-masq", "--ip-blackhole-route", "--heal-interval", "1h")
WITHOUT = {6: NETWORK, 4: ONLY_IPV6}
"""The network when it has lost a family."""
PREFIXES = {4: "10.5.", 6: "fd00:5:"}
"""How addresses of the network begin, and those of no host."""


@pytest.fixture
def overlay() -> Iterator[Overlay]:
    """One for each test, as each changes the network."""
    with Overlay(2, network=DUAL, flags=FLAGS) as made:
        for host in made.rig.hosts:
            # Without our two rules nothing is forwarded, so they are made of both families.
            for program in ("iptables", "ip6tables"):
                host.namespace.run(program, "-P", "FORWARD", "DROP")
        yield made


def versions_of(box: Box) -> set[int]:
    return {ip_address(one).version for one in box.addresses}


def outer(host: Host, version: int) -> str:
    """Return a host's own address of a family."""
    return host.address if version == 4 else host.address6


def ours(host: Host, version: int) -> set[str]:
    """Return what there is of ours in the kernel, of one family, in words."""
    place = host.namespace
    tables = json.loads(place.run("nft", "-j", "list", "tables"))["nftables"]
    family = {4: "ip", 6: "ip6"}[version]
    found = {
        f"table {one['table']['name']}"
        for one in tables
        if "table" in one and one["table"]["family"] == family and "netplane" in str(one)
    }
    for route in place.json("ip", f"-{version}", "-j", "route", "show", "table", "all"):
        if PREFIXES[version] in route["dst"]:
            found.add(f"route {route['dst']}")
    for link in place.json("ip", "-j", "addr"):
        for one in link["addr_info"]:
            if one["local"].startswith(PREFIXES[version]):
                found.add(f"address {one['local']}")
    device = {4: "np.1", 6: "np6.1"}[version]
    found |= {device for link in place.json("ip", "-j", "link") if link["ifname"] == device}
    program = {4: "iptables", 6: "ip6tables"}[version]
    if "netplane" in place.run(program, "-S", "FORWARD"):
        found.add("rules of FORWARD")
    forwards = {4: "ipv4.ip_forward", 6: "ipv6.conf.all.forwarding"}[version]
    if place.sysctl(forwards) != "0":
        found.add(forwards)
    if version == 4 and place.sysctl("ipv4.conf.npb-default.route_localnet") != "0":
        # What guards the host's 127.0.0.1 goes with the table.
        found.add("route_localnet")
    return found


def becomes(host: Host, version: int, wanted: set[str]) -> None:
    """Wait until there is exactly this of ours, and show the difference if it never is."""
    with contextlib.suppress(AssertionError):
        until(lambda: ours(host, version) == wanted, 20, "all is as wanted")
    assert ours(host, version) == wanted


@pytest.mark.parametrize("lost", [6, 4], ids=["ipv6", "ipv4"])
def test_a_family_goes_and_comes_back_and_the_other_costs_no_packet(
    overlay: Overlay, runtimes: list[Runtime], lost: int
) -> None:
    here, there = runtimes
    kept = 10 - lost
    subnets = [runtime.agent.subnets for runtime in runtimes]
    box = here.box("box").add(runtimeConfig=published(8080))
    near, far = here.box("near").add(), there.box("far").add()
    host, outside = here.host, there.host
    whole = ours(host, lost)
    assert len(whole) >= 8, whole

    # Out of the network, as the other hosts need their agents started anew, too.
    with Flow(box, outside, 500, address=outer(outside, kept)) as flow:
        until(lambda: flow.received > 100, 20, "packets arrive")

        overlay.reconfigure(WITHOUT[lost])

        becomes(host, lost, set())
        assert f"the network has no IPv{lost} any more" in here.agent.missing()
        pairs = [(box, near), (near, far), (far, box)]
        assert None not in ping_all([(one, two.of(kept)) for one, two in pairs])
        assert refuses(outside.namespace, outer(host, lost), 8080)
        with Listener(box.namespace, address="::") as listener:
            reach(outside.namespace, listener, outer(host, kept), 8080)

        said = box.call("CHECK")
        assert (said.status, said.content["code"]) == (1, 103)
        assert f"{box.of(lost)}/" in said.text
        near.delete()
        assert here.noted() == {"box"}
        new = here.box("new").add(runtimeConfig=published(8081))
        assert versions_of(new) == {kept}
        assert new.call("CHECK").status == 0
        everywhere = {4: "0.0.0.0", 6: "::"}[lost]
        config = {"runtimeConfig": published(8082, host_ip=everywhere)}
        assert here.box("none").call("ADD", config=config).content["code"] == 7
        assert ours(host, lost) == set()

        overlay.reconfigure(DUAL)

        # Else the containers that have been there all the time would have those of others.
        assert [runtime.agent.subnets for runtime in runtimes] == subnets
        becomes(host, lost, whole)
        loss = flow.stop()
    assert loss.missing == ()
    assert f"IPv{lost}" not in here.agent.missing()
    assert [one.call("CHECK").status for one in (box, new, far)] == [0, 0, 0]
    newest = here.box("newest").add()
    assert versions_of(newest) == {4, 6}
    pairs = [(box, newest), (newest, far), (far, box)]
    assert None not in ping_all(
        [(one, two.of(version)) for one, two in pairs for version in (4, 6)]
    )
    with Listener(box.namespace, address="::") as listener:
        for version in (4, 6):
            reach(outside.namespace, listener, outer(host, version), 8080)
    assert here.collect().status == 0
    assert here.ports() == {}


@pytest.mark.parametrize("how", ["ended", "deleted"])
@pytest.mark.parametrize("lost", [6, 4], ids=["ipv6", "ipv4"])
def test_what_went_while_the_network_lost_a_family_leaves_nothing(
    overlay: Overlay, runtimes: list[Runtime], lost: int, how: str
) -> None:
    here, _ = runtimes
    box = here.box("box").add(runtimeConfig=published(8080))
    overlay.ctl("init", WITHOUT[lost], "--force")
    here.agent.kill()
    if how == "ended":
        box.namespace.close()
        until(lambda: here.ports() == {}, 10, "the kernel takes the pair apart")
    else:
        assert box.call("DEL").status == 0
    assert any("address" in one for one in ours(here.host, lost))
    here.agent.start()
    here.agent.wait_ready()
    becomes(here.host, lost, set())
    until(lambda: here.noted() == set(), 10, "nor of the container")


def test_an_agent_that_has_gone_by_its_memory_takes_the_family_away_later(
    overlay: Overlay, runtimes: list[Runtime]
) -> None:
    here, there = runtimes
    box = here.box("box").add(runtimeConfig=published(8080))
    whole = ours(here.host, 6)
    peer = there.agent.subnet
    until(lambda: here.agent.remembers(peer), 10, "what is to come back is on disk")
    overlay.ctl("init", WITHOUT[6], "--force")
    here.agent.kill()
    overlay.members.kill(0)
    here.host.namespace.run("nft", "delete", "table", "ip6", "netplane_ports")
    here.agent.start()
    becomes(here.host, 6, whole)
    overlay.members.restart(0)
    becomes(here.host, 6, set())
    here.agent.wait_ready()
    # The table that is gone must not come back with the next change of it.
    assert box.call("DEL").status == 0
    assert here.box("new").add(runtimeConfig=published(8080)).call("CHECK").status == 0
    assert ours(here.host, 6) == set()


def test_a_bridge_of_an_earlier_subnet_is_in_nobodys_way() -> None:
    # Its route would lead packets to the host that has the subnet now back to ourselves.
    with Overlay(1) as overlay:
        [agent] = overlay.agents
        with Runtime(agent) as runtime:
            runtime.box("box").add().delete()
            assert [one["local"] for one in inet(runtime)] == [str(agent.subnet[1])]
            overlay.ctl("init", NETWORK.replace("10.5", "10.6"), "--force")
            agent.terminate()
            agent.start()
            agent.wait_ready()
            until(
                lambda: [one["local"] for one in inet(runtime)] == [str(agent.subnet[1])],
                10, "it has the address of the new one alone",
            )  # fmt: skip
            assert str(agent.subnet).startswith("10.6.")


def inet(runtime: Runtime) -> list[dict[str, str]]:
    return [one for one in runtime.bridge()["addr_info"] if one["family"] == "inet"]


def test_containers_of_a_subnet_that_does_not_fit_any_more_are_named(
    overlay: Overlay, runtimes: list[Runtime]
) -> None:
    here, there = runtimes
    box, near = here.box("box").add(), here.box("near").add()
    old = here.agent.subnet
    overlay.reconfigure(DUAL.replace('"Network"', '"SubnetLen":25,"Network"'))
    assert here.agent.subnet.prefixlen == 25
    until(lambda: f"{old} is not this host's any more" in here.agent.missing(), 10, "a note")
    assert ping(box, near.of(4)) is not None
    new, far = here.box("new").add(), there.box("far").add()
    assert ping(new, far.of(4)) is not None
    for one in (box, near):
        one.delete()
    until(lambda: str(old) not in here.agent.missing(), 10, "no note")
