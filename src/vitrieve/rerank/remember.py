"""The re-ranking that an index remembers: ``reranker.json`` beside it, written after a measurement."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrieve.artifacts import write_text_durably
from vitrieve.errors import ArtifactError
from vitrieve.rerank.reranker import NO_RERANKING, Reranker, find_reranker

RERANKER_NAME = "reranker.json"
"""Inside the folder of the index."""


@dataclass(frozen=True, kw_only=True)
class KeptReranking:
    """What an index does with the first images of a search, and why.

    Attributes:
        name: Name of the re-ranking; ``none`` where none was better.
        fingerprint: Fingerprint of the encoder that it was measured with.
        reason: What was measured, in a sentence.
    """

    name: str
    fingerprint: str
    reason: str

    @property
    def reranker(self) -> Reranker | None:
        """Return the re-ranking; None for ``none``."""
        return None if self.name == NO_RERANKING else find_reranker(self.name)


def save_kept(kept: KeptReranking, index_folder: Path | str) -> Path:
    """Write what an index remembers, and return the file; a crash leaves the old one or the new one."""
    path = Path(index_folder) / RERANKER_NAME
    write_text_durably(path, json.dumps(dataclasses.asdict(kept), indent=2) + "\n")
    return path


def load_kept(index_folder: Path | str) -> KeptReranking | None:
    """Read what an index remembers; None when nothing was measured for it.

    Raises:
        ArtifactError: The file is damaged, or of a newer version that has other re-rankings.
    """
    path = Path(index_folder) / RERANKER_NAME
    if not path.is_file():
        return None
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kept = KeptReranking(**values)
        if not all(isinstance(value, str) for value in values.values()):
            raise ValueError("its values are not texts")
        _ = kept.reranker
    except (OSError, ValueError, TypeError) as error:
        raise ArtifactError(
            f"{path} is damaged ({error}); run vitrieve evaluate --rerank auto --index again, or delete the file."
        ) from None
    return kept
