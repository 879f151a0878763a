"""The HTTP surface beside gRPC: health, version, metrics. Served over HTTP/1.1 and HTTP/2."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from kvstore.apply.alarms import CORRUPT
from kvstore.rpc import HttpRequest, HttpResponse
from kvstore.server import failpoints
from kvstore.server.metrics import CONTENT_TYPE
from kvstore.server.observe import alarm_name

if TYPE_CHECKING:
    from kvstore.server.member import Member

JSON = [("content-type", "application/json")]
TEXT = [("content-type", "text/plain; charset=utf-8"), ("x-content-type-options", "nosniff")]
CHECKS = {
    "/livez": ("serializable_read",),
    "/readyz": ("data_corruption", "serializable_read", "linearizable_read", "non_learner"),
}
READ_TIMEOUT_S = 5.0


class Http:
    """Answers one member's plain requests."""

    def __init__(self, member: Member) -> None:
        """Keep the member; everything is read when asked for."""
        self._member = member
        self.health_success = 0
        self.health_failures = 0

    async def handle(self, request: HttpRequest) -> HttpResponse:
        """Answer one request (`kvstore.rpc.HttpHandler`)."""
        path = request.path
        if self._member.failpoints is not None and path.startswith(failpoints.PATH):
            return self._member.failpoints.handle(request)
        if request.method not in {"GET", "HEAD"}:
            return HttpResponse(405, [*TEXT, ("allow", "GET, HEAD")], b"Method Not Allowed\n")
        if path == "/version":
            return _json(200, self._member.observer.versions())
        if path == "/metrics":
            return HttpResponse(
                200, [("content-type", CONTENT_TYPE)], self._member.metrics.render()
            )
        if path == "/debug/vars":
            return _json(200, self._member.observer.variables())
        query = parse_qs(request.query, keep_blank_values=True)
        if path == "/health":
            return await self._health(query)
        for base, checks in CHECKS.items():
            if path == base:
                return await self._checks(base, checks, query)
            if path.startswith(base + "/") and path[len(base) + 1 :] in checks:
                return await self._checks(path, (path[len(base) + 1 :],), query)
        return HttpResponse(404, TEXT, b"404 page not found\n")

    async def _health(self, query: dict[str, list[str]]) -> HttpResponse:
        reason = self._alarm_reason(set(query.get("exclude", [])))
        if not reason and not self._member.node.leader:
            reason = "RAFT NO LEADER"
        if not reason and query.get("serializable", ["false"])[0] != "true":
            error = await self._fresh()
            reason = f"RANGE ERROR:{error}" if error else ""
        if reason:
            self.health_failures += 1
        else:
            self.health_success += 1
        body = {"health": "false" if reason else "true", "reason": reason}
        return _json(503 if reason else 200, body)

    def _alarm_reason(self, excluded: set[str]) -> str:
        for alarm, _ in self._member.replica.alarms.get(0):
            if (name := alarm_name(alarm)) not in excluded:
                return f"ALARM {name}"
        return ""

    async def _checks(
        self, path: str, names: tuple[str, ...], query: dict[str, list[str]]
    ) -> HttpResponse:
        excluded = set(query.get("exclude", []))
        lines = []
        failed = False
        for name in names:
            if name in excluded:
                lines.append(f"[+]{name} excluded: ok")
                continue
            reason = await self._check(name)
            failed = failed or bool(reason)
            lines.append(f"[-]{name} failed: {reason}" if reason else f"[+]{name} ok")
        if failed:
            return HttpResponse(
                503, TEXT, ("\n".join(lines) + f"\n{path[1:]} check failed\n").encode()
            )
        if "verbose" in query:
            return HttpResponse(
                200, TEXT, ("\n".join(lines) + f"\n{path[1:]} check passed\n").encode()
            )
        return HttpResponse(200, TEXT, b"ok\n")

    async def _check(self, name: str) -> str:
        member = self._member
        if name == "data_corruption":
            return "alarm CORRUPT is active" if member.replica.alarms.get(CORRUPT) else ""
        if name == "non_learner":
            learner = member.is_learner
            return "this member is a learner" if learner else ""
        if name == "linearizable_read":
            return await self._fresh()
        return ""  # serializable_read: that we answer at all is the proof

    async def _fresh(self) -> str:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[str] = loop.create_future()

        def settle(error: Exception | None) -> None:
            if not done.done():
                done.set_result(str(error) if error else "")

        self._member.node.linearizable(settle)
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                return await done
        except TimeoutError:
            return "etcdserver: request timed out"


def _json(status: int, body: object) -> HttpResponse:
    return HttpResponse(status, JSON, json.dumps(body, separators=(",", ":")).encode())
