"""The service's log: one JSON object a line, for programs that collect logs. Next file: ``metrics.py``."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

LOGGER = logging.getLogger("vitrieve.serve")


class JsonFormatter(logging.Formatter):
    """Spells a record as one line of JSON: time, level, event, the fields of ``log_event``, and a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Spell one record; what JSON cannot hold is spelled as text."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def write_logs_to_standard_error() -> None:
    """Let the service's events, and the server's own warnings, come out as JSON on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name, level in (("vitrieve.serve", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False


def log_event(event: str, **fields: object) -> None:
    """Log an event with its fields."""
    LOGGER.info(event, extra={"fields": fields})


def log_failure(event: str, **fields: object) -> None:
    """Log the exception that is being handled, with its traceback."""
    LOGGER.error(event, extra={"fields": fields}, exc_info=True)
