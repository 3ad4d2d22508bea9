"""Time the forward and backward pass of a training step: fused against explicit attention, and micro-batch sizes.

    python benchmarks/training_step.py [--image-sizes 112 224] [--microbatch-sizes 8 16 32 64] [--rounds 3]

Weights are random: only the speed is measured. Both sides alternate in one process; a figure is the median of the
rounds, in images per second.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from vitrieve.model.backbone import build_backbone

BATCH_SIZE = 64


def time_step(backbone: torch.nn.Module, pixels: torch.Tensor, microbatch_size: int) -> float:
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        features = torch.cat([backbone(piece) for piece in torch.split(pixels, microbatch_size)])
    (features.float() @ features.float().T).sum().backward()
    backbone.zero_grad()
    return len(pixels) / (time.perf_counter() - start)


def set_attention(backbone: torch.nn.Module, is_fused: bool) -> None:
    for module in backbone.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = is_fused


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-sizes", nargs="+", type=int, default=[112, 224])
    parser.add_argument("--microbatch-sizes", nargs="+", type=int, default=[8, 16, 32, 64])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print("| image size | micro-batch | fused, images/s | explicit, images/s | ratio |\n|---|---|---|---|---|")
    for image_size in arguments.image_sizes:
        backbone = build_backbone("vit_small_patch14_dinov2", image_size=image_size, is_pretrained=False).train()
        pixels = torch.randn(BATCH_SIZE, 3, image_size, image_size)
        for microbatch_size in arguments.microbatch_sizes:
            speeds: dict[bool, list[float]] = {True: [], False: []}
            for number in range(arguments.rounds + 1):
                for is_fused in (True, False):
                    set_attention(backbone, is_fused)
                    speed = time_step(backbone, pixels, microbatch_size)
                    if number > 0:  # the first round warms up
                        speeds[is_fused].append(speed)
            fused, explicit = statistics.median(speeds[True]), statistics.median(speeds[False])
            print(
                f"| {image_size} | {microbatch_size} | {fused:.1f} | {explicit:.1f} | {explicit / fused:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
