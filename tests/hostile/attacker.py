"""Runs one attack from a process of its own: python -m tests.hostile.attacker NAME PORT SECONDS.

Prints one JSON line: connections opened, bytes sent, and how connections ended.
"""

from __future__ import annotations

import json
import selectors
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator

from tests.hostile.attacks import ATTACKS, Attack
from tests.rpc.wire import GOAWAY, PREFACE, settings

ERRORS = (
    *("NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT"),
    *("STREAM_CLOSED", "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR"),
    *("CONNECT_ERROR", "ENHANCE_YOUR_CALM"),
)
"""RFC 9113 section 7, by number."""


class Goaways:
    """Finds GOAWAY among the frames that a connection receives."""

    def __init__(self) -> None:
        self.code = ""
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        self._buffer += data
        at = 0
        while len(self._buffer) - at >= 9:
            word, _, _ = struct.unpack_from(">LBL", self._buffer, at)
            stop = at + 9 + (word >> 8)
            if stop > len(self._buffer):
                break
            if word & 0xFF == GOAWAY:
                [code] = struct.unpack_from(">L", self._buffer, at + 13)
                self.code = ERRORS[code]
            at = stop
        del self._buffer[:at]


class Attacker:
    """One connection that sends what the attack supplies as fast as the server takes it."""

    def __init__(self, attack: Attack, port: int) -> None:
        self.attack = attack
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5)
        self.socket.setblocking(False)
        self.sent_bytes = 0
        self.goaways = Goaways()
        self._supply: Iterator[bytes] | None = attack.supply()
        self._rest = PREFACE + settings()

    @property
    def events(self) -> int:
        writes = self._supply is not None or bool(self._rest)
        # A connection that neither reads nor writes would never show its end.
        reads = self.attack.reads or not writes
        return selectors.EVENT_READ * reads | selectors.EVENT_WRITE * writes

    def write(self) -> bool:
        """Send a piece; False when the connection is over."""
        while not self._rest and self._supply is not None:
            piece = next(self._supply, None)
            if piece is None:
                self._supply = None
            else:
                self._rest = piece
        try:
            sent = self.socket.send(self._rest) if self._rest else 0
        except BlockingIOError:
            return True
        except ConnectionError:
            self.drain()
            return False
        self.sent_bytes += sent
        self._rest = self._rest[sent:]
        return True

    def read(self) -> bool:
        """Take what arrived; False when the connection is over."""
        try:
            data = self.socket.recv(1 << 18)
        except BlockingIOError:
            return True
        except ConnectionError:
            return False
        self.goaways.feed(data)
        return bool(data) and not self.goaways.code

    def drain(self) -> None:
        """Read what is left after a failed write: the reason is there, if anywhere."""
        while self.read() and not self.goaways.code:
            pass


def run(name: str, port: int, seconds: float) -> dict[str, object]:
    """Attack for that long; return what happened."""
    attack = ATTACKS[name]
    ends: Counter[str] = Counter()
    opened = 0
    sent_bytes = 0
    ends_at = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:

        def open_one() -> None:
            nonlocal opened
            attacker = Attacker(attack, port)
            opened += 1
            selector.register(attacker.socket, attacker.events, attacker)

        def close(attacker: Attacker, how: str) -> None:
            nonlocal sent_bytes
            ends[how] += 1
            sent_bytes += attacker.sent_bytes
            selector.unregister(attacker.socket)
            attacker.socket.close()

        for _ in range(attack.connections):
            open_one()
        while (left := ends_at - time.monotonic()) > 0:
            for key, events in selector.select(min(left, 0.1)):
                attacker = key.data
                alive = True
                if events & selectors.EVENT_WRITE:
                    alive = attacker.write()
                if alive and events & selectors.EVENT_READ:
                    alive = attacker.read()
                if not alive:
                    close(attacker, attacker.goaways.code or "reset")
                    open_one()
                elif attacker.events != key.events:
                    selector.modify(attacker.socket, attacker.events, attacker)
        for key in list(selector.get_map().values()):
            close(key.data, "open")
    return {"connections": opened, "sent_bytes": sent_bytes, "ends": dict(ends)}


def main() -> None:
    """Run what the arguments ask for."""
    name, port, seconds = sys.argv[1:]
    json.dump(run(name, int(port), float(seconds)), sys.stdout)


if __name__ == "__main__":
    main()
