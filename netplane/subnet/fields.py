"""Fields of JSON objects, by their names in lower case; null leaves one out, as in Go.

All raise FormatError for what a field cannot be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from netplane.subnet.jsontext import FormatError

VNI_MAX = 2**24 - 1


def text(fields: Mapping[str, object], name: str) -> str:
    """Return a string; "" where there is none."""
    value = fields.get(name.lower())
    if value is None:
        return ""
    if not isinstance(value, str):
        raise FormatError(f"{name} is not a string")
    return value


def number(fields: Mapping[str, object], name: str, least: int, most: int, default: int = 0) -> int:
    """Return a whole number from `least` to `most`."""
    value = fields.get(name.lower())
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise FormatError(f"{name} {value!r} is not a whole number from {least} to {most}")
    return value


def flag(fields: Mapping[str, object], name: str, *, default: bool = False) -> bool:
    """Return true or false."""
    value = fields.get(name.lower())
    if value is None:
        return default
    if not isinstance(value, bool):
        raise FormatError(f"{name} is neither true nor false")
    return value


class Vxlan(NamedTuple):
    """What the network's configuration says of the vxlan backend."""

    vni: int
    port: int
    """0: Linux's."""
    mtu: int
    """0: that of the interface."""
    learning: bool
    gbp: bool
    direct_routing: bool


def vni(backend: Mapping[str, object]) -> int:
    """Return the network identifier of vxlan in the Backend object.

    Not 0, though the kernel takes it: a peer that says so is quarantined.
    """
    return number(backend, "VNI", 1, VNI_MAX, default=1)


def vxlan(backend: Mapping[str, object]) -> Vxlan:
    """Read the Backend object."""
    return Vxlan(
        vni=vni(backend),
        port=number(backend, "Port", 0, 65535),
        mtu=number(backend, "MTU", 0, 65535),
        learning=flag(backend, "Learning"),
        gbp=flag(backend, "GBP"),
        direct_routing=flag(backend, "DirectRouting"),
    )
