"""Who fights over an object is slowed down: how often each had to be put right; pure."""

from __future__ import annotations

from collections import deque

from netplane.netlink.objects import Identity


class Heals:
    """How often each object had to be put right; who fights over one is slowed down.

    Two writers that both insist would keep each other and the kernel busy for ever.
    """

    COUNT_MAX = 10
    WINDOW_S = 60.0
    PAUSE_S = 10.0

    def __init__(self) -> None:
        self._times: dict[Identity, deque[float]] = {}
        self._contested: set[Identity] = set()
        self.writers: dict[Identity, str] = {}
        """Who changed last what is fought over, as far as the kernel tells."""

    def note(self, key: Identity, now: float) -> bool:
        """Count a heal; true if from now on the object is contested."""
        times = self._times.setdefault(key, deque())
        times.append(now)
        while times[0] <= now - self.WINDOW_S:
            times.popleft()
        if len(times) <= self.COUNT_MAX or key in self._contested:
            return False
        self._contested.add(key)
        return True

    def is_near_fight(self, key: Identity) -> bool:
        """Tell whether the next heal makes an object contested, if it is not yet."""
        return key in self._contested or self.count(key) >= self.COUNT_MAX

    @property
    def any_contested(self) -> bool:
        """False: none can be held."""
        return bool(self._contested)

    def held(self, key: Identity, now: float) -> bool:
        """Tell whether an object has to wait."""
        return key in self._contested and now < self._times[key][-1] + self.PAUSE_S

    def forget(self, now: float) -> None:
        """Let go of what has been quiet for a whole window."""
        if not (self._times or self.writers):  # as a rule
            return
        quiet = [key for key, times in self._times.items() if times[-1] <= now - self.WINDOW_S]
        for key in quiet:
            del self._times[key]
            self._contested.discard(key)
        self.writers = {key: name for key, name in self.writers.items() if key in self._times}

    def count(self, key: Identity) -> int:
        """Return the heals of an object in the last window that had any."""
        return len(self._times.get(key, ()))

    def due_s(self, now: float) -> float | None:
        """Return the seconds until the first of those that wait may be put right."""
        ends = [self._times[key][-1] + self.PAUSE_S for key in self._contested]
        waiting = [end - now for end in ends if end > now]
        return min(waiting, default=None)
