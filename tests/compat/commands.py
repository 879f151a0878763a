"""The etcdctl 3.4 commands that both clusters must answer alike; data only, runs nothing.

Left out, with reasons: `get --count-only` (etcdctl has it from 3.5 on), comparing a lease in `txn`
(this etcdctl panics), `-w protobuf` (term and index are inside the bytes), and a transaction that
writes and then reads a future revision: etcd 3.4.23 refuses it on the member that took it and
applies it on the others, so its members differ afterwards (etcd issue 18667).

They run in order on an empty store, so revisions are part of what is compared. `{L1}` stands for
the hexadecimal id of the first lease granted, `{next}` for the store's revision plus one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Send:
    """Write a line to the command's standard input."""

    line: str


@dataclass(frozen=True)
class Await:
    """Read the command's output until a line contains this text."""

    text: str


@dataclass(frozen=True)
class Run:
    """Run another etcdctl command meanwhile; it must succeed."""

    argv: tuple[str, ...]
    stdin: str = ""


Step = Send | Await | Run


@dataclass(frozen=True)
class Case:
    """One command line."""

    argv: tuple[str, ...]
    stdin: str = ""
    every_endpoint: bool = False
    """Give all three endpoints instead of the first."""

    script: tuple[Step, ...] = ()
    """For a command that does not end by itself: what to do, then it is interrupted."""

    unordered: bool = False
    """etcdctl asks all endpoints at once and prints in the order of the answers."""

    @property
    def name(self) -> str:
        """Return the command as one would type it."""
        return " ".join(argument or "''" for argument in self.argv)


def case(line: str, stdin: str = "", **options: bool) -> Case:
    """Return a case from a line split at spaces; `''` is an empty argument."""
    argv = tuple("" if word == "''" else word for word in line.split())
    return Case(argv, stdin, **options)


def watching(line: str, *script: Step) -> Case:
    """Return a case for a command that runs until the script is through."""
    return Case(case(line).argv, script=script)


def put(key: str, value: str) -> Run:
    """Return a step that writes a key."""
    return Run(("put", key, value))


def txn(compares: str, success: str, failure: str) -> str:
    """Return the standard input of `etcdctl txn`."""
    return "".join(part + "\n\n" if part else "\n" for part in (compares, success, failure))


FORMATS = ("simple", "json", "fields", "table")

PUTS = [
    case("put a 1"),
    case("put b 2"),
    case("put c 3"),
    case("put dir/x 10"),
    case("put dir/y 20"),
    case("put dir/z 30"),
    case("put dir/y 21"),
    case("put a 4"),
    case("put a 5 --prev-kv"),
    case("put new 1 --prev-kv"),
    case("put a 6 --prev-kv -w json"),
    case("put a 7 --prev-kv -w fields"),
    case("put a 8 -w json"),
    case("put empty ''"),
    case("put stdin", stdin="from standard input"),
    case("put a --ignore-value"),
    case("put a 9 --ignore-lease"),
    case("put -- -dashed -value"),
]

GETS = [
    case("get a"),
    case("get absent"),
    case("get absent -w json"),
    case("get empty"),
    case("get a c"),
    case("get c a"),
    case("get dir/ --prefix"),
    case("get '' --prefix"),
    case("get dir/ --prefix --keys-only"),
    case("get dir/ --prefix --print-value-only"),
    case("get dir/ --prefix --limit=2"),
    case("get dir/ --prefix --limit=2 -w json"),
    case("get dir/ --prefix --limit=3 -w json"),
    case("get dir/ --prefix --limit=4 -w json"),
    case("get dir/y --from-key"),
    case("get '' --from-key --limit=3"),
    case("get '' --from-key --keys-only --limit=1 -w json"),
    case("get a --rev=2"),
    case("get a --rev=2 -w json"),
    case("get a --rev=1 -w json"),
    case("get dir/y --rev=7 -w json"),
    case("get dir/y --rev=8 -w json"),
    case("get a --consistency=s"),
    case("get a --consistency=l -w json"),
    case("get a --hex"),
    *(
        case(f"get '' --prefix --order={order} --sort-by={target} --keys-only")
        for order in ("ASCEND", "DESCEND")
        for target in ("KEY", "VERSION", "CREATE", "MODIFY", "VALUE")
    ),
    case("get '' --prefix --sort-by=MODIFY --limit=2"),
    case("get '' --prefix --sort-by=VALUE --keys-only"),
    case("get '' --prefix --order=DESCEND --sort-by=MODIFY --limit=3 -w json"),
    *(case(f"get dir/ --prefix -w {form}") for form in FORMATS),
]

GET_ERRORS = [
    case("get ''"),
    case("put '' x"),
    case("del ''"),
    case("get a --rev=1000000"),
    case("get a --order=SIDEWAYS"),
    case("get a --prefix --from-key"),
    case("put absent --ignore-value"),
    case("put absent x --ignore-lease"),
    case("put a x --lease=7b"),
    case("put a x --lease=nonsense"),
    # Over the 1.5 MiB request limit, and over what etcdctl itself agrees to send.
    case("put big", stdin="v" * (1_600 * 1024)),
    case("put big", stdin="v" * (2_200 * 1024)),
    case("put almost-big", stdin="v" * (1_000 * 1024)),
    case("get almost-big --keys-only"),
    case("del almost-big"),
]

