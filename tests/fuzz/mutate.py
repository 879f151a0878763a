"""Inputs by mutation alone: where atheris is not installed, and where a seed must repeat a run."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

INPUT_BYTES_MAX = 4096
INTERESTING = (0, 1, 4, 5, 0x20, 0x3F, 0x40, 0x7F, 0x80, 0x82, 0xBE, 0xC0, 0xC1, 0xFE, 0xFF)


def pieces(data: bytes) -> list[bytes]:
    """Cut input into parts, each behind two bytes of length."""
    parts = []
    while len(data) >= 2:
        size = int.from_bytes(data[:2], "big") % 4096
        parts.append(data[2 : 2 + size])
        data = data[2 + size :]
    return parts


def joined(*parts: bytes) -> bytes:
    """Return the input that `pieces` cuts into these parts."""
    return b"".join(len(part).to_bytes(2, "big") + part for part in parts)


def mutated(draw: random.Random, corpus: Sequence[bytes]) -> bytes:
    """Return one of the corpus with some changes: bytes, slices, and parts of another one."""
    data = bytearray(draw.choice(corpus))
    for _ in range(draw.choice((1, 1, 1, 2, 3, 5, 8))):
        at = draw.randrange(len(data) + 1)
        size = draw.choice((1, 1, 2, 4, 8, 32))
        match draw.randrange(7):
            case 0 if at < len(data):
                data[at] ^= 1 << draw.randrange(8)
            case 1 if at < len(data):
                data[at] = draw.choice(INTERESTING)
            case 2 if at < len(data):
                data[at] = draw.randrange(256)
            case 3:
                del data[at : at + size]
            case 4:
                data[at:at] = draw.randbytes(size)
            case 5:
                data[at:at] = data[at : at + size]
            case _:
                other = draw.choice(corpus)
                start = draw.randrange(len(other) + 1)
                data[at:at] = other[start : start + draw.randrange(200)]
    return bytes(data[:INPUT_BYTES_MAX])


def search(
    target: Callable[[bytes], None], corpus: Sequence[bytes], seed: int, executions: int
) -> tuple[bytes, Exception] | None:
    """Return the first input that breaks the target, with what it raised; None if none did."""
    draw = random.Random(seed)
    for _ in range(executions):
        data = mutated(draw, corpus)
        try:
            target(data)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is what we look for
            return data, error
    return None
