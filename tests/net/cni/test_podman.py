"""Real containers of podman on two hosts: they reach each other across the overlay."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import md5
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.net.cni.podman import FILE_BYTES, Podman, image, missing_podman
from tests.net.namespaces import CommandError, missing
from tests.net.overlay import DUAL, HOST_GW, NETWORK, Overlay, until
from tests.net.packets import ping

pytestmark = [
    pytest.mark.net,
    pytest.mark.slow,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
    pytest.mark.skipif(missing_podman() is not None, reason=str(missing_podman())),
]
SUM = md5(bytes(range(256)) * (FILE_BYTES >> 8)).hexdigest()


on_vxlan = pytest.mark.parametrize("overlay", [NETWORK], ids=["vxlan"], indirect=True)
"""For what has nothing to do with how packets get to another host."""


@pytest.fixture(scope="module")
def overlay(request: pytest.FixtureRequest) -> Iterator[Overlay]:
    with Overlay(2, network=request.param) as made:
        yield made


@pytest.fixture(scope="module")
def podmans(overlay: Overlay) -> Iterator[list[Podman]]:
    tar = image()
    with ExitStack() as stack:
        yield [stack.enter_context(Podman(agent, tar)) for agent in overlay.agents]


@pytest.mark.parametrize(
    "overlay", [NETWORK, HOST_GW, DUAL], ids=["vxlan", "host-gw", "dual"], indirect=True
)
def test_containers_of_two_hosts_ping_each_other_and_transfer_files(
    overlay: Overlay, podmans: list[Podman]
) -> None:
    here, there = podmans
    server = there.run("-d", "--name", "server", "--", "httpd", "-f", "-p", "80", "-h", "/www")
    client = here.run("-d", "--name", "client", "--", "sleep", "1000")
    addresses = there.address(server), here.address(client)
    for podman, name, target in ((here, client, addresses[0]), (there, server, addresses[1])):
        podman("exec", name, "ping", "-c", "3", "-W", "2", target)
    got = here("exec", client, "sh", "-c", f"wget -q -O - http://{addresses[0]}/data | md5sum")
    assert got.split()[0] == SUM
    second = there.address6(server)
    assert bool(second) is (overlay.agents[0].subnets.second is not None)
    if second:
        here("exec", client, "ping", "-c", "3", "-W", "2", second)
        got = here("exec", client, "sh", "-c", f"wget -q -O - http://[{second}]/data | md5sum")
        assert got.split()[0] == SUM
    # What podman knows is what the container has, and the agent stays out of the way.
    assert addresses[1] in here("exec", client, "ip", "addr", "show", "eth0")
    agent = overlay.agents[1]
    agent.kill()
    got = here("exec", client, "sh", "-c", f"wget -q -O - http://{addresses[0]}/data | md5sum")
    assert got.split()[0] == SUM
    agent.start()
    agent.wait_ready()
    for podman, name in ((here, client), (there, server)):
        podman("rm", "--force", "--time", "0", name)
    # Nothing is left of either.
    for one in overlay.agents:
        assert '"records": [\n  \n ]' in (one.folder / "default.containers.json").read_text()


@on_vxlan
def test_a_published_port_leads_to_the_container_until_that_is_gone(
    overlay: Overlay, podmans: list[Podman]
) -> None:
    podman = podmans[0]
    host, other = (agent.host for agent in overlay.agents)
    podman.run(
        "-d", "--name", "web", "-p", "8080:80", "--", "httpd", "-f", "-p", "80", "-h", "/www"
    )
    # podman does not wait for what it starts.
    inside = f"http://{podman.address('web')}/data"
    until(lambda: host.namespace.within(answers, inside), 20, "the server serves")
    for place, address in ((other, host.address), (host, host.address), (host, "127.0.0.1")):
        assert place.namespace.within(fetch, f"http://{address}:8080/data") == SUM
    with pytest.raises(CommandError, match=r"in use.*container"):
        podman.run("--rm", "-p", "8080:80", "--", "sleep", "1")
    podman("rm", "--force", "--time", "0", "web")
    with pytest.raises(URLError):
        host.namespace.within(fetch, "http://127.0.0.1:8080/data")


@on_vxlan
def test_a_container_that_runs_keeps_its_port_when_it_is_added_again(
    overlay: Overlay, podmans: list[Podman]
) -> None:
    # As long as it runs, podman itself listens at its port of the host.
    podman = podmans[0]
    host, other = (agent.host for agent in overlay.agents)
    url = f"http://{host.address}:8081/data"
    podman.run(
        "-d", "--name", "web", "-p", "8081:80", "--", "httpd", "-f", "-p", "80", "-h", "/www"
    )
    podman("network", "reload", "web")
    until(lambda: other.namespace.within(answers, url), 20, "the server serves")
    podman("network", "disconnect", "netplane", "web")
    podman("network", "connect", "netplane", "web")
    until(lambda: other.namespace.within(answers, url), 20, "it is reached again")
    podman("rm", "--force", "--time", "0", "web")


@on_vxlan
def test_a_container_on_two_networks_publishes_a_port_once(
    overlay: Overlay, podmans: list[Podman]
) -> None:
    podman = podmans[0]
    host, other = (agent.host for agent in overlay.agents)
    url = f"http://{host.address}:8082/data"
    podman.install("second")
    podman.run(
        *("-d", "--name", "web", "--network", "netplane,second", "-p", "8082:80"),
        *("--", "httpd", "-f", "-p", "80", "-h", "/www"),
    )
    assert "eth1" in podman("exec", "web", "ip", "addr")
    until(lambda: other.namespace.within(answers, url), 20, "the server serves")
    podman("network", "reload", "web")
    assert other.namespace.within(answers, url)
    podman("rm", "--force", "--time", "0", "web")


def answers(url: str) -> bool:
    try:
        return bool(fetch(url))
    except URLError:
        return False


def fetch(url: str) -> str:
    with urlopen(url, timeout=10) as answer:
        return md5(answer.read()).hexdigest()


@on_vxlan
def test_an_address_of_ones_own_choice_and_an_agent_that_is_not_there(
    overlay: Overlay, podmans: list[Podman]
) -> None:
    podman, agent = podmans[0], overlay.agents[0]
    wanted = str(agent.subnet[77])
    podman.run("-d", "--name", "fixed", "--ip", wanted, "--", "sleep", "1000")
    assert podman.address("fixed") == wanted
    with pytest.raises(CommandError, match="in use"):
        podman.run("--ip", wanted, "--rm", "--", "sleep", "1")
    agent.kill()
    with pytest.raises(CommandError, match="does not answer"):
        podman.run("--rm", "--", "sleep", "1")
    podman("rm", "--force", "--time", "0", "fixed")
    agent.start()
    agent.wait_ready()
    # The address is free again: what podman deleted without an agent is deleted.
    podman.run("-d", "--name", "again", "--ip", wanted, "--", "sleep", "1000")
    until(lambda: ping(agent.host, wanted) is not None, 10, "the host reaches it")
    podman("rm", "--force", "--time", "0", "again")
