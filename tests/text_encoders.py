"""A small text encoder with random weights and a tokenizer, as sentence-transformers lay one out; and its pictures."""

from __future__ import annotations

import colorsys
import json
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from vitrieve.data.records import Dataset, ImageRecord

HUES = ("red", "yellow", "green", "cyan", "blue", "violet")
SHADES = ("black", "dark", "dull", "plain", "light", "bright")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
CONFIG = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 32,
    "intermediate_size": 48,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 16,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "type_vocab_size": 2,
    "vocab_size": len(SPECIAL) + len(HUES) + len(SHADES),
}


LICENSE = "bsd-3-clause"
"""The license that the README.md of the text encoder names."""


def write_text_encoder(folder: Path) -> Path:
    """Write the text encoder, which knows the words of ``HUES`` and ``SHADES``."""
    from safetensors.numpy import save_file

    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "README.md").write_text(f"---\nlanguage: en\nlicense: {LICENSE}\n---\n\n# Words of colors\n")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12}))
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    words = {word: row for row, word in enumerate((*SPECIAL, *HUES, *SHADES))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", words["[CLS]"]), ("[SEP]", words["[SEP]"])]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file(draw_weights(), folder / "model.safetensors")
    return folder


def draw_weights() -> dict[str, np.ndarray]:
    """Draw weights under the names that the hub's BERT files have."""
    generator = np.random.default_rng(0)
    width, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (CONFIG["vocab_size"], width),  # type: ignore[dict-item]
        "embeddings.position_embeddings.weight": (CONFIG["max_position_embeddings"], width),  # type: ignore[dict-item]
        "embeddings.token_type_embeddings.weight": (2, width),  # type: ignore[dict-item]
        "pooler.dense.weight": (width, width),  # type: ignore[dict-item]
    }
    linear = {"attention.self.query": (width, width), "attention.self.key": (width, width)}
    linear |= {"attention.self.value": (width, width), "attention.output.dense": (width, width)}
    linear |= {"intermediate.dense": (inner, width), "output.dense": (width, inner)}
    norms = ["embeddings.LayerNorm"]
    for number in range(2):
        for name, shape in linear.items():
            shapes[f"encoder.layer.{number}.{name}.weight"] = shape  # type: ignore[assignment]
            shapes[f"encoder.layer.{number}.{name}.bias"] = shape[:1]  # type: ignore[assignment]
        norms += [f"encoder.layer.{number}.{part}.LayerNorm" for part in ("attention.output", "output")]
    weights = {name: generator.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    for name in norms:
        weights[f"{name}.weight"] = generator.uniform(0.8, 1.2, width).astype(np.float32)  # type: ignore[arg-type]
        weights[f"{name}.bias"] = generator.normal(0, 0.1, width).astype(np.float32)  # type: ignore[arg-type]
    return weights


def write_colors(folder: Path) -> Dataset:
    """Write three pictures of each of 36 colors, each color a class with its name."""
    generator, records = np.random.default_rng(0), []
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{shade} {hue}" for hue in HUES for shade in SHADES]
    for label, name in enumerate(names):
        hue, shade = label // len(SHADES) / len(HUES), (label % len(SHADES) + 1) / len(SHADES)
        color = 255 * np.array(colorsys.hsv_to_rgb(hue, 0.9, shade))
        for copy in range(3):
            path = folder / f"{label:02}_{copy}.png"
            pixels = np.clip(color + generator.integers(-6, 7, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(path)
            metadata = {"name": name.replace(" ", "_"), "shade": name.split()[0]}
            records.append(ImageRecord(image_id=path.name, path=path, label=label, split="train", metadata=metadata))
    return Dataset(name="colors", protocol="all", records=tuple(records), label_names=tuple(names))
