"""The output formats of etcdctl 3.4, for every kind of answer; asks no server.

The names of the methods are those of the answers. `simple` and `json` print all of them, `fields`
all, `table` only what has rows, `protobuf` only plain answers: as etcdctl.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from kvstore.cli.ctl import go
from kvstore.cli.ctl.context import BAD_FEATURE, CtlError, write, write_error, write_line

if TYPE_CHECKING:
    from collections.abc import Sequence


class Health(NamedTuple):
    """Result of a health check."""

    endpoint: str
    is_healthy: bool
    took: str
    error: str


Rows = list[tuple[str, Any]]
"""Endpoint and its answer."""

MEMBER_HEADER = ("ID", "Status", "Name", "Peer Addrs", "Client Addrs", "Is Learner")
HASH_HEADER = ("endpoint", "hash")
HEALTH_HEADER = ("endpoint", "health", "took", "error")
STATUS_HEADER = (
    *("endpoint", "ID", "version", "db size", "is leader", "is learner"),
    *("raft term", "raft index", "raft applied index", "errors"),
)


def member_rows(answer: Any) -> list[list[str]]:
    """Return the members' cells."""
    return [
        [
            f"{member.ID:x}",
            "started" if member.name else "unstarted",
            member.name,
            ",".join(member.peerURLs),
            ",".join(member.clientURLs),
            _bool(member.isLearner),
        ]
        for member in answer.members
    ]


def status_rows(rows: Rows) -> list[list[str]]:
    """Return the endpoints' cells."""
    return [
        [
            endpoint,
            f"{status.header.member_id:x}",
            status.version,
            go.human_bytes(status.dbSize),
            _bool(status.leader == status.header.member_id),
            _bool(status.isLearner),
            str(status.raftTerm),
            str(status.raftIndex),
            str(status.raftAppliedIndex),
            ", ".join(status.errors),
        ]
        for endpoint, status in rows
    ]


def _bool(value: bool) -> str:
    return "true" if value else "false"


class Printer:
    """The base: a format refuses what it cannot show."""

    name = ""

    def _refuse(self) -> CtlError:
        return CtlError(
            f"{self.name} not supported as output format", BAD_FEATURE, "use -w simple or -w json"
        )

    def put(self, answer: Any) -> None:
        """Print the answer of a put."""
        raise self._refuse()

    get = delete = txn = watch = put
    grant = keep_alive = leases = put
    members = alarms = put

    def revoke(self, answer: Any, lease_id: int = 0) -> None:
        """Print that a lease is revoked; the answer does not name it."""
        raise self._refuse()

    def member_changed(self, answer: Any, member_id: int, what: str) -> None:
        """Print that a member was "added to" (and so on) the cluster."""
        raise self._refuse()

    def leader_moved(self, answer: Any, leader_id: int, target_id: int) -> None:
        """Print who led and who leads now; the answer says nothing."""
        raise self._refuse()

    def time_to_live(self, answer: Any, *, keys: bool) -> None:
        """Print the state of a lease."""
        raise self._refuse()

    def status(self, rows: Rows) -> None:
        """Print the status of some endpoints."""
        raise self._refuse()

    def hashes(self, rows: Rows) -> None:
        """Print the hashes of some endpoints."""
        raise self._refuse()

    def health(self, results: Sequence[Health]) -> None:
        """Print the health of some endpoints."""
        raise self._refuse()


