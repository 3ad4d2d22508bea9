"""A training step as the paper's recipe has it, beside the way public implementations write it.

    python benchmarks/training.py [--quick] [--json FILE]

DeiT-S at 224 px, and DINOv2 ViT-S at 126 px, with random weights, batch 64, contrastive loss (margin 0.5) and a full
memory of 59,551 rows (the size of SOP's training set), AdamW; random pictures. The peers are timm in float32 and, where
the processor multiplies bf16, under bf16 autocast: one batch of 64, with pytorch-metric-learning's loss and memory.
Then our other plans of the same step, and our options that change the result (their effect on Recall@1 and MAP@R:
dev/LOG.md); without bf16 at 112 px, where a round takes seconds and not half a minute a side. The sides alternate, each
in a process of its own, whose largest memory is given. Then our loader against our step: how many pictures a second it
can prepare from files, and from its cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from collections_here import read_photographs
from contest import DECODING, FP32, alternate_processes, best_product, has_bf16, main, max_seconds
from lines import Line, rate_lines

if TYPE_CHECKING:
    from vitrieve.data.loader import TrainingLoader

SECTION = "training"
ARCHITECTURE, IMAGE_SIZE = "deit_small_patch16_224", 224
SMALL_ARCHITECTURE, SMALL_IMAGE_SIZE = "vit_small_patch14_dinov2", 126
"""What people train with most: the pictures of the recipes."""
BATCH_SIZE, MEMORY_SIZE, NUM_CLASSES, EMBEDDING_DIM = 64, 59_551, 11_318, 384
GFLOP_PER_IMAGE = {ARCHITECTURE: 3 * 9.2, SMALL_ARCHITECTURE: 3 * 3.6}
"""Forward, and twice as much backward, of all tokens: whoever leaves out what nobody reads seems nearer the ceiling."""
PEER, PEER_BF16 = "timm fp32, pytorch-metric-learning", "timm bf16 autocast, pytorch-metric-learning"
OURS = "vitrieve"
WITH_LOADER = "vitrieve, photographs by the loader"
MICROBATCHES: dict[str, dict[str, object]] = {
    "vitrieve, micro-batch 16": {"train": {"microbatch_size": 16}},
    "vitrieve, micro-batch 64": {"train": {"microbatch_size": 64}},
}
PLANS = MICROBATCHES | {"vitrieve, embedded twice for a memory limit": {"is_limited": True}}
SMALL_PLANS = MICROBATCHES | {"vitrieve, compiled by torch": {"train": {"compile": True}}}
"""The first step of the one that compiles takes minutes; it is the warm-up, which does not count."""
LOW_RESOLUTION = "vitrieve, 5/7 of the pixels a side (of low resolution first)"
OPTIONS: dict[str, dict[str, object]] = {
    "vitrieve, patch dropout 0.5": {"patch_drop_rate": 0.5},
    "vitrieve, 6 of 12 blocks frozen": {"num_frozen_blocks": 6},
    LOW_RESOLUTION: {},
}
NUM_LOADER_STEPS, MAX_STEPS = 12, 1000
Step = Callable[[], object]


def build_side(side: str, image_size: int, architecture: str = ARCHITECTURE) -> Step:
    if side.startswith("timm"):
        return build_peer(image_size, architecture, is_bf16=side == PEER_BF16)
    if side == WITH_LOADER:
        return build_ours(has_loader=True)
    if side == LOW_RESOLUTION:
        image_size = image_size * 5 // 7
    options = (PLANS | SMALL_PLANS | OPTIONS).get(side, {})
    return build_ours(image_size=image_size, architecture=architecture, **options)  # type: ignore[arg-type]


def build_peer(image_size: int, architecture: str = ARCHITECTURE, *, is_bf16: bool) -> Step:
    """Build the step of the public implementations: one batch, one graph."""
    import timm
    import torch
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.losses import ContrastiveLoss, CrossBatchMemory
    from torch.nn.functional import normalize

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(BATCH_SIZE, 3, image_size, image_size, generator=generator)
    labels = torch.randint(NUM_CLASSES, (BATCH_SIZE,), generator=generator)
    backbone = timm.create_model(architecture, num_classes=0, img_size=image_size).train()
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=3e-5, weight_decay=5e-4)
    loss = ContrastiveLoss(pos_margin=1.0, neg_margin=0.5, distance=CosineSimilarity())
    memory = CrossBatchMemory(loss, EMBEDDING_DIM, memory_size=MEMORY_SIZE)
    memory.embedding_memory[:] = normalize(torch.randn(MEMORY_SIZE, EMBEDDING_DIM, generator=generator), dim=1)
    memory.label_memory[:] = torch.randint(NUM_CLASSES, (MEMORY_SIZE,), generator=generator)
    memory.has_been_filled = True

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            embeddings = backbone(pixels)
        memory(normalize(embeddings.float(), dim=1), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def build_ours(
    train: Mapping[str, Any] = MappingProxyType({}),
    image_size: int = IMAGE_SIZE,
    architecture: str = ARCHITECTURE,
    patch_drop_rate: float = 0.0,
    num_frozen_blocks: int = 0,
    is_limited: bool = False,
    has_loader: bool = False,
) -> Step:
    """Build our step: what `vitrieve train` runs, with its checks and its log values; with or without its loader.

    Args:
        train: Fields of ``TrainConfig`` beside the size of a batch and the number of steps.
        image_size: Side of the square input in pixels.
        architecture: Name of a timm model.
        patch_drop_rate: Share of the patches that are left out.
        num_frozen_blocks: Lower blocks that are not trained.
        is_limited: Whether a limit of memory makes it embed the batch twice.
        has_loader: Whether photographs come from the loader; else they are random and always the same.
    """
    import torch

    from vitrieve.config import Config, ModelConfig, ObjectiveConfig, TrainConfig
    from vitrieve.data.loader import Batch
    from vitrieve.model.encoder import build_encoder
    from vitrieve.objective.contrastive import ContrastiveConfig
    from vitrieve.training.compute import MemoryPlan, prepare_encoder
    from vitrieve.training.loop import build_state, train_step

    generator = torch.Generator().manual_seed(0)
    model = ModelConfig(
        backbone=architecture,
        image_size=image_size,
        drop_path_rate=0.0,
        patch_drop_rate=patch_drop_rate,
        num_frozen_blocks=num_frozen_blocks,
    )
    config = Config(
        model=model,
        objective=ObjectiveConfig(contrastive=ContrastiveConfig(weight=1.0, margin=0.5), memory_fraction=1.0),
        train=TrainConfig(batch_size=BATCH_SIZE, num_steps=MAX_STEPS, **train),
    )
    encoder = build_encoder(model, is_pretrained=False)
    prepare_encoder(encoder, config)
    state = build_state(config, encoder, num_classes=NUM_CLASSES, num_images=MEMORY_SIZE)
    if is_limited:
        state.plan = MemoryPlan(microbatch_size=8, is_encoded_twice=True)
    rows = torch.nn.functional.normalize(torch.randn(MEMORY_SIZE, EMBEDDING_DIM, generator=generator), dim=1)
    labels = torch.randint(NUM_CLASSES, (MEMORY_SIZE,), generator=generator)
    state.objective.enqueue(rows, labels, torch.arange(MEMORY_SIZE))
    pixels = torch.randn(BATCH_SIZE, 3, image_size, image_size, generator=generator)
    picked = torch.randint(MEMORY_SIZE, (BATCH_SIZE,), generator=generator)
    batch = Batch(pixels, labels[picked], picked)
    if not has_loader:
        return lambda: train_step(state, batch, config)
    batches = build_loader().batches(0, MAX_STEPS)
    return lambda: train_step(state, next(batches), config)


def measure_steps(is_quick: bool) -> list[Line]:
    """Time contests of few sides: the processes of one stay, and nine of them fill the memory of many machines."""
    # In fp32 alone a step at 224 px takes half a minute: too long for a quick look, and for contests among ourselves.
    short_size = IMAGE_SIZE if has_bf16() else IMAGE_SIZE // 2
    image_size = short_size if is_quick else IMAGE_SIZE
    step = "step of {}, {}, {} px, memory of {:,}"
    name = step.format(BATCH_SIZE, "DeiT-S", image_size, MEMORY_SIZE)
    small_name = step.format(BATCH_SIZE, "DINOv2 ViT-S", SMALL_IMAGE_SIZE, MEMORY_SIZE)
    peers = [PEER, *([PEER_BF16] if has_bf16() else [])]
    lines = measure_contest(name, [*peers, OURS, *([] if is_quick else [WITH_LOADER])], is_quick, image_size=image_size)
    small = {"image_size": SMALL_IMAGE_SIZE, "architecture": SMALL_ARCHITECTURE}
    lines += measure_contest(small_name, [*peers, OURS], is_quick, **small)
    if not is_quick:
        lines += measure_contest(f"{small_name}: other plans, same result", [OURS, *SMALL_PLANS], is_quick, **small)
        for kind, sides in (("other plans, same result", PLANS), ("options that change the result", OPTIONS)):
            name = f"{step.format(BATCH_SIZE, 'DeiT-S', short_size, MEMORY_SIZE)}: {kind}"
            lines += measure_contest(name, [OURS, *sides], is_quick, image_size=short_size)
    return lines


def measure_contest(
    task: str, sides: list[str], is_quick: bool, *, image_size: int, architecture: str = ARCHITECTURE
) -> list[Line]:
    num_rounds = 3 if is_quick else 5
    given = {"image_size": image_size, "architecture": architecture}
    lines = []
    for side, rounds in alternate_processes(__file__, sides, num_rounds, max_seconds(is_quick), **given).items():
        is_same_work = side not in OPTIONS and image_size in (IMAGE_SIZE, SMALL_IMAGE_SIZE)
        lines += rate_lines(
            SECTION,
            task,
            {side: rounds.seconds},
            BATCH_SIZE,
            "images/s",
            gflop=GFLOP_PER_IMAGE[architecture] if is_same_work else None,
            ceiling=(FP32 if side == PEER else best_product()) if is_same_work else None,
            peak_mib=rounds.process_mib,
        )
    return lines


def build_loader() -> TrainingLoader:
    from vitrieve.config import LoaderConfig
    from vitrieve.data.loader import TrainingLoader
    from vitrieve.data.preprocess import Preprocessing

    records = read_photographs()[1]
    training = [record for record in records if record.split == "train"][: NUM_LOADER_STEPS * BATCH_SIZE]
    preprocessing = Preprocessing(image_size=IMAGE_SIZE, resize_size=IMAGE_SIZE)
    return TrainingLoader(training, LoaderConfig(), preprocessing, batch_size=BATCH_SIZE, seed=0)


def measure_loader() -> list[Line]:
    """Time the loader alone: the first pass decodes files, the second reads the cache of decoded pictures."""
    name, loader = read_photographs()[0], build_loader()
    seconds: dict[str, list[float]] = {}
    for side in ("vitrieve's loader, files", "vitrieve's loader, cached"):
        start = time.perf_counter()
        num_pictures = sum(len(batch.labels) for batch in loader.batches(0, NUM_LOADER_STEPS))
        seconds[side] = [time.perf_counter() - start]
    task = f"loader alone, {IMAGE_SIZE} px, {name}"
    files, cached = rate_lines(SECTION, task, seconds, num_pictures, "images/s")
    return [replace(files, ceiling=DECODING), cached]


def measure(is_quick: bool) -> list[Line]:
    return measure_steps(is_quick) + measure_loader()


if __name__ == "__main__":
    main(measure, __doc__, build_side)
