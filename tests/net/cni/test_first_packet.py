"""A container that has its interface can use it at once, also beside others that come and go."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_interface
from typing import NamedTuple

import pytest

from netplane.agent.containers.devices import Attachment, Bridge, attach
from netplane.agent.containers.names import mac_of, port_name
from netplane.agent.containers.records import Key
from netplane.netlink.namespace import inside
from tests.net.namespaces import Namespace, missing
from tests.net.packets import ping

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]


class Box(NamedTuple):
    """Where a ping can come from."""

    namespace: Namespace


@contextmanager
def crowded() -> Iterator[None]:
    """Make and end namespaces meanwhile; what the kernel has to do for them comes between."""
    ended = threading.Event()

    def churn() -> None:
        while not ended.is_set():
            with ExitStack() as stack:
                for number in range(10):
                    namespace = stack.enter_context(Namespace(f"other-{number}"))
                    namespace.ip(
                        "link add br0 type bridge", "link set br0 up",
                        *(f"link add a{n} type veth peer name b{n}" for n in range(6)),
                        *(f"link set a{n} master br0 up" for n in range(6)),
                        *(f"link set b{n} up" for n in range(6)),
                    )  # fmt: skip

    threads = [threading.Thread(target=churn) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def first_pings(rounds: int) -> list[float | None]:
    """Return the milliseconds of each, from a container or to it, with a new bridge each time."""
    found = []
    with Namespace("host") as host:
        for number in range(rounds):
            gateway, own = (
                (ip_interface("10.5.1.1/24"), ip_interface("10.5.1.2/24")),
                (ip_interface("fd05::1/64"), ip_interface("fd05::2/64")),
            )[number % 2]
            key = Key("net", f"box-{number}", "eth0")
            bridge = Bridge("npbr0", 1450, frozenset([gateway]), mac_of(gateway.ip))
            wanted = Attachment(key, port_name("default", key), (own,), mac_of(own.ip))
            with Namespace("box") as box:
                fd = os.open(box.path, os.O_RDONLY)
                try:
                    inside(host.path, lambda b=bridge, w=wanted, f=fd: attach(b, w, f))
                finally:
                    os.close(fd)
                if number // 2 % 2:
                    found.append(ping(Box(box), str(gateway.ip)))
                else:
                    found.append(ping(Box(host), str(own.ip)))
            host.ip("link del npbr0")
    return found


def test_the_first_packet_arrives() -> None:
    with crowded():
        assert None not in first_pings(40)
