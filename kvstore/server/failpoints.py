"""Named points at the storage and send steps where a test may let the member fail; off by default.

Without `--enable-failpoints` nothing of this module is in any path: the points are put around the
parts once, at start. Each point has an action, set by the environment
(`KVSTORE_FAILPOINTS="wal.sync.before=sleep(200);peer.send=10%return"`) or over HTTP
(`PUT /failpoints/NAME` with the action as the body, `DELETE /failpoints/NAME`, `GET /failpoints`).

    panic          end the process at once, as SIGKILL would, with exit code 70
    sleep(MS)      hold the thread that comes by; at a peer or snapshot point that is the loop
    error          raise OSError EIO; error(ENOSPC) another one
    return         leave the step out and report success
    N%ACTION       only in N of 100 cases
    N*ACTION       only N times, then off
"""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from kvstore.peer.link import Channel
from kvstore.ports import Backend, Disk, Random
from kvstore.rpc import HttpRequest, HttpResponse

if TYPE_CHECKING:
    from kvstore.server.member import Member

ENVIRONMENT = "KVSTORE_FAILPOINTS"
PATH = "/failpoints"
EXIT_PANIC = 70

POINTS: dict[str, str] = {
    "wal.write.before": "a batch is about to be written to the log",
    "wal.write.after": "the batch is written, not fsynced",
    "wal.sync.before": "the log is about to be fsynced",
    "wal.sync.after": "the batch is durable, nobody knows yet",
    "wal.rename.before": "a new segment is about to get its name",
    "wal.rename.after": "the segment has its name, the folder is not fsynced",
    "store.commit.before": "the store is about to be committed",
    "store.commit.after": "the commit is durable, the log is not released",
    "store.rename.before": "a store file is about to get its name (a received or marked snapshot)",
    "store.rename.after": "the store file has its name, the folder is not fsynced",
    "snapshot.send.before": "a peer is about to be dialled for a snapshot",
    "snapshot.send.frame": "a frame of a snapshot is about to leave",
    "snapshot.send.after": "the peer has answered, the core does not know yet",
    "snapshot.receive": "a frame of a snapshot has arrived",
    "snapshot.install.before": "a snapshot is complete and verified, nothing is marked",
    "snapshot.install.after": "a snapshot is in place, the sender does not know yet",
    "peer.send": "a message to a peer is about to leave",
    "peer.receive": "messages of a peer have arrived",
}

_ACTION = re.compile(
    r"(?:(?P<percent>\d{1,3})%)?(?:(?P<count>\d+)\*)?(?P<name>panic|sleep|error|return)"
    r"(?:\((?P<argument>\w+)\))?"
)
_DISK_METHODS = (
    "open", "rename", "remove", "make_folder", "list", "exists", "sync_folder", "lock",
)  # fmt: skip
_FILE_METHODS = ("size", "read", "write", "allocate", "truncate", "sync", "close")
_TEXT = [("content-type", "text/plain; charset=utf-8")]


class FailpointError(ValueError):
    """A point or an action that does not exist; the text lists what does."""


@dataclass(slots=True)
class _Action:
    text: str
    name: str
    percent: int
    left: int | None
    """How often it still acts; None is for ever."""
    sleep_s: float
    code: int


def _parse(point: str, text: str) -> _Action:
    match = _ACTION.fullmatch(text.strip())
    if match is None:
        raise FailpointError(
            f"{text!r} is no action; write panic, sleep(MS), error, error(ENOSPC) or return, "
            "with N% or N* before it"
        )
    name, argument = match["name"], match["argument"]
    code = errno.EIO
    if name == "error" and argument is not None:
        code = getattr(errno, argument, 0)
    if not code or (name == "sleep") != (argument is not None and argument.isdigit()):
        raise FailpointError(f"{text!r}: the argument in brackets does not fit the action")
    if name == "return" and point.endswith(".after"):
        raise FailpointError(f"{point}: the step is done, return can leave nothing out")
    return _Action(
        text=text.strip(),
        name=name,
        percent=int(match["percent"] or 100),
        left=int(match["count"]) if match["count"] else None,
        sleep_s=int(argument) / 1000 if name == "sleep" else 0.0,
        code=code,
    )


class _Copy:
    """An object's methods, so that single ones can be replaced."""

    def __init__(self, original: object, methods: tuple[str, ...]) -> None:
        for method in methods:
            setattr(self, method, getattr(original, method))


