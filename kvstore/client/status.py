"""How calls end: gRPC's status codes, and the error that carries one."""

from __future__ import annotations

from typing import Final

NAMES: Final = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
    "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED",
    "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
"""By number."""

OK: Final = 0
CANCELLED: Final = 1
UNKNOWN: Final = 2
DEADLINE_EXCEEDED: Final = 4
PERMISSION_DENIED: Final = 7
RESOURCE_EXHAUSTED: Final = 8
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13
UNAVAILABLE: Final = 14
UNAUTHENTICATED: Final = 16


class CallError(Exception):
    """A call ended with a status other than OK."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{name_of(code)}: {text}")
        self.code = code
        self.text = text

    @property
    def name(self) -> str:
        """Of the code."""
        return name_of(self.code)


class ChannelClosedError(Exception):
    """The channel was closed before the call was made."""


class End:
    """The type of `EOF`."""


EOF: Final = End()
"""What a stream's `read` returns after the last message."""


def name_of(code: int) -> str:
    """Return the name of a code; one that nobody has defined is UNKNOWN."""
    return NAMES[code] if 0 <= code < len(NAMES) else NAMES[UNKNOWN]
