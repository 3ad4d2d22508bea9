"""``vitrieve index``: make embeddings searchable."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vitrieve.artifacts import MANIFEST_NAME
from vitrieve.cli.arguments import Json, StoreName, Switch
from vitrieve.cli.console import print_json, print_message, print_result
from vitrieve.errors import ArtifactError, ConfigError, FingerprintError

if TYPE_CHECKING:
    from vitrieve.index.store import VectorStore


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Make embeddings searchable, or check an index that is there."""

    embeddings: Path | None = None
    """Folder written by vitrieve embed."""
    out: Path | None = None
    """Folder to write."""
    store: StoreName = "lance"
    """What holds the vectors: LanceDB in the folder, files that are always compared whole, a Milvus server, or a
    PostgreSQL database with pgvector; or a store that another package adds."""
    index_kind: Literal["flat", "ivf_hnsw_sq", "ivf_pq", "ivf_rq"] = "ivf_hnsw_sq"
    """What finds the candidates among 5,000 images and more: full vectors, a graph over bytes, short codes, or bits."""
    code_bytes: int | None = None
    """Bytes of one code of ivf_pq, a divisor of the dimensions; None: an eighth of them."""
    uri: str | None = None
    """Address of the server: http://localhost:19530 of Milvus, a token is read from VITRIEVE_MILVUS_TOKEN; or
    postgresql://user@localhost/database, a password is read from PGPASSWORD or ~/.pgpass."""
    verify: Switch = False
    """Read the whole index at --index and check it; changes nothing. Exit status 1 when it has faults."""
    index: Path | None = None
    """Index to check with --verify."""
    overwrite: Switch = False
    """Replace what --out holds: the new index is built beside it, verified, and switched to in one step."""
    json: Json = False


def run(arguments: Arguments) -> int:
    """Build the index and say how large it is; or check one."""
    if arguments.verify:
        return _verify(arguments)
    if arguments.index is not None:
        raise ConfigError("--index names the index to check with --verify; a new one is written to --out.")
    if arguments.out is None:
        raise ConfigError("no folder for the index: name one with --out.")
    if arguments.embeddings is None:
        raise ConfigError("no embeddings: name the folder that vitrieve embed wrote with --embeddings.")
    from vitrieve.index.open import build_index
    from vitrieve.index.store import IndexSettings

    settings = IndexSettings(index_kind=arguments.index_kind, code_bytes=arguments.code_bytes, uri=arguments.uri)
    store = build_index(
        arguments.embeddings,
        arguments.out,
        store=arguments.store,
        settings=settings,
        overwrite=arguments.overwrite,
    )
    description = _describe(arguments.out, store)
    store.close()
    if arguments.json:
        print_json(description)
    else:
        print_result(
            f"{arguments.out}: {description['num_vectors']} vectors of {description['embedding_dim']} dimensions "
            f"({description['store']})"
        )
        print_message(f"next: vitrieve search --index {arguments.out} PICTURE")
    return 0


def _verify(arguments: Arguments) -> int:
    if arguments.embeddings is not None or arguments.overwrite:
        raise ConfigError("--verify changes nothing: leave out --embeddings and --overwrite.")
    if (arguments.index is None) == (arguments.out is None):
        raise ConfigError("name the index to check once: --verify --index INDEX.")
    if arguments.out is not None:
        print_message(f"the index to check is named with --index now: --verify --index {arguments.out}")
    folder = arguments.index or arguments.out
    assert folder is not None
    from vitrieve.index.lance_files import find_broken_files
    from vitrieve.index.open import open_index

    try:
        store = open_index(folder)
    except FingerprintError:
        raise
    except ArtifactError as error:
        if not (folder / MANIFEST_NAME).is_file():
            raise
        description: dict[str, object] = {"out": str(folder)}  # it cannot even be opened
        faults = find_broken_files(folder) or [str(error)]
    else:
        description, faults = _describe(folder, store), store.verify()
        store.close()
    if arguments.json:
        print_json({**description, "faults": faults})
    else:
        print_result(*(faults or [f"{folder}: {description['num_vectors']} vectors, no fault found"]))
    return 1 if faults else 0


def _describe(out: Path, store: VectorStore) -> dict[str, object]:
    return {
        "out": str(out),
        "store": store.info.kind,
        "num_vectors": store.count(),
        "embedding_dim": store.info.embedding_dim,
        "fingerprint": store.info.fingerprint,
        "encoder": store.info.encoder_source,
    }
