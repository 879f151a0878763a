"""What is broken of containers, the same for each family, and what has to come of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.net.cni.runtime import Box, Runtime, finish
from tests.net.overlay import until
from tests.net.packets import ping, ping_all

ANYWHERE = {4: "0.0.0.0/0", 6: "::/0"}
STRANGER = {4: "10.99.0.1/24", 6: "fd99::1/64"}


@dataclass(frozen=True)
class Damage:
    """One command of `ip`, with what `command_of` fills in."""

    command: str
    word: str = ""
    """What CHECK says then."""
    on_host: bool = False
    """Not in the container."""
    cuts: bool = True
    """Whether packets do not pass."""
    of_family: bool = True
    """Whether it is another damage with each family."""


BREAKS = {
    "address": Damage("addr del {address}/{length} dev eth0", "address"),
    "route": Damage("-{version} route del default", "route {anywhere}"),
    "gateway": Damage("-{version} addr flush dev npb-default", "missing", on_host=True),
    "link": Damage("link set eth0 down", "down", of_family=False),
    "mac": Damage("link set eth0 address 02:00:00:00:00:99", "MAC", of_family=False),
    "port": Damage("link set {port} nomaster", "no port", on_host=True, of_family=False),
    "hairpin": Damage(
        "link set {port} type bridge_slave hairpin off",
        "hairpin",
        on_host=True,
        cuts=False,
        of_family=False,
    ),
}
"""What CHECK names."""

HEALED = {
    # Those of the bridge lose the addresses of IPv6 when it is down, and not those of IPv4.
    "bridge deleted": Damage("link del npb-default"),
    "bridge down": Damage("link set npb-default down"),
    "address lost": Damage("-{version} addr flush dev npb-default scope global"),
    "every address lost": Damage("-{version} addr flush dev npb-default"),
    "another address": Damage("addr add {stranger} dev npb-default", cuts=False),
    "port released": Damage("link set {port} nomaster", of_family=False),
    "port down": Damage("link set {port} down", of_family=False),
    "hairpin off": Damage(
        "link set {port} type bridge_slave hairpin off", cuts=False, of_family=False
    ),
}
"""What the agent puts right."""

BREAKS_OF_FAMILY, HEALED_OF_FAMILY = (
    [name for name, damage in table.items() if damage.of_family] for table in (BREAKS, HEALED)
)


def command_of(damage: Damage, box: Box, version: int) -> list[str]:
    """Return the command that does a damage to a container."""
    subnet = box.agent.subnets.of(version)
    assert subnet is not None
    text = damage.command.format(
        version=version,
        address=box.of(version),
        length=subnet.prefixlen,
        port=box.result["interfaces"][1]["name"],
        stranger=STRANGER[version],
    )
    return ["ip", *text.split()]


def is_named_by_check(runtime: Runtime, version: int, damage: Damage) -> None:
    """Assert that CHECK is content before, and names what is broken after."""
    box = runtime.box("box").add()
    assert box.call("CHECK").status == 0
    place = runtime.host.namespace if damage.on_host else box.namespace
    # What it breaks on the host is put right at once; so the call waits in line before that.
    runtime.agent.pause()
    try:
        call = box.start("CHECK")
        place.run(*command_of(damage, box, version))
    finally:
        runtime.agent.resume()
    said = finish(call)
    if damage.on_host and not said.status:
        # It was healed sooner: then it is as it was made.
        until(lambda: ping(box, gateway(runtime, version)) is not None, 10, "it works")
        return
    assert (said.status, said.content["code"]) == (1, 103)
    assert damage.word.format(anywhere=ANYWHERE[version]) in said.text


def is_put_right(runtimes: list[Runtime], version: int, damage: Damage) -> None:
    """Assert that a damage on the first host is seen, and then gone."""
    runtime, other = runtimes
    # Who changes as much in a minute as these tests together is answered every ten seconds only.
    runtime.agent.terminate()
    runtime.agent.start()
    runtime.agent.wait_ready()
    boxes = runtime.box("box").add(), runtime.box("near").add(), other.box("far").add()
    before = state(runtime)
    # Paused, so that it can be seen that it was broken.
    runtime.agent.pause()
    try:
        runtime.host.namespace.run(*command_of(damage, boxes[0], version))
        assert state(runtime) != before
        if damage.cuts:
            assert ping(boxes[0], gateway(runtime, version), timeout_s=0.1) is None
    finally:
        runtime.agent.resume()
    until(lambda: state(runtime) == before, 10, "all is as it was")
    # Soon: nobody has to ask for the gateway's MAC anew.
    assert None not in ping_all(
        [(one, two.of(version)) for one in boxes for two in boxes if one is not two]
    )


def gateway(runtime: Runtime, version: int) -> str:
    """Return the bridge's address of a family."""
    subnet = runtime.agent.subnets.of(version)
    assert subnet is not None
    return str(subnet[1])


def state(runtime: Runtime) -> dict[str, Any]:
    """Return what bridge and ports are, apart from the bridge's index."""
    bridge = runtime.bridge()
    return {
        "bridge": {key: bridge[key] for key in ("mtu", "address")} if bridge else {},
        "up": "UP" in bridge.get("flags", ()),
        # In no order: the kernel lists those of IPv6 that came back before older ones.
        "addresses": {
            one["local"] for one in bridge.get("addr_info", ()) if one["scope"] == "global"
        },
        # Without it the kernel asks for no neighbour on behalf of others; with IPv4 alone it is
        # the kernel's affair.
        "link-local": runtime.agent.subnets.of(6) is not None
        and any(one["scope"] == "link" for one in bridge.get("addr_info", ())),
        "ports": {
            name: (
                link.get("master"),
                "UP" in link["flags"],
                link["linkinfo"].get("info_slave_data", {}).get("hairpin"),
            )
            for name, link in runtime.ports().items()
        },
    }