class Failpoints:
    """The points of one member. Any thread may come by."""

    def __init__(self, random: Random) -> None:
        """Start with every point off; `random` decides for N%."""
        self._random = random
        self._actions: dict[str, _Action] = {}
        self._lock = threading.Lock()

    @classmethod
    def from_environment(cls, random: Random, environment: Mapping[str, str]) -> Failpoints:
        """Return the points as the environment sets them.

        Raises:
            FailpointError: A point or action is not known.
        """
        points = cls(random)
        for item in environment.get(ENVIRONMENT, "").split(";"):
            if item.strip():
                name, _, text = item.strip().partition("=")
                points.set(name, text)
        return points

    def set(self, point: str, text: str) -> None:
        """Let a point act from now on. Raises FailpointError."""
        if point not in POINTS:
            raise FailpointError(f"there is no point {point!r}; there are {', '.join(POINTS)}")
        action = _parse(point, text)
        with self._lock:
            self._actions[point] = action

    def clear(self, point: str) -> None:
        """Turn a point off."""
        with self._lock:
            self._actions.pop(point, None)

    def hit(self, point: str) -> bool:
        """Act as the point is set; return whether the step is to be left out.

        Raises:
            OSError: The point is set to `error`.
        """
        with self._lock:
            action = self._actions.get(point)
            if action is None or self._random.randrange(0, 100) >= action.percent:
                return False
            if action.left is not None:
                action.left -= 1
                if action.left <= 0:
                    del self._actions[point]
        if action.name == "panic":
            os.write(2, f"kvstore: failpoint {point}: panic\n".encode())
            os._exit(EXIT_PANIC)
        if action.name == "sleep":
            time.sleep(action.sleep_s)
        elif action.name == "error":
            raise OSError(action.code, f"failpoint {point}: {os.strerror(action.code)}")
        return action.name == "return"

    # putting the points around the parts

    def _around(
        self, call: Callable[..., Any], before: str, after: str = "", skipped: object = None
    ) -> Callable[..., Any]:
        def around(*arguments: Any, **named: Any) -> Any:
            if self.hit(before):
                return skipped
            result = call(*arguments, **named)
            if after:
                self.hit(after)
            return result

        return around

    def _put(self, owner: Any, method: str, before: str, after: str = "") -> None:
        setattr(owner, method, self._around(getattr(owner, method), before, after, skipped=True))

    def disk(self, disk: Disk) -> Disk:
        """Return a disk with points at the log's writes and fsyncs and at all renames."""
        copy: Any = _Copy(disk, _DISK_METHODS)

        def open_file(path: str, *, create: bool = False) -> Any:
            file: Any = disk.open(path, create=create)
            if _is_log(path):
                file = _Copy(file, _FILE_METHODS)
                self._put(file, "write", "wal.write.before", "wal.write.after")
                self._put(file, "sync", "wal.sync.before", "wal.sync.after")
            return file

        def rename(source: str, target: str) -> None:
            kind = "wal" if _is_log(target) else "store"
            self._around(disk.rename, f"{kind}.rename.before", f"{kind}.rename.after")(
                source, target
            )

        copy.open = open_file
        copy.rename = rename
        return cast("Disk", copy)

    def backend(self, backend: Backend) -> None:
        """Put points around the store's commits."""
        self._put(backend, "commit", "store.commit.before", "store.commit.after")

    def member(self, member: Member) -> None:
        """Put points around what a started member sends, receives and installs."""
        self._put(member.links, "send", "peer.send")
        self._put(member, "receive", "peer.receive")
        self._put(member, "snapshot_sent", "snapshot.send.after")
        links, dial, install = cast("Any", member.links), member.links.dial, member.install
        opened = member.snapshot_opened

        async def dial_with_points(peer: int, endpoint: Any, channel: Channel) -> Any:
            if channel is not Channel.SNAPSHOT:
                return await dial(peer, endpoint, channel)
            if self.hit("snapshot.send.before"):
                raise OSError("failpoint snapshot.send.before: not dialled")
            connection: Any = await dial(peer, endpoint, channel)
            connection.transport = _Copy(connection.transport, ("write", "abort", "close"))
            self._put(connection.transport, "write", "snapshot.send.frame")
            return connection

        def snapshot_opened(*arguments: Any) -> Any:
            sink: Any = opened(*arguments)
            self._put(sink, "frame", "snapshot.receive")
            return sink

        links.dial = dial_with_points
        whole = cast("Any", member)
        whole.snapshot_opened = snapshot_opened
        whole.install = self._around_install(install)

    def _around_install(
        self, install: Callable[[Any], Awaitable[bool]]
    ) -> Callable[[Any], Awaitable[bool]]:
        async def install_with_points(message: Any) -> bool:
            if self.hit("snapshot.install.before"):
                return False
            taken = await install(message)
            self.hit("snapshot.install.after")
            return taken

        return install_with_points

    # over HTTP

    def handle(self, request: HttpRequest) -> HttpResponse:
        """Answer a request below `/failpoints`."""
        point = request.path[len(PATH) :].strip("/")
        try:
            if request.method == "PUT" and point:
                self.set(point, request.body.decode(errors="replace"))
            elif request.method == "DELETE" and point in POINTS:
                self.clear(point)
            elif request.method != "GET" or point:
                return HttpResponse(
                    404, _TEXT, b"PUT or DELETE /failpoints/NAME, GET /failpoints\n"
                )
        except FailpointError as error:
            return HttpResponse(400, _TEXT, f"{error}\n".encode())
        with self._lock:
            lines = [
                f"{name}={self._actions[name].text if name in self._actions else 'off'}"
                for name in POINTS
            ]
        return HttpResponse(200, _TEXT, ("\n".join(lines) + "\n").encode())


def _is_log(path: str) -> bool:
    return os.path.basename(os.path.dirname(path)) == "wal"
