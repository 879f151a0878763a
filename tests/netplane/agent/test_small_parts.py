"""subnet.env, lock, sd_notify, board and settings."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from dataclasses import asdict
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path

import pytest

from netplane.agent import subnet_env
from netplane.agent.board import Board
from netplane.agent.errors import LockedError, SettingsError
from netplane.agent.files import write_whole
from netplane.agent.inspection import look_at_firewall
from netplane.agent.lock import InstanceLock, LinkLock, RoutesLock
from netplane.agent.notify import notify
from netplane.agent.ports import FirewallLook
from netplane.agent.settings import Registry, Settings
from netplane.agent.telling import tell_key
from netplane.agent.wiring import make_client
from netplane.subnet.family import Pair
from netplane.subnet.lease import Lease

NETWORK, SUBNET = IPv4Network("10.5.0.0/16"), IPv4Network("10.5.72.0/24")
FLANNELS = (
    "FLANNEL_NETWORK=10.5.0.0/16\n"
    "FLANNEL_SUBNET=10.5.72.1/24\n"
    "FLANNEL_MTU=1450\n"
    "FLANNEL_IPMASQ=false\n"
)


def test_subnet_env_is_what_flannel_writes(tmp_path: Path) -> None:
    path = tmp_path / "run" / "subnet.env"
    text = subnet_env.render(Pair(NETWORK), Pair(SUBNET), 1450)
    assert text == FLANNELS
    assert subnet_env.write(path, text)
    assert path.read_text() == FLANNELS
    assert path.stat().st_mode & 0o777 == 0o644  # CNI plugins may run as anybody
    assert subnet_env.read_subnets(path) == Pair(SUBNET)


NETWORK6, SUBNET6 = IPv6Network("fd00:5::/48"), IPv6Network("fd00:5:0:48::/64")
FLANNELS6 = "FLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:48::1/64\n"


@pytest.mark.parametrize("has_ipv4", [True, False])
def test_subnet_env_has_ipv6_as_flannel_writes_it(has_ipv4: bool, tmp_path: Path) -> None:
    networks = Pair(NETWORK, NETWORK6) if has_ipv4 else Pair(NETWORK6)
    subnets = Pair(SUBNET, SUBNET6) if has_ipv4 else Pair(SUBNET6)
    path = tmp_path / "subnet.env"

    text = subnet_env.render(networks, subnets, 1430, ip_masq=True)

    ipv4 = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/24\n" if has_ipv4 else ""
    assert text == f"{ipv4}{FLANNELS6}FLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n"
    subnet_env.write(path, text)
    assert subnet_env.read_subnets(path) == subnets


def test_of_a_subnet_env_counts_what_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    path.write_text(f"FLANNEL_SUBNET=10.5.72.1/33\n{FLANNELS6}")
    assert subnet_env.read_subnets(path) == Pair(SUBNET6)
    path.write_text("FLANNEL_SUBNET='10.5.72.1/24'\nFLANNEL_IPV6_SUBNET=10.5.72.1/24\n")
    assert subnet_env.read_subnets(path) == Pair(SUBNET)


def test_subnet_env_is_left_alone_when_it_is_right(tmp_path: Path) -> None:
    # Whoever watches the file would restart its containers for nothing.
    path = tmp_path / "subnet.env"
    subnet_env.write(path, FLANNELS)
    number = path.stat().st_ino
    assert not subnet_env.write(path, FLANNELS)
    assert path.stat().st_ino == number


def test_a_file_is_on_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In any other order a power cut may leave an empty file, or the old one after we told others.
    done: list[str] = []
    path = tmp_path / "state"
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(number: int) -> None:
        what = os.readlink(f"/proc/self/fd/{number}")
        done.append(
            "fsync folder" if what == str(tmp_path) else f"fsync {os.fstat(number).st_size}"
        )
        real_fsync(number)

    def replace(source: str, target: Path) -> None:
        done.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_whole(path, "12345")
    assert done == ["fsync 5", "rename", "fsync folder"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    write_whole(path, "old")

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"FLANNEL_SUBNET=\n",
        b"FLANNEL_SUBNET=10.5.72.1/33\n",
        b"\xff\xff",
        b"OTHER=10.5.72.1/24",
    ],
)
def test_a_subnet_env_of_no_use_tells_nothing(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    path.write_bytes(content)
    assert subnet_env.read_subnets(path) is None
    assert subnet_env.read_subnets(tmp_path / "missing") is None
    assert subnet_env.write(path, FLANNELS)


def test_the_second_agent_is_told_who_has_the_lock(tmp_path: Path) -> None:
    first = InstanceLock(tmp_path / "lib" / "default.lock").acquire()
    with pytest.raises(LockedError, match=f"process {os.getpid()}, lock .*default.lock"):
        InstanceLock(tmp_path / "lib" / "default.lock").acquire()
    InstanceLock(tmp_path / "lib" / "other.lock").acquire().close()
    first.close()
    InstanceLock(tmp_path / "lib" / "default.lock").acquire().close()


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "default.lock"
    script = (
        "import sys; from pathlib import Path; from netplane.agent.lock import InstanceLock\n"
        "InstanceLock(Path(sys.argv[1])).acquire(); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LockedError, match=f"process {holder.pid}"):
            InstanceLock(path).acquire()
        holder.kill()
        holder.wait()
    InstanceLock(path).acquire().close()


def test_one_device_has_one_agent_whatever_their_instances(tmp_path: Path) -> None:
    link = f"np.{os.getpid()}"
    first = LinkLock(link)
    with pytest.raises(LockedError, match=f"another agent of this host keeps the device {link}; "):
        LinkLock(link)
    LinkLock(f"{link}x").close()
    first.close()
    LinkLock(link).close()


def test_one_network_has_one_agent_and_so_has_what_overlaps_it() -> None:
    wide, narrow, beside = map(
        IPv4Network, ("203.0.113.0/25", "203.0.113.64/26", "203.0.113.128/25")
    )
    first = RoutesLock(wide)
    with pytest.raises(LockedError, match=r"keeps routes into 203\.0\.113\.0/25; "):
        RoutesLock(wide)
    overlaps = r"keeps routes into 203\.0\.113\.0/25, which overlaps 203\.0\.113\.64/26; "
    with pytest.raises(LockedError, match=overlaps):
        RoutesLock(narrow)
    RoutesLock(beside).close()
    # What was configured before is still kept when the agent goes on with the new.
    RoutesLock(narrow, [wide]).close()
    first.close()
    # Whoever has a name that is no network there stands in nobody's way.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        stranger.bind(f"\0netplane/routes/{os.getpid()}/x")
        RoutesLock(narrow).close()


@pytest.mark.parametrize("form", ["path", "abstract"])
def test_systemd_is_told(form: str, tmp_path: Path) -> None:
    name = f"@netplane-test-{os.getpid()}" if form == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name[1:] if form == "abstract" else name)
        assert notify("READY=1", "STATUS=10.5.72.0/24", environment={"NOTIFY_SOCKET": name})
        assert systemd.recv(4096) == b"READY=1\nSTATUS=10.5.72.0/24"


@pytest.mark.parametrize("name", ["", "relative", "/nowhere/at/all"])
def test_without_systemd_nobody_is_told_and_nothing_fails(name: str) -> None:
    assert not notify("READY=1", environment={"NOTIFY_SOCKET": name})


def test_the_board_logs_a_change_once(caplog: pytest.LogCaptureFixture) -> None:
    board = Board()
    with caplog.at_level("INFO"):
        for _ in range(3):
            board.miss("no-lease", "all 254 subnets are taken")
        board.note("quarantined", "1 key")
    assert len(caplog.records) == 2
    assert not board.is_ready
    assert board.text() == "no-lease: all 254 subnets are taken\n"
    with caplog.at_level("INFO"):
        board.miss("no-lease", "")
        board.miss("no-lease", "")
    # What there is to wait for is said, too.
    assert [record.getMessage() for record in caplog.records[2:]] == [
        "no-lease: no longer", "ready",
    ]  # fmt: skip
    assert board.is_ready
    assert board.notes == {"quarantined": "1 key"}


BAD = {
    "no registry endpoint": Settings(Registry(endpoints=())),
    "absolute path": Settings(Registry(prefix="coreos.com/network")),
    "without a slash at its end": Settings(Registry(prefix="/net/")),
    "go together": Settings(Registry(cert_file="cert.pem")),
    "--etcd-username and --etcd-password go together": Settings(Registry(user="root")),
    "--etcd-password go together": Settings(Registry(password="secret")),
    "--healthz-ip 'localhost' is no address": Settings(healthz_ip="localhost"),
    "--instance 'A b'": Settings(instance="A b"),
    "--host-id '../x'": Settings(host_id="../x"),
    r"--iface-regex '\('": Settings(iface_regex=("(",)),
    "no host can be reached": Settings(public_ip=IPv4Address("0.0.0.0")),
    "--healthz-port": Settings(healthz_port=70000),
    "--removal-grace": Settings(removal_grace_s=0),
    "--heal-interval": Settings(heal_interval_s=-1),
    "too long for a socket": Settings(run_dir=Path("/" + "x" * 100)),
}


@pytest.mark.parametrize("text", BAD)
def test_settings_that_cannot_work_are_refused_with_what_helps(text: str) -> None:
    with pytest.raises(SettingsError, match=text) as refused:
        BAD[text].check()
    assert refused.value.remedy


@pytest.mark.parametrize("flag", ["ca_file", "cert_file"])
def test_files_of_no_use_are_named_before_anybody_is_asked(flag: str, tmp_path: Path) -> None:
    # Not by what fails at the first call: that would end an agent, and look like its own fault.
    absent, junk = tmp_path / "absent.pem", tmp_path / "junk.pem"
    junk.write_text("not PEM")
    for file in absent, junk:
        names = {"ca_file": str(file)}
        if flag == "cert_file":
            names = {"cert_file": str(file), "key_file": str(junk)}
        with pytest.raises(SettingsError, match=f"cannot use {file}") as refused:
            make_client(Registry(("https://192.0.2.1:2379",), **names))
        assert "--etcd-cafile" in refused.value.remedy


def test_settings_that_work_are_not() -> None:
    with contextlib.nullcontext():
        Settings().check()
        Settings(
            Registry(("https://a:2379",), "/x", "ca", "cert", "key", "root", "secret"),
            instance="vni-16777215",
        ).check()


def test_what_is_said_of_the_firewall() -> None:
    def said(look: FirewallLook | None, *, forwarded: bool = True) -> list[tuple[str, str, str]]:
        found = look_at_firewall(None if look is None else asdict(look), forwarded=forwarded)
        return [(one.subject, one.state.value, one.text) for one in found]

    table = ("firewall", "ok", "our table is as it should be")
    assert said(FirewallLook((), (), (), ())) == [
        table, ("forward", "ok", "no chain drops what no rule of it accepts"),
    ]  # fmt: skip
    chains = FirewallLook((), ("ip filter FORWARD",), ("chain inet mine through drops",), ())
    assert said(chains) == [
        table,
        ("forward", "ok", "accepted in front of chain ip filter FORWARD"),
        ("forward", "hint", "chain inet mine through drops"),
    ]
    assert said(chains, forwarded=False) == [table]
    assert said(FirewallLook(("rule x is missing",), (), (), ())) == [
        ("firewall", "wrong", "rule x is missing")
    ]
    # What could not be read is not said to be right.
    assert said(FirewallLook((), (), (), ("Operation not permitted",))) == [
        table, ("firewall", "unseen", "Operation not permitted"),
    ]  # fmt: skip
    may = FirewallLook((), (), (), (), ("whether rules of chain inet mine through drop",))
    assert said(may) == [
        table, ("forward", "unseen", "whether rules of chain inet mine through drop"),
    ]  # fmt: skip
    assert said(may, forwarded=False) == [table]
    assert [state for _, state, _ in said(None)] == ["unseen"]


def test_a_key_that_the_others_do_not_know_yet_is_named() -> None:
    board = Board()
    registered = Lease(SUBNET, IPv4Address("192.0.2.1"), "netplane-udp", {"PublicKey": "aa"})
    tell_key(registered, {"PublicKey": "bb"}, board)
    assert "not in our lease yet" in board.missing["key"]
    tell_key(registered, {"PublicKey": "aa"}, board)
    assert board.is_ready
    tell_key(None, {"PublicKey": "aa"}, board)
    assert not board.is_ready
    # Plain packets, and other backends.
    for data in None, {"VNI": 1}, {"PublicKey": ""}:
        tell_key(registered, data, board)
        assert board.is_ready
