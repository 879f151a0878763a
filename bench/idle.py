"""Memory of what does nothing: idle connections and watchers, on the leader."""

from __future__ import annotations

import queue
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import grpc

from bench import messages, process
from bench.clusters import Cluster, Member
from bench.wire import ACK, SETTINGS, frame, opening

CONNECTIONS = 10_000
WATCHERS = 1_000
SPARE_FILES = 200
WAIT_S = 60.0
SETTLE_S = 1.0


def run(kind: str, *, data_root: str | None, scale: float = 1.0) -> dict[str, object]:
    """Return the leader's bytes per idle plain connection and per watcher."""
    connections = affordable(max(100, round(CONNECTIONS * scale)))
    watchers = max(100, round(WATCHERS * scale))
    with Cluster(kind, data_root=data_root) as cluster:
        leader = cluster.leader()
        # First: what closed connections gave back would be used again and hide the watchers.
        per_watcher = _watch(leader, watchers)
        with ExitStack() as stack:
            before = settled_bytes(leader)
            for _ in range(connections):
                stack.enter_context(idle_connection(leader))
            per_connection = (settled_bytes(leader) - before) / connections
        term = cluster.term()
    return {
        "connections": connections,
        "bytes per connection": round(per_connection),
        "watchers": watchers,
        "bytes per watcher": round(per_watcher),
        "term at the end": term,
        "target": "<= 16 KiB per plain connection, <= 1 KiB per watcher",
    }


def affordable(wanted: int) -> int:
    """Return how many connections this process may open, after raising its limit if need be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted + SPARE_FILES:
        soft = min(hard, wanted + SPARE_FILES) if hard != resource.RLIM_INFINITY else wanted
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return min(wanted, soft - SPARE_FILES)


def settled_bytes(member: Member) -> int:
    """Return the member's anonymous memory, a moment after the last change."""
    time.sleep(SETTLE_S)
    return process.memory(member.pid).anonymous_bytes


def idle_connection(member: Member) -> socket.socket:
    """Return a connection that has gone through HTTP/2's exchange of settings."""
    connection = socket.create_connection(("127.0.0.1", member.ports.client), WAIT_S)
    connection.sendall(opening(client=True))
    if not connection.recv(4096):
        raise RuntimeError("the member closed an idle connection at once")
    connection.sendall(frame(SETTINGS, ACK, 0))
    return connection


def _watch(member: Member, count: int) -> float:
    """Return anonymous bytes per watcher: that many watchers of different keys on one stream."""
    requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def pending() -> Iterator[bytes]:
        while (request := requests.get()) is not None:
            yield request

    with grpc.insecure_channel(member.target) as channel:
        replies = channel.stream_stream(messages.WATCH)(pending(), timeout=WAIT_S)
        requests.put(messages.watch_create(b"idle/first"))
        next(replies)
        before = settled_bytes(member)
        for number in range(count):
            requests.put(messages.watch_create(b"idle/%08d" % number))
        for _ in range(count):
            next(replies)
        used = settled_bytes(member) - before
        requests.put(None)
        replies.cancel()
    return used / count
