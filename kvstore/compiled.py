"""Which modules may be compiled, and which of them are; `setup.py` compiles them.

Every module runs from its Python source just as well: that form is the reference, and what the
simulator and everything that replaces parts of classes runs on. docs/decisions/0005 says what
compiling brings, and why the other modules are not in the list.
"""

from __future__ import annotations

from functools import cache
from importlib.machinery import ExtensionFileLoader, PathFinder
from pathlib import Path

MODULES = tuple(
    f"{package}/{name}"
    for package, names in {
        "raft": "candidate config follower leader log membership messages progress quorum raft read"
        " state status",
        "mvcc": "buffer check events index keyvalue range rebuild results revision store txn watch"
        " watch_encode watch_match watch_state watch_stream",
        "apply": "applier ops responses",
        "http2": "frames hpack huffman",
        "rpc": "call connection engine grpc head outbound requests",
        "peer": "codec",
        "server": "node proposals reads",
        "server/services": "base kv session session_call session_outbound session_pipeline"
        " session_puts writes",
    }.items()
    for name in names.split()
)
"""Paths below this package, without `.py`."""


def compiled() -> list[str]:
    """Return the modules of the list that an import takes in compiled form; imports none."""
    root = Path(__file__).parent
    found = []
    for module in MODULES:
        folder, _, name = module.rpartition("/")
        spec = PathFinder.find_spec(name, [str(root / folder)])
        if spec is not None and isinstance(spec.loader, ExtensionFileLoader):
            found.append(module)
    return found


@cache
def form() -> str:
    """Return how this installation runs, for version texts and logs."""
    count = len(compiled())
    if not count:
        return "pure Python"
    return "compiled" if count == len(MODULES) else f"{count} of {len(MODULES)} modules compiled"
