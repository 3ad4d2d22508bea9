"""``vitrieve calibrate`` reads the flags and prints the threshold; ``search/threshold.py`` chooses it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitrieve.cli.arguments import DeviceFlag, Exclude, Json, NumThreads
from vitrieve.cli.console import print_json, print_message, print_result
from vitrieve.errors import ConfigError
from vitrieve.writing import check_writable

if TYPE_CHECKING:
    from vitrieve.runtime.encoder import Encoder
    from vitrieve.search.threshold import Threshold

MUCH_ERROR = 0.2
"""Rate of false rejects or accepts from which on the user is told that the encoder does not separate the classes."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Choose the score below which a search answers: probably not in this collection."""

    index: Path
    """Folder of the index, made by vitrieve index, sync or up; threshold.json is written into it."""
    data: str | None = None
    """A labeled source to calibrate on, not the index's own images: grocery:DIR, folder:DIR, table:FILE, …."""
    embeddings: Path | None = None
    """Folder written by vitrieve embed with the index's encoder: labeled images to calibrate on, embedded already."""
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
    device: DeviceFlag = "auto"
    num_threads: NumThreads = None
    json: Json = False


def run(arguments: Arguments) -> int:
    """Calibrate, write the threshold, and say what it does."""
    from vitrieve.data.sources import read_source
    from vitrieve.embed.embeddings import load_embeddings
    from vitrieve.search.threshold import calibrate, check_column, save_threshold

    if arguments.exclude and arguments.data is None:
        raise ConfigError("--exclude leaves files out of the folder of --data; give both or none.")
    if arguments.encoder is not None and arguments.data is None:
        raise ConfigError("--encoder embeds the images of --data; give both or none.")
    if arguments.data is not None and arguments.embeddings is not None:
        raise ConfigError("--data and --embeddings are two ways to name the labeled images; give one of them.")
    has_data = arguments.data is not None or arguments.embeddings is not None
    check_column(arguments.column, has_data=has_data)  # before the data are read
    if arguments.index.is_dir():
        check_writable(arguments.index)
    data = None if arguments.data is None else read_source(arguments.data, exclude=arguments.exclude)
    threshold = calibrate(
        arguments.index,
        data if arguments.embeddings is None else load_embeddings(arguments.embeddings),
        None if arguments.data is None else _load_encoder(arguments),
        column=arguments.column,
        false_accept_rate=arguments.false_accept_rate,
        false_reject_rate=arguments.false_reject_rate,
    )
    path = save_threshold(threshold, arguments.index)
    if arguments.json:
        print_json({"file": str(path), **asdict(threshold)})
    else:
        print_result(*_to_text(threshold).split("\n"))
        print_message(f"written: {path}")
    if max(threshold.false_accept_rate or 0, threshold.false_reject_rate or 0) > MUCH_ERROR:
        print_message(
            "This encoder tells things in the collection badly from things that are not; one fine-tuned on labeled "
            "pictures (vitrieve train) does better."
        )
    return 0


def _load_encoder(arguments: Arguments) -> Encoder:
    from vitrieve.index.open import load_index_encoder
    from vitrieve.index.store import read_info

    info, _ = read_info(arguments.index)
    return load_index_encoder(info, arguments.encoder, num_threads=arguments.num_threads, device=arguments.device)


def _to_text(threshold: Threshold) -> str:
    lines = [f"threshold {threshold.score:.4f}", f"  {threshold.method}"]
    for rate, what, number in (
        (threshold.false_reject_rate, "known queries rejected", threshold.num_known),
        (threshold.false_accept_rate, "unknown queries accepted", threshold.num_unknown),
    ):
        if rate is not None:
            lines.append(f"  {what}: {100 * rate:.1f} % of {number:,}")
    return "\n".join(lines)
