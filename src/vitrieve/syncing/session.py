"""An index opened for syncing: found or made, locked, of the right encoder and collection."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from vitrieve.artifacts import MANIFEST_NAME, explaining_full_disk, prepare_folder, sync_folder
from vitrieve.cache import cache_folder
from vitrieve.config import Device
from vitrieve.data.sources import find_source_path
from vitrieve.embed.collection import describe_source
from vitrieve.errors import ArtifactError
from vitrieve.index.open import open_index
from vitrieve.index.store import StoreInfo, VectorStore, read_info
from vitrieve.runtime.encoder import Encoder, load_encoder
from vitrieve.syncing.ledger import Ledger
from vitrieve.syncing.run import SyncReport, SyncSettings, check_encoder, sync_collection
from vitrieve.syncing.scan import Collection
from vitrieve.syncing.stamps import StampFile

DEFAULT_ENCODER = "dinov2-vits14"
"""Runs without torch."""
NewStoreKind = Literal["lance", "exact"]
_COLLECTION_FACT = "collection"


@dataclass(frozen=True)
class SyncSession:
    """An index that this process alone syncs, until the session ends.

    Attributes:
        store: The index.
        encoder: Makes its vectors.
        ledger: What it holds, and of which content.
    """

    store: VectorStore
    encoder: Encoder
    ledger: Ledger

    def sync(self, collection: Collection, settings: SyncSettings | None = None) -> SyncReport:
        """Make the index hold the images of the collection, and bring what makes searching fast up to date."""
        report = sync_collection(self.ledger, self.encoder, collection, settings)
        if report.is_changed:
            self.store.optimize()
        return replace(report, num_indexed=self.store.count())


def load_index_encoder(
    index: Path | None,
    source: str | None = None,
    *,
    image_size: int | None = None,
    num_threads: int | None = None,
    device: Device = "auto",
) -> Encoder:
    """Load the encoder for an index that is there, or is to be made.

    Args:
        index: Folder of the index, there or not; None: a new one.
        source: A run, an encoder folder or a weights name; None: that of the index, or ``DEFAULT_ENCODER``.
        image_size: Side of the input in pixels; None: that of the index, or the encoder's own.
        num_threads: CPU threads; None: all cores.
        device: As ``load_encoder``.

    Raises:
        InputError: As ``load_encoder``, or the index is damaged.
    """
    if index is None or not _has_manifest(index):
        return load_encoder(source or DEFAULT_ENCODER, image_size=image_size, num_threads=num_threads, device=device)
    info, _ = read_info(index)
    found = source or info.encoder_source
    if source is None and Path(found).is_absolute() and not Path(found).exists():
        raise ArtifactError(
            f"{index} was made with the encoder in {found}, which is no longer there; name where it is now with "
            "--encoder."
        )
    size = image_size or info.image_size
    return load_encoder(found, image_size=size, num_threads=num_threads, device=device)


@contextmanager
def open_session(
    source: str,
    index: Path,
    encoder: Encoder,
    *,
    kind: NewStoreKind = "lance",
    license: str = "",
    exclude: Sequence[str] = (),
    is_adopted: bool = False,
) -> Iterator[SyncSession]:
    """Open an index for syncing, or make an empty one.

    Args:
        source: The collection, as ``read_collection`` takes it.
        index: Folder of the index.
        encoder: Makes the vectors.
        kind: Which store a new index has.
        license: License and attribution of the images, for a new index.
        exclude: Patterns of what is left out of the collection; remembered for the next sync (``exclusion.py``).
        is_adopted: Take over an index of another collection, or of this one under another path.

    Raises:
        FingerprintError: The index is of another encoder.
        ArtifactError: Another sync works on it, it is of another collection, damaged, or no index.
    """
    if not _has_manifest(index):
        _create_empty(index, encoder, kind, license)
    stamp_file = StampFile(index)
    try:
        store = open_index(index)
        try:
            check_encoder(store.info, encoder)
            _check_collection(source, index, store, stamp_file, is_adopted=is_adopted)
            stamp_file.write_exclude(exclude)
            yield SyncSession(store, encoder, Ledger(store, stamp_file))
        finally:
            store.close()
    finally:
        stamp_file.close()


def _has_manifest(index: Path) -> bool:
    return (index / MANIFEST_NAME).exists()


def _create_empty(index: Path, encoder: Encoder, kind: NewStoreKind, license: str) -> None:
    """Make an index beside its place and move it there whole: killed at any moment, there is one or none."""
    info = StoreInfo(
        kind=kind,
        fingerprint=encoder.fingerprint,
        encoder_source=describe_source(encoder),
        image_size=encoder.preprocessing.image_size,
        embedding_dim=encoder.embedding_dim,
        license=license,
    )
    beside = index.absolute().parent / f".{index.name}.{os.getpid()}"
    try:
        with explaining_full_disk(index):
            prepare_folder(beside, is_overwrite=True)
            no_vectors = np.empty((0, encoder.embedding_dim), dtype=np.float32)
            if kind == "exact":
                from vitrieve.index.exact import ExactStore

                ExactStore.create(beside, info, no_vectors, ()).close()
            else:
                from vitrieve.index.lance import LanceStore

                LanceStore.create(beside, info, no_vectors, ()).close()
        beside.rename(index)
        sync_folder(beside.parent)
    except OSError as error:
        if not _has_manifest(index):  # else another sync was quicker, and its index is as good
            raise ArtifactError(
                f"{index} cannot be made ({error.strerror or error}); name a new or empty folder with --index."
            ) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _check_collection(source: str, index: Path, store: VectorStore, stamp_file: StampFile, *, is_adopted: bool) -> None:
    """Refuse to replace what an index holds by another collection; remember which one it follows."""
    path = find_source_path(source)
    wanted = source if path is None else str(path.resolve())
    found = stamp_file.read_fact(_COLLECTION_FACT)
    if found == wanted:
        return
    if not is_adopted and store.count():
        held = f"the collection {found}" if found else "images that no sync has put there"
        raise ArtifactError(
            f"{index} holds {held}, which a sync with {wanted} would replace. Give another --index; or pass --adopt, "
            "where the collection has moved there, or is to be replaced."
        )
    stamp_file.write_fact(_COLLECTION_FACT, wanted)


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
