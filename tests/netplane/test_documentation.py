"""docs/netplane.md names every flag, every command and every code that scripts may rely on."""

from __future__ import annotations

import re
from pathlib import Path

import click

from netplane.cli.agent import agent
from netplane.cli.ctl import ctl

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
