"""Which numbered packets have come already: pure. One that comes twice is taken once."""

from __future__ import annotations

SIZE = 2048
"""How far packets may be behind the newest one."""
_MASK = (1 << SIZE) - 1


class Window:
    """The newest number that came, and which of those before it did."""

    __slots__ = ("newest", "seen")

    def __init__(self, newest: int = -1, seen: int = 0) -> None:
        self.newest = newest
        self.seen = seen
        """Bit n: the packet n before the newest has come."""

    def is_new(self, number: int) -> bool:
        """Tell whether a packet may be taken; only what is authenticated is then to be noted."""
        behind = self.newest - number
        return behind < 0 or (behind < SIZE and not self.seen >> behind & 1)

    def note(self, number: int) -> bool:
        """Note a packet that was taken; True: it is the newest now."""
        ahead = number - self.newest
        if ahead > 0:
            # Beyond the window nothing that came before is left.
            self.seen = (self.seen << ahead & _MASK | 1) if ahead < SIZE else 1
            self.newest = number
            return True
        self.seen |= 1 << -ahead
        return False
