"""For tests that cannot work on compiled modules, or not in the same way."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from kvstore.compiled import compiled


def demand_pure_python() -> None:
    """Refuse compiled modules, for what replaces classes or methods of the product.

    On compiled modules a planted bug might have no effect: its methods call each other directly,
    past the replacement. Then a hunt would prove nothing.
    """
    found = compiled()
    if found:
        raise RuntimeError(f"this runs on pure Python only, but {found[0]} is compiled")


def source_of(path: str) -> ModuleType:
    """Return a module made from its source, apart from the one in use: with annotations.

    Compiled classes do not keep them.
    """
    name = f"source of {path}"
    spec = spec_from_file_location(name, Path(__file__).parent.parent / path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
