"""A Raft-replicated, strictly serializable key-value store that speaks the etcd v3 protocol.

`kvstore.embed()` runs a member inside this process, `kvstore.client` is the client library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvstore.embedded import embed

__version__ = "0.1.0"
__all__ = ["__version__", "embed"]


def __getattr__(name: str) -> Any:
    # At first use: whoever needs only the client, or `kvctl --help`, does not import a server.
    if name == "embed":
        from kvstore.embedded import embed  # noqa: PLC0415 (see above)

        globals()["embed"] = embed
        return embed
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
