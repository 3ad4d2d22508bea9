"""Time a training step as the paper's recipe has it, beside the way public implementations write it.

    python benchmarks/training.py [--rounds 5] [--out FILE.json]

DeiT-S at 224 px with random weights, batch 64, contrastive loss (margin 0.5) and a full memory of 59,551 rows (the
size of SOP's training set), AdamW; random pictures. The peer is timm in float32, one batch of 64, with
pytorch-metric-learning's loss and memory. Then our options that change the result, by name (their effect on Recall@1
and MAP@R: docs/experiments.md). Sides alternate in one process, the first round warms up, figures are medians. Peak
memory comes from one process for each side. No CUDA machine was used: nothing here speaks of one.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import timm
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import ContrastiveLoss, CrossBatchMemory

from vitrieve.config import Config, ModelConfig, ObjectiveConfig, TrainConfig
from vitrieve.data.loader import Batch
from vitrieve.model.backbone import use_explicit_attention
from vitrieve.model.encoder import build_encoder
from vitrieve.train.loop import build_state, train_step

ARCHITECTURE = "deit_small_patch16_224"
IMAGE_SIZE, BATCH_SIZE, MEMORY_SIZE, NUM_CLASSES, EMBEDDING_DIM = 224, 64, 59_551, 11_318, 384
PEER = "timm fp32, pytorch-metric-learning"
Step = Callable[[], object]
OPTIONS: dict[str, tuple[ModelConfig, int]] = {}
"""Name of a side -> its model and micro-batch size; the first is the default recipe."""
for name, changes, microbatch_size in (
    ("vitrieve", {}, 32),
    ("vitrieve, micro-batch 16", {}, 16),
    ("vitrieve, micro-batch 64", {}, 64),
    ("vitrieve, patch dropout 0.5", {"patch_drop_rate": 0.5}, 32),
    ("vitrieve, 6 of 12 blocks frozen", {"num_frozen_blocks": 6}, 32),
    ("vitrieve, 160 px", {"image_size": 160}, 32),
):
    model = ModelConfig(backbone=ARCHITECTURE, image_size=IMAGE_SIZE, drop_path_rate=0.0)
    OPTIONS[name] = (replace(model, **changes), microbatch_size)


def build_peer() -> Step:
    """Build the step of the public implementations: everything in float32, one batch, one graph."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(BATCH_SIZE, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    labels = torch.randint(NUM_CLASSES, (BATCH_SIZE,), generator=generator)
    backbone = timm.create_model(ARCHITECTURE, num_classes=0).train()
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=3e-5, weight_decay=5e-4)
    loss = ContrastiveLoss(pos_margin=1.0, neg_margin=0.5, distance=CosineSimilarity())
    memory = CrossBatchMemory(loss, EMBEDDING_DIM, memory_size=MEMORY_SIZE)
    rows = torch.nn.functional.normalize(torch.randn(MEMORY_SIZE, EMBEDDING_DIM, generator=generator), dim=1)
    memory.embedding_memory[:] = rows
    memory.label_memory[:] = torch.randint(NUM_CLASSES, (MEMORY_SIZE,), generator=generator)
    memory.has_been_filled = True

    def step() -> None:
        memory(torch.nn.functional.normalize(backbone(pixels), dim=1), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def build_ours(model: ModelConfig, microbatch_size: int) -> Step:
    """Build our step: what `vitrieve train` runs, with its checks and its log values."""
    generator = torch.Generator().manual_seed(0)
    config = Config(
        model=model,
        objective=ObjectiveConfig(contrastive_weight=1.0, margin=0.5, memory_fraction=1.0),
        train=TrainConfig(microbatch_size=microbatch_size, batch_size=BATCH_SIZE, num_steps=1000),
    )
    encoder = build_encoder(model, is_pretrained=False)
    use_explicit_attention(encoder.backbone)
    state = build_state(config, encoder, num_classes=NUM_CLASSES, num_images=MEMORY_SIZE)
    rows = torch.nn.functional.normalize(torch.randn(MEMORY_SIZE, EMBEDDING_DIM, generator=generator), dim=1)
    labels = torch.randint(NUM_CLASSES, (MEMORY_SIZE,), generator=generator)
    state.objective.enqueue(rows, labels, torch.arange(MEMORY_SIZE))
    size = model.image_size
    pixels = torch.randn(BATCH_SIZE, 3, size, size, generator=generator)
    picked = torch.randint(MEMORY_SIZE, (BATCH_SIZE,), generator=generator)
    batch = Batch(pixels, labels[picked], picked)
    return lambda: train_step(state, batch, config)


def build_side(name: str) -> Step:
    return build_peer() if name == PEER else build_ours(*OPTIONS[name])


def time_call(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def measure_peak_bytes(name: str) -> int:
    """Run two steps of a side in a process of its own; return the process's peak memory in bytes."""
    words = [sys.executable, __file__, "--peak-of", name]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def print_peak(name: str) -> None:
    step = build_side(name)
    step()
    step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def measure(names: list[str], num_rounds: int) -> list[dict[str, object]]:
    """Time the sides in turn; one side's model is in memory at a time only as long as the machine's memory allows."""
    steps = {name: build_side(name) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(num_rounds + 1):
        for name, step in steps.items():
            seconds[name].append(time_call(step))
            print(f"round {number}  {name}: {BATCH_SIZE / seconds[name][-1]:.1f} images/s", file=sys.stderr, flush=True)
    del steps
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    return [
        {
            "side": name,
            "images_per_second": BATCH_SIZE / medians[name],
            "ratio_to_peer": medians[PEER] / medians[name],
            "seconds": seconds[name],
            "peak_bytes": measure_peak_bytes(name),
        }
        for name in names
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak-of", choices=[PEER, *OPTIONS], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_of:
        print_peak(arguments.peak_of)
        return
    results = measure([PEER, *OPTIONS], arguments.rounds)
    print("| side | images/s | ratio | peak GB |\n|---|---|---|---|")
    for result in results:
        figures = (
            f"{result['images_per_second']:.1f} | {result['ratio_to_peer']:.2f} | {result['peak_bytes'] / 1e9:.1f}"
        )
        print(f"| {result['side']} | {figures} |")
    if arguments.out:
        environment = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": platform.processor() or platform.machine(),
            "num_threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "timm": timm.__version__,
        }
        arguments.out.write_text(json.dumps({"environment": environment, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
