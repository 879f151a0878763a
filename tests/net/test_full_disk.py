"""An agent whose disk is full, on a real file system of 256 KiB."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.net.namespaces import missing, run
from tests.net.overlay import AgentProcess, Overlay, until

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]


@pytest.fixture
def agent() -> Iterator[AgentProcess]:
    """The agent of one host; what it remembers is alone on a small file system. It does not run."""
    with Overlay(1) as overlay:
        agent = overlay.agents[0]
        assert agent.terminate() == 0
        folder = agent.folder
        kept = folder.rename(folder.with_name("kept"))
        folder.mkdir()
        run("mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder))
        try:
            shutil.copytree(kept, folder, dirs_exist_ok=True)
            yield agent
            if agent.is_running:
                agent.kill()
        finally:
            run("umount", "--lazy", str(folder))


def fill(folder: Path) -> Path:
    """Write until no byte is free."""
    path = folder / "ballast"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.errno == 28, error  # noqa: PT017 (any other is no full disk)
    return path


def test_after_a_reboot_with_a_full_disk_the_network_is_there(agent: AgentProcess) -> None:
    ballast = fill(agent.folder)
    agent.host.namespace.ip("link del np.1")
    agent.start()
    agent.wait_ready()
    assert agent.host.namespace.json("ip", "-j", "link", "show", "np.1")
    # It has a new session to remember, and says that it cannot.
    until(lambda: "state-file" in agent.status()["notes"], 10, "the full disk is told")
    assert "No space left on device" in agent.status()["notes"]["state-file"]
    ballast.unlink()
    until(lambda: "state-file" not in agent.status()["notes"], 10, "it is written after all")


def test_subnet_env_comes_when_there_is_room(agent: AgentProcess) -> None:
    (agent.folder / "subnet.env").unlink()
    ballast = fill(agent.folder)
    agent.start()
    until(lambda: is_missing(agent, "subnet-file"), 30, f"it says so; its log:\n{agent.log()}")
    ballast.unlink()
    agent.wait_ready()
    assert agent.subnet


def is_missing(agent: AgentProcess, code: str) -> bool:
    """Tell whether the agent answers, and misses something."""
    assert agent.is_running, agent.log()
    try:
        return list(agent.status()["missing"]) == [code]
    except OSError:  # not yet
        return False
