"""What the kernel does after it has said yes is awaited, and missed if it does not come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv6Address

import pytest

from netplane.netlink.blocking import Blocking
from netplane.netlink.connection import NetlinkLostError
from netplane.netlink.namespace import inside
from tests.net.namespaces import Namespace, missing

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]

ADDRESS = IPv6Address("fd05::1")
WAITS: dict[str, Callable[[Blocking], None]] = {
    "no packets pass br0": lambda kernel: kernel.await_running("br0"),
    "no packets pass port": lambda kernel: kernel.await_running("port"),
    f"packets for {ADDRESS} are not taken": lambda kernel: kernel.await_local(ADDRESS),
}


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """Has a bridge, with an address to be asked for, and a port whose cable is not in."""
    with Namespace("host") as made:
        made.ip(
            "link add br0 type bridge", f"addr add {ADDRESS}/64 dev br0", "link set br0 up",
            "link add port type veth peer name far", "link set port master br0 up",
        )  # fmt: skip
        yield made


def wait(namespace: Namespace, name: str, timeout_s: float) -> float:
    """Wait, and return when it was over."""

    def run() -> float:
        with Blocking(timeout_s=timeout_s) as kernel:
            WAITS[name](kernel)
            return time.monotonic()

    return inside(namespace.path, run)


@pytest.mark.parametrize("name", WAITS)
def test_it_is_over_when_the_cable_is_in(namespace: Namespace, name: str) -> None:
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(wait, namespace, name, 10)
        with pytest.raises(TimeoutError):
            waiting.result(0.3)
        before_s = time.monotonic()
        namespace.ip("link set far up")
        assert waiting.result(10) > before_s
        assert time.monotonic() < before_s + 5
    assert wait(namespace, name, 0.1) > before_s


@pytest.mark.parametrize("name", WAITS)
def test_it_is_missed_in_time_whatever_else_is_told(namespace: Namespace, name: str) -> None:
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(wait, namespace, name, 0.5)
        begun_s = time.monotonic()
        while not waiting.done():
            namespace.ip("link set lo down", "link set lo up")
            assert time.monotonic() < begun_s + 5
        with pytest.raises(NetlinkLostError, match=name):
            waiting.result()


def test_nobody_waits_for_a_link_that_is_gone(namespace: Namespace) -> None:
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(wait, namespace, "no packets pass port", 10)
        with pytest.raises(TimeoutError):
            waiting.result(0.3)
        before_s = time.monotonic()
        namespace.ip("link del port")
        assert before_s < waiting.result(10) < before_s + 5


def test_what_others_say_about_routes_does_not_matter(namespace: Namespace) -> None:
    namespace.ip("link set far up")
    for rule in ("add pref 10 lookup main", "add pref 20 lookup local", "del pref 0"):
        namespace.run("ip", "-6", "rule", *rule.split())
    found = namespace.json("ip", "-6", "-j", "-d", "route", "get", str(ADDRESS))
    assert [one["type"] for one in found] == ["unicast"]
    assert wait(namespace, f"packets for {ADDRESS} are not taken", 10)
