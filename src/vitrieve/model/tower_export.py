"""Weights of a pair of towers become an ONNX export as the hub has them, where torch and the pair's library are.

``conversion.py`` calls this for what has weights alone, in the layout of transformers (``config.json``,
``model.safetensors``) or of open_clip (``open_clip_config.json``, ``open_clip_model.safetensors``). The library builds
the model and opens no file but safetensors, so no code of a stranger runs. What is written is a graph of pictures and
one of texts; from then on no torch is needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vitrieve.errors import ConfigError, first_line
from vitrieve.model.export import OPSET, compare_rows, quiet_export, require_equal
from vitrieve.model.towers import run_graph

PIXEL_VALUES, IMAGE_EMBEDS, TEXT_EMBEDS, INPUT_IDS = "pixel_values", "image_embeds", "text_embeds", "input_ids"
MAX_REASON_LENGTH = 300
_FILTERS = {"bilinear": 2, "bicubic": 3}
_PUNCTUATION = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^`{|}~]"
_CANONICAL: list[dict[str, Any]] = [
    {"type": "Replace", "pattern": {"String": "_"}, "content": " "},
    {"type": "Replace", "pattern": {"Regex": _PUNCTUATION}, "content": ""},
    {"type": "Lowercase"},
    {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
    {"type": "Strip", "strip_left": True, "strip_right": True},
]
"""How open_clip tidies the texts of SigLIP, as steps of a tokenizer."""


class ExportedPair(NamedTuple):
    """What is told of an exported pair beside its graphs ``vision_model.onnx`` and ``text_model.onnx``.

    Attributes:
        config: What ``config.json`` of an export tells.
        preprocessor: What ``preprocessor_config.json`` tells; None: the one beside the weights.
        tokenizer: ``tokenizer.json`` in place of the one beside the weights; None: that one.
    """

    config: dict[str, Any]
    preprocessor: dict[str, Any] | None = None
    tokenizer: bytes | None = None


class _Tower(nn.Module):
    """A tower with one input and one output."""

    def __init__(self, model: nn.Module, compute: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.compute = model, compute

    def forward(self, given: Tensor) -> Tensor:
        """Turn pictures or ids into embeddings ``(B, E)``."""
        return self.compute(given)


def export_transformers(folder: Path, config: Mapping[str, Any], image_size: int, out: Path) -> ExportedPair:
    """Export a CLIP or SigLIP of transformers.

    Args:
        folder: With ``config.json`` and ``model.safetensors``.
        config: What ``config.json`` tells.
        image_size: Side of a picture in pixels.
        out: Existing folder for the graphs.

    Raises:
        ConfigError: The library does not read it.
        ArtifactError: A graph differs from torch.
    """
    transformers: Any = import_module("transformers")
    kind = config.get("model_type")
    builder = {"clip": transformers.CLIPModel, "siglip": transformers.SiglipModel}.get(str(kind))
    if builder is None:
        raise ConfigError(f"its model type is {kind!r}; of transformers' weights clip and siglip are exported.")
    try:
        model = builder.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, attn_implementation="eager"
        )
    except Exception as error:  # its own, and those of safetensors, which share no base class
        raise ConfigError(f"transformers cannot read its weights ({first_line(error)[:MAX_REASON_LENGTH]}).") from None
    model.eval()

    def encode_pictures(pixels: Tensor) -> Tensor:
        pooled = model.vision_model(pixel_values=pixels).pooler_output
        return model.visual_projection(pooled) if kind == "clip" else pooled  # type: ignore[no-any-return]

    def encode_texts(ids: Tensor) -> Tensor:
        pooled = model.text_model(input_ids=ids).pooler_output
        return model.text_projection(pooled) if kind == "clip" else pooled  # type: ignore[no-any-return]

    num_tokens = int(model.config.text_config.max_position_embeddings)
    _export_graphs(model, encode_pictures, encode_texts, image_size=image_size, num_tokens=num_tokens, out=out)
    return ExportedPair({**config, "text_config": {"max_position_embeddings": num_tokens}})


def export_open_clip(folder: Path, out: Path) -> ExportedPair:
    """Export a model of open_clip.

    Args:
        folder: With ``open_clip_config.json``, ``open_clip_model.safetensors`` and ``tokenizer.json``.
        out: Existing folder for the graphs.

    Raises:
        ConfigError: The library does not read it, or pictures or texts are prepared in a way that vitrieve has not.
        ArtifactError: A graph differs from torch.
    """
    open_clip: Any = import_module("open_clip")
    try:
        told = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"]
        tokenizing = dict(told["text_cfg"].get("tokenizer_kwargs") or {})
        model = open_clip.create_model(f"local-dir:{folder}", precision="fp32", device="cpu")
    except Exception as error:  # its own, and those of the libraries below it
        raise ConfigError(f"open_clip cannot read its weights ({first_line(error)[:MAX_REASON_LENGTH]}).") from None
    model.eval()
    clean = tokenizing.pop("clean", "lower")
    tokenizing.pop("strip_sep_token", None)
    if clean not in ("lower", "canonicalize", "whitespace") or tokenizing:
        raise ConfigError(f"its texts are prepared by {clean!r} and {sorted(tokenizing)}, which vitrieve does not.")
    preprocessor = _tell_preparation(open_clip.model.get_model_preprocess_cfg(model))
    num_tokens = int(model.context_length)
    _export_graphs(
        model,
        lambda pixels: model.encode_image(pixels),
        lambda ids: model.encode_text(ids),
        image_size=preprocessor["crop_size"]["height"],
        num_tokens=num_tokens,
        out=out,
        is_fixed=True,
    )
    return ExportedPair(
        config={
            "model_type": "siglip" if told["text_cfg"].get("no_causal_mask") else "clip",
            "vision_config": {"model_type": "open_clip"},
            "text_config": {"max_position_embeddings": num_tokens},
        },
        preprocessor=preprocessor,
        tokenizer=_tidy_texts((folder / "tokenizer.json").read_bytes(), clean),
    )


def _tell_preparation(told: Mapping[str, Any]) -> dict[str, Any]:
    size, mode = told.get("size", 224), told.get("resize_mode", "shortest")
    side = size if isinstance(size, int) else size[0]
    if mode not in ("shortest", "squash") or told.get("interpolation", "bicubic") not in _FILTERS:
        raise ConfigError(f"its pictures are resized by {mode!r} and {told.get('interpolation')!r}.")
    square = {"height": side, "width": side}
    if not isinstance(size, int) and size[0] != size[1]:
        raise ConfigError(f"its pictures are of {size[0]} by {size[1]} px; vitrieve takes squares.")
    return {
        "size": {"shortest_edge": side} if mode == "shortest" else square,
        "do_center_crop": mode == "shortest",
        "crop_size": square,
        "resample": _FILTERS[told.get("interpolation", "bicubic")],
        "image_mean": list(told["mean"]),
        "image_std": list(told["std"]),
    }


def _tidy_texts(tokenizer: bytes, clean: str) -> bytes:
    """Put what open_clip does to a text before its tokenizer into the tokenizer."""
    choices: dict[str, list[dict[str, Any]]] = {
        "canonicalize": _CANONICAL,
        "lower": [{"type": "Lowercase"}],
        "whitespace": [],
    }
    steps = choices[clean]
    read = json.loads(tokenizer)
    own = [read["normalizer"]] if read.get("normalizer") else []
    read["normalizer"] = {"type": "Sequence", "normalizers": [*steps, *own]}
    return json.dumps(read, ensure_ascii=False).encode()


def _export_graphs(
    model: nn.Module,
    encode_pictures: Callable[[Tensor], Tensor],
    encode_texts: Callable[[Tensor], Tensor],
    *,
    image_size: int,
    num_tokens: int,
    out: Path,
    is_fixed: bool = False,
) -> None:
    """Write both graphs and compare them with torch; ``is_fixed``: texts have ``num_tokens`` alone."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, image_size, image_size, generator=generator)
    ids = torch.randint(5, 40, (2, num_tokens), generator=generator)
    for name, compute, given, source, target in (
        ("vision_model", encode_pictures, pixels, PIXEL_VALUES, IMAGE_EMBEDS),
        ("text_model", encode_texts, ids, INPUT_IDS, TEXT_EMBEDS),
    ):
        is_free_length = name == "text_model" and not is_fixed
        axes = {source: {0: "batch_size", **({1: "sequence_length"} if is_free_length else {})}}
        path = out / f"{name}.onnx"
        with torch.inference_mode(), quiet_export(), _plain_attention():
            torch.onnx.export(
                _Tower(model, compute).eval(),
                (given,),
                str(path),
                input_names=[source],
                output_names=[target],
                dynamic_axes={**axes, target: {0: "batch_size"}},
                opset_version=OPSET,
                dynamo=False,  # as in export.py
            )
            expected = compute(given[:1]).numpy()
        (found,) = run_graph(path, {source: given[:1].numpy()}, [target])
        require_equal(
            compare_rows(expected, np.asarray(found)),
            f"its exported {name}",
            advice="Use a repository with an ONNX export.",
        )


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Switch off the fused attention of `nn.MultiheadAttention`, for which ONNX has no operator."""
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    except RuntimeError as error:  # of the exporter
        raise ConfigError(f"torch cannot export it ({first_line(error)[:MAX_REASON_LENGTH]}).") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)
