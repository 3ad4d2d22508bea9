"""``vitrieve adapt`` reads the flags and prints the figures; ``training/adaptation.py`` adapts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitrieve.cli.arguments import Exclude, Json, Overwrite, ProtocolName
from vitrieve.cli.console import print_json, print_message, print_result

if TYPE_CHECKING:
    from vitrieve.training.adaptation import AdaptedEncoder


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Learn a linear head on stored embeddings, and put it into the encoder that made them.

    It takes a minute or two for some thousand images and reads no picture. Held-out classes decide; where no head is
    better, the encoder stays as it is.
    """

    embeddings: Path
    """Folder written by vitrieve embed, which has all training images of --data."""
    data: str
    """The set whose training classes it learns: grocery:DIR, emoji, sop:DIR, folder:DIR, table:FILE, …"""
    out: Path
    """Folder of the new encoder."""
    embeddings_out: Path | None = None
    """Folder for the embeddings of the new encoder, made from the stored ones; None: they are not written."""
    encoder: str | None = None
    """Where the encoder that made the embeddings is now; None: where they say."""
    embedding_dim: int | None = None
    """Dimensions of the result, at most those of the embeddings; None: held-out classes choose."""
    protocol: ProtocolName = None
    exclude: Exclude = ()
    seed: int = 0
    """Seed of the first weights and of the order of the images."""
    overwrite: Overwrite = False
    json: Json = False


def run(arguments: Arguments) -> int:
    """Adapt, and print the figures before and after."""
    from vitrieve.data.sources import read_source
    from vitrieve.runtime.engine import require_torch

    dataset = read_source(arguments.data, protocol=arguments.protocol, exclude=arguments.exclude)
    require_torch("adapting", "adapt")
    from vitrieve.training.adaptation import adapt

    adapted = adapt(
        arguments.embeddings,
        dataset,
        arguments.out,
        encoder=arguments.encoder,
        embeddings_out=arguments.embeddings_out,
        overwrite=arguments.overwrite,
        embedding_dim=arguments.embedding_dim,
        seed=arguments.seed,
    )
    _print_result(adapted, is_json=arguments.json)
    return 0


def _print_result(adapted: AdaptedEncoder, *, is_json: bool) -> None:
    if is_json:
        print_json(
            {
                "folder": str(adapted.folder),
                "fingerprint": adapted.fingerprint,
                "is_adapted": adapted.is_adapted,
                "embedding_dim": adapted.embedding_dim,
                "gain": list(adapted.gain),
                "num_epochs": adapted.num_epochs,
                "num_images": adapted.num_images,
                "num_classes": adapted.num_classes,
                "seconds": round(adapted.seconds, 2),
                "held_out": [one.to_json() for one in adapted.held_out],
                "test": [one.to_json() for one in adapted.test],
                "embeddings": None if adapted.embeddings is None else str(adapted.embeddings),
            }
        )
        return
    from vitrieve.evaluation.measure import format_results

    print_result(*format_results((*adapted.held_out, *adapted.test)).split("\n"))
    how = "" if adapted.is_adapted else " (unchanged: no head was better beyond chance on the held-out classes)"
    print_result(f"encoder: {adapted.folder}, {adapted.embedding_dim} dimensions{how}")
    if adapted.embeddings is not None:
        print_result(f"embeddings: {adapted.embeddings}")
        print_message(f"next: vitrieve index --embeddings {adapted.embeddings} --out INDEX")
