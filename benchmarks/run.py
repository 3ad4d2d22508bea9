"""`make bench`: how fast are embedding, a training step and exact ranking, beside the plain way of doing each?

Both sides alternate in one process with the same threads, after a warm-up; figures are medians of the rounds, and what
counts is the ratio, because machines are shared and drift. Writes benchmarks/results/speed_DATE.json. About three
minutes on two cores. Random weights and random pictures: this measures speed only.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
import timm
import torch

from vitrieve.config import Config, ModelConfig, ObjectiveConfig
from vitrieve.data.loader import Batch
from vitrieve.model.encoder import build_encoder
from vitrieve.runtime.encoder import wrap_encoder
from vitrieve.runtime.precision import resolve_precision
from vitrieve.similarity import top_k
from vitrieve.train.loop import build_state, train_step

ARCHITECTURE = "deit_small_patch16_224"
NUM_ROUNDS = 5
NUM_GALLERY, NUM_QUERIES, K = 10_000, 2_000, 10


class Contest(NamedTuple):
    """Two ways of doing the same work; ``unit`` of it are done in one call."""

    name: str
    plain: Callable[[], object]
    ours: Callable[[], object]
    num_units: int
    unit: str


def build_embedding() -> Contest:
    pixels = torch.randn(64, 3, 224, 224)
    plain = timm.create_model(ARCHITECTURE, num_classes=0).eval()
    encoder = build_encoder(ModelConfig(backbone=ARCHITECTURE, image_size=224), is_pretrained=False)
    ours, array = wrap_encoder(encoder, name="ours"), pixels.numpy()

    def run_plain() -> None:
        with torch.inference_mode():
            plain(pixels)

    return Contest("embedding, 224 px", run_plain, lambda: ours.encode_pixels(array), 64, "images/s")


def build_training() -> Contest:
    labels, rows = torch.arange(64) // 4, torch.arange(64)
    pixels = torch.randn(64, 3, 112, 112)
    model = ModelConfig(backbone=ARCHITECTURE, image_size=112)
    config = Config(model=model, objective=ObjectiveConfig(contrastive_weight=1.0, koleo_weight=0.7))
    encoder = build_encoder(model, is_pretrained=False)
    state = build_state(config, encoder, num_classes=16, num_images=64)
    plain = timm.create_model(ARCHITECTURE, num_classes=0, img_size=112).train()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=3e-5)

    def run_plain() -> None:
        embeddings = torch.nn.functional.normalize(plain(pixels), dim=1)
        (embeddings @ embeddings.T).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return Contest(
        "training step, 112 px",
        run_plain,
        lambda: train_step(state, Batch(pixels, labels, rows), config),
        64,
        "images/s",
    )


def build_ranking() -> Contest:
    generator = np.random.default_rng(0)
    gallery = generator.standard_normal((NUM_GALLERY, 384), dtype=np.float32)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    queries = gallery[:NUM_QUERIES]
    index = faiss.IndexFlatIP(384)
    index.add(gallery)
    return Contest(
        f"exact top {K} of {NUM_GALLERY}",
        lambda: index.search(queries, K),
        lambda: top_k(queries, gallery, K),
        NUM_QUERIES,
        "queries/s",
    )


def measure(contest: Contest) -> dict[str, object]:
    """Run both sides in turn; the first round is the warm-up."""
    seconds: dict[str, list[float]] = {"plain": [], "ours": []}
    for _ in range(NUM_ROUNDS + 1):
        for side, run in (("plain", contest.plain), ("ours", contest.ours)):
            start = time.perf_counter()
            run()
            seconds[side].append(time.perf_counter() - start)
    rates = {side: contest.num_units / statistics.median(values[1:]) for side, values in seconds.items()}
    line = f"{contest.name:<24} plain {rates['plain']:8.1f}   ours {rates['ours']:8.1f} {contest.unit}"
    print(f"{line}   ratio {rates['ours'] / rates['plain']:.2f}", flush=True)
    return {
        "name": contest.name,
        "unit": contest.unit,
        **rates,
        "ratio": rates["ours"] / rates["plain"],
        "seconds": seconds,
    }


def main() -> None:
    print(__doc__, file=sys.stderr)
    num_threads = torch.get_num_threads()
    faiss.omp_set_num_threads(num_threads)
    results = [measure(build()) for build in (build_embedding, build_training, build_ranking)]
    environment = {
        "date": time.strftime("%Y-%m-%d"),
        "num_threads": num_threads,
        "num_cores": os.cpu_count(),
        "precision": resolve_precision("auto"),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "faiss": faiss.__version__,
    }
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    path = folder / f"speed_{environment['date']}.json"
    path.write_text(json.dumps({"environment": environment, "results": results}, indent=2) + "\n")
    print(f"written: {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
