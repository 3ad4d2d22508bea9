"""``calibrate``: choose the score from which on a result is the wanted thing. ``vitrieve calibrate`` calls it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from vitrieve.config import Device
from vitrieve.data.records import Dataset
from vitrieve.data.sources import read_source
from vitrieve.embed.collection import embed_images
from vitrieve.errors import ConfigError, unknown_name_message
from vitrieve.evaluation.protocols import select_records
from vitrieve.index.open import load_index_encoder, open_index
from vitrieve.index.store import VectorStore
from vitrieve.progress import print_message
from vitrieve.runtime.encoder import Encoder
from vitrieve.search.searcher import Searcher
from vitrieve.search.threshold import Threshold, calibrate_embeddings, calibrate_index

DEFAULT_COLUMN = "label"


def calibrate(
    index: str | Path,
    data: Dataset | str | Path | None = None,
    encoder: Encoder | str | Path | None = None,
    *,
    column: str | None = None,
    false_accept_rate: float | None = None,
    false_reject_rate: float | None = None,
    device: Device = "auto",
) -> Threshold:
    """Choose the score below which a search answers: probably not in this collection.

    ``save_threshold(calibrate(index), index)`` makes searches use it.

    Args:
        index: Folder of the index.
        data: Labeled images to calibrate on, a source or a data set; None: the index's own.
        encoder: With ``data`` the index's encoder, or where it is now; None: where it was when the index was made.
        column: Metadata column of the index that says what an image shows; None: label, where the index has it.
        false_accept_rate: Share of things not in the collection that may pass for a match; None, with no other rate:
            both errors are made alike.
        false_reject_rate: Share of things in the collection that may be turned away.
        device: Where an encoder that is loaded here computes; ``auto``: on a GPU where torch sees one.

    Raises:
        InputError: The index or the data cannot be used, or have too few images.
    """
    check_column(column, has_data=data is not None)
    with closing(open_index(index)) as store:
        if data is None:
            return calibrate_index(
                store,
                column=_find_column(store, column),
                false_accept_rate=false_accept_rate,
                false_reject_rate=false_reject_rate,
            )
        if not isinstance(encoder, Encoder):
            encoder = load_index_encoder(store.info, encoder, device=device)
        Searcher(store, encoder)  # refuses another encoder; a threshold that is there is not read, it may be damaged
        dataset = data if isinstance(data, Dataset) else read_source(str(data))
        print_message(*dataset.notes)
        embeddings = embed_images(encoder, select_records(dataset), show_progress=True)
        return calibrate_embeddings(
            embeddings,
            name=dataset.name,
            false_accept_rate=false_accept_rate,
            false_reject_rate=false_reject_rate,
        )


def check_column(column: str | None, *, has_data: bool) -> None:
    """Refuse a column beside data.

    Raises:
        ConfigError: Both are given.
    """
    if column is not None and has_data:
        raise ConfigError("--column belongs to the index's own images; the labels of --data say what they show.")


def _find_column(store: VectorStore, column: str | None) -> str | None:
    columns = store.columns()
    if column is None:
        return DEFAULT_COLUMN if DEFAULT_COLUMN in columns else None
    if column not in columns:
        raise ConfigError(unknown_name_message("metadata column", column, columns))
    return column
