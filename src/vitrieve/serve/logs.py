"""The service's log: one JSON object a line, for programs that collect logs. Next file: ``metrics.py``."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vitrieve.errors import is_debugging
from vitrieve.quoting import escape_text

LOGGER = logging.getLogger("vitrieve.serve")


class JsonFormatter(logging.Formatter):
    """Spells a record as one line of JSON: time, level, event, the fields of ``log_event``, and an error.

    JSON in ASCII, so that no name in it can forge a line or move a terminal.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Spell one record; what JSON cannot hold is spelled as text."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line |= _describe(record.exc_info[1])
            if is_debugging():
                line["traceback"] = self.formatException(record.exc_info)
        return escape_text(json.dumps(line, default=str))


def _describe(error: BaseException | None) -> dict[str, str]:
    """Say what was raised, and where: enough to recognise a fault, in a line."""
    if error is None:
        return {}
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames[-3:]]
    return {"error": f"{type(error).__name__}: {error}", "where": " > ".join(places)}


def write_logs_to_standard_error() -> None:
    """Let the service's events, and the server's own warnings, come out as JSON on standard error.

    The parser of forms warns of every form that is none; its client is told.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    levels = {"vitrieve.serve": logging.INFO, "uvicorn": logging.WARNING, "python_multipart": logging.CRITICAL}
    for name, level in levels.items():
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False


def log_event(event: str, **fields: object) -> None:
    """Log an event with its fields."""
    LOGGER.info(event, extra={"fields": fields})


def log_failure(event: str, **fields: object) -> None:
    """Log the exception that is being handled, with its traceback where that is asked for (VITRIEVE_DEBUG=1)."""
    LOGGER.error(event, extra={"fields": fields}, exc_info=True)
