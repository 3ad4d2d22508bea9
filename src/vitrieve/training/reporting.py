"""The report of a training by several processes: each embeds its part of the test images, the first measures.

The first rank alone writes the run, and does what follows the last step: the others wait for what it tells them
(``help_report``). It hands out whole parts of an embedding (``embed/unfinished.py``), a few for each rank at a time,
and writes what comes back as one process would: so a killed report goes on, on any number of ranks, and the vectors are
the same to the last bit where the ranks have the same engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitrieve.artifacts import replacing_folder
from vitrieve.data.records import Dataset, ImageRecord
from vitrieve.embed import unfinished
from vitrieve.embed.batches import EncodedBatch, choose_chunk_size, encode_batches
from vitrieve.embed.collection import (
    EmbedSettings,
    check_any,
    check_failures,
    describe_encoder,
    finish_parts,
    name_labels,
)
from vitrieve.embed.embeddings import Embeddings, load_embeddings
from vitrieve.embed.unfinished import (
    count_records,
    find_failures,
    find_missing,
    num_parts,
    open_parts,
    part_path,
    read_stamp,
    records_of_part,
    write_part,
)
from vitrieve.errors import RankLostError, describe_error
from vitrieve.progress import print_message, track
from vitrieve.runtime.encoder import Encoder
from vitrieve.training.ranks import Ranks

PARTS_IN_ROUND = 4
"""Parts that a rank embeds before it hands them over: between them it goes on decoding while it encodes."""
Encoders = tuple[Encoder, Encoder]
"""The frozen start and the trained encoder of a run."""


@dataclass(frozen=True)
class _Load:
    """An order to the ranks: load the encoders of the run in a folder."""

    folder: Path


@dataclass(frozen=True)
class _Embed:
    """An order to the ranks: embed the parts that stand at the number of the rank, with the first or second encoder."""

    encoder_number: int
    shares: tuple[tuple[Sequence[ImageRecord], ...], ...]
    settings: EmbedSettings


class _Outcome(NamedTuple):
    """What a rank answers: a value, or why there is none."""

    value: Any
    reason: str | None


def help_report(ranks: Ranks, load: Callable[[Path], Encoders]) -> Any:
    """Do what the first rank orders until it tells the end; return what it tells then, with ``end_report``.

    Args:
        ranks: The ranks, of which this is not the first.
        load: Function that loads the encoders of the run in a folder.
    """
    encoders: list[Encoder] = []
    while True:
        order = ranks.share_first(lambda: None)
        if isinstance(order, _Load):
            ranks.gather(_try(lambda order=order: _load(order, load, encoders)))
        elif isinstance(order, _Embed):
            ranks.gather(_try(lambda order=order: _embed_share(order, encoders, ranks.rank)))
        else:
            return order


def end_report(ranks: Ranks, told: Any) -> None:
    """Let the other ranks return from ``help_report`` with what they are told."""
    ranks.share_first(lambda: told)


class DividedReport:
    """The first rank's side of a report that all ranks embed."""

    def __init__(self, ranks: Ranks, encoders: Encoders, folder: Path) -> None:
        """Let all ranks load the encoders of the run in a folder; where one cannot, the first embeds alone."""
        self._ranks, self._encoders = ranks, encoders
        ranks.share_first(lambda: _Load(folder))
        own = _Outcome([_describe(one) for one in encoders], None)
        self.is_divided = True
        for rank, (described, reason) in enumerate(ranks.gather(own)):
            if described == own.value:
                continue
            reason = reason or f"its encoders are {described}, and those of rank 0 {own.value}"
            print_message(f"rank 0 embeds the images of the report alone, because of {ranks.name(rank)}: {reason}")
            self.is_divided = False
            return

    def embed(self, encoder: Encoder, dataset: Dataset, out: Path, settings: EmbedSettings) -> Embeddings:
        """Embed a collection on all ranks, and go on with what is there; as ``embed_collection`` does on one.

        Raises:
            DataError: No image, no readable image, or more unreadable ones than allowed.
            ArtifactError: The folder is of another collection.
            FingerprintError: The folder was begun with another encoder.
            RankLostError: A rank could not embed its part.
        """
        records = name_labels(dataset)
        check_any(records)
        with replacing_folder(out, kind="embeddings", is_overwrite=False, is_resume=True) as folder:
            parts = open_parts(folder, encoder.fingerprint, records)
            missing = find_missing(parts, range(num_parts(len(records))))
            failures = find_failures(records, parts, sorted(set(range(num_parts(len(records)))) - set(missing)))
            written = self._write_parts(encoder, records, parts, missing, settings)
            num_left, is_shown = count_records(records, missing), settings.show_progress
            for number, part in track(written, "embed", total=num_left, weight=unfinished.PART_SIZE, is_shown=is_shown):
                pairs = zip(records_of_part(records, number), part.reasons, strict=True)
                failures += [(record.image_id, reason) for record, reason in pairs if reason is not None]
                check_failures(failures, len(records), settings.max_bad_fraction)
            check_failures(failures, len(records), settings.max_bad_fraction)
            finish_parts(folder, dataset, records, describe_encoder(encoder))
        return load_embeddings(out)

    def _write_parts(
        self,
        encoder: Encoder,
        records: Sequence[ImageRecord],
        parts: Path,
        missing: Sequence[int],
        settings: EmbedSettings,
    ) -> Iterator[tuple[int, EncodedBatch]]:
        """Yield every missing part when it is written, with its number."""
        ranks, stamp = self._ranks, read_stamp(parts)
        encoder_number = next(number for number, one in enumerate(self._encoders) if one is encoder)
        quiet = replace(settings, show_progress=False)
        size = ranks.size * PARTS_IN_ROUND
        for start in range(0, len(missing), size):
            numbers = [share.tolist() for share in np.array_split(missing[start : start + size], ranks.size)]
            shares = tuple(tuple(records_of_part(records, number) for number in share) for share in numbers)
            order = _Embed(encoder_number, shares, quiet)
            ranks.share_first(lambda order=order: order)  # type: ignore[misc]
            outcomes = ranks.gather(_try(lambda order=order: _embed_share(order, self._encoders, 0)))  # type: ignore[misc]
            for rank, (share, outcome) in enumerate(zip(numbers, outcomes, strict=True)):
                for number, batches in zip(share, outcome.value or (), strict=False):
                    yield number, write_part(part_path(parts, number), batches, stamp)
                if outcome.reason is not None:
                    raise RankLostError(f"{ranks.name(rank)} could not embed its images: {outcome.reason}")


