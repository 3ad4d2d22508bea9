"""Write what timm and a count of operations say of every name of `vitrieve weights list`, and measure its speed.

    python benchmarks/weights_catalog.py [--speed NUM_IMAGES] [--names NAME ...]

Writes src/vitrieve/model/catalog.json, which `vitrieve weights list` shows; takes no weights. Speeds are of torch with
random weights, in the precision that `--precision auto` takes, in batches of the encoder's own size; they are kept with
the machine and the date, and those of another machine are dropped. Without --speed the speeds in the file stay. With
--speed 16 all names take some nine minutes on two quiet cores. Two runs differ by a tenth, the first name by more.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from vitrieve.config import ModelConfig
from vitrieve.doctor import read_cpu
from vitrieve.model.backbone import build_backbone, count_cost, describe_tokens
from vitrieve.model.catalog import FAMILIES
from vitrieve.model.encoder import build_encoder
from vitrieve.model.pretrained import WEIGHTS
from vitrieve.runtime.device import resolve_precision
from vitrieve.runtime.encoder import wrap_encoder

CATALOG = Path(__file__).resolve().parents[1] / "src" / "vitrieve" / "model" / "catalog.json"
OWN = {  # names that need no hub, and timm's names of their models
    "dinov2-vits14": "vit_small_patch14_dinov2.lvd142m",
    "vitrieve-general-v1": "vit_small_patch14_dinov2.lvd142m",
    "vitrieve-general-v2": "vit_small_patch14_dinov2.lvd142m",
    "efficientnet-lite0": "tf_efficientnet_lite0.in1k",
}
MIN_SECONDS = 4.0
"""Each speed is the median of measurements that take so long together."""


def describe(timm_name: str, image_size: int | None, is_native: bool) -> dict[str, Any]:
    """Describe weights by timm's settings and a count of operations; no weights are fetched or allocated.

    A timm name without a tag stands for weights of another publisher, which have no classifier.
    """
    config = timm.get_pretrained_cfg(timm_name, allow_unregistered=False)
    size = image_size or int(config.input_size[-1])
    cost = count_cost(timm_name, size)
    architecture, _, tag = timm_name.partition(".")
    with torch.device("meta"):
        whole = timm.create_model(architecture, pretrained=False, num_classes=config.num_classes if tag else 0)
        backbone = build_backbone(timm_name, image_size=size, is_pretrained=False).eval()
        layout = describe_tokens(backbone, size, timm_name)
    return {
        "license": config.license,
        "image_size": size,
        "mean": config.mean,
        "std": config.std,
        "interpolation": config.interpolation,
        "num_bytes": 4 * sum(parameter.numel() for parameter in whole.parameters()),
        "num_parameters": cost.num_parameters,
        "dimensions": layout.native_width if is_native else layout.width,
        "gflops": round(cost.flops / 1e9, 2),
    }


def measure_speed(timm_name: str, image_size: int, num_images: int) -> float:
    """Return images a second with random weights, after one batch to warm up: the median of some seconds."""
    config = ModelConfig(backbone=timm_name, image_size=image_size, drop_path_rate=0.0)
    encoder = wrap_encoder(build_encoder(config, is_pretrained=False, seed=0).eval(), name=timm_name)
    squares = np.random.default_rng(0).integers(0, 256, (num_images, image_size, image_size, 3), dtype=np.uint8)
    encoder.encode_squares(squares[: encoder.batch_size])
    seconds: list[float] = []
    while sum(seconds) < MIN_SECONDS:
        start = time.perf_counter()
        encoder.encode_squares(squares)
        seconds.append(time.perf_counter() - start)
    return num_images / statistics.median(seconds)


def begin_speeds(catalog: dict[str, Any]) -> None:
    """Note machine and date of the speeds; drop those of another machine, precision or torch."""
    version, precision = torch.__version__.partition("+")[0], resolve_precision("auto")
    machine = f"torch {version} in {precision}, {torch.get_num_threads()} threads of {read_cpu()['model']}"
    if not catalog["speed_note"].startswith(f"{machine}, "):
        for row in catalog["weights"].values():
            row.pop("images_per_second", None)
    catalog["speed_note"] = f"{machine}, {datetime.date.today()}"


def main() -> None:
    """Write the file after each name, so that a stopped run keeps what it has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speed", type=int, metavar="NUM_IMAGES")
    parser.add_argument("--names", nargs="*")
    arguments = parser.parse_args()
    catalog = json.loads(CATALOG.read_text()) if CATALOG.exists() else {"speed_note": "", "weights": {}}
    if arguments.speed:
        begin_speeds(catalog)
    jobs: list[tuple[str, str, dict[str, Any], bool]] = []
    for name, model in OWN.items():
        jobs.append(
            (name, model, {"image_size": WEIGHTS[name].image_size, "num_bytes": WEIGHTS[name].num_bytes}, False)
        )
    for family in FAMILIES:
        fixed: dict[str, Any] = {"license": family.license} if family.license else {}
        if family.image_size is not None:
            fixed["image_size"] = family.image_size
        jobs += [(name, model, fixed, family.pooling == "native") for name, model in family.pair_with_timm()]
    for name, timm_name, fixed, is_native in jobs:
        if arguments.names and name not in arguments.names:
            continue
        before = catalog["weights"].get(name, {})
        row = {**describe(timm_name, fixed.get("image_size"), is_native), **fixed}
        if arguments.speed:
            row["images_per_second"] = float(f"{measure_speed(timm_name, row['image_size'], arguments.speed):.3g}")
            gc.collect()  # an encoder is a ring of references
        elif "images_per_second" in before:
            row["images_per_second"] = before["images_per_second"]
        catalog["weights"][name] = row
        CATALOG.write_text(json.dumps(catalog, indent=1) + "\n")
        print(name, row["gflops"], row["dimensions"], row.get("images_per_second", ""), flush=True)


if __name__ == "__main__":
    main()
