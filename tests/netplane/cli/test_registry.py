"""`netplane ctl` against a real member: what is written, what is refused, what is printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from netplane.cli.netplane import main
from tests.servers import free_ports

if TYPE_CHECKING:
    from kvstore.embedded import EmbeddedMember

CONFIG = '{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}'
PREFIX = "/coreos.com/network"


class Ctl:
    """The command line, and the store behind it."""

    def __init__(self, member: EmbeddedMember) -> None:
        self.store = member.client()
        self._endpoint = member.endpoint

    def __call__(self, command: str, *arguments: str) -> Result:
        flags = ("--etcd-endpoints", self._endpoint)
        return CliRunner().invoke(main, ("ctl", command, *flags, *arguments))

    def value(self, key: str) -> bytes | None:
        found = self.store.get(f"{PREFIX}/{key}".encode())
        return None if found is None else found.value


@pytest.fixture
def ctl(kvstore: EmbeddedMember) -> Ctl:
    """For an empty registry."""
    return Ctl(kvstore)


def test_init_writes_what_it_is_given_and_does_not_change_it_under_hosts(
    ctl: Ctl, tmp_path: Path
) -> None:
    file = tmp_path / "net.json"
    file.write_text(CONFIG + "\n")
    assert ctl("init", f"@{file}").output == f"configuration created: {CONFIG}\n"
    assert ctl.value("config") == CONFIG.encode()
    assert ctl("init", CONFIG).output.startswith("configuration unchanged")
    ctl.store.put(f"{PREFIX}/subnets/10.5.72.0-24".encode(), b'{"PublicIP":"192.0.2.1"}')
    refused = ctl("init", "--network", "10.6.0.0/16")
    assert refused.exit_code == 1
    assert "cannot change under running hosts" in refused.output
    assert ctl.value("config") == CONFIG.encode()
    assert ctl("init", "--network", "10.6.0.0/16", "--force").exit_code == 0
    assert json.loads(ctl.value("config") or b"")["Network"] == "10.6.0.0/16"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give the configuration"),
        ([CONFIG, "--network", "10.5.0.0/16"], "give the configuration"),
        (["{"], "not JSON"),
        (["@/nowhere"], "cannot read /nowhere: No such file"),
        ([CONFIG, "--ipv6-network", "fd00::/48"], "give the configuration"),
        (["--network", "10.5.0.0/29"], "too small to divide"),
        (["--ipv6-network", "10.5.0.0/16"], "not an IPv6 CIDR"),
        (["--network", "10.5.0.0/16", "--ipv6-network", "fd00::/125"], "too small to divide"),
        ([CONFIG, "--backend", "host-gw"], "--backend goes with --network"),
        (
            ['{"Network":"10.5.0.0/16","Backend":{"Type":"udp","Port":-1}}'],
            "Port -1 is not a whole number from 0",
        ),
        (
            ['{"Network":"10.5.0.0/16","Backend":{"Type":"ipsec"}}'],
            "take netplane-udp, which encrypts, or vxlan inside",
        ),
        (["{}"], "no host can use this configuration: Network is missing"),
        (["{}", "--force"], "no host can use this configuration: Network is missing"),
        (["--network", "127.0.0.0/8"], "127.0.0.0/8 has addresses that no host forwards to"),
        (
            ['{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":0}}'],
            "VNI 0 is not a whole number from 1",
        ),
    ],
)
def test_init_refuses_what_no_agent_could_use(ctl: Ctl, arguments: list[str], said: str) -> None:
    done = ctl("init", *arguments)
    assert done.exit_code != 0
    assert said in done.output
    # Who is told to correct it by the command that has just refused it learns nothing.
    assert "correct it" not in done.output
    assert "correct the configuration" not in done.output
    assert ctl.value("config") is None


def test_init_names_fields_that_mean_nothing(ctl: Ctl) -> None:
    # Who misspells SubnetLen gets a network of other subnets, and may learn of it much later.
    odd = '{"Network":"10.5.0.0/16","SubnetLength":26,"Backend":{"Type":"vxlan","Prot":1}}'
    done = ctl("init", odd)
    assert done.exit_code == 0
    assert ctl.value("config") == odd.encode()
    for name in "subnetlength", "backend.prot":
        assert f"Note: the field '{name}' means nothing to netplane" in done.output
    for plain in (
        '{"Network":"10.5.0.0/16","SubnetLen":26,"EnableNFTables":true}',
        '{"Network":"10.5.0.0/16","Backend":{"Type":"VXLAN","vni":1,"DirectRouting":true}}',
    ):
        assert "Note" not in ctl("init", plain, "--force").output
    # What is Flannel's alone is not known here.
    flannels = '{"Network":"10.5.0.0/16","Backend":{"Type":"ipip","DirectRouting":true}}'
    assert "Note" not in ctl("init", flannels, "--force").output


def test_init_takes_the_name_of_a_backend_instead_of_json(ctl: Ctl) -> None:
    assert ctl("init", "--network", "10.5.0.0/16", "--backend", "host-gw").exit_code == 0
    assert ctl.value("config") == b'{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}'


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["--network", "10.5.0.0/16", "--ipv6-network", "fd00:5::/48"],
            (
                b'{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48",'
                b'"Backend":{"Type":"vxlan"}}'
            ),
        ),
        (
            ["--ipv6-network", "fd00:5::/48"],
            (
                b'{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48",'
                b'"Backend":{"Type":"vxlan"}}'
            ),
        ),
    ],
)
def test_init_takes_networks_of_ipv6_instead_of_json(
    ctl: Ctl, arguments: list[str], text: bytes
) -> None:
    assert ctl("init", *arguments).exit_code == 0
    assert ctl.value("config") == text
    ctl.store.put(f"{PREFIX}/subnets/0.0.0.0-0&fd00:5:0:1::-64".encode(), b"x")
    refused = ctl("init", "--network", "10.5.0.0/16", "--ipv6-network", "fd00:6::/48")
    assert "IPv6Network cannot change under running hosts" in refused.output


def test_a_reservation_of_both_families_is_kept_shown_and_released(ctl: Ctl) -> None:
    ctl("init", "--network", "10.5.0.0/16", "--ipv6-network", "fd00:5::/48")
    second = ("--ipv6-subnet", "fd00:5:0:48::/64", "--public-ipv6", "2001:db8::1")

    alone = ctl("reserve", "10.5.72.0/24", "192.0.2.1")
    assert "it has no subnet of IPv6Network fd00:5::/48" in alone.output
    done = ctl("reserve", "10.5.72.0/24", "192.0.2.1", *second)

    assert done.output == "10.5.72.0/24 with fd00:5:0:48::/64 is kept for 192.0.2.1\n"
    shown = ctl("leases").output.splitlines()
    assert shown[1].split()[:4] == [
        "10.5.72.0/24,fd00:5:0:48::/64", "192.0.2.1,2001:db8::1", "vxlan", "reservation",
    ]  # fmt: skip
    [row] = json.loads(ctl("leases", "-w", "json").output)["leases"]
    assert (row["subnet6"], row["public_ip6"]) == ("fd00:5:0:48::/64", "2001:db8::1")
    assert ctl("release", "fd00:5:0:48::/64").output == "fd00:5:0:48::/64 is free\n"
    assert json.loads(ctl("leases", "-w", "json").output)["leases"] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("x", "192.0.2.1"), "'x' is no subnet such as 10.5.72.0/24"),
        (("10.5.72.0/24", "x"), "'x' is no IP address"),
        (("10.5.72.0/24", "192.0.2.1", "--ipv6-subnet", "10.5.9.0/24"), "such as fd00:0:0:48::/64"),
        (("10.5.72.0/24", "192.0.2.1", "--public-ipv6", "192.0.2.1"), "is no IPv6 address"),
        (("fe80::%eth0/64", "192.0.2.1"), "names an interface"),
    ],
)
def test_reserve_refuses_what_is_no_subnet_or_address(
    ctl: Ctl, arguments: tuple[str, ...], said: str
) -> None:
    done = ctl("reserve", *arguments)
    assert done.exit_code == 2
    assert said in done.output


def test_init_writes_for_flannel_what_only_flannel_serves(ctl: Ctl) -> None:
    text = '{"Network":"10.5.0.0/16","Backend":{"Type":"ipip"}}'
    refused = ctl("init", text).output
    assert "'ipip', which is not offered: it has one header less than vxlan" in refused
    assert "--force writes it for Flannel" in refused
    assert ctl("init", "--network", "10.5.0.0/16", "--backend", "ipip").output == refused
    assert ctl("init", text, "--force").exit_code == 0
    assert ctl.value("config") == text.encode()


def test_a_reservation_is_kept_shown_and_released(ctl: Ctl) -> None:
    ctl("init", CONFIG)
    done = ctl("reserve", "10.5.72.0/24", "192.0.2.1")
    assert done.output == "10.5.72.0/24 is kept for 192.0.2.1\n"
    ctl.store.put(f"{PREFIX}/subnets/junk".encode(), b"x")
    shown = ctl("leases").output.splitlines()
    assert shown[1].split()[:4] == ["10.5.72.0/24", "192.0.2.1", "vxlan", "reservation"]
    assert shown[2].startswith(f"of no use: {PREFIX}/subnets/junk: ")
    ctl.store.put(f"{PREFIX}/config".encode(), b"junk{")
    assert f"of no use: {PREFIX}/config: not JSON: " in ctl("leases").output
    ctl("init", CONFIG)
    [row] = json.loads(ctl("leases", "-w", "json").output)["leases"]
    assert (row["subnet"], row["reserved"], row["host"]) == ("10.5.72.0/24", True, "")
    assert "belongs to PublicIP 192.0.2.1" in ctl("reserve", "10.5.72.0/24", "192.0.2.2").output
    assert ctl("release", "10.5.72.0/24").output == "10.5.72.0/24 is free\n"
    assert ctl.value("subnets/10.5.72.0-24") is None
    assert ctl("release", "10.5.72.0/24").exit_code == 1


def test_a_reservation_over_a_lease_of_flannel_warns_that_flanneld_undoes_it(ctl: Ctl) -> None:
    ctl("init", CONFIG)
    value = b'{"PublicIP":"192.0.2.1","BackendType":"vxlan","BackendData":{"VNI":1}}'
    lease = ctl.store.lease_grant(86_400).lease_id
    ctl.store.put(f"{PREFIX}/subnets/10.5.72.0-24".encode(), value, lease=lease)
    done = ctl("reserve", "10.5.72.0/24", "192.0.2.1")
    assert done.exit_code == 0
    assert done.stdout == "10.5.72.0/24 is kept for 192.0.2.1\n"
    assert "does not last while flanneld runs there" in done.stderr
    assert "--adopt-flannel" in done.stderr
    # It is one now, whose host may be ours; a host that is known to be ours keeps it.
    assert ctl("reserve", "10.5.72.0/24", "192.0.2.1").stderr == ""
    ctl.store.put(f"{PREFIX}/subnets/10.5.72.0-24".encode(), value, lease=lease)
    record = {"Subnet": "10.5.72.0/24", "PublicIP": "192.0.2.1", "Session": "s", "BootID": "b"}
    ctl.store.put(f"{PREFIX}/netplane/hosts/a".encode(), json.dumps(record).encode())
    assert ctl("reserve", "10.5.72.0/24", "192.0.2.1").stderr == ""


def test_leases_without_a_type_are_of_the_networks_backend(ctl: Ctl) -> None:
    # Flannel leaves it out for udp and for alloc.
    ctl.store.put(f"{PREFIX}/subnets/10.5.72.0-24".encode(), b'{"PublicIP":"192.0.2.1"}')
    assert ctl("leases").output.splitlines()[1].split()[2] == "udp"
    ctl("init", "--network", "10.5.0.0/16", "--backend", "alloc", "--force")
    assert ctl("leases").output.splitlines()[1].split()[2] == "alloc"


def test_hosts_tells_which_live(ctl: Ctl) -> None:
    record = {"Subnet": "10.5.72.0/24", "PublicIP": "192.0.2.1", "Session": "s", "BootID": "b"}
    for name in ("a", "b"):
        ctl.store.put(f"{PREFIX}/netplane/hosts/{name}".encode(), json.dumps(record).encode())
    ctl.store.put(f"{PREFIX}/netplane/alive/b".encode(), b'{"Session":"s"}')
    lines = [line.split() for line in ctl("hosts").output.splitlines()[1:]]
    assert lines == [
        ["a", "10.5.72.0/24", "192.0.2.1", "silent"],
        ["b", "10.5.72.0/24", "192.0.2.1", "runs"],
    ]
    assert [row["alive"] for row in json.loads(ctl("hosts", "-w", "json").output)] == [False, True]


def test_a_registry_that_is_down_is_named(ctl: Ctl) -> None:
    [port] = free_ports(1)
    done = ctl("leases", "--etcd-endpoints", f"127.0.0.1:{port}")
    assert done.exit_code == 1
    assert f"Hint: endpoints: 127.0.0.1:{port}" in done.output


def test_hosts_and_leases_of_either_family_are_shown_side_by_side(ctl: Ctl) -> None:
    # While a network gets IPv6 there are all three kinds.
    rows = {
        "a": {"Subnet": "10.5.72.0/24", "IPv6Subnet": "fd00:5::/64", "PublicIPv6": "2001:db8::1"},
        "b": {"Subnet": "fd00:5:0:1::/64", "PublicIP": "2001:db8::2"},
        "c": {"Subnet": "10.5.7.0/24"},
    }
    for name, fields in rows.items():
        record = {"PublicIP": "192.0.2.1", "Session": "s", "BootID": "b"} | fields
        ctl.store.put(f"{PREFIX}/netplane/hosts/{name}".encode(), json.dumps(record).encode())
    value = b'{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1"}'
    for key in ("10.5.72.0-24&fd00:5::-64", "0.0.0.0-0&fd00:5:0:1::-64", "10.5.7.0-24"):
        ctl.store.put(f"{PREFIX}/subnets/{key}".encode(), value)

    hosts = [line.split()[:3] for line in ctl("hosts").output.splitlines()[1:]]
    leases = [line.split() for line in ctl("leases").output.splitlines()[1:]]

    assert hosts == [
        ["c", "10.5.7.0/24", "192.0.2.1"],
        ["a", "10.5.72.0/24,fd00:5::/64", "192.0.2.1,2001:db8::1"],
        ["b", "fd00:5:0:1::/64", "2001:db8::2"],
    ]
    assert [(line[0], line[-1]) for line in leases] == [
        ("10.5.7.0/24", "c"), ("10.5.72.0/24,fd00:5::/64", "a"), ("fd00:5:0:1::/64", "b"),
    ]  # fmt: skip
