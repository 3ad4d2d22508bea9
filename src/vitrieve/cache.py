"""Where fetched weights and data sets are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the cache folder: ``VITRIEVE_CACHE``, or ``vitrieve`` in the user's cache folder."""
    chosen = os.environ.get("VITRIEVE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitrieve"
