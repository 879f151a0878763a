"""Compiles the modules of kvstore/compiled.py when KVSTORE_COMPILE=1 is set; else does nothing.

Everything else about the package is in pyproject.toml.
"""

from __future__ import annotations

import os
import runpy
import sys

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ADVICE = """
kvstore: KVSTORE_COMPILE=1 asks for compiled modules, but {problem}.
Compiling needs mypy 2.4 (pip brings it, except with --no-build-isolation) and a C compiler with
Python's headers (Debian: gcc python3-dev). Unset KVSTORE_COMPILE to build in pure Python."""


class Compile(build_ext):
    """Says what to do when the C compiler fails."""

    def run(self) -> None:
        """Compile; a failure ends the build."""
        try:
            super().run()
        except Exception as error:
            raise SystemExit(ADVICE.format(problem=f"the C compiler failed: {error}")) from error


def extensions() -> list[Extension]:
    """Translate the modules to C."""
    try:
        from mypyc.build import mypycify  # noqa: PLC0415  a build in pure Python is without it
    except ImportError as error:
        raise SystemExit(ADVICE.format(problem=f"there is no mypyc ({error})")) from error
    modules = runpy.run_path("kvstore/compiled.py")["MODULES"]
    try:
        found: list[Extension] = mypycify(
            [f"kvstore/{module}.py" for module in modules],
            group_name="kvstore",
            opt_level="2",
            debug_level="0",
        )
    except SystemExit as error:
        raise SystemExit(ADVICE.format(problem="mypyc refuses a module (see above)")) from error
    return found


choice = os.environ.get("KVSTORE_COMPILE", "")
if choice not in {"", "0", "1"}:
    raise SystemExit(f"kvstore: KVSTORE_COMPILE may be 1 or not set, not {choice!r}")
# pip asks for metadata first, which no C code changes; and a source archive is without it.
if choice == "1" and {"egg_info", "dist_info", "sdist"}.isdisjoint(sys.argv):
    setup(ext_modules=extensions(), cmdclass={"build_ext": Compile})
else:
    setup()
