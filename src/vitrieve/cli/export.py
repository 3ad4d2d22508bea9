"""``vitrieve export``: an encoder as ONNX, for machines without torch."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

from vitrieve.artifacts import MANIFEST_NAME, explaining_full_disk, read_manifest, write_bytes_durably
from vitrieve.cli.arguments import Switch
from vitrieve.cli.console import print_json, print_message, print_result
from vitrieve.errors import ConfigError
from vitrieve.replacing import replacing_folder


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Write an encoder as ONNX (embedding and patch tokens, any batch size), checked against torch."""

    encoder: str
    """A run, an encoder's folder, or a weights name."""
    image_size: int | None = None
    """Side of the square input in pixels; by default the encoder's own."""
    scales: tuple[float, ...] = ()
    """Shares of that side whose embeddings are combined, for convnets: 1 0.7071 0.5. By default the encoder's own."""
    out: Path | None = None
    """Folder of a new encoder with the graph. By default the graph is added to the encoder's own folder, and for a
    weights name the encoder goes into the cache, where the name finds it."""
    overwrite: Switch = False
    """Replace what is in --out."""
    json: Switch = False
    """Print one JSON object."""


def run(arguments: Arguments) -> int:
    """Export an encoder, and print where it is."""
    from vitrieve.model.artifact import ONNX_NAME
    from vitrieve.runtime.choice import is_torch_installed
    from vitrieve.runtime.encoder import find_source_folder

    if not is_torch_installed():
        raise ConfigError("exporting needs torch: install vitrieve[train], or export on another machine.")
    source = find_source_folder(arguments.encoder)
    from vitrieve.model.export import export_folder

    with ExitStack() as stack:  # what --out holds is replaced when all is done
        if source is None:
            folder, beside = _make_from_name(arguments, stack)
        else:
            folder, beside = _make_from_folder(arguments, source, stack)
        print_message(f"exporting {arguments.encoder} …")
        cosine = export_folder(beside)
    manifest = read_manifest(folder, "encoder")
    num_bytes = (folder / ONNX_NAME).stat().st_size
    if arguments.json:
        described = {name: manifest[name] for name in ("fingerprint", "embedding_dim", "image_size")}
        print_json({"folder": str(folder), "onnx": ONNX_NAME, "num_bytes": num_bytes, "cosine": cosine, **described})
        return 0
    print_result(
        f"{folder / ONNX_NAME}: {num_bytes / 1e6:.1f} MB, {manifest['image_size']} px, "
        f"{manifest['embedding_dim']} dimensions, cosine to torch {cosine:.6f}"
    )
    return 0


def _make_from_name(arguments: Arguments, stack: ExitStack) -> tuple[Path, Path]:
    """Write the encoder of a weights name for --out or the cache; return where it will be, and where it is now."""
    from vitrieve.model.encoder import build_frozen_encoder, save_encoder
    from vitrieve.model.pretrained import get_export_folder

    if arguments.scales and arguments.out is None:
        raise ConfigError("with other scales it is another encoder: give it a folder with --out.")
    encoder = build_frozen_encoder(arguments.encoder, image_size=arguments.image_size, scales=arguments.scales or None)
    image_size = encoder.spec.preprocessing.image_size
    folder = arguments.out or get_export_folder(arguments.encoder, image_size)
    beside = stack.enter_context(_replacing_out(arguments, folder))
    save_encoder(encoder, beside)
    return folder, beside


def _make_from_folder(arguments: Arguments, source: Path, stack: ExitStack) -> tuple[Path, Path]:
    """Copy an encoder for --out, at another image size or scales if asked; without --out it stays where it is.

    Returns:
        Where it will be, and where it is now.
    """
    from vitrieve.model.artifact import read_spec

    image_size = read_manifest(source, "encoder")["image_size"]
    is_resized = arguments.image_size not in (None, image_size)
    is_rescaled = arguments.scales not in ((), read_spec(source).scales)
    if arguments.out is None:
        if is_rescaled:
            raise ConfigError(f"with other scales than {source} it is another encoder: give it a folder with --out.")
        if is_resized:
            raise ConfigError(
                f"{source} is an encoder for {image_size} px; at {arguments.image_size} px it is another encoder: "
                "give it a folder with --out."
            )
        return source, source
    if source.resolve().is_relative_to(arguments.out.resolve()):
        raise ConfigError(f"--out {arguments.out} holds the encoder itself; leave --out away to add the graph to it.")
    if is_resized or is_rescaled:
        return arguments.out, _write_resized(source, arguments.out, arguments, stack)
    beside = stack.enter_context(_replacing_out(arguments, arguments.out))
    num_bytes = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    with explaining_full_disk(arguments.out, num_bytes=num_bytes, advice="Make room and pass --overwrite."):
        shutil.copytree(source, beside, ignore=shutil.ignore_patterns(MANIFEST_NAME), dirs_exist_ok=True)
    write_bytes_durably(beside / MANIFEST_NAME, (source / MANIFEST_NAME).read_bytes())  # it is whole now
    return arguments.out, beside


def _replacing_out(arguments: Arguments, out: Path) -> AbstractContextManager[Path]:
    return replacing_folder(out, is_overwrite=arguments.overwrite or arguments.out is None, is_resumable=False)


def _write_resized(source: Path, out: Path, arguments: Arguments, stack: ExitStack) -> Path:
    from vitrieve.model.card import ModelCard
    from vitrieve.model.encoder import read_encoder, save_encoder

    encoder = read_encoder(source, image_size=arguments.image_size, scales=arguments.scales or None)
    manifest = read_manifest(source, "encoder")
    note = f"Made from an encoder for {manifest['image_size']} px (fingerprint `{manifest['fingerprint']}`)."
    beside = stack.enter_context(_replacing_out(arguments, out))
    save_encoder(encoder, beside, card=ModelCard(notes=(note,)), config=manifest["config"])
    return beside
