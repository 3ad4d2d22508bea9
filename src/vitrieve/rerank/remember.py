"""The re-ranking that an index remembers: ``reranker.json`` beside it, written after a measurement.

A head that was learned lies in a file of its own, which is named by its checksum: the JSON file, written last, tells
which one is meant, so that no stop in between leaves an index with the one of now and the other of before.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load, save

from vitrieve.errors import ArtifactError
from vitrieve.rerank.head import Head
from vitrieve.rerank.names import LEARNT, NO_RERANKING
from vitrieve.rerank.reranker import Reranker, build_learnt, find_reranker
from vitrieve.writing import write_bytes_durably, write_text_durably

RERANKER_NAME = "reranker.json"
"""Inside the folder of the index."""


@dataclass(frozen=True, kw_only=True)
class KeptReranking:
    """What an index does with the first images of a search, and why.

    Attributes:
        name: Name of the re-ranking; ``none`` where none was better.
        fingerprint: Fingerprint of the encoder that it was measured with.
        reason: What was measured, in a sentence.
        head: What was learned, for the re-ranking that is; else None.
    """

    name: str
    fingerprint: str
    reason: str
    head: Head | None = None

    @property
    def reranker(self) -> Reranker | None:
        """Return the re-ranking; None for ``none``."""
        if self.head is not None:
            return build_learnt(self.head)
        return None if self.name == NO_RERANKING else find_reranker(self.name)


def save_kept(kept: KeptReranking, index_folder: Path | str) -> Path:
    """Write what an index remembers, and return the file; a crash leaves the old one or the new one."""
    path = Path(index_folder) / RERANKER_NAME
    values = {"name": kept.name, "fingerprint": kept.fingerprint, "reason": kept.reason}
    if kept.head is not None:
        data = save(dict(kept.head.arrays))
        values["head_sha256"] = hashlib.sha256(data).hexdigest()
        write_bytes_durably(path.with_name(_name_head(values["head_sha256"])), data)
    write_text_durably(path, json.dumps(values, indent=2) + "\n")
    for old in path.parent.glob(_name_head("*")):
        if old.name != _name_head(values.get("head_sha256", "")):
            old.unlink(missing_ok=True)
    return path


def _name_head(sha256: str) -> str:
    return f"reranker-{sha256[:16]}.safetensors"


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
        if not all(isinstance(value, str) for value in values.values()):
            raise ValueError("its values are not texts")
        head = _read_head(path.parent, values.pop("head_sha256")) if values["name"] == LEARNT else None
        kept = KeptReranking(**values, head=head)
        _ = kept.reranker
    except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        raise ArtifactError(
            f"{path} is damaged ({error}); run vitrieve evaluate --rerank auto --index again, or delete the file."
        ) from None
    return kept


def _read_head(folder: Path, sha256: str) -> Head:
    path = folder / Path(_name_head(sha256)).name
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(f"{path.name} is not the head that was measured")
    return Head(arrays=load(data))