DELETES = [
    case("del b"),
    case("del b"),
    case("del b -w json"),
    case("del c --prev-kv"),
    case("get c -w json"),
    case("put c 30 -w json"),
    case("get c -w json"),
    case("put d1 1"),
    case("put d2 2"),
    case("put d3 3"),
    case("del d1 d3 --prev-kv -w json"),
    case("del d --prefix --prev-kv"),
    case("del d --prefix -w fields"),
    case("del nothing/ --prefix -w json"),
    case("put e1 1"),
    case("put e2 2"),
    case("del e1 --from-key"),
    case("put a 10"),
    case("put dir/x 11"),
    case("put dir/y 22"),
    case("put dir/z 33"),
    case("get '' --prefix -w json"),
]

TXNS = [
    case("txn", txn('value("a") = "10"', "get a", "put a wrong")),
    case("txn -i", txn('value("a") = "10"', "get a", "put a wrong")),
    case("txn", txn('value("a") = "other"', "put a wrong", "get a\nget dir/ --prefix")),
    case("txn -w json", txn('value("a") = "10"', "put a 11\nget a\nput t 1", "")),
    case("txn -w json", txn('version("t") = "1"', "put t 2 --prev-kv\ndel t --prev-kv", "get t")),
    case("txn -w json", txn('version("t") = "1"', "put t 2 --prev-kv\ndel c --prev-kv", "get t")),
    case("txn", txn('version("t") = "2"', "put t 3 --prev-kv\ndel t2 --prev-kv\nget t", "")),
    case("txn -w json", txn('create("absent") = "0"', "put fresh 1", "get absent")),
    case("txn -w json", txn('mod("a") > "1"', "del dir/ --prefix", "")),
    case("txn -w fields", txn('mod("a") < "1"', "put a 1", "get a --rev=2")),
    case("txn -w table", txn('mod("a") < "1"', "put a 1", "get a")),
    case("txn -w json", txn('value("absent") = ""', "put x 1", "put x 2")),
    case("txn -w json", txn('version("absent") = "0"\nversion("a") > "0"', "get a", "")),
    case("txn -w json", txn("", "get a", "get x")),
    case("txn -w json", txn("", "", "")),
    case("txn -w json", txn("", "del absent", "")),
    case("txn", txn("", "put same 1\nput same 2", "")),
    case("txn", txn("", "put same 1\ndel same", "")),
    case("txn", txn("", "del s --prefix\nput same 1", "")),
    case("txn -w json", txn("", "del x\ndel x --prev-kv", "")),
    case("txn", txn("", "\n".join(f"put many{i} 1" for i in range(129)), "")),
    case("txn -w json", txn("", "\n".join(f"put many{i:03} 1" for i in range(128)), "")),
    case("get many --prefix --limit=1 -w json"),
    case("txn", txn("", "put '' 1", "")),
    case("txn", txn("", "get a --rev=1000000", "")),
    case("get a -w json"),
    case("txn", txn('nonsense("a") = "1"', "", "")),
    case("del many --prefix"),
]

WATCHES = [
    case("put w/a 1"),
    case("put w/b 2"),
    case("put w/a 3"),
    case("del w/b"),
    case("put w/end 0"),
    watching("watch w/ --prefix --rev=2", Await("w/end"), Await("0")),
    watching("watch w/ --prefix --rev=2 --prev-kv", Await("w/end"), Await("0")),
    watching("watch w/ --prefix --rev=2 -w json", Await("dy9lbmQ=")),
    watching("watch w/ --prefix --rev=2 --prev-kv -w json", Await("dy9lbmQ=")),
    watching("watch w/ --prefix --rev=2 -w fields", Await('"w/end"'), Await('"Lease"')),
    watching("watch w/a w/c --rev=2", Run(("put", "w/b", "last")), Await("last")),
    # The end comes as an event of the watched key, so a surplus event before it would show.
    watching(
        "watch w/a --rev={next}",
        put("w/a", "4"),
        Run(("del", "w/a")),
        Run(("txn",), txn("", "put w/a 5\nput w/b 5", "")),
        put("w/a", "end"),
        Await("end"),
    ),
    watching(
        "watch -i -w json",
        Send("watch w/ --prefix --prev-kv"),
        Send("progress"),
        Await('"Events":[]'),
        put("w/a", "6"),
        Run(("txn",), txn("", "put w/c 1\nput w/b 7\ndel w/a", "")),
        Run(("del", "w/", "--prefix")),
        put("w/end", "x"),
        Await("eA=="),  # the value: the key's name is in the deletion before, too
    ),
    # A progress reply says that the watch stands: the way to watch from now on without a race.
    watching(
        "watch -i",
        Send("watch w/live"),
        Send("progress"),
        Await("progress notify"),
        put("w/live", "1"),
        put("w/other", "2"),
        Run(("del", "w/live")),
        Await("DELETE"),
        Await("w/live"),
        Send("progress"),
        Await("progress notify"),
    ),
    watching(
        "watch -i",
        Send("watch w/one"),
        Send("watch w/two --prev-kv"),
        Send("progress"),
        Await("progress notify"),
        put("w/one", "1"),
        Await("w/one"),
        put("w/two", "2"),
        Await("w/two"),
        Await("2"),
    ),
    watching(
        "watch w/exec --rev={next} -- echo saw",
        put("w/exec", "1"),
        Await("saw"),
    ),
]