class Simple(Printer):
    """Lines for people and shells."""

    name = "simple"

    def __init__(self, *, is_hex: bool, value_only: bool = False) -> None:
        self._is_hex = is_hex
        self._value_only = value_only

    def _text(self, data: bytes) -> bytes:
        return "".join(f"\\x{byte:02x}" for byte in data).encode() if self._is_hex else data

    def _kv(self, kv: Any) -> None:
        key = b"" if self._value_only else self._text(kv.key) + b"\n"
        write(key + self._text(kv.value) + b"\n")

    def put(self, answer: Any) -> None:
        """Print OK, and what was there before."""
        write_line("OK")
        if answer.HasField("prev_kv"):
            self._kv(answer.prev_kv)

    def get(self, answer: Any) -> None:
        """Print keys and values on lines of their own."""
        for kv in answer.kvs:
            self._kv(kv)

    def delete(self, answer: Any) -> None:
        """Print the count, and what was deleted."""
        write_line(str(answer.deleted))
        for kv in answer.prev_kvs:
            self._kv(kv)

    def txn(self, answer: Any) -> None:
        """Print which branch ran, and its answers."""
        write_line("SUCCESS" if answer.succeeded else "FAILURE")
        for response in answer.responses:
            write_line("")
            _dispatch(self, response)

    def watch(self, answer: Any) -> None:
        """Print the events."""
        for event in answer.events:
            write_line(_event_type(event))
            if event.HasField("prev_kv"):
                self._kv(event.prev_kv)
            self._kv(event.kv)

    def grant(self, answer: Any) -> None:
        """Print a granted lease."""
        write_line(f"lease {answer.ID:016x} granted with TTL({answer.TTL}s)")

    def revoke(self, answer: Any, lease_id: int = 0) -> None:
        """Print that a lease is revoked."""
        write_line(f"lease {lease_id:016x} revoked")

    def keep_alive(self, answer: Any) -> None:
        """Print a renewal."""
        write_line(f"lease {answer.ID:016x} keepalived with TTL({answer.TTL})")

    def leases(self, answer: Any) -> None:
        """Print the ids."""
        write_line(f"found {len(answer.leases)} leases")
        for lease in answer.leases:
            write_line(f"{lease.ID:016x}")

    def members(self, answer: Any) -> None:
        """Print a line for each member."""
        for row in member_rows(answer):
            write_line(", ".join(row))

    def member_changed(self, answer: Any, member_id: int, what: str) -> None:
        """Print what was done, in etcdctl's columns."""
        write_line(f"Member {member_id:16x} {what} cluster {answer.header.cluster_id:16x}")

    def leader_moved(self, answer: Any, leader_id: int, target_id: int) -> None:
        """Print who led and who leads now."""
        write_line(f"Leadership transferred from {leader_id:x} to {target_id:x}")

    def alarms(self, answer: Any) -> None:
        """Print a line for each alarm."""
        for alarm in answer.alarms:
            # Go's String of the message: zero fields left out, a blank behind each.
            member = f"memberID:{alarm.memberID} " if alarm.memberID else ""
            kind = f"alarm:{_alarm_name(alarm)} " if alarm.alarm else ""
            write_line(member + kind)

    def time_to_live(self, answer: Any, *, keys: bool) -> None:
        """Print a line."""
        if answer.grantedTTL == 0 and answer.TTL == -1:
            write_line(f"lease {answer.ID:016x} already expired")
            return
        text = (
            f"lease {answer.ID:016x} granted with TTL({answer.grantedTTL}s),"
            f" remaining({answer.TTL}s)"
        ).encode()
        if keys:
            text += b", attached keys([" + b" ".join(answer.keys) + b"])"
        write(text + b"\n")

    def status(self, rows: Rows) -> None:
        """Print a line for each endpoint."""
        for row in status_rows(rows):
            write_line(", ".join(row))

    def hashes(self, rows: Rows) -> None:
        """Print a line for each endpoint."""
        for endpoint, answer in rows:
            write_line(f"{endpoint}, {answer.hash}")

    def health(self, results: Sequence[Health]) -> None:
        """Print a line for each endpoint, on standard error as etcdctl."""
        for result in results:
            if result.is_healthy:
                text = f"is healthy: successfully committed proposal: took = {result.took}"
            else:
                text = f"is unhealthy: failed to commit proposal: {result.error}"
            write_error(f"{result.endpoint} {text}")


class Json(Printer):
    """One JSON value on one line, in Go's spelling of the messages."""

    name = "json"

    def put(self, answer: Any) -> None:
        """Print a message as it is."""
        write_line(go.to_json(go.message_fields(answer)))

    get = delete = members = alarms = put

    def revoke(self, answer: Any, lease_id: int = 0) -> None:
        """Print the answer; it does not repeat the id."""
        self.put(answer)

    def member_changed(self, answer: Any, member_id: int, what: str) -> None:
        """Print the answer."""
        self.put(answer)

    def leader_moved(self, answer: Any, leader_id: int, target_id: int) -> None:
        """Print the answer."""
        self.put(answer)

    def txn(self, answer: Any) -> None:
        """Print the answers under the names of Go's union types."""
        value = go.message_fields(answer)
        if answer.responses:
            value["responses"] = [self._response(response) for response in answer.responses]
        write_line(go.to_json(value))

    def _response(self, response: Any) -> dict[str, Any]:
        kind = response.WhichOneof("response")
        name = "".join(word.capitalize() for word in kind.split("_"))
        inner = getattr(response, kind)
        return {"Response": {name: go.message_fields(inner)}}

    def watch(self, answer: Any) -> None:
        """Print in the form of the Go client's own struct."""
        value = {
            "Header": go.message_fields(answer.header),
            "Events": [go.message_fields(event) for event in answer.events],
            "CompactRevision": answer.compact_revision,
            "Canceled": answer.canceled,
            "Created": answer.created,
        }
        write_line(go.to_json(value))

    def grant(self, answer: Any) -> None:
        """Print with the header's fields among the others."""
        header = go.message_fields(answer.header)
        write_line(go.to_json(header | {"ID": answer.ID, "TTL": answer.TTL, "Error": answer.error}))

    def keep_alive(self, answer: Any) -> None:
        """Print with the header's fields among the others."""
        header = go.message_fields(answer.header)
        write_line(go.to_json(header | {"ID": answer.ID, "TTL": answer.TTL}))

    def leases(self, answer: Any) -> None:
        """Print with the header's fields among the others."""
        header = go.message_fields(answer.header)
        write_line(go.to_json(header | {"leases": [{"id": lease.ID} for lease in answer.leases]}))

    def time_to_live(self, answer: Any, *, keys: bool) -> None:
        """Print with the header's fields among the others."""
        value = go.message_fields(answer.header) | {
            "id": answer.ID,
            "ttl": answer.TTL,
            "granted-ttl": answer.grantedTTL,
            "keys": go.message_fields(answer).get("keys"),
        }
        write_line(go.to_json(value))

    def status(self, rows: Rows) -> None:
        """Print a list."""
        self._rows("Status", rows)

    def hashes(self, rows: Rows) -> None:
        """Print a list."""
        self._rows("HashKV", rows)

    def _rows(self, name: str, rows: Rows) -> None:
        values = [
            {"Endpoint": endpoint, name: go.message_fields(answer)} for endpoint, answer in rows
        ]
        write_line(go.to_json(values))

    def health(self, results: Sequence[Health]) -> None:
        """Print a list."""
        values = []
        for result in results:
            value = {
                "endpoint": result.endpoint,
                "health": result.is_healthy,
                "took": result.took,
            }
            values.append(value | ({"error": result.error} if result.error else {}))
        write_line(go.to_json(values))


