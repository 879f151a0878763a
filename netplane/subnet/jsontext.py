"""JSON as Go's decoder reads it and its encoder writes it, which Flannel's values depend upon."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class FormatError(ValueError):
    """A value is not what it should be; the text says what it is, for an operator."""


_SIZE_MAX = 64 * 1024
# What Flannel writes has some 200 bytes. A bound, so that a mistake cannot stall every agent.


def parse_object(data: bytes) -> dict[str, object]:
    """Return a JSON object's fields by their names in lower case: Go matches them so.

    Raises FormatError, whatever the bytes are.
    """
    if len(data) > _SIZE_MAX:
        raise FormatError(f"{len(data)} bytes; at most {_SIZE_MAX} are read")
    try:
        found = loads(data.decode())
    except UnicodeDecodeError as error:
        raise FormatError("not UTF-8 text") from error
    except ValueError as error:
        raise FormatError(f"not JSON: {error}") from error
    if not isinstance(found, dict):
        raise FormatError(f"not a JSON object but {_kind(found)}")
    return lowered(found)


def lowered(fields: Mapping[str, object]) -> dict[str, object]:
    """Return the fields by their names in lower case; of two that differ in case the last."""
    return {name.lower(): value for name, value in fields.items()}


def text_of(value: object) -> bytes:
    """Return JSON as Go's `json.Marshal` writes it: no spaces, and safe inside HTML."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text.encode()


def _refuse(constant: str) -> object:
    raise FormatError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def loads(text: str) -> Any:
    """Return what `json.loads` would, which makes a decoder for each text when it is told more.

    Raises ValueError, also for what is nested too deeply.
    """
    try:
        # It has words for a byte order mark, and a decoder has none.
        return json.loads(text) if text.startswith("\ufeff") else _DECODER.decode(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _kind(value: object) -> str:
    names = {type(None): "null", bool: "a boolean", str: "a string", list: "a list"}
    return names.get(type(value), "a number")
