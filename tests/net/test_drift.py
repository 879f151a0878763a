"""What others break is put right by a running agent; the kernel and packets say so.

Twice each: with the agent frozen for a moment, so that the damage can be seen by a dump and by
probes that fail, and live, where only a socket is fast enough to see it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.net.namespaces import missing
from tests.net.overlay import ROOT, AgentProcess, Overlay, until
from tests.net.packets import ping
from tests.net.witnesses import Ear, kernel_of, objects_of

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]
HEALED_WITHIN_S = 1.0
MUTED_INTERVAL_S = 0.5
PATIENCE_S = 20.0
"""Where it counts that it happens at all."""

DRIFTS: dict[str, tuple[set[str], tuple[str, ...]]] = {
    "the device goes down": ({"link", "route"}, ("ip link set np.1 down",)),
    "the device goes down and up": (
        {"link", "route"}, ("ip link set np.1 down", "ip link set np.1 up"),
    ),
    "the device is deleted": ({"link", "route", "neighbour", "fdb"}, ("ip link del np.1",)),
    "neighbours are flushed": ({"neighbour"}, ("ip neigh flush dev np.1 nud permanent",)),
    "forwarding entries are deleted": ({"fdb"}, ("bridge fdb del {mac} dev np.1",)),
    "routes are flushed": ({"route"}, ("ip route flush proto 181",)),
}  # fmt: skip
"""What it takes away, and how. `{mac}` is every peer's in turn."""


def drift(agent: AgentProcess, name: str, before: dict[str, Any]) -> None:
    for command in DRIFTS[name][1]:
        macs = [mac for mac, _ in before["fdb"]] if "{mac}" in command else [""]
        for mac in macs:
            agent.host.namespace.run(*command.format(mac=mac).split())


def content(state: dict[str, Any]) -> dict[str, Any]:
    """A device that is made anew has another index."""
    return {key: value for key, value in state.items() if key != "index"}


@pytest.fixture(scope="module")
def overlay() -> Iterator[Overlay]:
    """As `conftest.overlay`, for all tests here: each leaves it as it was."""
    with Overlay(3, flags=("--heal-interval", "1h")) as made:
        made.add_containers(1)
        until(made.everybody_answers, 20, "every container answers every other")
        yield made


def break_frozen(overlay: Overlay, number: int, name: str) -> dict[str, Any]:
    """Break it while the agent sleeps; it must be seen. Returns what there was before."""
    agent = overlay.agents[number]
    here, there = overlay.rig.containers[number], overlay.rig.containers[number - 1]
    before = kernel_of(agent.host)
    assert ping(here, there.address) is not None
    agent.pause()
    try:
        drift(agent, name, before)
        broken = kernel_of(agent.host)
        assert content(broken) != content(before)
        kinds = {"route": "routes", "neighbour": "neighbours", "fdb": "fdb"}
        for kind in DRIFTS[name][0] & kinds.keys():
            assert broken.get(kinds[kind], []) == []
        assert ping(here, there.address, timeout_s=0.2) is None
    finally:
        agent.resume()
    return before


def is_whole(overlay: Overlay, number: int, before: dict[str, Any]) -> bool:
    """Tell whether the kernel is as before; then packets pass, too."""
    host = overlay.agents[number].host
    if content(kernel_of(host)) != content(before):
        return False
    here, there = overlay.rig.containers[number], overlay.rig.containers[number - 1]
    return ping(here, there.address, timeout_s=0.2) is not None


@pytest.mark.alone
@pytest.mark.parametrize("name", DRIFTS)
def test_what_is_seen_broken_is_whole_within_a_second(overlay: Overlay, name: str) -> None:
    before = break_frozen(overlay, 0, name)
    until(lambda: is_whole(overlay, 0, before), HEALED_WITHIN_S, "all is as before")


@pytest.mark.alone
@pytest.mark.parametrize("name", DRIFTS)
def test_the_kernel_tells_of_the_loss_and_within_a_second_of_the_return(
    overlay: Overlay, name: str
) -> None:
    agent = overlay.agents[1]
    before = kernel_of(agent.host)
    objects = objects_of(before)
    with Ear(agent.host) as ear:
        drift(agent, name, before)
        wanted = set().union(*(objects[kind] for kind in DRIFTS[name][0]))
        healed_s = ear.healing_s(wanted, PATIENCE_S)
    gone = {told.kind for told in ear.gone()}
    # Routes go without a word when their device does.
    assert gone >= DRIFTS[name][0] - ({"route"} if "link" in DRIFTS[name][0] else set())
    assert healed_s < HEALED_WITHIN_S
    until(lambda: is_whole(overlay, 1, before), PATIENCE_S, "all is as before")


@pytest.fixture(scope="module")
def muted() -> Iterator[Overlay]:
    """Agents that hear nothing, and whose timer is short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{Path(__file__).parent / 'mutants'}:{ROOT}")
        patch.setenv("NETPLANE_MUTANT", "deaf")
        with Overlay(2, flags=("--heal-interval", f"{1000 * MUTED_INTERVAL_S:.0f}ms")) as made:
            made.add_containers(1)
            until(made.everybody_answers, 20, "every container answers every other")
            yield made


@pytest.mark.parametrize("name", DRIFTS)
def test_the_timer_heals_what_nobody_heard_of(muted: Overlay, name: str) -> None:
    before = break_frozen(muted, 0, name)
    until(lambda: is_whole(muted, 0, before), PATIENCE_S, "all is as before")