class Fields(Printer):
    """A line for each field."""

    name = "fields"

    def _header(self, answer: Any) -> None:
        header = answer.header
        _fields(
            ("ClusterID", header.cluster_id),
            ("MemberID", header.member_id),
            ("Revision", header.revision),
            ("RaftTerm", header.raft_term),
        )

    def _kv(self, kv: Any, prefix: str = "") -> None:
        _fields(
            (prefix + "Key", kv.key),
            (prefix + "CreateRevision", kv.create_revision),
            (prefix + "ModRevision", kv.mod_revision),
            (prefix + "Version", kv.version),
            (prefix + "Value", kv.value),
            (prefix + "Lease", kv.lease),
        )

    def put(self, answer: Any) -> None:
        """Print the header and the previous key."""
        self._header(answer)
        if answer.HasField("prev_kv"):
            self._kv(answer.prev_kv, "Prev")

    def get(self, answer: Any) -> None:
        """Print the header and the keys."""
        self._header(answer)
        for kv in answer.kvs:
            self._kv(kv)
        _fields(("More", answer.more), ("Count", answer.count))

    def delete(self, answer: Any) -> None:
        """Print the header, the count and the previous keys."""
        self._header(answer)
        _fields(("Deleted", answer.deleted))
        for kv in answer.prev_kvs:
            self._kv(kv, "Prev")

    def txn(self, answer: Any) -> None:
        """Print the header and every answer."""
        self._header(answer)
        _fields(("Succeeded", answer.succeeded))
        for response in answer.responses:
            _dispatch(self, response)

    def watch(self, answer: Any) -> None:
        """Print the header and the events."""
        self._header(answer)
        for event in answer.events:
            write_line(f'"Type" : {_event_type(event)}')
            if event.HasField("prev_kv"):
                self._kv(event.prev_kv, "Prev")
            self._kv(event.kv)

    def grant(self, answer: Any) -> None:
        """Print the header and the lease."""
        self._header(answer)
        _fields(("ID", answer.ID), ("TTL", answer.TTL))

    keep_alive = grant

    def revoke(self, answer: Any, lease_id: int = 0) -> None:
        """Print the header."""
        self._header(answer)

    def leases(self, answer: Any) -> None:
        """Print the header and the ids."""
        self._header(answer)
        for lease in answer.leases:
            _fields(("ID", lease.ID))

    def time_to_live(self, answer: Any, *, keys: bool) -> None:
        """Print the header, the lease and its keys."""
        self.grant(answer)
        _fields(("GrantedTTL", answer.grantedTTL))
        for key in answer.keys:
            _fields(("Key", key))

    def members(self, answer: Any) -> None:
        """Print the header and the members."""
        self._header(answer)
        for member in answer.members:
            _fields(("ID", member.ID), ("Name", member.name.encode()))
            for url in member.peerURLs:
                _fields(("PeerURL", url.encode()))
            for url in member.clientURLs:
                _fields(("ClientURL", url.encode()))
            _fields(("IsLearner", member.isLearner))
            write_line("")

    def alarms(self, answer: Any) -> None:
        """Print the header and the alarms."""
        self._header(answer)
        for alarm in answer.alarms:
            _fields(("MemberID", alarm.memberID))
            write_line(f'"AlarmType" : {_alarm_name(alarm)}')
            write_line("")

    def status(self, rows: Rows) -> None:
        """Print every endpoint."""
        for endpoint, answer in rows:
            self._header(answer)
            _fields(
                ("Version", answer.version.encode()),
                ("DBSize", answer.dbSize),
                ("Leader", answer.leader),
                ("IsLearner", answer.isLearner),
                ("RaftIndex", answer.raftIndex),
                ("RaftTerm", answer.raftTerm),
                ("RaftAppliedIndex", answer.raftAppliedIndex),
            )
            write_line(f'"Errors" : [{" ".join(answer.errors)}]')
            _fields(("Endpoint", endpoint.encode()))
            write_line("")

    def hashes(self, rows: Rows) -> None:
        """Print every endpoint."""
        for endpoint, answer in rows:
            self._header(answer)
            _fields(("Endpoint", endpoint.encode()), ("Hash", answer.hash))
            write_line("")

    def health(self, results: Sequence[Health]) -> None:
        """Print every endpoint."""
        for result in results:
            _fields(("Endpoint", result.endpoint.encode()), ("Health", result.is_healthy))
            write_line(f'"Took" : {result.took}')
            write_line(f'"Error" : {result.error}')
            write_line("")


