"""Make embeddings searchable, and open what was made."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from vitrieve.artifacts import MANIFEST_NAME, has_artifact, prepare_folder, replacing_folder
from vitrieve.choices import Device
from vitrieve.data.records import ImageRecord
from vitrieve.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    FingerprintError,
    ReplacedError,
    VitrieveError,
    unknown_name_message,
)
from vitrieve.folders import find_aside
from vitrieve.index.claims import Claim, Claims, settle_abandoned, settling
from vitrieve.index.folder import Identity, writing
from vitrieve.index.store import (
    BUILT_IN_STORES,
    SERVERS,
    IndexSettings,
    PluginStore,
    StoreInfo,
    StoreKind,
    VectorStore,
    check_vectors,
    find_feedback_key,
    needing_psycopg,
    read_info,
)
from vitrieve.model.artifact import require_present
from vitrieve.plugins import describe_plugin_package, list_plugin_names, load_plugin
from vitrieve.runtime.encoder import Encoder, load_encoder
from vitrieve.runtime.engine import EngineChoice, PrecisionChoice
from vitrieve.writing import explaining_full_disk, sync_folder

if TYPE_CHECKING:
    from vitrieve.embed.embeddings import Embeddings
    from vitrieve.index.exact import ExactStore
    from vitrieve.index.lance import LanceStore
    from vitrieve.index.milvus import MilvusStore
    from vitrieve.index.pgvector import PgvectorStore

    StoreClass = type[ExactStore] | type[LanceStore] | type[MilvusStore] | type[PgvectorStore] | type[PluginStore]


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
        store = _load_store(folder, info.kind).open(folder, info, manifest, identity)
    except ArtifactError:
        identity.require()  # the reason may be that it is another index by now
        raise
    try:
        identity.require()
    except ArtifactError:
        store.close()
        raise
    return store


def _load_store(folder: Path, kind: StoreKind) -> StoreClass:
    """Import the class of a store; LanceDB and the clients of servers take time, or may not be installed."""
    return _load_server_store(kind) if kind in SERVERS else _load_local_store(folder, kind)


def _load_local_store(folder: Path, kind: StoreKind) -> type[ExactStore] | type[LanceStore] | type[PluginStore]:
    if kind == "exact":
        from vitrieve.index.exact import ExactStore

        return ExactStore
    if kind == "lance":
        from vitrieve.index.lance import LanceStore

        return LanceStore
    if kind in list_plugin_names("store"):
        return _load_plugin_store(kind)
    known = ", ".join((*BUILT_IN_STORES, *list_plugin_names("store")))
    raise ArtifactError(f"{folder} is an index of the unknown store {kind!r}; known: {known}.")


def _load_plugin_store(kind: StoreKind) -> type[PluginStore]:
    """Load the store of another package.

    Raises:
        ConfigError: It cannot be loaded, or does not make and open indexes.
    """
    found = load_plugin("store", kind)
    if not all(callable(getattr(found, name, None)) for name in ("create", "open")):
        package = describe_plugin_package("store", kind)
        raise ConfigError(f"the store {kind!r} of the package {package} has no methods create and open.")
    return cast("type[PluginStore]", found)


def require_store(kind: StoreKind) -> None:
    """Refuse the name of a store that nobody knows, before any work.

    Raises:
        ConfigError: As it says; the message lists the known ones.
    """
    known = (*BUILT_IN_STORES, *list_plugin_names("store"))
    if kind not in known:
        raise ConfigError(unknown_name_message("store", kind, known))


def _load_server_store(kind: StoreKind) -> type[MilvusStore] | type[PgvectorStore]:
    if kind == "milvus":
        from vitrieve.index.milvus import MilvusStore

        return MilvusStore
    with needing_psycopg():
        from vitrieve.index.pgvector import PgvectorStore
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
    from vitrieve.embed.embeddings import Embeddings, load_embeddings

    require_store(store)
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


def create_index_whole(info: StoreInfo, out: Path, *, settings: IndexSettings) -> None:
    """Make an index without images beside its place and move it there: killed at any moment, there is one or none.

    Args:
        info: What the index says about itself.
        out: Place of the index: no folder, or an empty one. An index that another process has just put there is kept.
        settings: How it searches.

    Raises:
        ArtifactError: The folder is not free.
        ConfigError: Settings that do not belong together.
    """
    settings.check(info)
    beside = out.absolute().parent / f".{out.name}.{os.getpid()}"
    shutil.rmtree(beside, ignore_errors=True)
    nothing = np.empty((0, info.embedding_dim), dtype=np.float32)
    with settling_claims(out) as claims:
        try:
            with explaining_full_disk(out):
                prepare_folder(beside)
                _make(beside, info, (nothing, ()), settings, claims).close()
            if sys.platform == "win32" and out.is_dir():
                out.rmdir()  # an empty folder, which a rename replaces elsewhere
            beside.rename(out)
            sync_folder(beside.parent)
        except OSError as error:
            if not (out / MANIFEST_NAME).exists():  # else another process was quicker, and its index is as good
                raise ArtifactError(
                    f"{out} cannot be made ({error.strerror or error}); name a new or empty folder with --index."
                ) from None
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def _create(
    out: Path,
    info: StoreInfo,
    images: tuple[np.ndarray, Sequence[ImageRecord]],
    settings: IndexSettings | None,
    overwrite: bool,
) -> VectorStore:
    settings = settings or IndexSettings()
    settings.check(info)
    replaced = _find_replaced(out)
    old = _read_on_server(replaced) if overwrite else None
    feedback_key = _read_feedback_key(replaced) if overwrite else None
    # Whoever writes finishes its change first, and then finds that the index is another one.
    locked = writing(out) if overwrite and (out / MANIFEST_NAME).is_file() else None
    with (
        settling_claims(out) as claims,
        replacing_folder(out, kind="index", is_overwrite=overwrite, is_resumable=False, locked=locked) as folder,
    ):
        claims.feedback_key = feedback_key
        if old is not None:
            claims.add(old)
        store = _make(folder, info, images, settings, claims)
        is_in_place = folder == out
        if not is_in_place:
            _require_sound(store)
    return store if is_in_place else open_index(out)


def _make(
    folder: Path,
    info: StoreInfo,
    images: tuple[np.ndarray, Sequence[ImageRecord]],
    settings: IndexSettings,
    claims: Claims,
) -> VectorStore:
    """Make an index in a folder that is ready for it."""
    if info.kind in SERVERS:
        return _load_server_store(info.kind).create(folder, info, *images, settings, claims)
    return _load_local_store(folder, info.kind).create(folder, info, *images, settings)


def _require_sound(store: VectorStore) -> None:
    """Check a new index before it takes the place of another, and close it: what it has opened gets another name."""
    faults = store.verify()
    store.close()
    if faults:
        raise ArtifactError(f"the new index is not what was written, so the old one stays: {faults[0]}")


def _find_replaced(out: Path) -> Path:
    """Find the index that is made anew: aside, where a process was killed while two folders changed places."""
    aside = find_aside(out.resolve())
    return aside if not out.exists() and has_artifact(aside) else out


def _read_on_server(folder: Path) -> Claim | None:
    """Read what the index in a folder has on a server; None where it has nothing."""
    try:
        info, manifest = read_info(folder)
    except VitrieveError:
        return None  # nothing is there, or nothing that tells
    name = manifest.get("collection") or manifest.get("table")
    return Claim(kind=info.kind, uri=str(manifest["uri"]), name=str(name)) if info.kind in SERVERS else None


def _read_feedback_key(folder: Path) -> str | None:
    """Read what stands for the index in a folder among the corrections on its server; None where they are elsewhere."""
    try:
        info, manifest = read_info(folder)
    except VitrieveError:
        return None
    return find_feedback_key(manifest) if info.kind == "pgvector" else None


def settling_claims(out: Path) -> AbstractContextManager[Claims]:
    """Settle what the block claims on servers for an index, and first what killed processes did; as ``settling``."""
    return settling(out, _release)


def release_abandoned(out: Path) -> None:
    """Remove from servers what killed processes made for an index or replaced, and no manifest names."""
    settle_abandoned(out, _release)


def _release(kind: StoreKind, uri: str, name: str) -> None:
    _load_server_store(kind).release(uri, name)


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
    if source is None:
        require_present("the index was made with", given)
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
