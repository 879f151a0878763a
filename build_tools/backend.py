"""setuptools' build backend, and what compiling needs when KVSTORE_COMPILE=1 asks for it.

It is here so that `KVSTORE_COMPILE=1 pip install .` brings mypy and the packages whose types mypy
follows, and that a build in pure Python brings nothing.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import (
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

MYPYC = ["mypy==2.4.*", "types-protobuf>=5.27", "types-PyYAML>=6.0"]
"""The mypy that the suite was compiled with; another may refuse the code or change what it does."""

Settings = dict[str, object] | None


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """Return what to install before `build_wheel`."""
    if os.environ.get("KVSTORE_COMPILE") != "1":
        requires: list[str] = build_meta.get_requires_for_build_wheel(config_settings)
        return requires
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    return [*MYPYC, *project["dependencies"]]


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    """Return what to install before `build_editable`."""
    _refuse_editable()
    requires: list[str] = build_meta.get_requires_for_build_editable(config_settings)
    return requires


def build_editable(
    wheel_directory: str,
    config_settings: Settings = None,
    metadata_directory: str | None = None,
) -> str:
    """Build what points at the sources."""
    _refuse_editable()
    name: str = build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
    return name


def _refuse_editable() -> None:
    # A compiled module goes before its source: edits would have no effect, without a word.
    if os.environ.get("KVSTORE_COMPILE") == "1":
        raise SystemExit(
            "kvstore: an editable install runs from the sources and cannot be compiled; unset"
            " KVSTORE_COMPILE, or install without -e, or use `make compiled`"
        )