class Table(Printer):
    """Boxes around what has rows."""

    name = "table"

    def members(self, answer: Any) -> None:
        """Print a row for each member."""
        _table(MEMBER_HEADER, member_rows(answer))

    def status(self, rows: Rows) -> None:
        """Print a row for each endpoint."""
        _table(STATUS_HEADER, status_rows(rows))

    def hashes(self, rows: Rows) -> None:
        """Print a row for each endpoint."""
        _table(HASH_HEADER, [[endpoint, str(answer.hash)] for endpoint, answer in rows])

    def health(self, results: Sequence[Health]) -> None:
        """Print a row for each endpoint."""
        _table(
            HEALTH_HEADER,
            [
                [result.endpoint, _bool(result.is_healthy), result.took, result.error]
                for result in results
            ],
        )


class Protobuf(Printer):
    """The messages' own bytes."""

    name = "protobuf"

    def put(self, answer: Any) -> None:
        """Print a message."""
        write(answer.SerializeToString())

    get = delete = txn = grant = keep_alive = leases = members = alarms = put

    def revoke(self, answer: Any, lease_id: int = 0) -> None:
        """Print a message."""
        self.put(answer)

    def member_changed(self, answer: Any, member_id: int, what: str) -> None:
        """Print a message."""
        self.put(answer)

    def leader_moved(self, answer: Any, leader_id: int, target_id: int) -> None:
        """Print a message."""
        self.put(answer)

    def time_to_live(self, answer: Any, *, keys: bool) -> None:
        """Print a message."""
        self.put(answer)

    def watch(self, answer: Any) -> None:
        """Print the events' messages."""
        for event in answer.events:
            self.put(event)


def make_printer(name: str, *, is_hex: bool, value_only: bool = False) -> Printer:
    """Return the printer for a value of --write-out."""
    if name == "simple":
        return Simple(is_hex=is_hex, value_only=value_only)
    return {"json": Json, "fields": Fields, "table": Table, "protobuf": Protobuf}[name]()


def _dispatch(printer: Printer, response: Any) -> None:
    kind = response.WhichOneof("response")
    shown = {
        "response_put": printer.put,
        "response_range": printer.get,
        "response_delete_range": printer.delete,
        "response_txn": printer.txn,
    }[kind]
    shown(getattr(response, kind))


def _event_type(event: Any) -> str:
    return str(event.DESCRIPTOR.fields_by_name["type"].enum_type.values_by_number[event.type].name)


def _alarm_name(alarm: Any) -> str:
    kinds = alarm.DESCRIPTOR.fields_by_name["alarm"].enum_type.values_by_number
    return str(kinds[alarm.alarm].name)


def _fields(*pairs: tuple[str, int | bytes]) -> None:
    for name, value in pairs:
        if isinstance(value, bool):
            text = _bool(value)
        elif isinstance(value, bytes):
            text = go.quote(value)
        else:
            text = str(value)
        write_line(f'"{name}" : {text}')


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    titles = [title.upper() for title in header]
    widths = [max(len(cell) for cell in column) for column in zip(titles, *rows, strict=True)]
    line = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    write_line(line)
    cells = []
    for title, width in zip(titles, widths, strict=True):
        left = (width - len(title)) // 2  # Go's table puts the odd blank on the right
        cells.append(" " * left + title + " " * (width - len(title) - left))
    write_line("| " + " | ".join(cells) + " |")
    write_line(line)
    for row in rows:
        padded = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        write_line("| " + " | ".join(padded) + " |")
    if rows:
        write_line(line)
