"""int8 beside bf16 and fp32: speed, and what it costs in quality, on real photographs.

    python benchmarks/int8.py [--quick] [--json FILE]

`dinov2-vits14` at 224 px through OpenVINO, quantized on 300 training photographs of Grocery with both presets. Speed:
uint8 squares in, embeddings out, the sides alternating, each in a process of its own. Quality: Recall@1 and MAP@R on
Grocery's `zero_shot` (on every sixth class with --quick, and where the processor has no int8 to gain by), and the
cosine to fp32. Without Grocery nothing is measured.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from collections_here import find_grocery
from contest import alternate_processes, has_bf16, has_int8, main, max_seconds
from lines import Line, rate_lines

SECTION = "int8"
NAME, IMAGE_SIZE, NUM_IMAGES = "dinov2-vits14", 224, 128
GFLOP_PER_IMAGE = 11.9
"""Of ViT-S/14 at 224 px: 257 tokens."""
INT8_SIDES = ("vitrieve, int8 mixed", "vitrieve, int8 performance")
SIDES = (*(("vitrieve, bf16",) if has_bf16() else ()), *INT8_SIDES, "vitrieve, fp32")
PRESETS = ("mixed", "performance")


def make_encoders(work: Path, source: str) -> dict[str, Path]:
    """Make an encoder's folder for each preset; the exported graph is the same in both."""
    from vitrieve.model.named_graph import make_named_folder
    from vitrieve.model.pretrained import find_weights, get_export_folder

    make_named_folder(find_weights(NAME), IMAGE_SIZE)
    folders = {}
    for preset in PRESETS:
        folders[preset] = work / preset
        shutil.copytree(get_export_folder(NAME, IMAGE_SIZE), folders[preset])
        words = ["quantize", "--encoder", str(folders[preset]), "--data", source, "--preset", preset]
        subprocess.run([sys.executable, "-m", "vitrieve", *words], check=True, stdout=sys.stderr)
    return folders


def load_side(side: str, folders: dict[str, str]) -> object:
    from vitrieve.runtime.encoder import load_encoder

    precision = side.split()[1]
    folder = folders["performance" if "performance" in side else "mixed"]
    return load_encoder(folder, engine="openvino", precision=precision)  # type: ignore[arg-type]


def build_side(side: str, folders: dict[str, str]) -> Callable[[], object]:
    encoder = load_side(side, folders)
    shape = (NUM_IMAGES, IMAGE_SIZE, IMAGE_SIZE, 3)
    parts = np.split(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), NUM_IMAGES // 16)
    pool = ThreadPoolExecutor(encoder.num_parallel)  # type: ignore[attr-defined]
    return lambda: list(pool.map(encoder.encode_squares, parts))  # type: ignore[attr-defined]


def measure_quality(folders: dict[str, str], source: str, is_quick: bool) -> dict[str, str]:
    """Return a sentence for each side."""
    from dataclasses import replace

    from vitrieve.data.sources import read_source
    from vitrieve.embed.collection import embed_images
    from vitrieve.evaluation.measure import measure as measure_embeddings
    from vitrieve.evaluation.protocols import select_records

    dataset = read_source(source)
    if is_quick:
        classes = sorted({record.label for record in dataset.records if record.split == "test"})[::6]
        kept = [record for record in dataset.records if record.split != "test" or record.label in classes]
        dataset = replace(dataset, records=tuple(kept))
    records = select_records(dataset)
    sentences, exact = {}, np.empty(0)
    for side in reversed(SIDES):  # fp32 first: the others are compared with it
        found = embed_images(load_side(side, folders), records, show_progress=True)  # type: ignore[arg-type]
        exact = exact if len(exact) else found.vectors
        cosines = (exact * found.vectors).sum(axis=1)
        metrics = measure_embeddings(dataset, found, side).result.metrics
        sentences[side] = (
            f"Recall@1 {100 * metrics['recall_at_1']:.2f}, MAP@R {100 * metrics['map_at_r']:.2f}; cosine to fp32: mean "
            f"{cosines.mean():.4f}, smallest {cosines.min():.4f}"
        )
        print(side, sentences[side], file=sys.stderr, flush=True)
    return sentences


def measure(is_quick: bool) -> list[Line]:
    grocery = find_grocery()
    if grocery is None:
        print("Grocery is not here: nothing to measure", file=sys.stderr)
        return []
    source = f"grocery:{grocery}"
    with tempfile.TemporaryDirectory() as work:
        folders = {name: str(path) for name, path in make_encoders(Path(work), source).items()}
        rounds = alternate_processes(__file__, SIDES, 3 if is_quick else 9, max_seconds(is_quick), folders=folders)
        sentences = measure_quality(folders, source, is_quick or not has_int8())
    lines = []
    for side, found in rounds.items():
        precision = side.split()[1]
        lines += rate_lines(
            SECTION,
            f"{NAME}, {IMAGE_SIZE} px, OpenVINO",
            {side: found.seconds},
            NUM_IMAGES,
            "images/s",
            gflop=GFLOP_PER_IMAGE,
            ceiling=f"product, {precision}" if precision != "int8" or has_int8() else None,
            peak_mib=found.process_mib,
            note=sentences[side],
        )
    return lines


if __name__ == "__main__":
    main(measure, __doc__, build_side)
