"""What the machine can do at most: matrix products, memory, decoding.

    python benchmarks/ceilings.py [--quick] [--json FILE]

Products of 4,096³ by torch (oneDNN) and, in float32, by NumPy (OpenBLAS); a copy of 1 GiB, counted read and written;
photographs decoded from memory by Pillow, a thread a core. Every other part of the suite is stated as a share of these.
Products in bf16 and int8 are left out where the processor has no instructions for them.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from collections_here import read_photographs
from contest import (
    BF16,
    DECODING,
    FP32,
    INT8,
    alternate,
    alternate_processes,
    has_bf16,
    has_int8,
    main,
)
from lines import Line, rate_lines
from PIL import Image

SECTION = "ceilings"
SIZE = 4_096
MEMORY = "memory, read and written"
TORCH, NUMPY = "torch", "NumPy"
COPY_BYTES = 2**30
NUM_PHOTOGRAPHS = 200


def build_side(side: str) -> Callable[[], object]:
    """Return one product, of rows with rows as in a linear layer; each is measured in a process of its own."""
    generator = torch.Generator().manual_seed(0)
    if side.startswith(INT8):
        integers = torch.randint(-128, 128, (SIZE, SIZE), generator=generator, dtype=torch.int8)
        return lambda: torch._int_mm(integers, integers)
    numbers = torch.randn(SIZE, SIZE, generator=generator).to(torch.bfloat16 if side.startswith(BF16) else None)
    others, product = numbers.flip(0), torch.empty_like(numbers)  # NumPy computes half of A A^T, and copies the rest
    if side.endswith(NUMPY):
        arrays = (numbers.numpy(), others.numpy().T)
        return lambda: np.matmul(*arrays, out=product.numpy())
    return lambda: torch.mm(numbers, others.T, out=product)


def measure_products(num_rounds: int) -> list[Line]:
    sides = [f"{FP32}, {TORCH}", f"{FP32}, {NUMPY}"]
    sides += [f"{BF16}, {TORCH}"] * has_bf16() + [f"{INT8}, {TORCH}"] * has_int8()
    lines = []
    for name, rounds in alternate_processes(__file__, sides, num_rounds).items():
        task, _, side = name.rpartition(", ")
        lines += rate_lines(SECTION, task, {side: rounds.seconds}, 2 * SIZE**3 / 1e9, "GFLOP/s")
    return lines


def measure_memory(num_rounds: int) -> list[Line]:
    source = torch.zeros(COPY_BYTES // 4)
    target = torch.ones_like(source)
    seconds = alternate({TORCH: lambda: target.copy_(source)}, num_rounds)
    return rate_lines(SECTION, MEMORY, seconds, 2 * COPY_BYTES / 1e9, "GB/s")


def measure_decoding(num_rounds: int) -> list[Line]:
    name, records = read_photographs()
    chosen = np.random.default_rng(0).permutation(len(records))[:NUM_PHOTOGRAPHS]
    contents = [records[number].path.read_bytes() for number in chosen]

    def decode(data: bytes) -> None:
        with Image.open(io.BytesIO(data)) as image:
            image.load()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        seconds = alternate({"Pillow": lambda: list(pool.map(decode, contents))}, num_rounds)
    return rate_lines(SECTION, DECODING, seconds, len(contents), "images/s", note=f"{name}, files in memory")


def measure(is_quick: bool) -> list[Line]:
    num_rounds = 3 if is_quick else 9
    return measure_products(num_rounds) + measure_memory(num_rounds) + measure_decoding(num_rounds)


if __name__ == "__main__":
    main(measure, __doc__, build_side)
