"""``vitrieve index``: make embeddings searchable. Next: ``search.py``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vitrieve.cli.arguments import Switch
from vitrieve.cli.console import print_json, print_message


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Make embeddings searchable, exactly."""

    embeddings: Path
    """Folder written by vitrieve embed."""
    out: Path
    """Folder to write."""
    overwrite: Switch = False
    """Replace what --out holds."""
    json: Switch = False
    """Print one JSON object."""


def run(arguments: Arguments) -> int:
    """Build the index and say how large it is."""
    from vitrieve.index.exact import build_index

    store = build_index(arguments.embeddings, arguments.out, is_overwrite=arguments.overwrite)
    num_vectors, embedding_dim = store.vectors.shape
    if arguments.json:
        print_json(
            {
                "out": str(arguments.out),
                "store": "exact",
                "num_vectors": num_vectors,
                "embedding_dim": embedding_dim,
                "fingerprint": store.fingerprint,
                "encoder": store.encoder_source,
            }
        )
    else:
        print(f"{arguments.out}: {num_vectors} vectors of {embedding_dim} dimensions")
        print_message(f"next: vitrieve search --index {arguments.out} PICTURE")
    return 0
