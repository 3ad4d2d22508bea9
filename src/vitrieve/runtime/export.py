"""``export``: an encoder as a graph that runs without torch. ``vitrieve export`` calls it."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from vitrieve.artifacts import MANIFEST_NAME, explaining_full_disk, read_manifest, replacing_folder, write_bytes_durably
from vitrieve.errors import ConfigError
from vitrieve.model.artifact import ONNX_NAME, read_spec
from vitrieve.progress import print_message
from vitrieve.runtime.encoder import find_source_folder
from vitrieve.runtime.engine import is_torch_installed


@dataclass(frozen=True, kw_only=True)
class ExportedEncoder:
    """An encoder that has a graph.

    Attributes:
        folder: Folder of the encoder.
        graph: File of the graph.
        num_bytes: Size of the graph.
        cosine: Smallest cosine between torch's and the graph's results, at least 0.9999.
        fingerprint: Fingerprint of the encoder.
        embedding_dim: Length of an embedding.
        image_size: Side of the square input in pixels.
    """

    folder: Path
    graph: Path
    num_bytes: int
    cosine: float
    fingerprint: str
    embedding_dim: int
    image_size: int


def export(
    encoder: str | Path,
    out: str | Path | None = None,
    *,
    image_size: int | None = None,
    scales: tuple[float, ...] = (),
    overwrite: bool = False,
) -> ExportedEncoder:
    """Write an encoder as ONNX (embedding and patch tokens, any batch size), and check it against torch.

    Args:
        encoder: A run, an encoder's folder, or a weights name.
        out: Folder of a new encoder with the graph; None: the graph is added to the encoder's own folder, and for a
            weights name the encoder goes into the cache, where the name finds it.
        image_size: Side of the square input in pixels; None: the encoder's own.
        scales: Shares of that side whose embeddings are combined, for convnets; none: the encoder's own.
        overwrite: Replace what ``out`` holds.

    Raises:
        ConfigError: torch is not installed, or it is another encoder and there is no ``out`` for it.
        ArtifactError: The encoder cannot be read, ``out`` is not free, or the graph differs from torch.
    """
    if not is_torch_installed():
        raise ConfigError("exporting needs torch: install vitrieve[train], or export on another machine.")
    from vitrieve.model.export import export_folder

    source = find_source_folder(encoder)
    out = None if out is None else Path(out)
    with ExitStack() as stack:  # what out holds is replaced when all is done
        if source is None:
            folder, beside = _write_named(str(encoder), out, image_size, scales, overwrite, stack)
        else:
            folder, beside = _copy_folder(source, out, image_size, scales, overwrite, stack)
        print_message(f"exporting {encoder} …")
        cosine = export_folder(beside)
    manifest = read_manifest(folder, "encoder")
    return ExportedEncoder(
        folder=folder,
        graph=folder / ONNX_NAME,
        num_bytes=(folder / ONNX_NAME).stat().st_size,
        cosine=cosine,
        fingerprint=manifest["fingerprint"],
        embedding_dim=manifest["embedding_dim"],
        image_size=manifest["image_size"],
    )


def _write_named(
    name: str, out: Path | None, image_size: int | None, scales: tuple[float, ...], overwrite: bool, stack: ExitStack
) -> tuple[Path, Path]:
    """Write the encoder of a weights name for ``out`` or the cache; return where it will be, and where it is now."""
    from vitrieve.model.encoder import build_frozen_encoder, save_encoder
    from vitrieve.model.pretrained import get_export_folder

    if scales and out is None:
        raise ConfigError("with other scales it is another encoder: give it a folder with --out.")
    encoder = build_frozen_encoder(name, image_size=image_size, scales=scales or None)
    folder = out or get_export_folder(name, encoder.spec.preprocessing.image_size)
    beside = stack.enter_context(replacing_folder(folder, is_overwrite=overwrite or out is None, is_resumable=False))
    save_encoder(encoder, beside)
    return folder, beside


def _copy_folder(
    source: Path, out: Path | None, image_size: int | None, scales: tuple[float, ...], overwrite: bool, stack: ExitStack
) -> tuple[Path, Path]:
    """Copy an encoder to ``out``, at another image size or scales if asked; without ``out`` it stays where it is.

    Returns:
        Where it will be, and where it is now.
    """
    manifest = read_manifest(source, "encoder")
    is_resized = image_size not in (None, manifest["image_size"])
    is_rescaled = scales not in ((), read_spec(source).scales)
    if out is None:
        if is_rescaled:
            raise ConfigError(f"with other scales than {source} it is another encoder: give it a folder with --out.")
        if is_resized:
            raise ConfigError(
                f"{source} is an encoder for {manifest['image_size']} px; at {image_size} px it is another encoder: "
                "give it a folder with --out."
            )
        return source, source
    if source.resolve().is_relative_to(out.resolve()):
        raise ConfigError(f"--out {out} holds the encoder itself; leave --out away to add the graph to it.")
    if is_resized or is_rescaled:
        from vitrieve.model.artifact import ModelCard
        from vitrieve.model.encoder import read_encoder, save_encoder

        encoder = read_encoder(source, image_size=image_size, scales=scales or None)
        note = f"Made from an encoder for {manifest['image_size']} px (fingerprint `{manifest['fingerprint']}`)."
        beside = stack.enter_context(replacing_folder(out, is_overwrite=overwrite, is_resumable=False))
        save_encoder(encoder, beside, card=ModelCard(notes=(note,)), config=manifest["config"])
        return out, beside
    beside = stack.enter_context(replacing_folder(out, is_overwrite=overwrite, is_resumable=False))
    num_bytes = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    with explaining_full_disk(out, num_bytes=num_bytes, advice="Make room and pass --overwrite."):
        shutil.copytree(source, beside, ignore=shutil.ignore_patterns(MANIFEST_NAME), dirs_exist_ok=True)
    write_bytes_durably(beside / MANIFEST_NAME, (source / MANIFEST_NAME).read_bytes())  # it is whole now
    return out, beside
