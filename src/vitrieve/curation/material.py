"""The pictures of a collection, of embeddings or of an index, and their vectors, whichever of these is named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from vitrieve.artifacts import MANIFEST_NAME
from vitrieve.choices import Device
from vitrieve.data.records import Dataset, ImageRecord
from vitrieve.data.sources import is_folder_source, read_collection
from vitrieve.embed.collection import embed_images
from vitrieve.embed.embeddings import Embeddings, find_other_region, load_embeddings
from vitrieve.errors import ConfigError, DataError
from vitrieve.index.open import load_index_encoder, open_index
from vitrieve.index.store import MAX_BATCH_ROWS, StoreInfo, VectorStore
from vitrieve.model.artifact import require_made_by
from vitrieve.model.default import choose_default_encoder
from vitrieve.progress import print_message
from vitrieve.quoting import quote_name
from vitrieve.runtime.encoder import Encoder, load_encoder
from vitrieve.similarity import FloatArray

EncoderLike = Encoder | str | Path | None


@dataclass(frozen=True, kw_only=True)
class Material:
    """Pictures and, where they are wanted, their vectors.

    Attributes:
        image_ids: Name of each picture.
        vectors: ``(N, E)`` float32; ``(N, 0)`` where none are wanted.
        fetch: Returns the records of some rows.
        load_encoder: Returns the encoder that made the vectors.
        failures: ``(image_id, reason)`` of pictures that have no vector.
        info: What the index or the embeddings say about themselves; None for pictures without vectors.
    """

    image_ids: Sequence[str]
    vectors: FloatArray
    fetch: Callable[[Sequence[int]], list[ImageRecord]]
    load_encoder: Callable[[], Encoder]
    failures: tuple[tuple[str, str], ...] = ()
    info: StoreInfo | None = None


def open_material(
    collection: Dataset | str | Path,
    encoder: EncoderLike,
    stack: ExitStack,
    *,
    has_vectors: bool,
    device: Device = "auto",
    exclude: str | Sequence[str] = (),
) -> Material:
    """Open an index or embeddings, or read a collection and embed it.

    Args:
        collection: Folder of an index or of embeddings, a source or folder of pictures, or a data set.
        encoder: The encoder, or where it is; None: that of the index or the embeddings, and for pictures the default.
        stack: Closes an index in the end.
        has_vectors: Whether vectors are wanted.
        device: Where an encoder that is loaded here computes.
        exclude: Patterns of what to leave out of a folder of pictures.

    Raises:
        InputError: The collection cannot be read, or the encoder is another than that of the vectors.
    """
    kind = None if isinstance(collection, Dataset) else _read_kind(Path(collection))
    if kind in ("index", "embeddings"):
        if exclude:
            raise ConfigError(f"--exclude leaves files out of a folder of pictures; {collection} has kind {kind!r}.")
        assert not isinstance(collection, Dataset)
        if kind == "index":
            return _open_index(Path(collection), encoder, stack, has_vectors=has_vectors, device=device)
        return _hold(load_embeddings(collection), encoder, device=device)
    dataset = collection if isinstance(collection, Dataset) else read_collection(str(collection), exclude=exclude)
    print_message(*dataset.notes)
    if not has_vectors or not dataset.records:
        return _hold_records(dataset.records)
    loaded = (
        encoder if isinstance(encoder, Encoder) else load_encoder(encoder or choose_default_encoder(), device=device)
    )
    return embed_material(loaded, dataset)


def embed_material(encoder: Encoder, dataset: Dataset) -> Material:
    """Embed the pictures of a data set that can be read, however many cannot.

    Raises:
        DataError: No picture can be read.
    """
    return _hold(embed_images(encoder, dataset.records, max_bad_fraction=1.0, show_progress=True), encoder)


def find_picture_folders(collection: str) -> list[Path]:
    """Tell in which folders whoever reads a collection again looks for pictures, as far as that is known.

    Args:
        collection: Folder of an index or of embeddings, or a source or folder of pictures.

    Returns:
        The folder that is named, and of an index or embeddings also the one below which the pictures have their names.
        Empty for a source that is no folder, such as a table.

    Raises:
        InputError: The index or the embeddings cannot be opened.
    """
    plain = os.path.expanduser(collection.removeprefix("folder:"))
    named = [Path(plain).resolve()] if is_folder_source(collection) else []
    if _read_kind(Path(collection)) not in ("index", "embeddings"):
        return named
    with ExitStack() as stack:
        material = open_material(collection, None, stack, has_vectors=False)
        for start in range(0, len(material.image_ids), MAX_BATCH_ROWS):
            for record in material.fetch(range(start, min(start + MAX_BATCH_ROWS, len(material.image_ids)))):
                parts = PurePosixPath(record.image_id).parts
                parents = record.path.parents
                # A picture that a service was sent lies elsewhere, for example.
                if len(parts) <= len(parents) and record.path.parts[-len(parts) :] == parts:
                    return [*named, parents[len(parts) - 1].resolve()]
    return named


def take_embeddings(
    folder: Path | str, dataset: Dataset, encoder: EncoderLike = None, *, device: Device = "auto"
) -> Material:
    """Take the vectors of a data set's pictures from embeddings, by name; labels and paths are those of the data set.

    Raises:
        DataError: The embeddings have neither a vector nor a failure of a picture, or are of another region of it.
        ArtifactError: The folder is missing, unfinished, damaged or of another kind.
    """
    embeddings = load_embeddings(folder)
    rows = {record.image_id: row for row, record in enumerate(embeddings.records)}
    failures = dict(embeddings.failures)
    known = rows.keys() | failures.keys()
    missing = [record.image_id for record in dataset.records if record.image_id not in known]
    if missing:
        raise DataError(
            f"{folder} knows nothing of {len(missing)} of {len(dataset.records)} pictures of {dataset.name}, for "
            f"example {quote_name(missing[0])}; embed the same source, or leave the embeddings out."
        )
    records = tuple(record for record in dataset.records if record.image_id in rows)
    chosen = [rows[record.image_id] for record in records]
    other = find_other_region(embeddings, chosen, records)
    if other is not None:
        raise DataError(
            f"{folder} and {dataset.name} look at different regions of {quote_name(other)}; embed the same source, or "
            "leave the embeddings out."
        )
    failed = tuple(
        (record.image_id, failures[record.image_id])
        for record in dataset.records
        if record.image_id in failures and record.image_id not in rows
    )
    taken = replace(embeddings, vectors=np.asarray(embeddings.vectors)[chosen], records=records, failures=failed)
    return _hold(taken, encoder, device=device)


def _read_kind(folder: Path) -> str | None:
    """Return which kind of artifact a folder is; None where it is none."""
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest.get("kind") if isinstance(manifest, dict) else None


def _hold_records(records: Sequence[ImageRecord]) -> Material:
    def load() -> Encoder:
        raise AssertionError("pictures without vectors need no encoder")

    return Material(
        image_ids=[record.image_id for record in records],
        vectors=np.empty((len(records), 0), dtype=np.float32),
        fetch=lambda rows: [records[row] for row in rows],
        load_encoder=load,
    )


def _hold(embeddings: Embeddings, encoder: EncoderLike, *, device: Device = "auto") -> Material:
    records = embeddings.records
    info = StoreInfo(
        kind="exact",
        fingerprint=embeddings.fingerprint,
        encoder_source=embeddings.encoder_source,
        image_size=embeddings.image_size,
        embedding_dim=embeddings.vectors.shape[1],
        license=embeddings.license,
    )
    return Material(
        image_ids=[record.image_id for record in records],
        vectors=embeddings.vectors,
        fetch=lambda rows: [records[row] for row in rows],
        load_encoder=lambda: _load_for(info, encoder, device),
        failures=embeddings.failures,
        info=info,
    )


def _open_index(folder: Path, encoder: EncoderLike, stack: ExitStack, *, has_vectors: bool, device: Device) -> Material:
    store = open_index(folder)
    stack.callback(store.close)
    return hold_store(store, encoder, has_vectors=has_vectors, device=device, name=str(folder))


def hold_store(
    store: VectorStore,
    encoder: EncoderLike,
    *,
    has_vectors: bool,
    device: Device = "auto",
    name: str = "the index",
) -> Material:
    """Take the pictures and vectors of an index that is open; whoever opened it closes it.

    Args:
        store: The index.
        encoder: The encoder, or where it is; None: where the index says that it is.
        has_vectors: Whether vectors are wanted.
        device: Where an encoder that is loaded here computes.
        name: What to call the index in a message.

    Raises:
        DataError: The index changed while it was read.
    """
    image_ids = list(store.image_ids())
    vectors = np.empty((len(image_ids), store.info.embedding_dim if has_vectors else 0), dtype=np.float32)
    for start in range(0, len(image_ids) if has_vectors else 0, MAX_BATCH_ROWS):
        try:
            found, _ = store.get(image_ids[start : start + MAX_BATCH_ROWS])
        except DataError as error:
            raise DataError(f"{name} changed while it was read ({error}); run the command again.") from None
        vectors[start : start + len(found)] = found

    def fetch(rows: Sequence[int]) -> list[ImageRecord]:
        names = [image_ids[row] for row in rows]
        return [
            record
            for start in range(0, len(names), MAX_BATCH_ROWS)
            for record in store.get(names[start : start + MAX_BATCH_ROWS])[1]
        ]

    return Material(
        image_ids=image_ids,
        vectors=vectors,
        fetch=fetch,
        load_encoder=lambda: _load_for(store.info, encoder, device),
        info=store.info,
    )


def _load_for(info: StoreInfo, encoder: EncoderLike, device: Device) -> Encoder:
    loaded = encoder if isinstance(encoder, Encoder) else load_index_encoder(info, encoder, device=device)
    require_made_by(
        "the vectors were",
        info.fingerprint,
        loaded.name,
        loaded.fingerprint,
        advice="Name the one that made them with --encoder.",
    )
    return loaded
