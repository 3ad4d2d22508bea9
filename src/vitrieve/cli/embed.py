"""``vitrieve embed``: a collection of pictures becomes embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitrieve.cli.arguments import (
    BatchSize,
    DeviceFlag,
    Engine,
    Exclude,
    Json,
    NumThreads,
    Overwrite,
    Precision,
    Resume,
)
from vitrieve.cli.console import print_json, print_message, print_result

if TYPE_CHECKING:
    from vitrieve.embed.collection import Embeddings

NUM_FAILURES_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Turn a collection of pictures into embeddings; a stopped run goes on with --resume."""

    encoder: str
    """A run, an encoder folder, a weights name (vitrieve weights list), or hf:OWNER/NAME@REVISION of the hub."""
    data: str
    """A folder of pictures, or a source: grocery:DIR, emoji, sop:DIR, folder:DIR, table:FILE, …"""
    out: Path
    """Folder to write."""
    protocol: str | None = None
    """One of the source's protocols, where they hold different pictures; None: its first."""
    exclude: Exclude = ()
    reuse: Path | None = None
    """Embeddings of the same encoder: pictures that are in there and have not changed since are not encoded again."""
    batch_size: BatchSize = None
    image_size: int | None = None
    """Side of the square input in pixels; None: the encoder's own."""
    scales: tuple[float, ...] = ()
    """Shares of that side whose embeddings are combined, for convnets: 1 0.7071 0.5. None given: the encoder's own."""
    engine: Engine = "auto"
    precision: Precision = "auto"
    device: DeviceFlag = "auto"
    num_threads: NumThreads = None
    max_bad_fraction: float = 0.05
    """Largest share of pictures that may be unreadable."""
    overwrite: Overwrite = False
    resume: Resume = False
    json: Json = False


def run(arguments: Arguments) -> int:
    """Embed, and report what could not be read."""
    from vitrieve.data.sources import read_collection
    from vitrieve.embed.collection import EmbedSettings, embed_collection
    from vitrieve.runtime.encoder import load_encoder

    settings = EmbedSettings(
        batch_size=arguments.batch_size,
        num_threads=arguments.num_threads,
        max_bad_fraction=arguments.max_bad_fraction,
        show_progress=True,
    )
    dataset = read_collection(arguments.data, protocol=arguments.protocol, exclude=arguments.exclude)
    for note in dataset.notes:
        print_message(note)
    encoder = load_encoder(
        arguments.encoder,
        image_size=arguments.image_size,
        scales=arguments.scales or None,
        engine=arguments.engine,
        precision=arguments.precision,
        num_threads=arguments.num_threads,
        device=arguments.device,
    )
    print_message(f"engine: {encoder.engine} {encoder.precision}")
    embeddings = embed_collection(
        encoder,
        dataset,
        arguments.out,
        settings=settings,
        reuse=arguments.reuse,
        is_resume=arguments.resume,
        is_overwrite=arguments.overwrite,
    )
    _report(embeddings, arguments)
    return 0


def _report(embeddings: Embeddings, arguments: Arguments) -> None:
    num_embedded, embedding_dim = embeddings.vectors.shape
    for image_id, reason in embeddings.failures[:NUM_FAILURES_SHOWN]:
        print_message(f"not embedded: {image_id}: {reason}")
    num_more = len(embeddings.failures) - NUM_FAILURES_SHOWN
    if num_more > 0:
        print_message(f"and {num_more} more, listed in {arguments.out}/rows.parquet")
    if arguments.json:
        failures = [{"image_id": image_id, "reason": reason} for image_id, reason in embeddings.failures]
        print_json(
            {
                "out": str(arguments.out),
                "num_images": num_embedded + len(failures),
                "num_embedded": num_embedded,
                "num_failed": len(failures),
                "failures": failures,
                "embedding_dim": embedding_dim,
                "fingerprint": embeddings.fingerprint,
            }
        )
    else:
        print_result(
            f"{arguments.out}: {num_embedded} embeddings of {embedding_dim} dimensions, "
            f"{len(embeddings.failures)} pictures unreadable"
        )
        print_message(f"next: vitrieve index --embeddings {arguments.out} --out INDEX")
