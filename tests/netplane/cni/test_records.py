"""What is remembered of containers: the file, and what the kernel has of them."""

from __future__ import annotations

import asyncio
import json
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path

import pytest

from netplane.agent.containers import records
from netplane.agent.containers.errors import CniError
from netplane.agent.containers.names import alias_of, bridge_name, mac_of, port_name, read_alias
from netplane.agent.containers.records import Key, PortMapping, Record, Store

IPV4, IPV6 = IPv4Interface("10.5.1.2/24"), IPv6Interface("fd00:5::2/64")
RECORD = Record(
    Key("net", "box", "eth0"), (IPV4,), "npv1", "02:6e:0a:05:01:02",
    (PortMapping("tcp", "", 8080, 80),),
)  # fmt: skip


async def test_what_is_saved_is_there_for_the_next_agent_of_this_boot_only(tmp_path: Path) -> None:
    path = tmp_path / "run/default.containers.json"
    store = Store(path, "boot-1")
    assert store.load() == ""
    store.put(RECORD)
    both = Record(Key("net", "both", "eth0"), (IPV4, IPV6), "npv2", "02:6e:0a:05:01:02")
    only = Record(Key("net", "only", "eth0"), (IPV6,), "npv3", "02:6e:0a:05:01:02")
    store.put(both)
    store.put(only)
    store.last = {4: IPv4Address("10.5.1.2"), 6: IPv6Address("fd00:5::2")}
    await store.save()
    assert path.stat().st_mode & 0o777 == 0o600

    next_ = Store(path, "boot-1")
    assert next_.load() == ""
    assert list(next_.records.values()) == [RECORD, both, only]
    assert next_.last == store.last

    # With the machine all containers have ended; addresses go on from where they were.
    rebooted = Store(path, "boot-2")
    assert rebooted.load() == ""
    assert rebooted.records == {}
    assert rebooted.last == store.last


async def test_what_comes_during_a_write_shares_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    real = records._write

    def write(path: Path, text: str) -> None:
        written.append(len(json.loads(text)["records"]))
        real(path, text)

    monkeypatch.setattr(records, "_write", write)
    store = Store(tmp_path / "file", "boot")

    async def add(number: int) -> None:
        key = Key("net", f"box-{number}", "eth0")
        store.put(Record(key, RECORD.addresses, "npv", "02:00:00:00:00:01"))
        await store.save()
        # Whatever happens to us now, it is written.
        assert f"box-{number}" in store.path.read_text()

    await asyncio.gather(*(add(number) for number in range(20)))
    assert written[-1] == 20
    assert len(written) <= 3
    # What has not changed is not written again.
    await store.save()
    assert len(written) <= 3


def with_ports(*ports: object) -> str:
    record = {
        "network": "net", "container": "box", "ifname": "eth0", "address": "10.5.1.2/24",
        "link": "npv1", "mac": "02:6e:0a:05:01:02", "ports": ports,
    }  # fmt: skip
    return json.dumps({"format": 1, "boot": "b", "last": None, "records": [record]})


def test_a_file_from_before_there_was_ipv6_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(with_ports(["tcp", "", 8080, 80]))
    store = Store(path, "b")
    assert store.load() == ""
    assert (store.records, store.last) == ({RECORD.key: RECORD}, {})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"format": 2}',
        '{"format": 1, "boot": "b", "last": null, "records": [5]}',
        '{"format": 1, "boot": "b", "last": "x", "records": []}',
        with_ports(["icmp", "", 80, 80]),
        with_ports(["tcp", "", 0, 80]),
        with_ports(["tcp", "x", 80, 80]),
        with_ports(["tcp"]),
    ],
)
def test_a_file_that_is_of_no_use_is_set_aside(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    store = Store(path, "b")
    assert "of no use" in store.load()
    assert store.records == {}
    assert not path.exists()
    assert (tmp_path / "file.bad").read_text() == text


async def test_a_file_that_cannot_be_written_is_an_error_of_the_call(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    store = Store(tmp_path / "file", "boot")
    store.put(RECORD)
    with pytest.raises(CniError) as refused:
        await store.save()
    assert refused.value.code == 5
    # It is not taken for written.
    (tmp_path / "file").rmdir()
    await store.save()
    assert "box" in (tmp_path / "file").read_text()


def test_names_fit_the_kernel_and_are_those_of_one_attachment_and_instance() -> None:
    long = "a" * 31
    keys = [
        ("default", Key("net", "box", "eth0")),
        ("blue", Key("net", "box", "eth0")),
        ("default", Key("net", "box", "eth1")),
        ("default", Key("net2", "box", "eth0")),
        ("default", Key("net", "b" * 64, "eth0")),
        (long, Key("net", "box", "eth0")),
    ]
    names = [port_name(*key) for key in keys]
    names += [bridge_name(name) for name in ("default", "blue", long, long[:-1])]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) == 15
    assert names[0] == port_name(*keys[0])
    assert bridge_name("default") == "npb-default"


@pytest.mark.parametrize("addresses", [(IPV4,), (IPV4, IPV6), (IPV6,)])
def test_an_alias_tells_the_attachment_and_always_the_addresses(
    addresses: tuple[IPv4Interface | IPv6Interface, ...],
) -> None:
    key = Key("net", "c" * 64, "eth0")
    assert read_alias(alias_of(key, addresses)) == (addresses, key)
    # An interface may have a name with almost anything in it.
    odd = Key("net", "box", "é€-")
    assert read_alias(alias_of(odd, addresses)) == (addresses, odd)
    too_long = Key("n" * 128, "c" * 128, "eth0")
    assert len(alias_of(too_long, addresses).encode()) <= 255
    assert read_alias(alias_of(too_long, addresses)) == (addresses, None)
    for foreign in ("", "netplane", "netplane x", "netplane 10.5.1.2/24 net", "other 10.5.1.2/24"):
        assert read_alias(foreign) is None


def test_the_mac_of_an_address_is_always_the_same_and_another_ones_is_another() -> None:
    assert mac_of(IPV4.ip).hex(":") == "02:6e:0a:05:01:02"
    # Of IPv6 not only the end tells: that may be the same in two subnets of one bridge.
    macs = {mac_of(IPv6Address(text)) for text in ("fd00:5::2", "fd00:5:0:1::2", "fd00:5::3")}
    assert len(macs) == 3
    assert mac_of(IPV6.ip) in macs
