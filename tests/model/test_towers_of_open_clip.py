"""Weights of open_clip against its own forward pass, preparation of pictures and tokenizers. It is not installed for
the other tests; with it: ``pip install open_clip_torch transformers``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer

from tests.model.towers import END, START, build_clip_tokenizer, build_gemma_tokenizer
from vitrieve import load_encoder

open_clip = pytest.importorskip("open_clip")
pytest.importorskip("transformers")
pytestmark = pytest.mark.slow
SIZE = 32
TEXTS = ("A photo of a RED apple!", "two green_pears on a shelf, and the milk carton", "snow")


def build_own_tokenizer() -> Tokenizer:
    """Build the tokenizer of CLIP on its real vocabulary, which is part of open_clip."""
    simple = open_clip.tokenizer.SimpleTokenizer()
    told = json.loads(build_clip_tokenizer().to_str())
    ends = {"<start_of_text>": START, "<end_of_text>": END}  # as the repositories call them
    vocabulary = {ends.get(piece, piece): number for piece, number in simple.encoder.items()}
    told["model"] |= {"vocab": vocabulary, "merges": [list(pair) for pair in simple.bpe_ranks]}
    told["added_tokens"] = []
    told["post_processor"] |= {"cls": [START, vocabulary[START]], "sep": [END, vocabulary[END]]}
    tokenizer = Tokenizer.from_str(json.dumps(told))
    tokenizer.add_special_tokens([START, END])
    return tokenizer


def build_folder(kind: str, folder: Path) -> Any:
    """Write a model with random weights as open_clip's repositories have it; return it."""
    text: dict[str, Any] = {"width": 32, "heads": 2, "layers": 2}
    vision = {"image_size": SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    told: dict[str, Any] = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    preparing = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "resize_mode": "squash"}
    folder.mkdir()
    if kind == "clip":
        tokenizer = build_own_tokenizer()
        text |= {"context_length": 77, "vocab_size": tokenizer.get_vocab_size()}
        preparing["resize_mode"] = "shortest"
    else:
        tokenizer = build_gemma_tokenizer()
        text |= {"context_length": 64, "vocab_size": tokenizer.get_vocab_size(), "no_causal_mask": True}
        text |= {"hf_tokenizer_name": "none", "tokenizer_kwargs": {"clean": "canonicalize"}, "proj_bias": True}
        text["pool_type"] = "last"
        told |= {"custom_text": True, "init_logit_bias": -10}
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"pad_token": "<pad>", "eos_token": "<eos>", "tokenizer_class": "PreTrainedTokenizerFast"})
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": told, "preprocess_cfg": preparing}))
    torch.manual_seed(0)
    builder = open_clip.CustomTextCLIP if "custom_text" in told else open_clip.CLIP
    model = builder(**{name: value for name, value in told.items() if name != "custom_text"})
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return open_clip.create_model_and_transforms(f"local-dir:{folder}")


@pytest.mark.parametrize("kind", ["clip", "siglip2"])
def test_pictures_and_texts_have_the_vectors_of_open_clip(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITRIEVE_CACHE", str(tmp_path / "cache"))
    model, _, prepare = build_folder(kind, tmp_path / "pair")
    model.eval()
    tokenize = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'pair'}")
    picture = Image.fromarray(np.random.default_rng(2).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    pixels = prepare(picture)[None]
    with torch.inference_mode():
        pictures = model.encode_image(pixels, normalize=True).numpy()
        texts = model.encode_text(tokenize(list(TEXTS)), normalize=True).numpy()
    assert texts.std(axis=0).max() > 0.05  # they differ from each other

    encoder = load_encoder(tmp_path / "pair", engine="onnx", num_threads=1)
    np.testing.assert_allclose(encoder.encode_text(list(TEXTS)), texts, atol=1e-4)
    np.testing.assert_allclose(encoder.encode_pixels(pixels.numpy()), pictures, atol=1e-4)
    np.testing.assert_allclose(encoder.encode(picture), pictures[0], atol=0.01)
