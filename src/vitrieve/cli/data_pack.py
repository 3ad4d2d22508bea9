"""``vitrieve data pack`` reads the flags and prints the result; ``data/pack.py`` packs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from vitrieve.cli.arguments import Exclude, Json, Overwrite, Resume, read_data
from vitrieve.cli.console import print_failure, print_json, print_message, print_result
from vitrieve.quoting import count_nouns

NUM_FAILURES_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Pack the images of a source into shards with an index, for shards:DIR; a stopped run goes on with --resume."""

    out: Path
    """Folder of the shards to write."""
    source: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[SOURCE]")] = None
    """The same as --data."""
    data: str | None = None
    """What to pack: grocery:DIR, emoji, folder:DIR, table:FILE, …, or a folder of pictures without classes."""
    protocol: str | None = None
    """Which of the source's protocols the roles follow; by default its first."""
    exclude: Exclude = ()
    max_side_px: int | None = 512
    """Longest side of a picture; larger ones are made smaller. None: all keep their size."""
    shard_mib: int = 256
    """Largest size of a shard, in MiB."""
    num_processes: int | None = None
    """Processes that decode; None: one for each core."""
    max_bad_fraction: float = 0.05
    """Largest share of pictures that may be unreadable."""
    overwrite: Overwrite = False
    resume: Resume = False
    json: Json = False


def run(arguments: Arguments) -> int:
    """Pack, and report what could not be read."""
    from vitrieve.data.pack import PackSettings, pack_dataset
    from vitrieve.data.sources import read_collection

    settings = PackSettings(
        max_side_px=arguments.max_side_px,
        shard_mib=arguments.shard_mib,
        num_processes=arguments.num_processes,
        max_bad_fraction=arguments.max_bad_fraction,
        show_progress=True,
    )
    source = read_data(arguments.data, arguments.source, is_note=False)
    dataset = read_collection(source, protocol=arguments.protocol, exclude=arguments.exclude)
    for note in dataset.notes:
        print_message(note)
    report = pack_dataset(
        dataset, arguments.out, settings=settings, overwrite=arguments.overwrite, resume=arguments.resume
    )
    for image_id, reason in report.failures[:NUM_FAILURES_SHOWN]:
        print_failure(f"not packed: {image_id}: {reason}")
    if len(report.failures) > NUM_FAILURES_SHOWN:
        print_message(
            f"and {len(report.failures) - NUM_FAILURES_SHOWN} more, listed in {arguments.out}/unreadable.parquet"
        )
    if arguments.json:
        failures = [{"image_id": image_id, "reason": reason} for image_id, reason in report.failures]
        print_json(
            {
                "out": str(report.folder),
                "num_images": report.num_images,
                "num_shards": report.num_shards,
                "num_bytes": report.num_bytes,
                "failures": failures,
            }
        )
    else:
        print_result(
            f"{report.folder}: {count_nouns(report.num_images, 'picture', 'pictures')} in "
            f"{count_nouns(report.num_shards, 'shard', 'shards')} of "
            f"{report.num_bytes / 2**20:,.1f} MiB together, "
            f"{count_nouns(len(report.failures), 'picture', 'pictures')} unreadable"
        )
        print_message(f"next: vitrieve train small --data shards:{report.folder} --out RUN")
    return 0
