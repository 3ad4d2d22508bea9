"""The encoder of a weights name, or of a difference to one, without torch: its folder in the cache, made at first use.

The graph is written node by node, from the weights of a DINOv2. Its position table is resampled to
the size of the input with the same bits as ``checkpoint.py`` gets with torch, so that both have one fingerprint.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitrieve.artifacts import MANIFEST_NAME, read_manifest
from vitrieve.data.preprocess import build_preprocessing
from vitrieve.errors import ArtifactError, ConfigError, WeightsError
from vitrieve.folders import publish_folder
from vitrieve.model.artifact import (
    EMBEDDING_OUTPUT,
    ONE_SCALE,
    ONNX_NAME,
    PATCH_TOKENS_OUTPUT,
    PIXELS_INPUT,
    EncoderSpec,
    ModelCard,
    check_files,
    compute_fingerprint,
    format_card,
    is_delta,
    note_export,
    read_card,
    read_contents,
    read_spec,
    write_contents,
)
from vitrieve.model.delta import DELTA_NAME, WHOLE, read_delta
from vitrieve.model.positions import resample_positions
from vitrieve.model.pretrained import BACKBONE_PREFIX, WEIGHTS, WeightsEntry, get_export_folder, pull_weights
from vitrieve.model.tensors import read_arrays
from vitrieve.writing import replacing_durably

if TYPE_CHECKING:
    import onnx

OPSET = 17
"""The first with LayerNormalization as one operator."""
IR_VERSION = 8
HEAD_WIDTH = 64
"""Width of an attention head in every DeiT and DINOv2 model."""
NORM_EPSILON = 1e-6
HEAD_NORM_EPSILON = 1e-5
"""torch's default, with which ``encoder.py`` builds the norm of a head."""
SMALLEST_NORM = 1e-12


def _number(value: float) -> np.ndarray:
    return np.array(value, dtype=np.float32)


