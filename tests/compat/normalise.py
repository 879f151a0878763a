"""Replaces what may differ between two runs, field by named field; everything else stays.

Replaced: lease ids (by their number in the order of granting), Raft term and index, database
sizes, versions of the server, the leader's identity, remaining seconds and elapsed times, and in
etcdctl's own log lines time stamp and channel id. The keys attached to a lease are sorted (etcd
answers them in the random order of a Go map). Member and cluster ids, revisions, hashes,
counts, orders and texts are not touched: both clusters run with the same names, ports and token.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.compat.runner import Output

REMAINING_SLACK_S = 20
"""A lease's remaining seconds may be that much below the granted ones, and never above."""

JSON_FIELDS = {
    "raft_term": "raft term",
    "raftTerm": "raft term",
    "raftIndex": "raft index",
    "raftAppliedIndex": "raft index",
    "dbSize": "db size",
    "dbSizeInUse": "db size",
    "took": "time",
    "ts": "time",
}
STATUS_FIELDS = {"version": "version", "leader": "leader"}
"""Only right under "Status": a key-value has a `version` too."""

LEASE_FIELDS = {"ID", "id", "lease", "Lease"}

PLAIN_FIELDS = {  # `-w fields`
    "RaftTerm": "raft term",
    "RaftIndex": "raft index",
    "RaftAppliedIndex": "raft index",
    "DBSize": "db size",
    "Leader": "leader",
}

STATUS_COLUMNS = {  # `endpoint status`, table and simple
    2: "version",
    3: "db size",
    4: "is leader",
    6: "raft term",
    7: "raft index",
    8: "raft index",
}

JsonValue = object


class Normaliser:
    """Normalises the outputs of one transcript."""

    def __init__(self, leases: Sequence[int]) -> None:
        self._leases = {lease: f"<lease {number}>" for number, lease in enumerate(leases, 1)}

    def lines(self, output: Output) -> list[str]:
        """Return what the command did as lines that two clusters must share."""
        result = [f"exit status {output.code}"]
        result += [f"never came: {text}" for text in output.missed]
        for stream, text in (("out", output.stdout), ("err", output.stderr)):
            lines = [self._line(line, output) for line in text.split("\n")]
            if output.case.unordered:
                lines.sort()
            result += [f"{stream}: {line}" for line in lines]
        if output.case.argv[:2] == ("endpoint", "status"):
            result.append(f"leaders: {_leaders(output.stdout)}")
        return result

    def _line(self, line: str, output: Output) -> str:
        argv = output.case.argv
        if line[:1] in ("{", "["):
            try:
                value = json.loads(line)
            except ValueError:
                pass
            else:
                return json.dumps(self._json(value, parent="", own_log="caller" in value))
        if argv[:2] == ("endpoint", "status"):
            if line.startswith("|"):
                return " | ".join(_status_cells([cell.strip() for cell in line.split("|")[1:-1]]))
            if line.startswith("+-"):
                return "+-"  # as wide as the widest cell
            if line.startswith("http"):
                return ", ".join(_status_cells(line.split(", ")))
        if found := re.fullmatch(r'"(\w+)" : (.*)', line):
            return f'"{found[1]}" : {self._plain(found[1], found[2], argv)}'
        return self._text(line, argv)

    def _plain(self, name: str, value: str, argv: Sequence[str]) -> str:
        if name in PLAIN_FIELDS and re.fullmatch(r"\d+", value):
            return f"<{PLAIN_FIELDS[name]}>"
        if name == "Version" and argv[:2] == ("endpoint", "status"):
            return re.sub(r'^"\d+\.\d+\.\d+"$', "<version>", value)
        if name in LEASE_FIELDS and value.isdigit():
            return self._leases.get(int(value), value)
        if name == "TTL" and argv[:2] == ("lease", "timetolive"):
            return "<remaining>"
        return value

    def _text(self, line: str, argv: Sequence[str]) -> str:
        if argv[0] == "lease":
            for lease, label in self._leases.items():
                line = line.replace(f"{lease:016x}", label)
            line = re.sub(r"(?<=attached keys\(\[).*(?=\]\)$)", _sorted_words, line)
            line = re.sub(r"granted with TTL\((\d+)s\), remaining\((\d+)s\)", _remaining, line)
        if argv[:2] == ("endpoint", "health"):
            line = re.sub(r"took = [0-9.]+(ns|µs|ms|s)$", "took = <time>", line)
        if argv[:2] == ("check", "perf"):
            line = re.sub(r"(is|took) [0-9.]+( writes/s|s)", r"\1 <figure>\2", line)
        return line

    def _json(self, value: JsonValue, *, parent: str, own_log: bool) -> JsonValue:
        if isinstance(value, list):
            return [self._json(item, parent=parent, own_log=own_log) for item in value]
        if not isinstance(value, dict):
            return value
        result: dict[str, JsonValue] = {}
        for name, item in value.items():
            if name in JSON_FIELDS and not isinstance(item, dict | list):
                result[name] = f"<{JSON_FIELDS[name]}>"
            elif parent == "Status" and name in STATUS_FIELDS:
                result[name] = f"<{STATUS_FIELDS[name]}>"
            elif name in LEASE_FIELDS and isinstance(item, int):
                result[name] = self._leases.get(item, item)
            elif name == "ttl" and isinstance(item, int):
                granted = value.get("granted-ttl")
                fits = isinstance(granted, int) and 0 <= granted - item <= REMAINING_SLACK_S
                result[name] = "<remaining>" if fits and item >= 0 else item
            elif name == "keys" and "granted-ttl" in value and isinstance(item, list):
                result[name] = sorted(item)
            elif name == "target" and own_log:
                result[name] = re.sub(r"client-[0-9a-f-]+", "client-<id>", str(item))
            else:
                result[name] = self._json(item, parent=name, own_log=own_log)
        return result


def _sorted_words(found: re.Match[str]) -> str:
    return " ".join(sorted(found[0].split(" ")))


def _remaining(found: re.Match[str]) -> str:
    granted, left = int(found[1]), int(found[2])
    if not 0 <= granted - left <= REMAINING_SLACK_S:
        return found[0]
    return f"granted with TTL({granted}s), remaining(<remaining>)"


def _status_cells(cells: list[str]) -> list[str]:
    if cells and cells[0].startswith("http"):
        for column, name in STATUS_COLUMNS.items():
            if column < len(cells):
                cells[column] = f"<{name}>"
    return cells


def _leaders(text: str) -> int:
    """Count the members that are called leader: the identity may differ, not that there is one."""
    if text.startswith("["):
        rows = json.loads(text)
        return len({row["Status"]["leader"] for row in rows if row["Status"].get("leader")})
    if text.startswith('"'):
        return len(set(re.findall(r'"Leader" : (\d+)', text)))
    rows = [re.split(r"\s*[|,]\s*", line.strip("| ")) for line in text.splitlines()]
    return sum(row[4] == "true" for row in rows if len(row) > 8)
