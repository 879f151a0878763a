"""Structured logs: one JSON line an event on standard error."""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}


class JsonLines(logging.Formatter):
    """level, ts, logger, msg; the members of a cluster write the same."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        when = dt.datetime.fromtimestamp(record.created, dt.UTC)
        event = {
            "level": "warn" if record.levelname == "WARNING" else record.levelname.lower(),
            "ts": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "logger": record.name,
            "msg": record.getMessage(),
        }
        if record.exc_info:
            event["error"] = self.formatException(record.exc_info)
        return json.dumps(event, default=str)


def set_up(level: str) -> None:
    """Send everything from `level` on to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(LEVELS[level])