class _Writer:
    """Collects nodes and constants; every method returns the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self._kept: dict[tuple[object, ...], tuple[str, np.ndarray]] = {}

    def apply(self, operator: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
        """Add a node; an array becomes a constant."""
        from onnx import helper

        names = [one if isinstance(one, str) else self._keep(one) for one in inputs]
        result = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, names, [result], **attributes))
        return result

    def _keep(self, array: np.ndarray) -> str:
        place = (array.ctypes.data, array.dtype.str, array.shape, array.strides)  # where it lies, and how
        if place not in self._kept:
            name = f"c{len(self.constants)}"
            self.constants[name] = np.ascontiguousarray(array)
            self._kept[place] = name, array  # held, so that no other array comes to lie there
        return self._kept[place][0]

    def linear(self, tokens: str, states: Mapping[str, np.ndarray], name: str) -> str:
        """Add a linear layer with a bias."""
        product = self.apply("MatMul", tokens, states[f"{name}.weight"].T)
        return self.apply("Add", product, states[f"{name}.bias"])

    def norm(self, tokens: str, states: Mapping[str, np.ndarray], name: str) -> str:
        """Add a layer norm over the last axis."""
        weight, bias = states[f"{name}.weight"], states[f"{name}.bias"]
        return self.apply("LayerNormalization", tokens, weight, bias, axis=-1, epsilon=NORM_EPSILON)

    def gelu(self, values: str) -> str:
        """Add a GELU, by the error function."""
        error = self.apply("Erf", self.apply("Mul", values, _number(np.sqrt(0.5))))
        return self.apply("Mul", self.apply("Mul", values, _number(0.5)), self.apply("Add", error, _number(1)))


def build_vit_graph(
    states: Mapping[str, np.ndarray], image_size: int, spec: EncoderSpec | None = None
) -> onnx.ModelProto:
    """Write the graph of a transformer.

    Args:
        states: Weights under timm's names, float32; the position table is that of ``image_size``. Layer scale is
            applied where there is one. The weights of a head and of a reduction stand under ``head.linear.`` and
            ``reduction.``.
        image_size: Side of the input in pixels.
        spec: What the encoder is, of which pooling, head and reduction are read; None: the CLS token is the embedding.

    Returns:
        A graph from ``pixels`` ``(B, 3, S, S)`` to ``embedding`` ``(B, D)``, rows of unit length, and
        ``patch_tokens`` ``(B, N, D)``, as ``export.py`` writes it; B is free.
    """
    writer = _Writer()
    kernel = states["patch_embed.proj.weight"]
    width, _, patch, _ = kernel.shape
    patches = writer.apply(
        "Conv", PIXELS_INPUT, kernel, states["patch_embed.proj.bias"], kernel_shape=[patch, patch], strides=[patch] * 2
    )
    flat = writer.apply("Reshape", patches, np.array([0, width, -1], dtype=np.int64))
    positions = states["pos_embed"]
    tokens = writer.apply("Add", writer.apply("Transpose", flat, perm=[0, 2, 1]), positions[:, 1:])  # (B, N, D)
    # The CLS token is the same for every picture; the sum with nothing of the first patch gives it the batch's size.
    nothing = writer.apply("Mul", _take(writer, tokens, 0, 1), _number(0))
    tokens = writer.apply(
        "Concat", writer.apply("Add", nothing, states["cls_token"] + positions[:, :1]), tokens, axis=1
    )
    num_blocks = 1 + max(int(name.split(".")[1]) for name in states if name.startswith("blocks."))
    for block in range(num_blocks):
        prefix = f"blocks.{block}."
        of_block = {name.removeprefix(prefix): array for name, array in states.items() if name.startswith(prefix)}
        before_block, tokens = tokens, _write_block(writer, tokens, of_block, width)
    patch_tokens = _take(writer, writer.norm(tokens, states, "norm"), 1, 2**31)
    if spec is None or spec.pooling == "cls":
        # The last block once more, for the CLS token alone: an engine that is asked for the embedding computes nothing
        # else of that block.
        token = writer.norm(_write_block(writer, before_block, of_block, width, num_kept=1), states, "norm")
        pooled = writer.apply("Squeeze", token, np.array([1], dtype=np.int64))  # (B, D)
    else:
        pooled = writer.apply("ReduceMean", patch_tokens, axes=[1], keepdims=0)  # (B, D)
    if spec is not None:
        pooled = _write_head(writer, pooled, states, spec, width)
    length = writer.apply("ReduceL2", pooled, axes=[1], keepdims=1)
    embedding = writer.apply("Div", pooled, writer.apply("Max", length, _number(SMALLEST_NORM)))
    return _assemble(writer, {EMBEDDING_OUTPUT: embedding, PATCH_TOKENS_OUTPUT: patch_tokens}, image_size)


def _write_head(writer: _Writer, pooled: str, states: Mapping[str, np.ndarray], spec: EncoderSpec, width: int) -> str:
    if spec.head_norm:
        one, zero = np.ones(width, np.float32), np.zeros(width, np.float32)
        pooled = writer.apply("LayerNormalization", pooled, one, zero, axis=-1, epsilon=HEAD_NORM_EPSILON)
    if spec.head_dim is not None:
        pooled = writer.linear(pooled, states, "head.linear")
    if spec.reduction is not None:
        centered = writer.apply("Sub", pooled, states["reduction.mean"])
        pooled = writer.apply("MatMul", centered, states["reduction.components"].T)
    return pooled


def _write_block(
    writer: _Writer, tokens: str, states: Mapping[str, np.ndarray], width: int, num_kept: int | None = None
) -> str:
    """Write a block; where ``num_kept`` is given, only so many of the first tokens come out of it."""
    normed = writer.norm(tokens, states, "norm1")
    asking = normed
    if num_kept is not None:
        tokens, asking = _take(writer, tokens, 0, num_kept), _take(writer, normed, 0, num_kept)
    attended = _write_attention(writer, asking, normed, states, width)
    tokens = writer.apply("Add", tokens, _scale(writer, attended, states, "ls1"))
    hidden = writer.gelu(writer.linear(writer.norm(tokens, states, "norm2"), states, "mlp.fc1"))
    return writer.apply("Add", tokens, _scale(writer, writer.linear(hidden, states, "mlp.fc2"), states, "ls2"))


def _write_attention(writer: _Writer, asking: str, tokens: str, states: Mapping[str, np.ndarray], width: int) -> str:
    """Write the attention of the tokens that ask to all tokens."""
    parts = []
    for position in range(3):  # query, key, value: each (B, heads, N, width of a head)
        rows = slice(position * width, (position + 1) * width)
        of_part = {f"part.{kind}": states[f"attn.qkv.{kind}"][rows] for kind in ("weight", "bias")}
        heads = np.array([0, 0, width // HEAD_WIDTH, HEAD_WIDTH], dtype=np.int64)
        split = writer.apply("Reshape", writer.linear(asking if position == 0 else tokens, of_part, "part"), heads)
        parts.append(writer.apply("Transpose", split, perm=[0, 2, 3, 1] if position == 1 else [0, 2, 1, 3]))
    query, key, value = parts
    scores = writer.apply("MatMul", writer.apply("Mul", query, _number(HEAD_WIDTH**-0.5)), key)
    mixed = writer.apply("MatMul", writer.apply("Softmax", scores, axis=-1), value)
    joined = writer.apply(
        "Reshape", writer.apply("Transpose", mixed, perm=[0, 2, 1, 3]), np.array([0, 0, width], dtype=np.int64)
    )
    return writer.linear(joined, states, "attn.proj")


def _scale(writer: _Writer, tokens: str, states: Mapping[str, np.ndarray], name: str) -> str:
    gamma = states.get(f"{name}.gamma")
    return tokens if gamma is None else writer.apply("Mul", tokens, gamma)


def _take(writer: _Writer, tokens: str, start: int, stop: int) -> str:
    bounds = [np.array([value], dtype=np.int64) for value in (start, stop, 1)]
    return writer.apply("Slice", tokens, *bounds)


def _assemble(writer: _Writer, outputs: Mapping[str, str], image_size: int) -> onnx.ModelProto:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    for name, result in outputs.items():
        writer.nodes.append(helper.make_node("Identity", [result], [name]))
    batch = helper.make_tensor_value_info(PIXELS_INPUT, TensorProto.FLOAT, ["B", 3, image_size, image_size])
    described = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", *([None] * rank)])
        for name, rank in ((EMBEDDING_OUTPUT, 1), (PATCH_TOKENS_OUTPUT, 2))
    ]
    constants = [numpy_helper.from_array(array, name) for name, array in writer.constants.items()]
    graph = helper.make_graph(writer.nodes, "encoder", [batch], described, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return model


GRAPH_POOLINGS = ("cls", "average")
"""Poolings that ``build_vit_graph`` can write."""
GRAPH_ARCHITECTURES = ("vit_small_patch14_dinov2", "vit_base_patch14_dinov2")
"""Models that it can write and that fit a file well."""


def has_named_graph(entry: WeightsEntry) -> bool:
    """Say whether the encoder of a weights name can be made without torch.

    It can for a DINOv2 without registers, and for what this package holds as a difference to one.
    """
    return entry.architecture in GRAPH_ARCHITECTURES


def make_delta_folder(folder: Path) -> Path:
    """Make the whole encoder that a folder with a difference stands for in the cache, with its graph.

    Args:
        folder: Folder of an encoder.

    Returns:
        The encoder's folder in the cache. The folder itself where it has a graph or is no difference, or where
        ``build_vit_graph`` cannot write its graph.

    Raises:
        ArtifactError: The difference is incomplete or damaged.
        WeightsError: The weights that it is a difference to cannot be had, or there is no space for the encoder.
    """
    manifest = read_manifest(folder, "encoder")
    if not is_delta(folder) or ONNX_NAME in manifest.get("sha256", {}):
        return folder
    check_files(folder, manifest.get("sha256", {}))
    spec, delta = read_spec(folder), read_delta(folder / DELTA_NAME)
    base = WEIGHTS.get(delta.base)
    # Weights of the backbone that its start has not, such as prompts, would be missing in the graph without a word.
    has_further = any(name.startswith(BACKBONE_PREFIX) and name.endswith(f".{WHOLE}") for name in delta.parts)
    is_possible = (
        base is not None
        and has_named_graph(base)
        and base.architecture == spec.architecture
        and spec.pooling in GRAPH_POOLINGS
        and spec.scales == ONE_SCALE
        and not has_further
    )
    if not is_possible:
        return folder
    if not re.fullmatch(r"[0-9a-f]{64}", str(manifest.get("fingerprint"))):  # it becomes the name of a folder
        raise ArtifactError(f"the manifest of {folder} has no fingerprint: it is damaged; copy the folder again.")
    made = get_export_folder("delta", 0).with_name(f"delta-{manifest['fingerprint']}")
    if not (made / MANIFEST_NAME).is_file():
        contents = read_contents(folder)
        _publish(made, contents.spec, dict(contents.states), read_card(folder))
    return made


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
    if (folder / MANIFEST_NAME).is_file():
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
    named = {BACKBONE_PREFIX + name: array for name, array in states.items()}
    _publish(folder, spec, named, format_card(spec, ModelCard(), compute_fingerprint(spec, named)))
    return folder


def _publish(folder: Path, spec: EncoderSpec, states: dict[str, np.ndarray], card: str) -> None:
    """Write an encoder with its graph; the folder appears under its name only when it is complete."""
    import onnx

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            complete = Path(temporary) / "complete"
            write_contents(complete, spec, states, card, {})
            named = {name.removeprefix(BACKBONE_PREFIX): array for name, array in states.items()}
            with replacing_durably(complete / ONNX_NAME) as path:
                onnx.save_model(build_vit_graph(named, spec.preprocessing.image_size, spec), str(path))
            note_export(complete, (ONNX_NAME,))
            publish_folder(complete, folder, (folder / MANIFEST_NAME).is_file)
    except OSError as error:
        raise WeightsError(
            f"cannot write the encoder {folder.name!r} to {folder}: {error.strerror or error}. Free some space, or "
            "name another folder with VITRIEVE_CACHE."
        ) from error


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
