"""Pairs of towers against transformers' own forward pass, preparation of pictures and tokenizers. It is not installed
for the other tests; with it: ``pip install transformers``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from tests.model.hub_server import Hub, Repository
from tests.model.towers import END, SIZE, START, TOKENIZERS
from vitrieve import load_encoder, pull_encoder
from vitrieve.errors import WeightsError
from vitrieve.model import conversion
from vitrieve.model.artifact import read_spec
from vitrieve.model.checkpoint import load_backbone_states, read_local_weights
from vitrieve.model.export import quiet_export

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXTS = ("A photo of a RED apple!", "two green pears on a shelf, and the milk carton", "snow", "Schnee, 雪 & яблоко")


def build_model(kind: str) -> Any:
    """Build a model with random weights, large enough that its embeddings differ."""
    tokenizer = TOKENIZERS[kind]()
    text, vision = {**TOWER, "vocab_size": tokenizer.get_vocab_size()}, {**TOWER, "image_size": SIZE, "patch_size": 8}
    torch.manual_seed(0)
    if kind == "clip":
        ends = {"bos_token_id": tokenizer.token_to_id(START), "eos_token_id": tokenizer.token_to_id(END)}
        config = transformers.CLIPConfig(text_config={**text, **ends}, vision_config=vision, projection_dim=24)
        model = transformers.CLIPModel(config)
    else:
        model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


class Tower(torch.nn.Module):
    """A tower with one input and the outputs of the hub's exports."""

    def __init__(self, compute: Callable[[torch.Tensor], tuple[torch.Tensor, ...]], model: Any) -> None:
        super().__init__()
        self.compute, self.model = compute, model

    def forward(self, given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.compute(given)


def export(model: Any, kind: str, folder: Path) -> None:
    """Write the graphs as the hub's repositories have them: CLIP with its projections, SigLIP with its pooling."""
    if kind == "clip":

        def of_pictures(pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
            found = model.vision_model(pixel_values=pixels)
            return model.visual_projection(found.pooler_output), found.last_hidden_state

        def of_texts(ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
            found = model.text_model(input_ids=ids)
            return model.text_projection(found.pooler_output), found.last_hidden_state

        outputs = ["image_embeds", "text_embeds"]
    else:

        def of_pictures(pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
            found = model.vision_model(pixel_values=pixels)
            return found.pooler_output, found.last_hidden_state

        def of_texts(ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
            found = model.text_model(input_ids=ids)
            return found.pooler_output, found.last_hidden_state

        outputs = ["pooler_output", "pooler_output"]
    (folder / "onnx").mkdir(parents=True)
    length = 9 if kind == "clip" else 64
    ids = torch.arange(2 * length).reshape(2, length) % 7 + 5
    for compute, given, name, output, axes in (
        (of_pictures, torch.zeros(2, 3, SIZE, SIZE), "vision_model", outputs[0], {0: "batch_size"}),
        (of_texts, ids, "text_model", outputs[1], {0: "batch_size", 1: "sequence_length"}),
    ):
        asked = "pixel_values" if name == "vision_model" else "input_ids"
        with torch.inference_mode(), quiet_export():
            torch.onnx.export(
                Tower(compute, model),
                given,
                str(folder / f"onnx/{name}.onnx"),
                input_names=[asked],
                output_names=[output, "last_hidden_state"],
                dynamic_axes={asked: axes, output: {0: "batch_size"}, "last_hidden_state": axes},
                opset_version=17,
                dynamo=False,
            )


def build_processors(kind: str, folder: Path) -> tuple[Any, Any]:
    """Build transformers' own preparation of pictures and texts, and save its files."""
    tokenizer = TOKENIZERS[kind]()
    if kind == "clip":
        vocabulary = json.loads(tokenizer.to_str())["model"]
        texts = transformers.CLIPTokenizer(vocab=vocabulary["vocab"], merges=[tuple(m) for m in vocabulary["merges"]])
        pictures = transformers.CLIPImageProcessor(
            size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
        )
    else:
        if kind == "siglip2":
            from transformers.models.siglip2.tokenization_siglip2 import Siglip2Tokenizer

            texts = Siglip2Tokenizer(tokenizer_object=tokenizer, padding_side="right")
        else:
            ends = {"pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
            texts = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends)
        pictures = transformers.SiglipImageProcessor(size={"height": SIZE, "width": SIZE})
    texts.save_pretrained(folder)
    pictures.save_pretrained(folder)
    return pictures, texts


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRIEVE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("published", ["graphs", "weights"])
@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2"])
def test_pictures_and_texts_have_the_vectors_of_transformers(kind: str, published: str, tmp_path: Path) -> None:
    model = build_model(kind)
    if published == "graphs":
        export(model, kind, tmp_path / "pair")
        model.config.save_pretrained(tmp_path / "pair")
    else:
        model.save_pretrained(tmp_path / "pair")
    prepare, tokenize = build_processors(kind, tmp_path / "pair")
    picture = Image.fromarray(np.random.default_rng(2).integers(0, 256, (40, 60, 3), dtype=np.uint8))

    filled = {"padding": True} if kind == "clip" else {"padding": "max_length", "max_length": 64, "truncation": True}
    ids = tokenize(list(TEXTS), return_tensors="pt", **filled)["input_ids"]
    pixels = prepare(picture, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        pictures = model.get_image_features(pixels)
        texts = model.get_text_features(ids)
    expected = [torch.nn.functional.normalize(getattr(one, "pooler_output", one), dim=-1) for one in (pictures, texts)]

    encoder = load_encoder(tmp_path / "pair", engine="onnx", num_threads=1)
    assert expected[1].std(dim=0).max() > 0.05  # they differ from each other
    np.testing.assert_allclose(encoder.encode_text(list(TEXTS)), expected[1].numpy(), atol=1e-4)
    np.testing.assert_allclose(encoder.encode_text(TEXTS[2]), expected[1][2].numpy(), atol=1e-4)
    np.testing.assert_allclose(encoder.encode_pixels(pixels.numpy()), expected[0].numpy(), atol=1e-4)
    # torchvision resizes here, and rounds otherwise than Pillow does.
    np.testing.assert_allclose(encoder.encode(picture), expected[0][0].numpy(), atol=0.01)


@pytest.mark.parametrize("kind", ["CLIPVisionModel", "CLIPVisionModelWithProjection"])
def test_an_image_tower_becomes_a_backbone_of_timm_with_the_same_features(kind: str, tmp_path: Path) -> None:
    """MLCD's published weights are those of a ``CLIPVisionModel``, so these names must give the same features."""
    sizes = {"hidden_size": 32, "intermediate_size": 128, "image_size": 64, "patch_size": 32}
    config = transformers.CLIPVisionConfig(num_hidden_layers=2, num_attention_heads=2, **sizes)
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)
    own = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64, "num_classes": 0}
    backbone = timm.create_model("vit_base_patch32_clip_quickgelu_224", **own).eval()
    load_backbone_states(backbone, read_local_weights(tmp_path).states, str(tmp_path))
    pixels = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        expected = getattr(model, "vision_model", model)(pixels).pooler_output
        torch.testing.assert_close(backbone(pixels), expected, rtol=1e-4, atol=1e-5)


def test_weights_of_the_hub_are_exported_once_and_identified_by_their_checksum(
    empty_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_model("clip").save_pretrained(tmp_path / "pair")
    build_processors("clip", tmp_path / "pair")
    files = {path.name: path.read_bytes() for path in (tmp_path / "pair").iterdir()}
    empty_hub.repositories["owner/pair"] = Repository(files)
    encoder = load_encoder("hf:owner/pair", engine="onnx", num_threads=1)
    spec = read_spec(pull_encoder("hf:owner/pair").folder)
    assert spec.graph_sha256 == hashlib.sha256(files["model.safetensors"]).hexdigest()
    assert load_encoder(tmp_path / "pair", engine="onnx").fingerprint == encoder.fingerprint
    monkeypatch.setattr(conversion, "find_spec", lambda name: None)  # from now on neither torch nor transformers
    again = load_encoder("hf:owner/pair", engine="onnx", num_threads=1)
    np.testing.assert_array_equal(again.encode_text("snow"), encoder.encode_text("snow"))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (
            "config.json",
            b'{"model_type": "bert"}',
            "its model type is 'bert'; of transformers' weights clip and siglip",
        ),
        ("model.safetensors", b"no weights", "transformers cannot read its weights"),
    ],
)
def test_weights_that_cannot_be_used_are_one_message(
    name: str, content: bytes, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_model("clip").save_pretrained(tmp_path / "pair")
    build_processors("clip", tmp_path / "pair")
    (tmp_path / "pair" / name).write_bytes(content)
    with pytest.raises(WeightsError, match=f"the weights of pair cannot be used: {reason}"):
        load_encoder(tmp_path / "pair", engine="onnx")
