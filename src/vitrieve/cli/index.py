"""``vitrieve index``: make embeddings searchable. Next: ``calibrate.py``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vitrieve.cli.arguments import Switch
from vitrieve.cli.console import print_json, print_message
from vitrieve.index.store import IndexKind, StoreKind


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Make embeddings searchable."""

    embeddings: Path
    """Folder written by vitrieve embed."""
    out: Path
    """Folder to write."""
    store: StoreKind = "lance"
    """lance: LanceDB, for large collections. exact: every vector is compared, for up to a few 100,000 images."""
    index_kind: IndexKind = "ivf_hnsw_sq"
    """What LanceDB searches in, from 5,000 images on; the full vectors of what it finds are compared always."""
    code_bytes: int | None = None
    """Bytes of a code of ivf_pq, a divisor of the dimensions; None: an eighth of them."""
    overwrite: Switch = False
    """Replace what --out holds."""
    json: Switch = False
    """Print one JSON object."""


def run(arguments: Arguments) -> int:
    """Build the index and say how large it is."""
    from vitrieve.index.open import build_index

    store = build_index(
        arguments.embeddings,
        arguments.out,
        store=arguments.store,
        index_kind=arguments.index_kind,
        code_bytes=arguments.code_bytes,
        is_overwrite=arguments.overwrite,
    )
    info, num_vectors = store.info, store.count()
    if arguments.json:
        print_json(
            {
                "out": str(arguments.out),
                "store": info.kind,
                "num_vectors": num_vectors,
                "embedding_dim": info.embedding_dim,
                "fingerprint": info.fingerprint,
                "encoder": info.encoder_source,
            }
        )
    else:
        print(f"{arguments.out}: {num_vectors} vectors of {info.embedding_dim} dimensions ({info.kind})")
        print_message(f"next: vitrieve search --index {arguments.out} PICTURE")
    return 0
