"""Which index belongs to a folder where none is named. Next file: ``session.py``."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from vitrieve.cache import cache_folder


def default_index_folder(folder: Path, fingerprint: str) -> Path:
    """Tell where the index of a folder is kept: in the user's cache, one for each folder and encoder.

    Not in the folder itself: that may be read-only, on a network drive (where memory maps and file locks are
    unreliable), shared or copied by other programs, and holds somebody's photographs and nothing of ours. The price:
    a folder that moves is embedded anew, unless the index is named.

    Args:
        folder: The collection, there or not.
        fingerprint: Of the encoder.
    """
    path = folder.resolve()
    identity = hashlib.sha256(f"{path}\0{fingerprint}".encode("utf-8", "surrogateescape")).hexdigest()
    name = re.sub(r"[^\w.-]+", "-", path.name, flags=re.ASCII).strip(".-") or "collection"
    return cache_folder() / "indexes" / f"{name}-{identity[:12]}"
