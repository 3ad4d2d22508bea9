"""``vitrieve push`` and ``pull``: encoders of the hub; ``evaluation/sharing.py`` writes and sends them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vitrieve.cli.arguments import Json, Overwrite, Switch
from vitrieve.cli.console import print_json, print_result


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Send an encoder to the hub, with a card: figures, license, base model and use. The token is that of HF_TOKEN."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a finished run, whose report gives the figures, or of an encoder."""
    repository: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OWNER/NAME")]
    """Repository of the hub; made when it is missing."""
    private: Switch = False
    """Make a repository that only its owner sees."""
    license: str | None = None
    """License of the weights, as the hub names it: apache-2.0, …; by default that of the weights it started from."""
    also: Literal["sentence-transformers"] | None = None
    """Add what sentence-transformers and transformers open, with the same vectors; needs torch."""
    dry_run: Path | None = None
    """Write everything to this new folder and show the card, and send nothing; no token is needed."""
    overwrite: Switch = False
    """Send into a repository that holds files already."""
    json: Json = False


@dataclass(frozen=True, kw_only=True)
class PullArguments:
    """Fetch an encoder of the hub, its newest state, and check it; hf:OWNER/NAME then names it everywhere."""

    repository: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OWNER/NAME")]
    """Repository of the hub, with @REVISION a branch, a tag or a commit of it."""
    out: Path | None = None
    """Folder to copy it to; by default it stays in the cache."""
    overwrite: Overwrite = False
    json: Json = False


def run(arguments: Arguments) -> int:
    """Send the encoder, and print where it is."""
    from vitrieve.evaluation.sharing import push_encoder

    pushed = push_encoder(
        arguments.run,
        arguments.repository,
        private=arguments.private,
        overwrite=arguments.overwrite,
        license=arguments.license,
        also=arguments.also,
        dry_run=arguments.dry_run,
    )
    if arguments.json:
        folder = None if pushed.folder is None else str(pushed.folder)
        print_json(
            {
                "name": pushed.name,
                "fingerprint": pushed.fingerprint,
                "files": list(pushed.files),
                "num_bytes": pushed.num_bytes,
                "folder": folder,
            }
        )
        return 0
    size = f"{len(pushed.files)} files, {pushed.num_bytes / 1e6:.1f} MB"
    if pushed.folder is None:
        print_result(f"{pushed.name}: sent, {size}")
    else:
        print_result(*pushed.card.rstrip().split("\n"), "", f"{pushed.folder}: {size}; nothing was sent")
    return 0


def run_pull(arguments: PullArguments) -> int:
    """Fetch the encoder, and print what it is."""
    from vitrieve.artifacts import check_replacing
    from vitrieve.evaluation.sharing import copy_pulled
    from vitrieve.model.hub import PREFIX, is_hub_name
    from vitrieve.model.published import pull_encoder

    given = arguments.repository
    name = given if is_hub_name(given) else PREFIX + given
    if arguments.out is not None:
        check_replacing(arguments.out, kind="encoder", is_overwrite=arguments.overwrite)
    pulled = pull_encoder(name, is_asked_anew=True)
    if arguments.out is not None:
        copy_pulled(pulled.name, arguments.out, overwrite=arguments.overwrite)
    if arguments.json:
        print_json({**pulled.to_json(), "out": None if arguments.out is None else str(arguments.out)})
        return 0
    copied = [] if arguments.out is None else [f"copied to {arguments.out}"]
    print_result(*pulled.describe(), *copied)
    return 0
