"""The model card: the README of an encoder's folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vitrieve.data.preprocess import Preprocessing
from vitrieve.model.spec import ONE_SCALE, EncoderSpec, ReductionKind

_REDUCTIONS: dict[ReductionKind, str] = {
    "pca": "PCA",
    "pca_whitening": "PCA with whitening",
    "supervised_whitening": "supervised whitening",
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
        _format_weights(spec, card),
        _USE,
        *card.notes,
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _format_title(spec: EncoderSpec, fingerprint: str) -> str:
    norm = ", standardized" if spec.head_norm else ""
    head = "" if spec.head_dim is None else f", linear layer to {spec.head_dim} dimensions"
    reduction = f", {_REDUCTIONS[spec.reduction_kind]} fitted on {spec.reduction}" if spec.reduction else ""
    is_one_scale = spec.scales == ONE_SCALE
    scales = "" if is_one_scale else f"| scales of the input | {', '.join(f'{scale:g}' for scale in spec.scales)} |\n"
    return (
        f"# Image encoder: {spec.backbone}\n\n"
        f"Turns an image into {spec.embedding_dim} numbers of unit length; a larger dot product means more alike.\n\n"
        "| | |\n|---|---|\n"
        f"| backbone | {spec.backbone} (timm `{spec.architecture}`) |\n"
        f"| pooling | {spec.pooling}{norm}{head}{reduction} |\n"
        f"| input | {_format_input(spec.preprocessing)} |\n"
        f"{scales}"
        f"| fingerprint | `{fingerprint}` |"
    )


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


def _format_weights(spec: EncoderSpec, card: ModelCard) -> str:
    note = f" {spec.weights_note}" if spec.weights_note else ""
    return f"## Weights\n\nPre-trained weights: {spec.weights_source}. License: {spec.weights_license}.{note}"


_USE = """## Use

```python
from vitrieve import load_encoder

encoder = load_encoder("FOLDER")            # this folder
embeddings = encoder.encode([image])        # paths or PIL images -> (N, E) float32, unit length
```

`vitrieve embed --encoder FOLDER --data IMAGES --out EMBEDDINGS` embeds a collection. `vitrieve export --encoder
FOLDER` adds `encoder.onnx`, with which both work without torch. Weights are safetensors: loading runs no code."""
