"""A graph that others published, between an input and outputs that are named as ours. No torch.

What the graph and its configuration do not tell clearly is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitrieve.choices import Pooling
from vitrieve.data.preprocess import Preprocessing
from vitrieve.errors import ConfigError
from vitrieve.model.artifact import (
    EMBEDDING_OUTPUT,
    PATCH_TOKENS_OUTPUT,
    PIXELS_INPUT,
)
from vitrieve.model.preprocessor import PREPROCESSOR_NAME
from vitrieve.model.towers import (
    run_graph,
)
from vitrieve.quoting import quote_name

if TYPE_CHECKING:
    import onnx


NUM_CLS = {"vit": 1, "vit_msn": 1, "deit": 2, "dinov2": 1, "dinov2_with_registers": 1, "dinov3_vit": 1}
"""Class tokens before the patches, by ``model_type``: of these models the first token is the embedding. Their
``pooler_output``, where they have one, is the same or a layer that was not trained for this."""
_OPERATORS = 10
"""Version of ONNX's operators from which on those that are added here mean the same."""


@dataclass(frozen=True, kw_only=True)
class WrappedGraph:
    """What was found out of a published graph.

    Attributes:
        architecture: ``model_type`` of its configuration.
        pooling: ``cls``: the first token. ``native``: the graph pools itself.
        embedding_dim: Length of the embedding.
        has_patches: It puts out tokens of patches.
        output: Name of the output that the embedding is taken of, as it was published.
    """

    architecture: str
    pooling: Pooling
    embedding_dim: int
    has_patches: bool
    output: str


def wrap_graph(model: onnx.ModelProto, config: Mapping[str, Any], preprocessing: Preprocessing) -> WrappedGraph:
    """Put a published graph between an input and outputs as ours, in place.

    Args:
        model: Graph from pictures ``(B, 3, S, S)`` to tokens or features.
        config: The model's configuration.
        preprocessing: How pictures are prepared.

    Raises:
        ConfigError: It cannot be told what is its input, or its embedding.
    """
    from onnx import compose

    vision = config.get("vision_config")
    of_pictures = vision if isinstance(vision, Mapping) else config
    architecture = quote_name(of_pictures.get("model_type") or config.get("model_type") or "unknown")
    _check_operators(model)
    pixels = _find_input(model, preprocessing.image_size)
    pooling, output = _find_output(model, architecture)
    num_registers = of_pictures.get("num_register_tokens", 0)
    num_prefix = NUM_CLS.get(architecture, 0) + (num_registers if isinstance(num_registers, int) else 0)
    shape = _measure_output(model, pixels, output, preprocessing.image_size)
    if len(shape) < 2 or (pooling == "cls" and (len(shape) != 3 or shape[1] <= num_prefix)):
        raise ConfigError(f"its output {quote_name(output)} has the shape {shape}, of which no embedding can be taken.")
    embedding_dim = shape[-1] if pooling == "cls" else int(np.prod(shape[1:]))
    compose.add_prefix(model, _PREFIX, inplace=True)
    outputs = _add_nodes(model, _PREFIX + output, pooling, num_prefix, embedding_dim)
    _rename_ends(model, _PREFIX + pixels, outputs, preprocessing.image_size)
    return WrappedGraph(
        architecture=architecture,
        pooling=pooling,
        embedding_dim=embedding_dim,
        has_patches=len(outputs) > 1,
        output=output,
    )


_PREFIX = "published/"


def _check_operators(model: onnx.ModelProto) -> None:
    version = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    if version < _OPERATORS:
        raise ConfigError(f"it is written for version {version} of ONNX's operators; expected {_OPERATORS} or later.")


def _find_input(model: onnx.ModelProto, image_size: int) -> str:
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in constants]
    names = ", ".join(quote_name(one.name) for one in inputs)
    if len(inputs) != 1:
        raise ConfigError(f"its graph wants the inputs {names}; expected pictures alone.")
    sides = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim]
    if inputs[0].type.tensor_type.elem_type != 1 or len(sides) != 4:  # 1: float32
        raise ConfigError(f"its input {names} is no batch of pictures in float32.")
    fixed = [found or free for found, free in zip(sides, (0, 3, image_size, image_size), strict=True)]
    if fixed != [0, 3, image_size, image_size]:
        raise ConfigError(
            f"its input {names} has the shape {sides} (0 is free); expected any number of pictures of 3 channels and "
            f"{image_size} px, as {PREPROCESSOR_NAME} has it."
        )
    return str(inputs[0].name)


