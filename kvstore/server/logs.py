"""Structured logs: one JSON line an event on standard error, in etcd's form."""

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
    "panic": logging.CRITICAL,
    "fatal": logging.CRITICAL,
}
"""etcd's names of `--log-level`."""


class JsonLines(logging.Formatter):
    """level, ts, logger, caller, msg; then what `extra={"fields": {...}}` brought."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        when = dt.datetime.fromtimestamp(record.created, dt.UTC)
        event: dict[str, object] = {
            "level": "warn" if record.levelname == "WARNING" else record.levelname.lower(),
            "ts": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "logger": record.name,
            "caller": f"{record.filename}:{record.lineno}",
            "msg": record.getMessage(),
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            event.update(fields)
        if record.exc_info:
            event["error"] = self.formatException(record.exc_info)
        return json.dumps(event, default=str)


def set_up(level: str) -> None:
    """Send everything from `level` on to standard error. Raises KeyError for an unknown level."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(LEVELS[level])
    # aiohttp logs every request on its own; ours are in the metrics.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
