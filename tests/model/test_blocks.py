"""An encoder that computes embeddings alone, and graphs that have the last block twice."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from vitrieve.config import ModelConfig
from vitrieve.data.preprocess import build_preprocessing
from vitrieve.model.artifact import EMBEDDING_OUTPUT, ONNX_NAME, PATCH_TOKENS_OUTPUT
from vitrieve.model.backbone import evaluation_mode
from vitrieve.model.blocks import ClassTokenBlock, keep_class_tokens, share_for_embedding
from vitrieve.model.encoder import ImageEncoder, build_encoder
from vitrieve.model.export import export_onnx
from vitrieve.model.named_graph import build_vit_graph
from vitrieve.runtime.graph_engines import OnnxEngine, OpenVinoEngine
from vitrieve.runtime.torch_engine import TorchEngine

BuildTiny = Callable[..., ImageEncoder]
NAMES = ["test_vit", "vit_small_patch14_reg4_dinov2", "deit_tiny_distilled_patch16_224"]


def build(name: str, pooling: str = "cls") -> ImageEncoder:
    """Build an encoder whose biases and layer scales count."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        size = 28 if "patch14" in name else 32
        model = ModelConfig(backbone=name, image_size=size, pooling=pooling, drop_path_rate=0.5)  # type: ignore[arg-type]
        encoder = build_encoder(model, is_pretrained=False)
        for parameter in encoder.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return encoder


def draw_pixels(encoder: ImageEncoder, num_images: int = 3) -> torch.Tensor:
    size = encoder.spec.preprocessing.image_size
    return torch.randn(num_images, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
def test_share_for_embedding_gives_the_embeddings_of_the_whole(name: str) -> None:
    encoder = build(name)
    pixels = draw_pixels(encoder)
    with evaluation_mode(encoder), torch.inference_mode():
        expected, tokens = encoder.forward_both(pixels)
        shared = share_for_embedding(encoder)
        assert shared is not encoder
        torch.testing.assert_close(shared(pixels), expected, rtol=0, atol=1e-6)
        assert shared.backbone.forward_features(pixels).shape[1] == encoder.layout.num_class_tokens  # type: ignore[operator]
        torch.testing.assert_close(encoder.patch_tokens(pixels), tokens, rtol=0, atol=0)  # which it left as it was
    assert not isinstance(encoder.backbone.blocks[-1], ClassTokenBlock)  # type: ignore[index, union-attr]
    assert [id(one) for one in shared.parameters()] == [id(one) for one in encoder.parameters()]


def test_share_for_embedding_of_an_encoder_in_training() -> None:
    encoder = build("test_vit")
    keep_class_tokens(encoder)
    shared = share_for_embedding(encoder)
    assert shared is not encoder
    assert not encoder.backbone.blocks[-1].is_pooled_only  # type: ignore[index, union-attr]
    pixels = draw_pixels(encoder)
    with evaluation_mode(encoder), torch.inference_mode():
        torch.testing.assert_close(shared(pixels), encoder(pixels), rtol=0, atol=1e-6)


@pytest.mark.parametrize("pooling", ["average", "gem"])
def test_share_for_embedding_leaves_what_reads_all_tokens(pooling: str) -> None:
    encoder = build("test_vit", pooling)
    assert share_for_embedding(encoder) is encoder


def test_torch_engine_encodes_and_gives_tokens_at_the_same_time() -> None:
    encoder = build("test_vit")
    engine = TorchEngine(encoder, precision="fp32")
    pixels = draw_pixels(encoder).numpy()
    with evaluation_mode(encoder), torch.inference_mode():
        expected = [one.numpy() for one in encoder.forward_both(torch.from_numpy(pixels))]
    encoder.eval()
    found: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: found.extend(engine.patch_tokens(pixels) for _ in range(30)))
    thread.start()
    while thread.is_alive():
        np.testing.assert_allclose(engine.encode(pixels), expected[0], rtol=0, atol=1e-6)
    thread.join()
    assert len(found) == 30
    for tokens in found:
        np.testing.assert_allclose(tokens, expected[1], rtol=0, atol=1e-5)


def list_needed(graph: onnx.GraphProto, output: str) -> list[onnx.NodeProto]:
    """List the nodes that an output is computed from."""
    makers = {result: node for node in graph.node for result in node.output}
    needed: dict[str, onnx.NodeProto] = {}
    waiting = [output]
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.output[0] not in needed:
            needed[node.output[0]] = node
            waiting += node.input
    return list(needed.values())


def check_last_block(model: onnx.ModelProto, num_bytes: int) -> None:
    """Check that nothing of the last block behind keys and values is shared, and everything before it is."""
    embedding, tokens = (
        {node.output[0] for node in list_needed(model.graph, name) if node.op_type in ("MatMul", "Gemm")}
        for name in (EMBEDDING_OUTPUT, PATCH_TOKENS_OUTPUT)
    )
    # Scores, mixing, projection, and two of the MLP; and queries, keys and values, where an engine joins them itself.
    assert 5 <= len(tokens - embedding) == len(embedding - tokens) <= 8
    assert len(embedding & tokens) > 10  # all other blocks
    constants = sum(len(one.raw_data) for one in model.graph.initializer)
    assert constants < 1.02 * num_bytes + 10_000  # the weights stand there once


def count_bytes(encoder: ImageEncoder) -> int:
    return sum(tensor.nbytes for tensor in encoder.state_dict().values())


@pytest.mark.parametrize("name", NAMES)
def test_exported_graph_computes_no_more_of_the_last_block_than_the_embedding_needs(name: str, tmp_path: Path) -> None:
    encoder = build(name)
    export_onnx(encoder, tmp_path / ONNX_NAME)
    check_last_block(onnx.load(tmp_path / ONNX_NAME), count_bytes(encoder))


def test_engines_give_the_same_with_the_written_graph(tmp_path: Path) -> None:
    encoder = build("deit_tiny_patch16_224")
    states = {name: tensor.numpy() for name, tensor in encoder.backbone.state_dict().items()}
    size = encoder.spec.preprocessing.image_size
    model = build_vit_graph(states, size)
    check_last_block(model, count_bytes(encoder))
    onnx.save_model(model, str(tmp_path / ONNX_NAME))
    pixels = draw_pixels(encoder)
    with evaluation_mode(encoder), torch.inference_mode():
        expected = [one.numpy() for one in encoder.forward_both(pixels)]
    for engine in (
        OpenVinoEngine(tmp_path / ONNX_NAME, build_preprocessing(size), precision="fp32", num_threads=1),
        OnnxEngine(tmp_path / ONNX_NAME, build_preprocessing(size), num_threads=1),
    ):
        np.testing.assert_allclose(engine.encode(pixels.numpy()), expected[0], rtol=0, atol=1e-5)
        np.testing.assert_allclose(engine.patch_tokens(pixels.numpy()), expected[1], rtol=0, atol=1e-4)
