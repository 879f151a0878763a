"""`netplane ctl install-cni`: what it writes, and what it leaves alone."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from netplane.cli.netplane import main


def install(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(
        main,
        ["ctl", "install-cni", "--bin-dir", str(folder / "bin"),
         "--conf-dir", str(folder / "net.d"), *arguments],
    )  # fmt: skip


def test_plugin_and_network_are_written_and_written_again(tmp_path: Path) -> None:
    for _ in range(2):
        done = install(tmp_path)
        assert done.exit_code == 0, done.output
    program = tmp_path / "bin/netplane-cni"
    assert stat.S_IMODE(program.stat().st_mode) == 0o755
    # Without what sitecustomize and PYTHONPATH of whoever calls would add.
    assert program.read_text().splitlines()[0] == f"#!{os.path.realpath(sys.executable)} -IS"
    assert "'/run/netplane/default.cni'" in program.read_text()
    [network] = (tmp_path / "net.d").iterdir()
    assert network.name == "10-netplane.conflist"
    assert json.loads(network.read_text()) == {
        "cniVersion": "1.0.0",
        "name": "netplane",
        "plugins": [
            {
                "type": "netplane-cni",
                "capabilities": {"portMappings": True, "ips": True, "mac": True},
            }
        ],
    }


def test_each_instance_has_a_plugin_and_a_network_of_its_own(tmp_path: Path) -> None:
    for name in ("default", "blue"):
        assert install(tmp_path, "--instance", name, "--run-dir", "/r").exit_code == 0
    assert {path.name for path in (tmp_path / "bin").iterdir()} == {
        "netplane-cni", "netplane-cni-blue",
    }  # fmt: skip
    assert "'/r/blue.cni'" in (tmp_path / "bin/netplane-cni-blue").read_text()
    network = json.loads((tmp_path / "net.d/10-netplane-blue.conflist").read_text())
    assert (network["name"], network["plugins"][0]["type"]) == (
        "netplane-blue",
        "netplane-cni-blue",
    )


def test_a_network_where_other_plugins_were_put_behind_ours_is_kept(tmp_path: Path) -> None:
    assert install(tmp_path).exit_code == 0
    config, program = tmp_path / "net.d/10-netplane.conflist", tmp_path / "bin/netplane-cni"
    network = json.loads(config.read_text())
    network["plugins"].append({"type": "bandwidth"})
    config.write_text(json.dumps(network))
    program.unlink()
    done = install(tmp_path)
    assert done.exit_code == 0, done.output
    assert "left as it is: it has netplane-cni, bandwidth" in done.output
    assert json.loads(config.read_text()) == network
    assert program.exists()


@pytest.mark.parametrize("text", ['{"name":"netplane","plugins":[{"type":"bridge"}]}', "junk"])
def test_a_network_of_another_plugin_is_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "net.d").mkdir()
    config = tmp_path / "net.d/10-netplane.conflist"
    config.write_text(text)
    done = install(tmp_path)
    assert done.exit_code == 1
    assert "of another plugin" in done.output
    assert config.read_text() == text
    assert not (tmp_path / "bin").exists()
    assert install(tmp_path, "--name", "other").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--name", "a b"], "a b"),
        (["--instance", "A"], "A"),
        (["--bin-dir", "/proc/x"], "/proc/x"),
    ],
)
def test_what_cannot_be_is_refused_in_words(
    tmp_path: Path, arguments: list[str], word: str
) -> None:
    done = install(tmp_path, *arguments)
    assert done.exit_code == 1
    assert word in done.output
    assert "Hint: " in done.output
