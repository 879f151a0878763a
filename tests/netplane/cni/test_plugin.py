"""The plugin as a runtime starts it, with the agent's real socket behind it or none."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from netplane.agent.containers.call import Call
from netplane.agent.containers.errors import CniError
from netplane.agent.containers.server import Server
from netplane.cli.netplane import main
from netplane.cni import plugin

VARIABLES = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "box-1",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin",
}
CONFIG = {"cniVersion": "1.1.0", "name": "net", "type": "netplane-cni"}


@dataclass
class Agent:
    """Answers calls as told, and notes them."""

    path: Path
    calls: list[Call] = field(default_factory=list)
    namespaces: list[tuple[int, int] | None] = field(default_factory=list)
    undone: list[Call] = field(default_factory=list)
    called: asyncio.Event = field(default_factory=asyncio.Event)
    took_back: asyncio.Event = field(default_factory=asyncio.Event)
    answer: Mapping[str, Any] | CniError | None = None
    goes_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def perform(self, call: Call, namespace: int) -> Mapping[str, Any] | None:
        self.calls.append(call)
        self.called.set()
        there = os.fstat(namespace) if namespace >= 0 else None
        self.namespaces.append(None if there is None else (there.st_dev, there.st_ino))
        await self.goes_on.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def undo(self, call: Call) -> None:
        self.undone.append(call)
        self.took_back.set()


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    made = Agent(tmp_path / "default.cni")
    made.goes_on.set()
    server = Server(made.perform, made.undo)
    server.listen(made.path)
    yield made
    await server.close()
    assert not made.path.exists()


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The plugin as `install-cni` writes it."""
    done = CliRunner().invoke(
        main,
        ["ctl", "install-cni", "--bin-dir", str(tmp_path / "bin"), "--run-dir", str(tmp_path),
         "--conf-dir", str(tmp_path / "net.d"), "--cni-version", "1.1.0"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return tmp_path / "bin/netplane-cni"


async def start(
    program: Path, config: object = CONFIG, **variables: str
) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        program, env=VARIABLES | variables,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(config if isinstance(config, bytes) else json.dumps(config).encode())
    process.stdin.close()
    return process


async def call(
    program: Path, config: object = CONFIG, **variables: str
) -> tuple[int, dict[str, Any]]:
    """Return the exit code and what was printed, of a call that ends."""
    process = await start(program, config, **variables)
    text, complaint = await process.communicate()
    assert not complaint, complaint
    assert process.returncode is not None
    return process.returncode, json.loads(text or "{}")


async def test_a_call_reaches_the_agent_with_config_variables_and_namespace(
    agent: Agent, program: Path
) -> None:
    agent.answer = {"cniVersion": "1.1.0", "ips": []}
    # Any file will do: what is compared is that the very same one arrives.
    there = agent.path.parent.stat()
    status, said = await call(program, CNI_NETNS=str(agent.path.parent), CNI_ARGS="IP=10.5.1.9")
    assert (status, said) == (0, agent.answer)
    [seen] = agent.calls
    assert (seen.command, seen.container, seen.ifname) == ("ADD", "box-1", "eth0")
    assert (seen.netns, seen.arguments) == (str(agent.path.parent), {"IP": "10.5.1.9"})
    assert seen.config == CONFIG
    assert agent.namespaces == [(there.st_dev, there.st_ino)]


async def test_what_the_agent_refuses_is_said_as_the_specification_has_it(
    agent: Agent, program: Path
) -> None:
    agent.answer = CniError(plugin.IN_USE, "the port is in use", "by box-2")
    status, said = await call(program, CONFIG | {"cniVersion": "0.4.0"}, CNI_NETNS="/")
    assert status == 1
    assert said == {
        "cniVersion": "0.4.0", "code": 101, "msg": "the port is in use", "details": "by box-2",
    }  # fmt: skip


async def test_a_verb_without_a_result_prints_nothing_and_a_namespace_may_be_gone(
    agent: Agent, program: Path
) -> None:
    assert await call(program, CNI_COMMAND="DEL", CNI_NETNS="/run/netns/gone") == (0, {})
    assert agent.namespaces == [None]


async def test_a_call_of_a_megabyte_arrives_whole(agent: Agent, program: Path) -> None:
    listed = [{"containerID": f"box-{n:>060}", "ifname": "eth0"} for n in range(12_000)]
    config = CONFIG | {"cni.dev/valid-attachments": listed}
    assert len(json.dumps(config)) > 1 << 20
    assert await call(program, config, CNI_COMMAND="GC") == (0, {})
    assert agent.calls[0].config == config


@pytest.mark.parametrize(
    ("variables", "code", "word"),
    [
        ({"CNI_COMMAND": "FLY"}, 4, "FLY"),
        ({"CNI_COMMAND": "add"}, 4, "add"),
        ({"CNI_NETNS": ""}, 4, "CNI_NETNS"),
        ({"CNI_CONTAINERID": ""}, 4, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": "../x"}, 4, "../x"),
        ({"CNI_CONTAINERID": "-x"}, 4, "-x"),
        ({"CNI_IFNAME": "a/b"}, 4, "a/b"),
        ({"CNI_IFNAME": ".."}, 4, ".."),
        ({"CNI_IFNAME": "a b"}, 4, "a b"),
        ({"CNI_IFNAME": "a" * 16}, 4, "a" * 16),
        ({"CNI_NETNS": "/run/netns/gone"}, 4, "/run/netns/gone"),
        ({"CNI_NETNS": "/proc/self/ns/net"}, 4, "own"),
        ({"CNI_COMMAND": "DEL", "CNI_NETNS": "/proc/self/ns/net"}, 4, "own"),
        ({"CNI_COMMAND": "GC", "CNI_PATH": ""}, 4, "CNI_PATH"),
    ],
)
async def test_an_environment_that_makes_no_sense_is_refused_before_the_agent_is_asked(
    agent: Agent, program: Path, variables: dict[str, str], code: int, word: str
) -> None:
    status, said = await call(program, **({"CNI_NETNS": "/"} | variables))
    assert (status, said["code"]) == (1, code)
    assert word in said["msg"] + said.get("details", "")
    assert not agent.calls


@pytest.mark.parametrize(
    ("config", "variables", "code"),
    [
        (b"{", {}, 6),
        (b"[]", {}, 6),
        (b"[" * 200_000, {}, 6),
        (b"[" * 200_000, {"CNI_COMMAND": "DEL"}, 6),
        (b" " * (plugin.CONFIG_BYTES_MAX + 1), {}, 6),
        ({"name": "net"}, {}, 1),
        (CONFIG | {"cniVersion": "0.2.0"}, {}, 1),
        (CONFIG | {"cniVersion": "2.0.0"}, {}, 1),
        (CONFIG | {"cniVersion": "0.3.1"}, {"CNI_COMMAND": "CHECK"}, 1),
        (CONFIG | {"cniVersion": "1.0.0"}, {"CNI_COMMAND": "GC"}, 1),
        (CONFIG | {"cniVersion": "1.0.0"}, {"CNI_COMMAND": "STATUS"}, 1),
        (CONFIG | {"name": "a b"}, {}, 7),
        (CONFIG | {"name": None}, {}, 7),
        (CONFIG | {"ipam": {"type": "host-local"}}, {}, 2),
        (CONFIG, {"CNI_ARGS": "IP"}, 4),
    ],
)
async def test_a_configuration_that_makes_no_sense_is_refused(
    agent: Agent, program: Path, config: object, variables: dict[str, str], code: int
) -> None:
    status, said = await call(program, config, **({"CNI_NETNS": "/"} | variables))
    assert (status, said["code"]) == (1, code), said
    assert not agent.calls


async def test_without_an_agent_what_can_wait_is_left_for_it_and_the_rest_is_refused(
    tmp_path: Path, program: Path
) -> None:
    for command, code in (("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50)):
        status, said = await call(program, CNI_COMMAND=command, CNI_NETNS="/")
        assert (status, said["code"]) == (1, code)
        assert "netplane agent" in said["details"]
    # Twice: it is one call.
    for _ in range(2):
        assert await call(program, CNI_COMMAND="DEL") == (0, {})
    [left] = (tmp_path / "default.cni.deleted").iterdir()
    assert json.loads(left.read_text()) == {
        "network": "net", "container": "box-1", "ifname": "eth0",
    }  # fmt: skip
    # Nobody could ever tell what is to be deleted.
    status, said = await call(program, b"{}", CNI_COMMAND="DEL")
    assert (status, said["code"]) == (1, 7)


async def test_an_agent_that_dies_in_a_call_is_as_one_that_is_not_there(
    tmp_path: Path, program: Path
) -> None:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as dying:
        dying.bind(str(tmp_path / "default.cni"))
        dying.listen()
        dying.setblocking(False)
        for answer in (b"", b"0 5\n", b"0 5\n{}", b"junk\n"):
            calling = asyncio.create_task(call(program, CNI_COMMAND="CHECK", CNI_NETNS="/"))
            connection, _ = await asyncio.get_running_loop().sock_accept(dying)
            with connection:
                await asyncio.get_running_loop().sock_recv(connection, 65536)
                connection.send(answer) if answer else None
            status, said = await calling
            assert (status, said["code"]) == (1, 11), said
            assert "went away" in said["details"]


async def test_who_does_not_wait_for_its_result_gets_nothing_that_stays(
    agent: Agent, program: Path
) -> None:
    # The runtime has killed the plugin: nobody will ever know the address.
    agent.goes_on.clear()
    agent.answer = {"cniVersion": "1.1.0"}
    process = await start(program, CNI_NETNS="/")
    async with asyncio.timeout(10):
        await agent.called.wait()
        process.kill()
        await process.wait()
        agent.goes_on.set()
        await agent.took_back.wait()
    assert agent.undone == agent.calls


async def test_who_has_gone_before_its_turn_is_not_served(agent: Agent, program: Path) -> None:
    frame = b"CNI_COMMAND=STATUS\0CNI_PATH=/x"
    config = json.dumps(CONFIG).encode()
    call_ = b"%s %d %d\n%s%s" % (plugin.MAGIC, len(frame), len(config), frame, config)
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as caller:
        # Connecting needs nobody's accept.
        caller.connect(str(agent.path))
        caller.sendall(call_)
    # The one behind it is served, so its turn was over.
    assert await call(program, CNI_COMMAND="STATUS") == (0, {})
    assert len(agent.calls) == 1


@pytest.mark.parametrize(
    "junk",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"netplane-cni 2 3 3\n",
        b"netplane-cni 1 -1 5\n",
        b"netplane-cni 1 5\n",
        b"netplane-cni 1 99999999999 0\n",
        b"x" * 200,
        b"\xff\n",
    ],
)
async def test_what_is_no_call_is_dropped_and_others_are_served(
    agent: Agent, program: Path, junk: bytes
) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as caller:
        caller.connect(str(agent.path))
        caller.setblocking(False)
        await loop.sock_sendall(caller, junk)
        async with asyncio.timeout(10):
            # Reset: closed with something unread.
            with contextlib.suppress(ConnectionResetError):
                assert await loop.sock_recv(caller, 100) == b""
    assert await call(program, CNI_COMMAND="STATUS") == (0, {})


async def test_no_descriptor_is_left_open(agent: Agent, program: Path) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    assert await call(program, CNI_NETNS="/") == (0, {})
    before = descriptors()
    for _ in range(3):
        assert await call(program, CNI_NETNS="/") == (0, {})
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(agent.path))
        socket.send_fds(caller, [b"junk\n"], [0, 1, 2, 0, 1, 2])
        caller.setblocking(False)
        with contextlib.suppress(ConnectionResetError):
            await asyncio.get_running_loop().sock_recv(caller, 1)
    assert descriptors() == before


async def test_versions_need_no_agent(program: Path) -> None:
    for config, version in ((CONFIG, "1.1.0"), ({"cniVersion": "0.4.0"}, "0.4.0"), (b"", "1.1.0")):
        status, said = await call(program, config, CNI_COMMAND="VERSION")
        assert (status, said["cniVersion"]) == (0, version)
        assert said["supportedVersions"] == ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]


def test_started_by_hand_it_says_what_it_is(program: Path) -> None:
    done = subprocess.run([program], env={}, capture_output=True, text=True, check=True)
    assert "CNI plugin" in done.stderr
    assert not done.stdout


def test_what_a_call_does_not_need_is_not_imported() -> None:
    # Each of these takes as long as all the rest of a call.
    script = (
        "import sys\n"
        f"sys.path.append({str(Path(plugin.__file__).parent)!r})\n"
        "import plugin\n"
        "heavy = {'json', 're', 'typing', 'collections', 'enum', 'socket', 'hashlib', 'site'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-IS", "-c", script], check=True)


def test_the_installed_plugin_says_when_netplane_is_gone(program: Path) -> None:
    text = program.read_text()
    folder = str(Path(plugin.__file__).parent)
    program.write_text(text.replace(repr(folder), "'/nowhere'"))
    done = subprocess.run([program], env=VARIABLES, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout)["code"] == 5
    assert "install-cni" in done.stdout
