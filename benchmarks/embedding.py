"""Embedding: our engines beside the ways others do it, and the whole command beside the bare engine.

    python benchmarks/embedding.py [--quick] [--json FILE]

DeiT-S at 224 px with random weights (ViT-S of the same cost where a library builds its own). Bare engines take pixels
that are ready: float32, as the libraries want them, and uint8 squares for ours. The sides alternate, each in a process
of its own. sentence-transformers takes Pillow pictures, so its preparation counts; it is left out where it is not
installed. Whole command: `vitrieve embed`, files in and vectors out, with start-up, over photographs of Grocery (emoji
where Grocery is not), the bare engine, and the plain loop, torch's DataLoader and timm in float32, over fewer of them;
and the command with DINOv2 ViT-S at 126 px beside the bare engine. These take turns, too.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from collections_here import read_photographs
from contest import (
    BF16,
    FP32,
    LEAST_ROUNDS,
    alternate,
    alternate_processes,
    best_product,
    has_bf16,
    main,
    max_seconds,
)
from lines import Line, rate_lines

SECTION = "embedding"
ARCHITECTURE, IMAGE_SIZE, NUM_IMAGES = "deit_small_patch16_224", 224, 128
SMALL_ARCHITECTURE, SMALL_IMAGE_SIZE = "vit_small_patch14_dinov2", 126
TASK, COMMAND_TASK = "bare engine", "whole command"
GFLOP_PER_IMAGE = 9.2
"""4.6 billion multiplications and additions of the linear layers and of attention."""
AUTO = f"vitrieve, OpenVINO {'bf16' if has_bf16() else 'fp32'} (auto)"
PEERS = {
    "timm, torch fp32, batch 64": FP32,
    "timm, torch bf16 autocast, batch 64": BF16,
    "sentence-transformers, torch fp32, batch 32": FP32,
    "ONNX Runtime fp32, batch 32": FP32,
    "OpenVINO fp32, batch 32": FP32,
    "OpenVINO as it comes, batch 32": best_product(),
}
OURS = {
    AUTO: best_product(),
    **({"vitrieve, OpenVINO fp32": FP32} if has_bf16() else {}),  # else it is the automatic choice
    "vitrieve, ONNX Runtime fp32": FP32,
    "vitrieve, torch bf16": BF16,
}
QUICK_SIDES = ("timm, torch fp32, batch 64", "OpenVINO as it comes, batch 32", AUTO)
PLAIN_LOOP, EMBED, BARE = "DataLoader and timm, torch fp32", "vitrieve embed", "vitrieve, bare engine, beside it"
NUM_FILES, NUM_QUICK_FILES = (3_000 if has_bf16() else 500), 200
"""Of a round of the command at 224 px, where it takes about 40 seconds; three times as many at 126 px."""
NUM_BARE = NUM_PLAIN = 128
"""Pictures of a round of the bare engine, and of the plain loop."""
Work = Callable[[], object]


def ensure_encoder(folder: Path, architecture: str = ARCHITECTURE, image_size: int = IMAGE_SIZE) -> Path:
    """Write a model with random weights as an exported encoder, unless it is there."""
    if not (folder / "manifest.json").exists():
        import torch

        from vitrieve.config import ModelConfig
        from vitrieve.model.encoder import build_encoder, save_encoder
        from vitrieve.model.export import export_folder

        torch.manual_seed(0)
        model = ModelConfig(backbone=architecture, image_size=image_size)
        save_encoder(build_encoder(model, is_pretrained=False), folder)
        export_folder(folder)
    return folder


def build_side(side: str, encoder: str, num_images: int) -> Work:
    pixels = np.random.default_rng(0).standard_normal((num_images, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
    if side in OURS:
        return build_ours(side, Path(encoder), num_images)
    if side.startswith("timm"):
        return build_timm(pixels, is_bf16="bf16" in side)
    if side.startswith("sentence"):
        return build_sentence_transformers(num_images)
    if side.startswith("ONNX"):
        import onnxruntime

        session = onnxruntime.InferenceSession(Path(encoder) / "encoder.onnx", providers=["CPUExecutionProvider"])
        return lambda: [session.run(["embedding"], {"pixels": part}) for part in np.split(pixels, num_images // 32)]
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32"} if "fp32" in side else {}
    compiled = openvino.Core().compile_model(Path(encoder) / "encoder.onnx", "CPU", settings)
    return lambda: [compiled([part]) for part in np.split(pixels, num_images // 32)]


def build_ours(side: str, encoder: Path, num_images: int) -> Work:
    from vitrieve.runtime.encoder import load_encoder

    engine = next(word for word in ("openvino", "onnx", "torch") if word in side.lower())
    precision = "bf16" if "bf16" in side else "fp32"
    loaded = load_encoder(encoder, engine=engine, precision=precision)  # type: ignore[arg-type]
    shape = (num_images, *2 * (loaded.preprocessing.image_size,), 3)
    squares = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    if loaded.num_parallel == 1:
        return lambda: loaded.encode_squares(squares)
    pool = ThreadPoolExecutor(loaded.num_parallel)
    parts = np.split(squares, num_images // 16)
    return lambda: list(pool.map(loaded.encode_squares, parts))


def build_timm(pixels: np.ndarray, *, is_bf16: bool) -> Work:
    import timm
    import torch

    model = timm.create_model(ARCHITECTURE, num_classes=0).eval()
    batches = torch.from_numpy(pixels).split(64)

    def run() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            for batch in batches:
                torch.nn.functional.normalize(model(batch).float(), dim=1)

    return run


def build_sentence_transformers(num_images: int) -> Work:
    """Build a CLIP whose picture side is ViT-S/16, with random weights, as sentence-transformers loads one."""
    import json

    from PIL import Image
    from sentence_transformers import SentenceTransformer
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    folder = Path(tempfile.mkdtemp())
    (folder / "vocab.json").write_text(json.dumps({"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    vision = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6, "patch_size": 16}
    config = CLIPConfig(vision_config=vision, text_config={"vocab_size": 3, "num_hidden_layers": 1})
    model_folder = str(folder / "model")
    CLIPModel(config).save_pretrained(model_folder)
    CLIPProcessor(CLIPImageProcessor(), tokenizer).save_pretrained(model_folder)
    model = SentenceTransformer(model_folder, device="cpu")
    noise = np.random.default_rng(0).integers(0, 256, (num_images, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    pictures: list[Any] = [Image.fromarray(one) for one in noise]
    return lambda: model.encode(pictures, batch_size=32, normalize_embeddings=True)


def measure_engines(encoder: Path, is_quick: bool) -> list[Line]:
    sides = {name: ceiling for name, ceiling in {**PEERS, **OURS}.items() if has_bf16() or ceiling != BF16}
    if is_quick:
        sides = {name: sides[name] for name in QUICK_SIDES}
    if importlib.util.find_spec("sentence_transformers") is None:
        print("sentence-transformers is not installed: left out", file=sys.stderr)
        sides = {name: ceiling for name, ceiling in sides.items() if not name.startswith("sentence")}
    num_images = NUM_IMAGES if has_bf16() and not is_quick else NUM_IMAGES // 2
    given = {"encoder": str(encoder), "num_images": num_images}
    found = alternate_processes(__file__, list(sides), 2 if is_quick else 5, max_seconds(is_quick), **given)
    lines = []
    for side, rounds in found.items():
        lines += rate_lines(
            SECTION,
            f"{TASK}, DeiT-S, {IMAGE_SIZE} px",
            {side: rounds.seconds},
            num_images,
            "images/s",
            gflop=GFLOP_PER_IMAGE,
            ceiling=sides[side],
            peak_mib=rounds.process_mib,
        )
    return lines


# --- the whole command ---


def run_embed(encoder: Path, pictures: Path) -> None:
    out = pictures.parent / "embeddings"
    shutil.rmtree(out, ignore_errors=True)
    words = ["embed", "--encoder", str(encoder), "--data", str(pictures), "--out", str(out)]
    subprocess.run([sys.executable, "-m", "vitrieve", *words], check=True, stdout=subprocess.DEVNULL)


def build_plain_loop(paths: list[Path]) -> Work:
    """Return what embeds files as a plain script does, without its imports and the building of its model."""
    import timm
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    model = timm.create_model(ARCHITECTURE, num_classes=0).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))

    class Files(Dataset[Any]):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, place: int) -> Any:
            return transform(Image.open(paths[place]).convert("RGB"))

    def run() -> None:
        with torch.inference_mode():
            for batch in DataLoader(Files(), batch_size=64, num_workers=os.cpu_count() or 1):
                torch.nn.functional.normalize(model(batch), dim=1)

    return run


def measure_command(encoder: Path, is_quick: bool, work: Path, image_size: int = IMAGE_SIZE) -> list[Line]:
    """Time the command, the bare engine and, at 224 px, the plain loop, in turn."""
    name, records = read_photographs()
    paths = [record.path for record in records]
    num_files = NUM_QUICK_FILES if is_quick else NUM_FILES * (1 if image_size == IMAGE_SIZE else 3)
    pictures = work / f"pictures-{image_size}"
    pictures.mkdir()
    for number, path in enumerate(paths[:num_files]):
        (pictures / f"{number:06d}{path.suffix}").symlink_to(path.resolve())
    counts = {EMBED: len(paths[:num_files]), BARE: NUM_BARE, PLAIN_LOOP: len(paths[:NUM_PLAIN])}
    sides = {EMBED: partial(run_embed, encoder, pictures), BARE: build_ours(AUTO, encoder, NUM_BARE)}
    if image_size == IMAGE_SIZE:
        sides[PLAIN_LOOP] = build_plain_loop(paths[:NUM_PLAIN])
    task = f"{COMMAND_TASK}, {image_size} px, {counts[EMBED]:,} files of {name}"
    lines = []
    for side, seconds in alternate(sides, 2 if is_quick else LEAST_ROUNDS).items():
        lines += rate_lines(SECTION, task, {side: seconds}, counts[side], "images/s")
    share = f"{100 * lines[0].value / lines[1].value:.0f} % of the bare engine, start-up included"
    return [replace(lines[0], note=share), *lines[1:]]


def measure(is_quick: bool) -> list[Line]:
    with tempfile.TemporaryDirectory() as folder:
        encoder = ensure_encoder(Path(folder) / "encoder")
        small = ensure_encoder(Path(folder) / "small", SMALL_ARCHITECTURE, SMALL_IMAGE_SIZE)
        lines = measure_engines(encoder, is_quick) + measure_command(encoder, is_quick, Path(folder))
        return lines + measure_command(small, is_quick, Path(folder), SMALL_IMAGE_SIZE)


if __name__ == "__main__":
    main(measure, __doc__, build_side)
