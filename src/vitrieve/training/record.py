"""``run.json``, the record of a run: its identity, when it was worked on, by which code, and how that ended."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vitrieve.errors import DiskFullError
from vitrieve.writing import explaining_full_disk, removing_unfinished

RECORD_NAME = "run.json"
GIT_SECONDS = 5
MAX_REASON_CHARACTERS = 500


def begin_record(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write that a run begins or goes on.

    Args:
        folder: Folder of the run.
        facts: What the run depends on beside its settings.

    Returns:
        The record; ``id`` is that of the run's beginning.
    """
    try:
        before = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
        record = {"id": str(before["id"]), **facts, "attempts": list(before["attempts"])}
    except (OSError, ValueError, KeyError, TypeError):  # a new run, or one of an earlier version
        record = {"id": secrets.token_hex(8), **facts, "attempts": []}
    record["attempts"].append({"began": _now(), "commit": find_commit()})
    _write(folder, record)
    return record


def end_record(folder: Path, record: Mapping[str, Any], status: str, error: BaseException | None = None) -> None:
    """Write how the work on a run ended; where that cannot be written, something worse is told already."""
    reason = "" if error is None else f"{type(error).__name__}: {error}"[:MAX_REASON_CHARACTERS]
    record["attempts"][-1].update({"ended": _now(), "status": status, "reason": reason})
    with suppress(OSError, DiskFullError):
        _write(folder, record)


def find_commit() -> str | None:
    """Return the commit of the folder that the process works in, with ``+`` where files differ; None without."""
    try:
        commit = _ask_git("rev-parse", "HEAD")
        return commit + ("+" if _ask_git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _ask_git(*words: str) -> str:
    asked = subprocess.run(
        ["git", *words], capture_output=True, check=True, text=True, timeout=GIT_SECONDS, stdin=subprocess.DEVNULL
    )
    return asked.stdout.strip()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _write(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record whole; not durably, as nothing that a run needs is in it."""
    path = folder / RECORD_NAME
    temporary = path.with_name(f"{RECORD_NAME}.tmp")
    with explaining_full_disk(path), removing_unfinished(temporary):
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)
