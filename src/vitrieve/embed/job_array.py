"""Embedding by the jobs of any scheduler: each writes its share of the parts, and a last call joins them.

All jobs write into one folder, as one process does (``collection.py``). Which parts are whose follows from the number
of the job alone, so that jobs know nothing of each other and run in any order, at once or one after the other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vitrieve.artifacts import has_artifact, is_partial, prepare_folder, replacing_folder
from vitrieve.data.records import Dataset, ImageRecord
from vitrieve.embed.collection import (
    EmbedSettings,
    check_any,
    check_failures,
    describe_encoder,
    finish_parts,
    name_labels,
    write_missing_parts,
)
from vitrieve.embed.embeddings import Embeddings, load_embeddings
from vitrieve.embed.reuse import find_known
from vitrieve.embed.unfinished import (
    PLAN_NAME,
    count_records,
    find_failures,
    find_missing,
    num_parts,
    open_parts,
    part_path,
    read_plan,
)
from vitrieve.errors import ArtifactError, ConfigError, IncompleteError
from vitrieve.runtime.encoder import Encoder

NUM_SHARDS_SHOWN = 5
_ENCODER_FIELDS = "encoder"


class Shard(NamedTuple):
    """Which of the jobs one is: the first has the number 1."""

    number: int
    num_shards: int

    def __str__(self) -> str:
        return f"{self.number}/{self.num_shards}"

    def choose_parts(self, num_parts: int) -> range:
        """Choose the parts of this job: neighbors, because pictures that lie beside each other are read faster.

        >>> [list(Shard(number, 3).choose_parts(5)) for number in (1, 2, 3)]
        [[0], [1, 2], [3, 4]]
        """
        first, end = (place * num_parts // self.num_shards for place in (self.number - 1, self.number))
        return range(first, end)


def parse_shard(text: str) -> Shard:
    """Read a shard as it is written: ``3/16``.

    Raises:
        ConfigError: It is written otherwise, or there is no such shard.
    """
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    shard = Shard(*map(int, match.groups())) if match else Shard(0, 0)
    if not 1 <= shard.number <= shard.num_shards:
        raise ConfigError(f"the shard {text!r} is none: the third of 16 jobs is 3/16, the first 1/16, the last 16/16.")
    return shard


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What one job has written.

    Attributes:
        num_images: Number of pictures in its parts.
        failures: ``(image_id, reason)`` of those that have no vector.
    """

    num_images: int
    failures: tuple[tuple[str, str], ...]


def embed_shard(
    encoder: Encoder,
    dataset: Dataset,
    out: Path | str,
    *,
    shard: str,
    settings: EmbedSettings | None = None,
    reuse: Path | str | None = None,
) -> ShardResult:
    """Embed one share of a collection; ``join_shards`` makes the artifact once all are embedded.

    A shard that was killed goes on when it is called again: no finished part is made twice.

    Args:
        encoder: Turns pictures into embeddings; the same in all shards, with the same engine and precision.
        dataset: The whole collection, the same in all shards.
        out: Folder that all shards write into.
        shard: Which share: ``3/16`` is the third of 16.
        settings: Batch size, threads, share of unreadable images of the whole collection; None: the defaults.
        reuse: As ``embed_collection`` takes it.

    Raises:
        ConfigError: There is no such shard.
        DataError: No image, or more unreadable ones than allowed.
        ArtifactError: The folder is finished, or another shard was given another collection, engine or number.
        FingerprintError: Another shard was given another encoder.
    """
    settings, out = settings or EmbedSettings(), Path(out)
    chosen = parse_shard(shard)
    records = name_labels(dataset)
    check_any(records)
    known = find_known(reuse, encoder, records)
    if has_artifact(out):
        raise ArtifactError(
            f"{out} is finished: the shards were joined, or one process wrote it. Give another --out, or remove the "
            "folder to embed all shards again."
        )
    prepare_folder(out, kind="embeddings", is_resume=True)
    shared = {"num_shards": chosen.num_shards, _ENCODER_FIELDS: _describe(encoder), "batch_size": settings.batch_size}
    parts = open_parts(out, encoder.fingerprint, records, shared)
    numbers = chosen.choose_parts(num_parts(len(records)))
    failures = write_missing_parts(encoder, records, parts, settings, known, numbers=numbers)
    return ShardResult(num_images=count_records(records, numbers), failures=tuple(failures))


def join_shards(
    encoder: Encoder, dataset: Dataset, out: Path | str, *, settings: EmbedSettings | None = None
) -> Embeddings:
    """Make the artifact of what all shards have written: byte for byte what one process would have written.

    Args:
        encoder: The encoder of the shards; its engine may be another one here.
        dataset: The collection of the shards.
        out: Folder that they wrote into.
        settings: Largest share of unreadable images; None: the defaults.

    Returns:
        The embeddings, read back from the folder.

    Raises:
        IncompleteError: Parts are missing or were cut short; it names the shards that make them.
        ArtifactError: No shard has written into ``out``, or it was of another collection.
        FingerprintError: The shards, or one of them, had another encoder.
        DataError: No readable image, or more unreadable ones than allowed.
    """
    settings, out = settings or EmbedSettings(), Path(out)
    if not (is_partial(out) and (out / PLAN_NAME).is_file()):
        raise ArtifactError(f"{out} holds nothing to join: no shard has written into it, or its parts are joined.")
    records = name_labels(dataset)
    check_any(records)
    with replacing_folder(out, kind="embeddings", is_resume=True) as folder:
        parts = open_parts(folder, encoder.fingerprint, records)
        plan = read_plan(folder)
        if _ENCODER_FIELDS not in plan:
            raise ArtifactError(f"{out} was not begun by shards: go on with --resume instead of --join.")
        _require_whole(out, parts, records, plan["num_shards"])
        failures = find_failures(records, parts, range(num_parts(len(records))))
        check_failures(failures, len(records), settings.max_bad_fraction)
        finish_parts(folder, dataset, records, {"fingerprint": plan["fingerprint"], **plan[_ENCODER_FIELDS]})
    return load_embeddings(out)


def _describe(encoder: Encoder) -> dict[str, object]:
    return {name: value for name, value in describe_encoder(encoder).items() if name != "fingerprint"}


def _require_whole(out: Path, parts: Path, records: Sequence[ImageRecord], num_shards: int) -> None:
    lacking: dict[str, str] = {}
    for number in range(1, num_shards + 1):
        shard = Shard(number, num_shards)
        numbers = shard.choose_parts(num_parts(len(records)))
        missing = find_missing(parts, numbers)
        if missing:
            num_cut = sum(part_path(parts, one).is_file() for one in missing)
            cut = f", {num_cut} of them cut short" if num_cut else ""
            lacking[str(shard)] = f"{len(missing)} of {len(numbers)} parts{cut}"
    if not lacking:
        return
    shown = [f"shard {shard} lacks {what}" for shard, what in lacking.items()]
    more = f"; and {len(shown) - NUM_SHARDS_SHOWN} more shards" if len(shown) > NUM_SHARDS_SHOWN else ""
    raise IncompleteError(
        f"{out} is not complete: {'; '.join(shown[:NUM_SHARDS_SHOWN])}{more}. Give the command of the shards once more "
        f"with --shard {next(iter(lacking))}, and so on; what is done is not repeated. Then join again.",
        shards=tuple(lacking),
    )
