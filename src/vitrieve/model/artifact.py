"""The encoder's folder, without torch: what an encoder is, its files, and the check that they belong together.

model.safetensors   weights of backbone, head and reduction; or instead of it
delta.safetensors   what they differ in from the weights of a name (``delta.py``)
encoder.json        ``EncoderSpec``
encoder.onnx        the graph, when exported
int8.xml, int8.bin  the graph in int8, when quantized
README.md           model card
manifest.json       fingerprint and checksums, written last
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vitrieve.artifacts import read_manifest, write_manifest
from vitrieve.choices import Pooling
from vitrieve.data.preprocess import Preprocessing
from vitrieve.errors import ArtifactError, ConfigError, FingerprintError
from vitrieve.model.delta import DELTA_NAME, Delta, read_delta, write_delta
from vitrieve.model.pretrained import restore_from_base
from vitrieve.model.tensors import hash_file, read_arrays, update_digest
from vitrieve.model.text import complete_card
from vitrieve.settings import config_from_json, config_to_json
from vitrieve.writing import write_bytes_durably, write_text_durably

ReductionKind = Literal["pca", "pca_whitening", "supervised_whitening", "prefix", "linear_head"]
AppliedKind = Literal["pca", "pca_whitening", "supervised_whitening", "prefix"]
"""What ``vitrieve reduce`` can do; a linear head is what ``vitrieve adapt`` learns."""
ONE_SCALE = (1.0,)


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """Everything but the weights that decides an embedding, and where the encoder comes from.

    Attributes:
        backbone: The name it was asked for by: a name of ``pretrained.py`` or a timm model name.
        architecture: timm's model name without the tag.
        pooling: How tokens become one vector.
        preprocessing: How a picture becomes the input.
        embedding_dim: Length of the embedding (after head and reduction, where there are any).
        head_norm: The head standardizes the pooled features of each image.
        head_dim: Outputs of the head's linear layer; None: it has none.
        reduction: Name of the set the reduction was fitted on; None without reduction.
        reduction_kind: What the linear map does beside dropping dimensions; read with a reduction only.
        scales: Sides of the input, as shares of the image size, whose embeddings are combined into one
            (``encoder.py``); several are for convnets.
        graph_sha256: Checksums of the graph that others published, and of its files, where the encoder is one and so
            has no weights by name (``published_graph.py``); empty: it has.
        weights_source: Origin of the pre-trained weights, in a few words.
        weights_license: License of the weights, as text for the model card.
        weights_note: What a user must know about the pre-trained weights.
        trained_on: One line about the data and recipe of the fine-tuning; empty for frozen weights.
    """

    backbone: str
    architecture: str
    pooling: Pooling
    preprocessing: Preprocessing
    embedding_dim: int
    head_norm: bool = False
    head_dim: int | None = None
    reduction: str | None = None
    reduction_kind: ReductionKind = "pca"
    scales: tuple[float, ...] = ONE_SCALE
    graph_sha256: str = ""
    weights_source: str = "unknown"
    weights_license: str = "unknown"
    weights_note: str = ""
    trained_on: str = ""


WEIGHTS_NAME = "model.safetensors"
SPEC_NAME = "encoder.json"
ONNX_NAME = "encoder.onnx"
INT8_NAMES = ("int8.xml", "int8.bin")
CARD_NAME = "README.md"
CHECKED_NAMES = (SPEC_NAME, DELTA_NAME, ONNX_NAME, *INT8_NAMES)
"""Files whose checksum the manifest holds; the weights are checked by the fingerprint, the card is for people."""
PIXELS_INPUT = "pixels"
EMBEDDING_OUTPUT = "embedding"
PATCH_TOKENS_OUTPUT = "patch_tokens"
"""Names in the exported graph."""
ENCODER_SUBFOLDER = "encoder"
"""Folder of a run that holds its encoder."""


@dataclass(frozen=True, kw_only=True)
class EncoderContents:
    """A checked encoder folder.

    Attributes:
        spec: What the encoder is.
        states: Weights by name.
        fingerprint: Fingerprint of the contents, equal to the manifest's.
        has_onnx: The exported graph is there (its checksum is right too).
    """

    spec: EncoderSpec
    states: Mapping[str, np.ndarray]
    fingerprint: str
    has_onnx: bool


def require_made_by(what: str, made_by: str, encoder: str, fingerprint: str, *, advice: str) -> None:
    """Refuse what another encoder made than the one that is given.

    Args:
        what: What was made and its verb, for the message: ``the embeddings were``.
        made_by: Fingerprint of the encoder that made it.
        encoder: Name of the encoder that is given, for the message.
        fingerprint: Its fingerprint.
        advice: What to do, as a sentence.

    Raises:
        FingerprintError: The fingerprints differ.
    """
    if made_by != fingerprint:
        raise FingerprintError(
            f"{what} made by another encoder ({made_by[:12]}…) than {encoder} ({fingerprint[:12]}…). {advice}"
        )


def require_present(made: str, source: str | Path) -> None:
    """Refuse an encoder that a result names by its folder, where that is no longer there.

    Args:
        made: What was made by the encoder, with its verb, for the message: ``the index was made with``.
        source: Folder or weights name that the result names.

    Raises:
        ArtifactError: The folder is gone.
    """
    if Path(source).is_absolute() and not Path(source).exists():
        raise ArtifactError(
            f"{made} the encoder in {source}, which is no longer there; name where it is now with --encoder (in "
            "Python: the argument encoder)."
        )


def require_apart(source: Path, out: Path) -> None:
    """Refuse to write a new encoder over the one that it is made of.

    Args:
        source: Folder of the encoder that is read.
        out: Folder to write.

    Raises:
        ArtifactError: ``source`` is ``out`` or lies in it.
    """
    if source.resolve().is_relative_to(out.resolve()):
        raise ArtifactError(f"--out {out} holds the encoder itself; give another folder.")


def compute_fingerprint(spec: EncoderSpec, states: Mapping[str, np.ndarray]) -> str:
    """Compute what identifies an encoder: two encoders with the same fingerprint give embeddings that are comparable.

    Hashed are the architecture, the pooling, the preprocessing, several scales, a head's norm, and each weight's name,
    type, shape and bytes (the reduction's among them), or the checksum of a published graph; not the engine, the
    precision, names or licenses: queries in int8 find in an index made in bf16 what queries in bf16 find, but for some
    thousandths (dev/LOG.md). The encoder of a weights name has it too, with torch and without, the same on every
    machine.

    Args:
        spec: What the encoder is.
        states: Weights by name, in any order.

    Returns:
        64 hexadecimal digits (SHA-256).
    """
    preprocessing = config_to_json(spec.preprocessing)
    if spec.preprocessing.framing == "crop":  # named only otherwise: such encoders keep the fingerprint they always had
        del preprocessing["framing"]
    identity: dict[str, Any] = {
        "architecture": spec.architecture,
        "pooling": spec.pooling,
        "preprocessing": preprocessing,
    }
    if spec.scales != ONE_SCALE:  # not otherwise: encoders of one scale keep the fingerprint they always had
        identity["scales"] = list(spec.scales)
    if spec.head_norm:
        identity["head_norm"] = True
    if spec.graph_sha256:
        identity["graph_sha256"] = spec.graph_sha256
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    update_digest(digest, states)
    return digest.hexdigest()


def write_contents(
    folder: Path,
    spec: EncoderSpec,
    states: Mapping[str, np.ndarray],
    card: str,
    config: Mapping[str, Any],
    delta: Delta | None = None,
) -> str:
    """Write an encoder's folder, the manifest last; what was exported before is removed.

    Args:
        folder: Made when it is missing; an encoder in it is replaced.
        spec: What the encoder is.
        states: Weights by name.
        card: Text of the model card; a text part that is in the folder already is named at its end.
        config: Resolved configuration that led to the encoder, as JSON values; empty for frozen weights.
        delta: Difference that ``states`` were restored from, which is written in their place.

    Returns:
        The fingerprint.
    """
    from safetensors.numpy import save

    folder.mkdir(parents=True, exist_ok=True)
    for name in ("manifest.json", WEIGHTS_NAME, DELTA_NAME, ONNX_NAME, *INT8_NAMES):
        (folder / name).unlink(missing_ok=True)
    if delta is None:
        weights = save({name: np.asarray(array, order="C") for name, array in states.items()})
        write_bytes_durably(folder / WEIGHTS_NAME, weights)
    else:
        write_delta(folder / DELTA_NAME, delta)
    spec_text = json.dumps(config_to_json(spec), indent=2) + "\n"
    write_bytes_durably(folder / SPEC_NAME, spec_text.encode())
    write_text_durably(folder / CARD_NAME, complete_card(card, folder))
    fingerprint = compute_fingerprint(spec, states)
    _write_encoder_manifest(
        folder, {"fingerprint": fingerprint, "config": config}, spec, (SPEC_NAME, *([DELTA_NAME] if delta else []))
    )
    return fingerprint


def note_export(folder: Path, names: Sequence[str]) -> None:
    """Write the manifest again after the files of a graph, ``names``, were added."""
    manifest = read_manifest(folder, "encoder")
    _write_encoder_manifest(folder, manifest, read_spec(folder), {*manifest["sha256"], *names})


def forget_export(folder: Path, names: Sequence[str]) -> None:
    """Write the manifest again before the files of a graph, ``names``, are replaced.

    What the manifest does not name is not part of the encoder: stopped half-way, it is one without that graph.
    """
    manifest = read_manifest(folder, "encoder")
    _write_encoder_manifest(folder, manifest, read_spec(folder), set(manifest["sha256"]).difference(names))


def _write_encoder_manifest(folder: Path, given: Mapping[str, Any], spec: EncoderSpec, names: Collection[str]) -> None:
    contents = {
        "fingerprint": given["fingerprint"],
        "embedding_dim": spec.embedding_dim,
        "dtype": "float32",
        "image_size": spec.preprocessing.image_size,
        "sha256": {name: hash_file(folder / name) for name in CHECKED_NAMES if name in names},
        "config": dict(given["config"]),
    }
    write_manifest(folder, "encoder", contents)


def read_spec(folder: Path) -> EncoderSpec:
    """Read ``encoder.json`` strictly.

    Raises:
        ArtifactError: Missing or damaged.
    """
    path = folder / SPEC_NAME
    try:
        return config_from_json(EncoderSpec, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ConfigError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        raise ArtifactError(f"{path} is missing or damaged ({error}); make the encoder again.") from None


def read_contents(folder: Path) -> EncoderContents:
    """Read an encoder's folder and check every part against the manifest.

    Raises:
        ArtifactError: Missing, unfinished or damaged.
        FingerprintError: The weights or the settings are not those the manifest was written for.
        WeightsError: The weights that it is a difference to cannot be had, or are others.
    """
    manifest = read_manifest(folder, "encoder")
    check_files(folder, manifest.get("sha256", {}))
    spec = read_spec(folder)
    states = restore_from_base(read_delta(folder / DELTA_NAME), str(folder)) if is_delta(folder) else None
    if states is None:
        states = read_arrays(folder / WEIGHTS_NAME)
    fingerprint = compute_fingerprint(spec, states)
    if fingerprint != manifest.get("fingerprint"):
        raise FingerprintError(
            f"{folder}: the contents have fingerprint {fingerprint[:12]}…, but the manifest says "
            f"{str(manifest.get('fingerprint'))[:12]}…: a file was changed or damaged. Make or copy the encoder again."
        )
    return EncoderContents(
        spec=spec, states=states, fingerprint=fingerprint, has_onnx=ONNX_NAME in manifest.get("sha256", {})
    )


def read_card(folder: Path) -> str:
    """Read the model card of an encoder's folder; empty where there is none, for it is for people alone."""
    path = folder / CARD_NAME
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def is_delta(folder: Path) -> bool:
    """Say whether an encoder's folder holds a difference to other weights instead of its own."""
    return (folder / DELTA_NAME).is_file()


def check_files(folder: Path, checksums: Mapping[str, str]) -> None:
    """Compare an encoder's files, but for the weights, with their checksums.

    Raises:
        ArtifactError: A file is missing.
        FingerprintError: A file was changed or damaged.
    """
    for name, expected in checksums.items():
        path = folder / name
        if name not in CHECKED_NAMES or not path.is_file():
            raise ArtifactError(f"{path} is missing; copy the whole folder, or make the encoder again.")
        if hash_file(path) != expected:
            raise FingerprintError(
                f"{path} is not the file the manifest was written for: it was changed or damaged. "
                "Make or copy the encoder again."
            )
    if SPEC_NAME not in checksums:
        raise ArtifactError(f"the manifest of {folder} has no checksum of {SPEC_NAME}; make the encoder again.")


def find_encoder_folder(folder: Path) -> Path | None:
    """Return the encoder's folder of ``folder``: itself, or the encoder of a run; None when it is neither."""
    for candidate in (folder, folder / ENCODER_SUBFOLDER):
        if (candidate / SPEC_NAME).is_file():
            return candidate
    return None


_REDUCTIONS: dict[ReductionKind, str] = {
    "pca": "PCA",
    "pca_whitening": "PCA with whitening",
    "supervised_whitening": "supervised whitening",
    "prefix": "first dimensions",
    "linear_head": "linear head",
}


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a reader of the card must know beyond the encoder itself.

    Attributes:
        trained_on: One line about data, recipe, steps and seed; empty for frozen weights.
        figures: Rows of a table: name of the row to name of the metric to a fraction in [0, 1].
        measured_on: Data set and protocol of the figures.
        data_license: License of the training images.
        notes: Further sentences, one a paragraph.
    """

    trained_on: str = ""
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    measured_on: str = ""
    data_license: str = ""
    notes: tuple[str, ...] = ()


def format_card(spec: EncoderSpec, card: ModelCard, fingerprint: str) -> str:
    """Write the model card as Markdown.

    Args:
        spec: What the encoder is.
        card: What training and measuring add.
        fingerprint: Identity of the encoder.
    """
    sections = [
        _format_title(spec, fingerprint),
        _format_training(spec, card),
        _format_figures(card),
        _format_weights(spec),
        USE_SECTION,
        *card.notes,
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _format_title(spec: EncoderSpec, fingerprint: str) -> str:
    norm = ", standardized" if spec.head_norm else ""
    head = "" if spec.head_dim is None else f", linear layer to {spec.head_dim} dimensions"
    reduction = _format_reduction(spec) if spec.reduction else ""
    is_one_scale = spec.scales == ONE_SCALE
    scales = "" if is_one_scale else f"| scales of the input | {', '.join(f'{scale:g}' for scale in spec.scales)} |\n"
    return (
        f"# Image encoder: {spec.backbone}\n\n"
        f"Turns an image into {spec.embedding_dim} numbers of unit length; a larger dot product means more alike.\n\n"
        "| | |\n|---|---|\n"
        f"| backbone | {spec.backbone} ({'type' if spec.graph_sha256 else 'timm'} `{spec.architecture}`) |\n"
        f"| pooling | {spec.pooling}{norm}{head}{reduction} |\n"
        f"| input | {_format_input(spec.preprocessing)} |\n"
        f"{scales}"
        f"| fingerprint | `{fingerprint}` |"
    )


def _format_reduction(spec: EncoderSpec) -> str:
    if spec.reduction_kind == "prefix":
        return f", the first {spec.embedding_dim} dimensions"
    return f", {_REDUCTIONS[spec.reduction_kind]} fitted on {spec.reduction}"


def _format_input(size: Preprocessing) -> str:
    if size.framing == "square":
        return f"RGB, the whole picture squeezed to {size.image_size} px square ({size.interpolation})"
    return f"RGB, short side to {size.resize_size} px ({size.interpolation}), center square of {size.image_size} px"


def _format_training(spec: EncoderSpec, card: ModelCard) -> str:
    if not spec.trained_on:
        return "## Training\n\nNone: the pre-trained weights as they are."
    data_license = f" License of the images: {card.data_license}." if card.data_license else ""
    return f"## Training\n\n{spec.trained_on}.{data_license}"


def _format_figures(card: ModelCard) -> str:
    if not card.figures:
        return ""
    metrics = list(dict.fromkeys(metric for row in card.figures.values() for metric in row))
    lines = ["| % | " + " | ".join(metrics) + " |", "|---|" + "---|" * len(metrics)]
    for name, row in card.figures.items():
        cells = [f"{100 * row[metric]:.1f}" if metric in row else "" for metric in metrics]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    where = f"Measured on {card.measured_on}.\n\n" if card.measured_on else ""
    return f"## Figures\n\n{where}" + "\n".join(lines)


def _format_weights(spec: EncoderSpec) -> str:
    note = f" {spec.weights_note}" if spec.weights_note else ""
    return f"## Weights\n\nPre-trained weights: {spec.weights_source}. License: {spec.weights_license}.{note}"


USE_SECTION = """## Use

```python
from vitrieve import load_encoder

encoder = load_encoder("FOLDER")            # this folder
embeddings = encoder.encode([image])        # paths or PIL images -> (N, E) float32, unit length
```

`vitrieve embed --encoder FOLDER --data IMAGES --out EMBEDDINGS` embeds a collection. `vitrieve export --encoder
FOLDER` adds `encoder.onnx`, with which both work without torch. Weights are safetensors: loading runs no code."""


def require_weights(folder: Path, spec: EncoderSpec) -> None:
    """Refuse an encoder that is a published graph where its weights are needed.

    Raises:
        ArtifactError: It is one.
    """
    if spec.graph_sha256:
        raise ArtifactError(
            f"{folder} is the graph of {spec.backbone} as it was published, without weights that torch could read: it "
            "encodes pictures on the CPU, at its own size, and cannot be trained, reduced, adapted or exported. For "
            "that, give the weights that it was made of (vitrieve weights list)."
        )
