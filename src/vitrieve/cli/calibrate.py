"""``vitrieve calibrate``: from which score on is a result the wanted thing?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitrieve.cli.arguments import Exclude, Switch
from vitrieve.cli.console import print_json, print_message, print_result
from vitrieve.config import Device

if TYPE_CHECKING:
    from vitrieve.index.store import VectorStore
    from vitrieve.search.threshold import Threshold

DEFAULT_COLUMN = "label"
MUCH_ERROR = 0.2
"""Of false rejects or accepts: from here on the user is told that the encoder does not separate the classes."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Choose the score below which a search answers: probably not in this collection."""

    index: Path
    """Folder written by vitrieve index; threshold.json is written into it."""
    data: str | None = None
    """A labelled source to calibrate on, not the index's own images: grocery:DIR, folder:DIR, manifest:FILE, …."""
    exclude: Exclude = ()
    """Leave out of the folder of --data, like a line of .vitrieveignore: --exclude drafts/ --exclude '*_small.jpg'."""
    column: str | None = None
    """Metadata column of the index that says what an image shows; None: label, where the index has it."""
    false_accept_rate: float | None = None
    """Share of things not in the collection that may pass for a match; None, with no other rate: both errors alike."""
    false_reject_rate: float | None = None
    """Share of things in the collection that may be turned away."""
    encoder: str | None = None
    """With --data: where the index's encoder is now; None: where it was when the index was made."""
    device: Device = "auto"
    """Where to compute; auto: on a GPU where torch sees one."""
    num_threads: int | None = None
    """CPU threads; None: all cores."""
    json: Switch = False
    """Print one JSON object."""


def run(arguments: Arguments) -> int:
    """Calibrate, write the threshold, and say what it does."""
    from vitrieve.errors import ConfigError
    from vitrieve.index.open import open_index
    from vitrieve.search.threshold import calibrate_index, save_threshold

    if arguments.exclude and arguments.data is None:
        raise ConfigError("--exclude leaves files out of the folder of --data; give both or none.")
    if arguments.data is not None:
        if arguments.column is not None:
            raise ConfigError("--column belongs to the index's own images; the labels of --data say what they show.")
        threshold = _calibrate_on_data(arguments, arguments.data)
    else:
        store = open_index(arguments.index)
        threshold = calibrate_index(
            store,
            column=_find_column(store, arguments.column),
            false_accept_rate=arguments.false_accept_rate,
            false_reject_rate=arguments.false_reject_rate,
        )
        store.close()
    path = save_threshold(threshold, arguments.index)
    if arguments.json:
        print_json({"file": str(path), **asdict(threshold)})
    else:
        print_result(*_to_text(threshold).split("\n"))
        print_message(f"written: {path}")
    if max(threshold.false_accept_rate or 0, threshold.false_reject_rate or 0) > MUCH_ERROR:
        print_message(
            "This encoder tells things in the collection badly from things that are not; one fine-tuned on labelled "
            "pictures (vitrieve train) does better."
        )
    return 0


def _calibrate_on_data(arguments: Arguments, data: str) -> Threshold:
    from vitrieve.data.sources import read_source
    from vitrieve.embed.collection import embed_images
    from vitrieve.evaluation.protocols import select_records
    from vitrieve.index.open import open_index
    from vitrieve.search.searcher import Searcher, load_index_encoder
    from vitrieve.search.threshold import calibrate_embeddings

    store = open_index(arguments.index)
    # Not by Searcher.open, which reads the threshold that may be there: a damaged one is made anew here.
    searcher = Searcher(
        store,
        load_index_encoder(store.info, arguments.encoder, num_threads=arguments.num_threads, device=arguments.device),
    )
    dataset = read_source(data, exclude=arguments.exclude)
    for note in dataset.notes:
        print_message(note)
    embeddings = embed_images(
        searcher.encoder, select_records(dataset), num_threads=arguments.num_threads, show_progress=True
    )
    store.close()
    return calibrate_embeddings(
        embeddings,
        name=dataset.name,
        false_accept_rate=arguments.false_accept_rate,
        false_reject_rate=arguments.false_reject_rate,
    )


def _find_column(store: VectorStore, column: str | None) -> str | None:
    from vitrieve.errors import ConfigError, unknown_name_message

    columns = store.columns()
    if column is None:
        return DEFAULT_COLUMN if DEFAULT_COLUMN in columns else None
    if column not in columns:
        raise ConfigError(unknown_name_message("metadata column", column, columns))
    return column


def _to_text(threshold: Threshold) -> str:
    lines = [f"threshold {threshold.score:.4f}", f"  {threshold.method}"]
    for rate, what, number in (
        (threshold.false_reject_rate, "known queries rejected", threshold.num_known),
        (threshold.false_accept_rate, "unknown queries accepted", threshold.num_unknown),
    ):
        if rate is not None:
            lines.append(f"  {what}: {100 * rate:.1f} % of {number:,}")
    return "\n".join(lines)
