"""Make embeddings searchable, and open what was made."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from vitrieve.artifacts import MANIFEST_NAME, replacing_folder
from vitrieve.config import Device
from vitrieve.data.records import ImageRecord
from vitrieve.embed.collection import Embeddings, load_embeddings
from vitrieve.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    DiskFullError,
    FingerprintError,
    ReplacedError,
    VitrieveError,
)
from vitrieve.index.folder import Identity, writing
from vitrieve.index.store import SERVERS, IndexSettings, StoreInfo, StoreKind, VectorStore, check_vectors, read_info
from vitrieve.progress import print_message
from vitrieve.runtime.encoder import Encoder, load_encoder
from vitrieve.runtime.engine import EngineChoice, PrecisionChoice

if TYPE_CHECKING:
    from vitrieve.index.exact import ExactStore
    from vitrieve.index.lance import LanceStore
    from vitrieve.index.milvus import MilvusStore
    from vitrieve.index.pgvector import PgvectorStore

    StoreClass = type[ExactStore] | type[LanceStore] | type[MilvusStore] | type[PgvectorStore]


def open_index(folder: Path | str) -> VectorStore:
    """Open an index of any kind of store.

    Raises:
        ArtifactError: The folder is missing, unfinished or damaged; or its server cannot be reached.
        FingerprintError: Its manifest and its vectors are of different encoders.
        ConfigError: The client of its store is not installed.
    """
    folder = Path(folder)
    while True:
        try:
            return _open(folder)
        except ReplacedError:  # while it was opened; the new one is whole
            continue


def _open(folder: Path) -> VectorStore:
    identity = Identity(folder)  # before the manifest is read: it may be replaced meanwhile
    try:
        info, manifest = read_info(folder)
        store = _load_store(folder, info).open(folder, info, manifest, identity)
    except ArtifactError:
        identity.require()  # the reason may be that it is another index by now
        raise
    try:
        identity.require()
    except ArtifactError:
        store.close()
        raise
    return store


def _load_store(folder: Path, info: StoreInfo) -> StoreClass:
    """Import the class of a store; LanceDB and the clients of servers take time, or may not be installed."""
    if info.kind == "exact":
        from vitrieve.index.exact import ExactStore

        return ExactStore
    if info.kind == "lance":
        from vitrieve.index.lance import LanceStore

        return LanceStore
    if info.kind in SERVERS:
        return _load_server_store(info.kind)
    raise ArtifactError(
        f"{folder} is an index of the unknown store {info.kind!r}; known: {', '.join(get_args(StoreKind))}."
    )


def _load_server_store(kind: StoreKind) -> type[MilvusStore] | type[PgvectorStore]:
    if kind == "milvus":
        from vitrieve.index.milvus import MilvusStore

        return MilvusStore
    try:
        from vitrieve.index.pgvector import PgvectorStore
    except ImportError as error:  # also where psycopg finds no libpq
        raise ConfigError(f"the store pgvector needs psycopg ({error}): pip install 'vitrieve[pgvector]'.") from None
    return PgvectorStore


def build_index(
    embeddings: Embeddings | Path | str,
    out: Path | str,
    *,
    store: StoreKind = "lance",
    settings: IndexSettings | None = None,
    overwrite: bool = False,
) -> VectorStore:
    """Make embeddings searchable.

    Args:
        embeddings: Embeddings in memory, or their folder.
        out: Folder to write; for Milvus and pgvector it names the server and the collection or table.
        store: Which store holds them.
        settings: How it searches; None: the defaults.
        overwrite: Replace what is there.

    Returns:
        The index, open for searching.

    Raises:
        ArtifactError: ``embeddings`` cannot be read, or ``out`` is not free.
        ConfigError: Settings that do not belong together.
        DataError: No vector, vectors that are not normalized or not finite, or an ``image_id`` that occurs twice.
    """
    source = embeddings if isinstance(embeddings, Embeddings) else load_embeddings(embeddings)
    if not len(source.vectors):
        raise DataError("there is no embedding to index.")
    check_vectors(source.vectors, source.records)
    if not isinstance(embeddings, Embeddings) and Path(out).resolve() == Path(embeddings).resolve():
        raise ArtifactError(f"{out} is the folder of the embeddings; give another --out.")
    info = StoreInfo(
        kind=store,
        fingerprint=source.fingerprint,
        encoder_source=source.encoder_source,
        image_size=source.image_size,
        embedding_dim=source.vectors.shape[1],
        license=source.license,
    )
    return _create(Path(out), info, (source.vectors, source.records), settings, overwrite)


def create_index(
    info: StoreInfo, out: Path | str, *, settings: IndexSettings | None = None, overwrite: bool = False
) -> VectorStore:
    """Make an index without images, to be filled by ``upsert``; errors as ``build_index``.

    Args:
        info: What the index says about itself; ``info.kind`` is the store.
        out: Folder to write.
        settings: How it searches; None: the defaults.
        overwrite: Replace what is there.
    """
    nothing = np.empty((0, info.embedding_dim), dtype=np.float32)
    return _create(Path(out), info, (nothing, ()), settings, overwrite)


def _create(
    out: Path,
    info: StoreInfo,
    images: tuple[np.ndarray, Sequence[ImageRecord]],
    settings: IndexSettings | None,
    overwrite: bool,
) -> VectorStore:
    settings = settings or IndexSettings()
    settings.check(info)
    old = _read_on_server(out) if overwrite else None
    new: tuple[StoreInfo, dict[str, Any]] | None = None
    # Whoever writes finishes its change first, and then finds that the index is another one.
    locked = writing(out) if overwrite and (out / MANIFEST_NAME).is_file() else None
    try:
        with replacing_folder(out, is_overwrite=overwrite, is_resumable=False, locked=locked) as folder:
            try:
                store = _load_store(folder, info).create(folder, info, *images, settings)
            except DiskFullError:
                shutil.rmtree(folder, ignore_errors=True)  # the same command can then be given again
                raise
            is_in_place = folder == out
            if not is_in_place:
                new = _read_on_server(folder)
                _require_sound(store)
    except BaseException:
        if new is not None and new != _read_on_server(out):
            _drop(out, *new)
        raise
    if old is not None:
        _drop(out, *old)
    return store if is_in_place else open_index(out)


def _require_sound(store: VectorStore) -> None:
    """Check a new index before it takes the place of another, and close it: what it has opened gets another name."""
    faults = store.verify()
    store.close()
    if faults:
        raise ArtifactError(f"the new index is not what was written, so the old one stays: {faults[0]}")


def _read_on_server(folder: Path) -> tuple[StoreInfo, dict[str, Any]] | None:
    """Read what the index in a folder has on a server; None where it has nothing."""
    try:
        info, manifest = read_info(folder)
    except VitrieveError:
        return None  # nothing is there, or nothing that tells
    return (info, manifest) if info.kind in SERVERS else None


def _drop(out: Path, info: StoreInfo, manifest: dict[str, Any]) -> None:
    """Remove from its server an index whose folder is gone, so that nobody else would."""
    try:
        _load_server_store(info.kind)(out, info, manifest, Identity(out)).drop()
    except VitrieveError as error:
        name = manifest.get("collection") or manifest.get("table")
        print_message(f"{name}, of an index that is gone, stays on its {SERVERS[info.kind]} server: {error}")


def load_index_encoder(
    info: StoreInfo,
    source: str | Path | None = None,
    *,
    image_size: int | None = None,
    engine: EngineChoice = "auto",
    precision: PrecisionChoice = "auto",
    num_threads: int | None = None,
    device: Device = "auto",
) -> Encoder:
    """Load the encoder of an index, at the input size that the index was made with.

    Args:
        info: What the index says about itself.
        source: Folder or weights name of the encoder; None: where the index says that it is.
        image_size: Side of the input in pixels; None: that of the index.
        engine: What computes, as ``load_encoder`` takes it.
        precision: Numeric precision, as ``load_encoder`` takes it.
        num_threads: CPU threads; None: all cores.
        device: Where to compute, as ``load_encoder`` takes it.

    Raises:
        ArtifactError: The encoder is no longer where it was.
    """
    given = info.encoder_source if source is None else source
    if source is None and Path(given).is_absolute() and not Path(given).exists():
        raise ArtifactError(
            f"the index was made with the encoder in {given}, which is no longer there; name where it is now with "
            "--encoder (in Python: the argument encoder)."
        )
    return load_encoder(
        given,
        image_size=image_size or info.image_size,
        engine=engine,
        precision=precision,
        num_threads=num_threads,
        device=device,
    )


def require_encoder(info: StoreInfo, encoder: Encoder, *, advice: str) -> None:
    """Refuse an encoder that did not make the vectors of an index.

    Args:
        info: What the index says about itself.
        encoder: The encoder.
        advice: What to do, as a sentence.

    Raises:
        FingerprintError: It is another encoder.
    """
    if encoder.fingerprint != info.fingerprint:
        raise FingerprintError(
            f"the index was made by {info.encoder_source} at {info.image_size} px (fingerprint "
            f"{info.fingerprint[:12]}…), not by {encoder.source} at {encoder.preprocessing.image_size} px "
            f"({encoder.fingerprint[:12]}…): their vectors are not comparable. {advice}"
        )