def _find_output(model: onnx.ModelProto, architecture: str) -> tuple[Pooling, str]:
    names = [one.name for one in model.graph.output]
    if "image_embeds" in names:
        return "native", "image_embeds"
    if architecture in NUM_CLS and "last_hidden_state" in names:
        return "cls", "last_hidden_state"
    if "pooler_output" in names and architecture not in NUM_CLS:
        return "native", "pooler_output"
    raise ConfigError(
        f"of its outputs {', '.join(map(quote_name, names))} and the model type {architecture} it cannot be told which "
        f"is the embedding; expected image_embeds, pooler_output, or last_hidden_state of {', '.join(NUM_CLS)}."
    )


def _measure_output(model: onnx.ModelProto, pixels: str, output: str, image_size: int) -> tuple[int, ...]:
    return run_graph(model, {pixels: _draw_pixels(image_size)}, [output])[0].shape


def _draw_pixels(image_size: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 3, image_size, image_size), dtype=np.float32)


def _add_nodes(
    model: onnx.ModelProto, output: str, pooling: Pooling, num_prefix: int, embedding_dim: int
) -> dict[str, str]:
    """Add the nodes that pool and normalize; return what is put out under which name."""
    from onnx import helper, numpy_helper

    def apply(operator: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
        names = []
        for one in inputs:
            if isinstance(one, np.ndarray):
                constant = numpy_helper.from_array(one, f"constant{len(model.graph.initializer)}")
                model.graph.initializer.append(constant)
                one = constant.name
            names.append(one)
        result = f"added{len(model.graph.node)}"
        model.graph.node.append(helper.make_node(operator, names, [result], **attributes))
        return result

    if pooling == "cls":
        pooled = apply("Gather", output, np.array(0, dtype=np.int64), axis=1)  # (B, D)
    else:
        pooled = apply("Flatten", output, axis=1)  # (B, D): some graphs keep a picture of one point
    # Not ReduceL2: its arguments changed between the versions that graphs are written for.
    squares = apply("MatMul", apply("Mul", pooled, pooled), np.ones((embedding_dim, 1), dtype=np.float32))
    length = apply("Max", apply("Sqrt", squares), np.array(1e-12, dtype=np.float32))
    outputs = {EMBEDDING_OUTPUT: apply("Div", pooled, length)}
    if pooling == "cls":
        bounds = [np.array([value], dtype=np.int64) for value in (num_prefix, 2**31, 1)]
        outputs[PATCH_TOKENS_OUTPUT] = apply("Slice", output, *bounds)  # (B, N, D)
    return outputs


def _rename_ends(model: onnx.ModelProto, pixels: str, outputs: Mapping[str, str], image_size: int) -> None:
    from onnx import TensorProto, helper

    graph = model.graph
    constants = [one for one in graph.input if one.name != pixels]
    batch = helper.make_tensor_value_info(PIXELS_INPUT, TensorProto.FLOAT, ["B", 3, image_size, image_size])
    del graph.input[:], graph.output[:]
    graph.input.extend([batch, *constants])
    graph.node.insert(0, helper.make_node("Identity", [PIXELS_INPUT], [pixels]))
    for rank, (name, result) in enumerate(outputs.items(), start=1):
        graph.node.append(helper.make_node("Identity", [result], [name]))
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", *([None] * rank)]))


def check_graph(path: Path, wrapped: WrappedGraph, image_size: int) -> None:
    """Run the graph on noise: the embeddings must be finite and of unit length.

    Raises:
        ConfigError: They are not.
    """
    (found,) = run_graph(path, {PIXELS_INPUT: _draw_pixels(image_size)}, [EMBEDDING_OUTPUT])
    lengths = np.linalg.norm(found, axis=1)
    if found.shape != (2, wrapped.embedding_dim) or not np.allclose(lengths, 1, atol=1e-3):
        raise ConfigError(f"it gives embeddings of shape {found.shape} and lengths {lengths} for two pictures.")