LEASES = [
    case("lease grant 600"),
    case("lease list"),
    case("lease list -w json"),
    case("put leased/a 1 --lease={L1}"),
    case("put leased/b 2 --lease={L1}"),
    case("get leased/ --prefix -w json"),
    case("lease timetolive {L1}"),
    case("lease timetolive {L1} --keys"),
    case("lease timetolive {L1} --keys -w json"),
    case("lease timetolive {L1} -w fields"),
    case("put leased/a 3 --ignore-lease"),
    case("lease timetolive {L1} --keys"),
    case("put leased/b 4"),
    case("lease timetolive {L1} --keys"),
    case("lease keep-alive --once {L1}"),
    case("lease keep-alive --once {L1} -w json"),
    case("lease grant 1200 -w json"),
    case("put leased/c 1 --lease={L2}"),
    case("put leased/a 5 --lease={L2}"),
    # By end on the leader; etcd's followers know no ends and list them as its hash table has them.
    case("lease list", unordered=True),
    case("lease revoke {L2}"),
    case("get leased/ --prefix -w json"),
    case("lease revoke {L1} -w json"),
    case("lease list"),
    case("lease list -w json"),
    case("lease grant 1"),
    case("lease grant 0"),
    case("lease grant -- -1"),
    case("lease grant 9000000001"),
    case("lease grant nonsense"),
    case("lease revoke 7b"),
    case("lease revoke nonsense"),
    case("lease timetolive 7b"),
    case("lease timetolive 7b -w json"),
    case("lease keep-alive --once 7b"),
    case("put leased/late 1 --lease={L2}"),
    # Long enough to be there still when the watch begins, also where a command takes a second.
    case("lease grant 6"),
    case("put expiring 1 --lease={L6}"),
    watching(
        "watch expiring --rev={next} --prev-kv",
        Await("DELETE"),
        Await("1"),
        Await("expiring"),
        Await(""),
    ),
    case("get expiring -w json"),
]

CLUSTER = [
    case("member list"),
    case("member list -w table"),
    case("member list -w json"),
    case("member list -w fields"),
    case("endpoint health"),
    case("endpoint health", every_endpoint=True, unordered=True),
    case("endpoint health -w json"),
    case("endpoint status", every_endpoint=True),
    case("endpoint status -w json", every_endpoint=True),
    case("endpoint status -w fields", every_endpoint=True),
    case("endpoint status -w table", every_endpoint=True),
    case("endpoint status --cluster -w table", unordered=True),
    case("endpoint hashkv", every_endpoint=True),
    case("endpoint hashkv -w json", every_endpoint=True),
    case("endpoint hashkv --cluster", unordered=True),
    case("alarm list"),
    case("alarm disarm"),
    case("alarm list -w json"),
]

HASHES = [
    # A linearizable read on each member first, so that none lags behind.
    case("endpoint health", every_endpoint=True, unordered=True),
    case("endpoint hashkv -w json", every_endpoint=True),
]
"""Before any lease: a lease's id is random and part of what is hashed."""

COMPACTIONS = [
    case("compaction 1000000"),
    case("compaction 5"),
    case("get a --rev=4"),
    case("get a --rev=5 -w json"),
    case("get a --rev=6 -w json"),
    case("compaction 5"),
    case("compaction 4"),
    case("compaction 10 --physical"),
    case("compaction nonsense"),
    case("get a --rev=9"),
    case("get dir/ --prefix --rev=10 -w json"),
    case("watch a --rev=3"),
    case("watch b a --rev=20"),
    watching("watch dir/y --rev=10 --prev-kv", put("dir/y", "end"), Await("end")),
    case("endpoint hashkv -w json"),
    case("txn", txn("", "get a --rev=3", "")),
]

LOCKS = [
    case("lock mutex echo held"),
    case("get mutex --prefix"),
    case("get x -w json"),
]

COMMANDS: list[Case] = [
    *PUTS,
    *GETS,
    *GET_ERRORS,
    *DELETES,
    *TXNS,
    *WATCHES,
    *HASHES,
    *COMPACTIONS,
    *CLUSTER,
    *LEASES,
    *LOCKS,
]

PERFORMANCE = [case("check perf --load=s"), case("check perf --load=m")]
"""A minute each: for the slow suite only."""
