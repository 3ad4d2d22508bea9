"""Train the small recipes and the public losses side by side, and measure them on classes never seen.

    python benchmarks/small_recipes.py OUT --data NAME=SOURCE ... [--variants ...] [--seeds 0 1 2] [--holdout]

Every cell is `vitrieve train ... --no-holdout --no-report` (with --holdout: as the recipe says), then
`vitrieve evaluate`.
Results go to OUT/results.jsonl, a line a cell as soon as it is done; a cell that is there is not run again. At the end
a table in Markdown is printed: mean and standard deviation over the seeds of Recall@1 / MAP@R, in percent.

The public losses stand in our loop with the settings under which the anchors were measured: AdamW 3e-5, weight decay
5e-4, no schedule, 100 steps of 64. Our loss functions are tested to equal pytorch-metric-learning's.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from vitrieve.data.sources import list_protocols

PLAIN = (
    "--num-steps 100 --optimizer.learning-rate 3e-5 --optimizer.layer-decay 1 --optimizer.num-warmup-steps 0 "
    "--optimizer.schedule constant --optimizer.gradient-clip-norm None --train.ema-decay None "
    "--image-size 112 --model.num-frozen-blocks 0 --loader.crop-scale-min 0.3 --train.frozen-share 0 "
    "--objective.multi-similarity.beta 50 --objective.multi-similarity.base 0.5 "
)
NO_TERMS = (
    "--objective.contrastive.weight 0 --objective.multi-similarity.weight 0 --objective.proxy-anchor.weight 0 "
    "--objective.koleo.weight 0 --objective.memory-fraction 0 --objective.memory-start-step 0 "
)
FOUR_A_CLASS = "--loader.sampling m_per_class --loader.images-per-class 4 "
RANDOM = "--loader.sampling random "
MEMORY = "--objective.contrastive.weight 1 --objective.memory-fraction 1 "
KOLEO = "--objective.koleo.weight 0.7 "
SHORT = f"small --num-steps 60 --image-size 112 --train.frozen-share 0 {NO_TERMS}"
"""For the protocols and baselines of the paper: the careful settings of `small`, half of its steps, nothing frozen."""
LATE_MEMORY = f"{MEMORY}--objective.memory-start-step 20 "
"""What the options of training are compared with: `xbm`."""
VARIANTS = {
    "small": "small",
    "irt_r_small": "irt_r_small",
    "irt_l_small": "irt_l_small",
    "multi_similarity": f"small {PLAIN}{NO_TERMS}{FOUR_A_CLASS}--objective.multi-similarity.weight 1",
    "proxy_anchor": f"small {PLAIN}{NO_TERMS}{RANDOM}--objective.proxy-anchor.weight 1",
    "contrastive": f"small {PLAIN}{NO_TERMS}{RANDOM}{MEMORY}",
    "contrastive_koleo": f"small {PLAIN}{NO_TERMS}{RANDOM}{MEMORY}{KOLEO}",
    "contrastive_mean": f"small {PLAIN}{NO_TERMS}{RANDOM}{MEMORY}{KOLEO}--objective.contrastive.mean-nonzero",
    "momentum_memory": f"{SHORT}{LATE_MEMORY}--objective.memory-momentum 0.99",
    "xbm": f"{SHORT}{LATE_MEMORY}",
    "tuples": f"{SHORT}--loader.sampling tuples --objective.tuple-contrastive.weight 1 --optimizer.learning-rate 2e-5",
    "normalized_softmax": f"{SHORT}--objective.normalized-softmax.weight 1 --optimizer.proxy-learning-rate 1e-3",
    "scalable_nca": f"{SHORT}--objective.scalable-nca.weight 1",
    "proxy_nca_pp": f"{SHORT}--model.pooling max --objective.proxy-nca.weight 1 --optimizer.proxy-learning-rate 1e-2",
    "patch_dropout": f"{SHORT}{LATE_MEMORY}--model.patch-drop-rate 0.5",
    "half_frozen": f"{SHORT}{LATE_MEMORY}--model.num-frozen-blocks 6",
    "low_resolution_first": f"{SHORT}{LATE_MEMORY}--train.low-resolution-size 70",
    "embedded_twice": f"{SHORT}{LATE_MEMORY}--train.memory-limit-gib 2.5 --loader.cache-bytes 500000000",
}
"""The frozen row is made by `vitrieve evaluate` alone."""
FROZEN = "frozen"


def run_vitrieve(*words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "vitrieve", *words, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def run_cell(variant: str, source: str, seed: int, is_holdout: bool, out: Path) -> dict[str, Any]:
    """Train and measure one cell, under the source's first protocol and then its others; return its line."""
    train: dict[str, Any] = {}
    encoder, run = "dinov2-vits14", out / "run"
    seconds = 0.0
    if variant != FROZEN:
        words = ["train", *VARIANTS[variant].split(), "--data", source, "--out", str(run), "--seed", str(seed)]
        holdout = "--holdout" if is_holdout else "--no-holdout"
        start = time.monotonic()
        train = run_vitrieve(*words, holdout, "--no-report", "--overwrite")
        seconds = time.monotonic() - start
        encoder = str(run)
    words = [
        "evaluate",
        "--encoder",
        encoder,
        "--data",
        source,
        "--out",
        str(out / "evaluation"),
        *(("--image-size", "112") if variant == FROZEN else ()),
        "--protocol",
        *list_protocols(source),
    ]
    result, *others = run_vitrieve(*words, "--no-report", "--overwrite")["results"]
    shutil.rmtree(run, ignore_errors=True)
    kept = {name: train[name] for name in ("num_steps", "kept_step", "holdout_map_at_r", "seconds") if train}
    also = {other["protocol"]: other for other in others}
    return {"command_seconds": round(seconds, 1), **kept, **result, "other_protocols": also}


def format_table(lines: list[dict[str, Any]], datasets: list[str]) -> str:
    variants = list(dict.fromkeys(line["variant"] for line in lines))
    rows = ["| variant | " + " | ".join(datasets) + " |", "|---" * (len(datasets) + 1) + "|"]
    for variant in variants:
        cells = []
        for data in datasets:
            cell = [line for line in lines if (line["variant"], line["data"]) == (variant, data)]
            figures = [[100 * line[name] for line in cell] for name in ("recall_at_1", "map_at_r")]
            text = " / ".join(format_figure(values) for values in figures)
            cells.append(f"{text} (n={len(cell)})" if cell else "not run")
        rows.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def format_figure(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", nargs="+", required=True, metavar="NAME=SOURCE")
    parser.add_argument("--variants", nargs="+", default=[FROZEN, *VARIANTS], choices=[FROZEN, *VARIANTS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--holdout", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "results.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    sources = dict(pair.split("=", 1) for pair in arguments.data)
    for seed in arguments.seeds:
        for name, source in sources.items():
            for variant in arguments.variants:
                key = {"variant": variant, "data": name, "seed": seed, "holdout": arguments.holdout}
                is_done = any(all(line[part] == key[part] for part in key) for line in lines)
                if is_done or (variant == FROZEN and seed != arguments.seeds[0]):
                    continue
                cell = run_cell(variant, source, seed, arguments.holdout, arguments.out)
                line = {**key, "date": time.strftime("%Y-%m-%d"), "machine": platform.processor(), **cell}
                lines.append(line)
                with path.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print(
                    f"{key}: {100 * line['recall_at_1']:.1f} / {100 * line['map_at_r']:.1f}",
                    file=sys.stderr,
                    flush=True,
                )
    print(format_table([line for line in lines if line["holdout"] == arguments.holdout], list(sources)))


if __name__ == "__main__":
    main()
