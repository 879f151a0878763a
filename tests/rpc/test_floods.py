"""Bounds against floods: the flooding connection is told ENHANCE_YOUR_CALM, nobody else notices."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from kvstore.rpc import Limits
from kvstore.rpc.budget import Budget
from tests.rpc.conftest import Running, running
from tests.rpc.wire import (
    DATA,
    ENHANCE_YOUR_CALM,
    GOAWAY,
    HEADERS,
    PING,
    PRIORITY,
    REFUSED_STREAM,
    Wire,
    frame,
    message,
    request_fields,
    rst,
    settings,
    window_update,
)

if TYPE_CHECKING:
    from collections.abc import Callable

HOLD = "/t.Test/Hold"


def rapid_reset(wire: Wire) -> bytes:  # CVE-2023-44487
    return b"".join(wire.call(1 + 2 * n, b"", HOLD) + rst(1 + 2 * n) for n in range(1500))


def made_you_reset(wire: Wire) -> bytes:  # CVE-2025-8671
    return b"".join(
        wire.call(1 + 2 * n, b"", HOLD) + window_update(1 + 2 * n, 0) for n in range(1500)
    )


def made_you_reset_by_data(wire: Wire) -> bytes:
    return b"".join(
        wire.call(1 + 2 * n, b"", HOLD) + frame(DATA, 0, 1 + 2 * n, b"x") for n in range(1500)
    )


def malformed_requests(wire: Wire) -> bytes:
    bad = [*request_fields(), ("connection", "close")]
    return b"".join(wire.headers(1 + 2 * n, bad) for n in range(1500))


FLOODS: dict[str, Callable[[Wire], bytes]] = {
    "rapid reset": rapid_reset,
    "made you reset": made_you_reset,
    "made you reset by data": made_you_reset_by_data,
    "malformed requests": malformed_requests,
    "settings": lambda w: settings(window=1000) * 3000,
    "settings acks": lambda w: frame(4, 1) * 3000,
    "priority": lambda w: frame(PRIORITY, 0, 1, b"\0\0\0\0\0") * 3000,
    "unknown frames": lambda w: frame(77, 0, 0, b"?") * 3000,
    "empty data": lambda w: w.headers(1, request_fields("/t.Test/Chat")) + frame(DATA, 0, 1) * 3000,
    "resets of closed streams": lambda w: w.call(1) + rst(1) * 3000,
    "goaways": lambda w: frame(GOAWAY, 0, 0, b"\0" * 8) * 3000,
    "window updates": lambda w: window_update(0, 1) * 3000,
    "window updates of a closed stream": lambda w: w.call(1) + rst(1) + window_update(1, 1) * 3000,
    "window swings": lambda w: (
        b"".join(w.call(1 + 2 * n, b"", HOLD) for n in range(900))
        + (settings(window=0) + settings(window=9)) * 200
    ),
    "header lists too large": lambda w: b"".join(
        frame(HEADERS, 5, 1 + 2 * n, b"\x82" * 2100) for n in range(100)
    ),
    "ping answers": lambda w: frame(PING, 1, 0, b"whatever") * 3000,
}


@pytest.mark.parametrize("name", FLOODS)
def test_flood(served: Running, name: str) -> None:
    with Wire(served.port) as other, Wire(served.port) as wire:
        other.hello()
        wire.hello()
        flood = FLOODS[name](wire)
        begun_s = time.monotonic()
        wire.send(flood)
        assert wire.goaway()[0] == ENHANCE_YOUR_CALM
        took_s = time.monotonic() - begun_s
        other.alive()
    served.until(lambda: served.server.statistics().connections_open == 0)
    assert served.run(lambda: served.server.statistics().streams_open) == 0
    assert served.service.errors == []
    held = served.service.held
    # What comes back meanwhile is part of the allowance.
    assert len(held) <= Limits().resets_burst + Limits().resets_per_s * took_s + 1
    assert all(call.cancelled for call in held)


def test_pings_without_work_are_strikes(served: Running) -> None:
    with Wire(served.port) as wire:
        wire.hello()
        for _ in range(3):
            wire.send(frame(PING, 0, 0, b"12345678"))
            assert wire.until(PING).payload == b"12345678"
        wire.send(frame(PING, 0, 0, b"12345678"))
        assert wire.goaway() == (ENHANCE_YOUR_CALM, b"too_many_pings")


def test_pings_between_replies_are_welcome(served: Running) -> None:
    # Bandwidth probes: each follows HEADERS or DATA that we sent.
    with Wire(served.port) as wire:
        wire.hello()
        for number in range(50):
            path = "/t.Test/Fail" if number % 2 else "/t.Test/Echo"
            wire.send(wire.call(1 + 2 * number, b"x", path))
            wire.response(1 + 2 * number)
            for _ in range(2):
                wire.send(frame(PING, 0, 0, b"12345678"))
                wire.until(PING)
        wire.alive()


def test_pings_at_the_allowed_interval_are_welcome() -> None:
    with running("uvloop", limits=Limits(ping_interval_s=0.0)) as served, Wire(served.port) as wire:
        wire.hello()
        for _ in range(50):
            wire.send(frame(PING, 0, 0, b"12345678"))
            wire.until(PING)
        wire.alive()


def test_streams_over_the_limit_are_refused() -> None:
    limits = Limits(concurrent_streams_max=10)
    with running("uvloop", limits=limits) as served, Wire(served.port) as wire:
        wire.hello()
        wire.send(*[wire.call(1 + 2 * n, b"", HOLD) for n in range(11)])
        assert wire.reset(21) == REFUSED_STREAM
        served.run(served.service.held[0].reply, b"")
        wire.response(1)
        wire.alive()
        assert len(served.service.held) == 10


def test_an_ordinary_client_may_cancel_a_lot() -> None:
    # 300 deadlines that pass at once are no attack.
    with running("uvloop") as served, Wire(served.port) as wire:
        wire.hello()
        for _ in range(3):
            numbers = [wire.new_stream() for _ in range(300)]
            wire.send(*[wire.call(n, b"", HOLD) for n in numbers], *[rst(n) for n in numbers])
            wire.alive()


def test_allowances_come_back() -> None:
    class Clock(asyncio.SelectorEventLoop):
        now_s = 5000.0

        def time(self) -> float:
            return self.now_s

    loop = Clock()
    budget = Budget(burst=10, per_s=2.0)
    assert [budget.spend(loop) for _ in range(11)] == [True] * 10 + [False]
    loop.now_s += 2.0
    assert [budget.spend(loop) for _ in range(5)] == [True] * 4 + [False]
    loop.now_s += 1000.0  # never more than the burst
    assert [budget.spend(loop) for _ in range(12)] == [True] * 10 + [False] * 2
    loop.close()


def test_large_messages_in_tiny_frames_are_only_slow(served: Running) -> None:
    with Wire(served.port) as wire:
        wire.hello()
        body = message(b"z" * 20_000)
        wire.send(wire.headers(1))
        wire.send(b"".join(frame(DATA, 0, 1, body[i : i + 1]) for i in range(len(body))))
        wire.send(frame(DATA, 1, 1))
        assert wire.response(1)[1] == body
