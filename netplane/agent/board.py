"""What is missing for the network to work, and what else an operator should know; in words."""

from __future__ import annotations

import logging
from collections.abc import Callable

log = logging.getLogger("netplane.board")


class Board:
    """Two lists of texts under short codes, which metrics and scripts can rely on.

    `missing` keeps the host from being ready; `notes` do not. Every change is logged once, however
    often it is reported.
    """

    def __init__(self) -> None:
        self.missing: dict[str, str] = {}
        self.notes: dict[str, str] = {}
        self.on_change: Callable[[], None] = lambda: None
        self.on_missing: Callable[[], None] = lambda: None
        """Called when something else is missing than before, or nothing any more."""

    @property
    def is_ready(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing

    def miss(self, code: str, text: str) -> None:
        """Say what is missing; an empty text says that it is no longer."""
        self._set(self.missing, code, text)

    def note(self, code: str, text: str) -> None:
        """Say what an operator should know; an empty text takes it back."""
        self._set(self.notes, code, text)

    def _set(self, texts: dict[str, str], code: str, text: str) -> None:
        before = texts.get(code, "")
        if text == before:
            return
        if text:
            texts[code] = text
            log.warning("%s: %s", code, text)
        else:
            del texts[code]
            log.info("%s: no longer", code)
            if texts is self.missing and not texts:
                log.info("ready")
        if texts is self.missing:
            self.on_missing()
        self.on_change()

    def text(self) -> str:
        """Return a line for each reason not to be ready."""
        return "".join(f"{code}: {text}\n" for code, text in sorted(self.missing.items()))

    def notes_text(self) -> str:
        """Return a line for each note."""
        return "".join(f"note {code}: {text}\n" for code, text in sorted(self.notes.items()))
