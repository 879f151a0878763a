"""docs/netplane.md names every flag, every command and every code that scripts may rely on."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from ipaddress import IPv4Interface
from pathlib import Path

import click
import pytest

from netplane.agent.containers.names import bridge_name, port_name
from netplane.agent.containers.records import Key
from netplane.backend import External, choose
from netplane.cli.agent import agent
from netplane.cli.ctl import ctl
from netplane.subnet.config import parse_config

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "netplane.md").read_text()
_CODE = re.compile(r"""\.(?:miss|note)\(\s*"([a-z-]+)"|\bboard\.missing\["([a-z-]+)"\]""")
_ROW = re.compile(r"^\| `([a-z-]+)` \|", re.MULTILINE)


def test_every_flag_of_the_agent_is_on_the_page() -> None:
    flags = {name for each in agent.params for name in each.opts if name.startswith("--")}
    assert {flag for flag in flags if f"`{flag}`" not in PAGE} == set()


def test_every_command_is_on_the_page() -> None:
    section = PAGE.partition("## netplane ctl")[2].partition("\n## ")[0]
    context = click.Context(ctl)
    assert {name for name in ctl.list_commands(context) if f"`{name}" not in section} == set()


def test_the_codes_of_readyz_on_the_page_are_those_that_there_are() -> None:
    section = PAGE.partition("## What /readyz and status say")[2].partition("\n## ")[0]
    told = {
        code
        for path in (ROOT / "netplane").rglob("*.py")
        for found in _CODE.findall(path.read_text())
        for code in found
        if code
    }
    assert set(_ROW.findall(section)) == told


@pytest.mark.parametrize("where", [r"^Name=(.*)$", r"^unmanaged-devices=(.*)$"])
def test_every_device_of_ours_is_kept_from_programs_that_correct_devices(where: str) -> None:
    [line] = re.findall(where, PAGE, re.MULTILINE)
    patterns = re.split("[ ;]", line.replace("interface-name:", ""))
    links = {bridge_name("default"), port_name("default", Key("network", "id", "eth0")), "np6.1"}
    external = External("eth0", IPv4Interface("192.0.2.1/24"), 1500)
    for kind in choose.OFFERED:
        config = parse_config(b'{"Network":"10.5.0.0/16","Backend":{"Type":"%s"}}' % kind.encode())
        links.add(choose.make(config, external=external, mac="02:00:00:00:00:01").scope.link)
    links.discard("")  # of backends without a device
    assert {one for one in links if not any(fnmatch(one, each) for each in patterns)} == set()