def _try(make: Callable[[], Any]) -> _Outcome:
    """Make a value; a failure is for the first rank to tell, and no reason to leave the others waiting."""
    try:
        return _Outcome(make(), None)
    except Exception as error:
        return _Outcome(None, describe_error(error))


def _load(order: _Load, load: Callable[[Path], Encoders], encoders: list[Encoder]) -> list[dict[str, Any]]:
    encoders[:] = load(order.folder)
    return [_describe(one) for one in encoders]


def _describe(encoder: Encoder) -> dict[str, Any]:
    """Describe what vectors depend on; where the encoder was loaded from is no part of it."""
    fields = describe_encoder(encoder)
    return {name: fields[name] for name in ("fingerprint", "engine", "precision", "image_size")}


def _embed_share(order: _Embed, encoders: Sequence[Encoder], rank: int) -> list[list[EncodedBatch]]:
    """Embed the parts of a rank, in batches that are cut as one process cuts them."""
    encoder, settings, share = encoders[order.encoder_number], order.settings, order.shares[rank]
    size = choose_chunk_size(encoder, settings.batch_size)
    cut = [[part[start : start + size] for start in range(0, len(part), size)] for part in share]
    batches = encode_batches(
        encoder,
        (batch for part in cut for batch in part),
        num_threads=settings.num_threads,
        batch_size=settings.batch_size,
    )
    return [[next(batches) for _ in part] for part in cut]
