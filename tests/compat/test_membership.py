"""Membership through etcdctl against etcd and us, and through kvctl: the same words and codes.

An added member's id holds the time, so ids are replaced by names, and what is ordered by id is
sorted. The clusters run one after the other on the same ports: all else is the same by itself.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from kvstore.client import Client, KvError
from tests.cli.running import Done, run_kvctl, spawn_etcdctl
from tests.compat.conftest import need
from tests.servers import Cluster, Etcd, Kvstore, free_ports

pytestmark = [
    pytest.mark.etcd,
    pytest.mark.etcdctl,
    pytest.mark.cluster,
    pytest.mark.timeout(180),
]

FLAGS = ("--heartbeat-interval", "50", "--election-timeout", "500")
Tool = Callable[[list[str]], Done]

REFUSED_BY_THE_TOOL = """
member add
member add e4
member add e4 e5
member add e4 http://127.0.0.1:1
member add e4 --peer-urls=
member add e4 --peer-urls=nonsense
member add e4 --peer-urls=http://127.0.0.1
member add e4 --peer-urls=http://127.0.0.1:1/path
member update
member update zz --peer-urls=http://127.0.0.1:1
member update {e3}
member promote
member promote zz
member remove
member remove zz
member remove 1 2
member remove 10000000000000000
"""
REFUSED_BY_THE_SERVER = """
member add e4 --peer-urls={url1}
member update {e3} --peer-urls={url1}
member update 1234 --peer-urls=http://127.0.0.1:1
member promote 1234
member promote {e3}
member remove 1234
"""
CHANGES = """
member add e5 --peer-urls=http://127.0.0.1:1 -w json
member list
member update {new} --peer-urls=http://127.0.0.1:2,http://127.0.0.1:3
member update {new} --peer-urls=http://127.0.0.1:2 -w json
member promote {new}
member remove {new} -w json
member remove {new}
member update {new} --peer-urls=http://127.0.0.1:2
member add e4 --peer-urls={url4} --learner
member list
member promote {new}
member add e5 --peer-urls=http://127.0.0.1:4 --learner
"""
MOVES = """
move-leader
move-leader zz
move-leader 1234
move-leader {new}
move-leader {e2}
move-leader {e1} -w json
move-leader {e1}
move-leader {e1} -w fields
move-leader {e1} -w table
"""
PROMOTED = """
member list
member promote {new}
member list -w json
member list -w table
member remove {new}
member list
"""
ONE_DOWN = """
member remove {e3}
member add e9 --peer-urls=http://127.0.0.1:9
member remove {e2}
member list
"""


class Story:
    """Runs one tool on one cluster of three and keeps what it said."""

    def __init__(self, tool: Tool, cluster: Cluster) -> None:
        self.told: list[str] = []
        self.ids: dict[str, str] = {}
        self._tool = tool
        self._cluster = cluster

    def run(self) -> list[str]:
        """Run everything and return the lines."""
        cluster = self._cluster
        with Client(cluster.endpoints, timeout_s=20) as client:
            members = {member.name: member for member in client.member_list()}
            self.ids |= {name: f"{member.member_id:x}" for name, member in members.items()}
            self._until_healthy(client)
            client.move_leader(members["e1"].member_id)
            new = cluster.reserve()
            first = cluster.endpoints[0]
            self._tell(REFUSED_BY_THE_TOOL + REFUSED_BY_THE_SERVER + CHANGES, first)
            self._tell(MOVES, ",".join(cluster.endpoints[:3]))
            self._tell("move-leader {e2}", cluster.endpoints[1])  # not the leader's endpoint
            cluster.join(new, range(4))
            cluster.wait(new)
            there = cluster.endpoints[new]
            self._tell("get k\nput k 1\nget k --consistency=s", there)
            self._promote(first)
            self._tell(PROMOTED, first)
            self._until_healthy(client)
            cluster.kill(1)
            self._tell(ONE_DOWN, first)
        return self.told

    def _until_healthy(self, client: Client) -> None:
        while True:
            try:
                learner = client.member_add(["http://127.0.0.1:8"], is_learner=True)
            except KvError as error:
                if error.text != "etcdserver: unhealthy cluster":
                    raise
            else:
                client.member_remove(learner.member_id)
                return

    def _promote(self, endpoints: str) -> None:
        while True:
            done = self._do("member promote {new}", endpoints)
            if b"in sync with leader" not in done.err:
                self._note("member promote", done)
                return

    def _tell(self, commands: str, endpoints: str) -> None:
        for line in filter(None, commands.splitlines()):
            self._note(line, self._do(line, endpoints))

    def _do(self, line: str, endpoints: str) -> Done:
        for name, number in self.ids.items():
            line = line.replace(f"{{{name}}}", number)
        for number, url in enumerate(self._cluster.peer_urls, 1):
            line = line.replace(f"{{url{number}}}", url)
        done = self._tool(["--endpoints", endpoints, *line.split()])
        if line.startswith("member add") and done.code == 0:
            self.ids["new"] = self._new_id(done.out.decode())
        return done

    @staticmethod
    def _new_id(out: str) -> str:
        found = re.search(r"Member +([0-9a-f]+) added", out)
        return found[1] if found else f"{json.loads(out)['member']['ID']:x}"

    def _note(self, line: str, done: Done) -> None:
        self.told.append(f"$ {line}")
        self.told.append(f"exit status {done.code}")
        out = done.out.decode()
        lines = [self._json(out)] if out.startswith("{") else out.splitlines()
        self.told += sorted(map(self._named, lines))
        err = [each for each in done.err.decode().splitlines() if not each.startswith("Hint: ")]
        self.told += map(self._named, err)

    @staticmethod
    def _json(text: str) -> str:
        value: dict[str, Any] = json.loads(text)
        value.get("header", {}).pop("raft_term", None)
        value.get("members", []).sort(key=lambda member: member["peerURLs"])
        return json.dumps(value)

    def _named(self, line: str) -> str:
        for name, number in self.ids.items():
            line = re.sub(rf"\b{number}\b", f"<{name}>", line)
            line = re.sub(rf"\b{int(number, 16)}\b", f"<{name}>", line)
        line = re.sub(r" +<", " <", line)  # the width of an id
        if line.startswith("ETCD_INITIAL_CLUSTER="):
            return "".join(sorted(re.split('([",])', line)))
        return line


def story(kind: type[Cluster], tool: Tool, ports: list[int]) -> list[str]:
    left = list(ports)

    def choose(count: int) -> list[int]:
        return [left.pop(0) for _ in range(count)]

    with kind(3, FLAGS, ports=choose) as cluster:
        return Story(tool, cluster).run()


def test_the_tools_and_the_servers_tell_the_same() -> None:
    need("etcd", "etcdctl")
    ports = free_ports(8)

    etcd = story(Etcd, spawn_etcdctl, ports)

    assert sum(line.startswith("$ ") for line in etcd) > 50
    for tool in (spawn_etcdctl, run_kvctl):
        ours = story(Kvstore, tool, ports)
        difference = "\n".join(difflib.unified_diff(etcd, ours, "etcd", "ours", lineterm="", n=4))
        assert not difference, f"{tool.__name__}:\n{difference}"
