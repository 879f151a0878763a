"""How Go writes and reads values, as far as etcdctl's outputs show it; knows nothing of keys."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
_ESCAPES = {7: r"\a", 8: r"\b", 9: r"\t", 10: r"\n", 11: r"\v", 12: r"\f", 13: r"\r"}
_ESCAPES |= {ord('"'): r"\"", ord("\\"): r"\\"}
_UNESCAPES = {text[1]: chr(code) for code, text in _ESCAPES.items()}
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|\'[^\']*\'|[^\'"\s]\S*[^\'"\s]?')


def parse_int(text: str, base: int = 10) -> int:
    """Read as strconv.ParseInt does; ValueError carries its text."""
    digits = r"[+-]?[0-9a-fA-F]+" if base == 16 else r"[+-]?[0-9]+"
    if re.fullmatch(digits, text) is None:
        raise ValueError(f"strconv.ParseInt: parsing {quote(text.encode())}: invalid syntax")
    value = int(text, base)
    if not INT64_MIN <= value <= INT64_MAX:
        raise ValueError(f"strconv.ParseInt: parsing {quote(text.encode())}: value out of range")
    return value


def parse_uint(text: str, base: int = 10) -> int:
    """Read as strconv.ParseUint does; ValueError carries its text."""
    digits = r"[0-9a-fA-F]+" if base == 16 else r"[0-9]+"
    if re.fullmatch(digits, text) is None:
        raise ValueError(f"strconv.ParseUint: parsing {quote(text.encode())}: invalid syntax")
    value = int(text, base)
    if value >= 1 << 64:
        raise ValueError(f"strconv.ParseUint: parsing {quote(text.encode())}: value out of range")
    return value


def quote(data: bytes) -> str:
    r"""Write as %q: escapes, and \x.. for bytes that are no UTF-8."""
    parts: list[str] = []
    for character in data.decode("utf-8", "surrogateescape"):
        code = ord(character)
        if code in _ESCAPES:
            parts.append(_ESCAPES[code])
        elif 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8
            parts.append(f"\\x{code - 0xDC00:02x}")
        elif character.isprintable():
            parts.append(character)
        elif code < 0x80:
            parts.append(f"\\x{code:02x}")
        elif code < 0x10000:
            parts.append(f"\\u{code:04x}")
        else:
            parts.append(f"\\U{code:08x}")
    return '"' + "".join(parts) + '"'


def unquote(text: str) -> str:
    """Read a double-quoted Go string; bytes from \\x.. come out as surrogate escapes."""
    data = bytearray()
    position, inner = 0, text[1:-1]
    while position < len(inner):
        if inner[position] != "\\":
            data += inner[position].encode("utf-8", "surrogateescape")
            position += 1
            continue
        kind = inner[position + 1]
        length = {"x": 2, "u": 4, "U": 8}.get(kind)
        if length is not None:
            code = int(inner[position + 2 : position + 2 + length], 16)
            data += bytes([code]) if kind == "x" else chr(code).encode()
            position += 2 + length
        elif kind in "01234567":
            data.append(int(inner[position + 1 : position + 4], 8))
            position += 4
        elif kind in _UNESCAPES:
            data += _UNESCAPES[kind].encode()
            position += 2
        else:
            raise ValueError(f"unknown escape \\{kind} in {text}")
    return data.decode("utf-8", "surrogateescape")


def split_quoted(text: str) -> tuple[str, str] | None:
    """Cut a quoted string off the front: its value and what follows; None when there is none."""
    found = _QUOTED.match(text)
    return None if found is None else (unquote(found[0]), text[found.end() :])


def split_words(line: str) -> list[str]:
    """Split a line of an interactive command into arguments: words, "quoted" and 'quoted'."""
    words: list[str] = []
    for word in _WORD.findall(line):
        if word[0] == "'":
            words.append(word[1:-1])
        elif word[0] == '"':
            words.append(unquote(word))
        else:
            words.append(word)
    return words


def parse_duration(text: str) -> float:
    """Read a duration such as 5s, 1m30s or 500ms as seconds."""
    unit = r"(ns|us|µs|ms|s|m|h)"
    if re.fullmatch(rf"([0-9]+(\.[0-9]+)?{unit})+", text) is None:
        raise ValueError(f"time: invalid duration {quote(text.encode())}")
    parts = re.findall(rf"([0-9]+(?:\.[0-9]+)?){unit}", text)
    return sum(float(number) * _UNITS_S[name] for number, name in parts)


def duration(nanoseconds: int) -> str:
    """Write as time.Duration does, below one hour."""
    if nanoseconds >= 60_000_000_000:
        minutes, rest = divmod(nanoseconds, 60_000_000_000)
        return f"{minutes}m{_trimmed(rest, 1_000_000_000)}s"
    for unit, size in (("s", 1_000_000_000), ("ms", 1_000_000), ("µs", 1_000)):
        if nanoseconds >= size:
            return f"{_trimmed(nanoseconds, size)}{unit}"
    return f"{nanoseconds}ns" if nanoseconds else "0s"


def _trimmed(nanoseconds: int, size: int) -> str:
    whole, rest = divmod(nanoseconds, size)
    digits = f"{rest:0{len(str(size)) - 1}d}".rstrip("0")
    return f"{whole}.{digits}" if digits else str(whole)


def human_bytes(size: int) -> str:
    """Write a size with decimal units: 20 kB, 3.1 MB."""
    if size < 10:
        return f"{size} B"
    value, units = float(size), ["B", "kB", "MB", "GB", "TB", "PB", "EB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    value = int(value * 10 + 0.5) / 10
    return f"{value:.0f} {units[0]}" if value >= 10 else f"{value:.1f} {units[0]}"


def to_json(value: Any) -> str:
    """Write as encoding/json does: no spaces, <>& and line separators escaped."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def message_fields(message: Any) -> dict[str, Any]:
    """Turn a protobuf message into what Go's generated structs give encoding/json.

    Proto names in order, zero values left out, numbers as numbers, bytes in base64.
    """
    result: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            if len(value):
                result[field.name] = [_field_value(field, item) for item in value]
        elif field.message_type is not None:
            if message.HasField(field.name):
                result[field.name] = message_fields(value)
        elif value:
            result[field.name] = _field_value(field, value)
    return result


def _field_value(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return message_fields(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value
