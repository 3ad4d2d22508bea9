"""Make embeddings searchable, and open what was made. Next: ``search/searcher.py``."""

from __future__ import annotations

from pathlib import Path

from vitrieve.artifacts import prepare_folder
from vitrieve.embed.collection import Embeddings, load_embeddings
from vitrieve.errors import ArtifactError, ConfigError, DataError
from vitrieve.index.batch import check_vectors
from vitrieve.index.store import IndexKind, StoreInfo, StoreKind, VectorStore, read_info


def open_index(folder: Path | str) -> VectorStore:
    """Open an index of any kind of store.

    Raises:
        ArtifactError: The folder is missing, unfinished or damaged.
        FingerprintError: Its manifest and its vectors are of different encoders.
    """
    info, _ = read_info(Path(folder))
    if info.kind == "exact":
        from vitrieve.index.exact import ExactStore

        return ExactStore.open(folder)
    if info.kind == "lance":
        from vitrieve.index.lance import LanceStore

        return LanceStore.open(folder)
    raise ArtifactError(f"{folder} is an index of the unknown store {info.kind!r}; known: exact, lance.")


def build_index(
    embeddings: Embeddings | Path | str,
    out: Path | str,
    *,
    store: StoreKind = "lance",
    index_kind: IndexKind = "ivf_hnsw_sq",
    code_bytes: int | None = None,
    is_overwrite: bool = False,
) -> VectorStore:
    """Make embeddings searchable.

    Args:
        embeddings: Embeddings in memory, or their folder.
        out: Folder to write.
        store: Which store holds them.
        index_kind: What an approximate store searches in; the exact store has none.
        code_bytes: Bytes of one code of ``ivf_pq``, a divisor of the dimensions; None: an eighth of them.
        is_overwrite: Replace what is there.

    Returns:
        The index, open for searching.

    Raises:
        ArtifactError: ``embeddings`` cannot be read, or ``out`` is not free.
        ConfigError: Settings that do not belong together.
        DataError: No vector, vectors that are not normalised or not finite, or an ``image_id`` that occurs twice.
    """
    source = embeddings if isinstance(embeddings, Embeddings) else load_embeddings(embeddings)
    if not len(source.vectors):
        raise DataError("there is no embedding to index.")
    _check_code_bytes(code_bytes, index_kind, source.vectors.shape[1])
    check_vectors(source.vectors, source.records)
    out = Path(out)
    if not isinstance(embeddings, Embeddings) and out.resolve() == Path(embeddings).resolve():
        raise ArtifactError(f"{out} is the folder of the embeddings; give another --out.")
    info = StoreInfo(
        kind=store,
        fingerprint=source.fingerprint,
        encoder_source=source.encoder_source,
        image_size=source.image_size,
        embedding_dim=source.vectors.shape[1],
        license=source.license,
    )
    prepare_folder(out, is_overwrite=is_overwrite, is_resumable=False)
    if store == "exact":
        from vitrieve.index.exact import ExactStore

        return ExactStore.create(out, info, source.vectors, source.records)
    from vitrieve.index.lance import LanceStore

    return LanceStore.create(out, info, source.vectors, source.records, kind=index_kind, code_bytes=code_bytes)


def _check_code_bytes(code_bytes: int | None, index_kind: IndexKind, embedding_dim: int) -> None:
    if code_bytes is None:
        return
    if index_kind != "ivf_pq":
        raise ConfigError(f"code_bytes belongs to index_kind 'ivf_pq', not to {index_kind!r}.")
    if code_bytes < 1 or embedding_dim % code_bytes:
        raise ConfigError(f"code_bytes is {code_bytes}; it must divide the {embedding_dim} dimensions.")
