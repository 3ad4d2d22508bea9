"""Measure memory, time and quality of full training, LoRA, prompts, distillation and batches of 1,024, in one run.

    python benchmarks/few_weights.py OUT --data SOURCE [--teacher NAME] [--memory-gib 4] [--seeds 3] [--steps 120]

Every run is a process of its own and sees as many images as ``small`` does in that number of steps. Its memory is the
largest resident set of that process; its speed is the median over the steps. MAP@R is measured on held-out training
classes, so a teacher that was trained on the whole collection is refused. ``OUT/few_weights.json`` has the figures of
all runs so far. Runs that are done with the same settings are not repeated; one that fails is told, and others go on.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from contest import write_result

BATCH_SIZE, LARGE_BATCH_SIZE = 64, 1024
DELTA_RANK = 8
TRAIN = (sys.executable, "-m", "vitrieve", "train")


def list_variants(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """List the command lines by name, each a recipe and its flags."""
    num_steps = arguments.steps
    usual = ["--num-steps", str(num_steps), "--train.evaluate-every", str(max(1, num_steps // 3))]
    usual += ["--train.no-try-larger-image"]  # the figures are those of the steps
    num_large = max(1, num_steps * BATCH_SIZE // LARGE_BATCH_SIZE)
    # Prompts begin at random, so they take a higher rate, which is an assumption.
    prompts = ["small", "--model.prompts.num-tokens", "10", "--optimizer.learning-rate", "5e-3", *usual]
    variants = {"full": ["small", *usual], "lora": ["small_lora", *usual], "prompts": prompts}
    if arguments.teacher is not None:
        teacher = ["--objective.distillation.weight", "1", "--objective.distillation.teacher", arguments.teacher]
        variants["distilled"] = ["small", *usual, *teacher]
        variants["lora, distilled"] = ["small_lora", *usual, *teacher]
    # Four times the rate for sixteen times the batch: the square root rule, an assumption.
    variants["two-pass 1,024"] = [
        *("small", "--batch-size", str(LARGE_BATCH_SIZE), "--num-steps", str(num_large)),
        *("--train.memory-limit-gib", str(arguments.memory_gib), "--loader.cache-bytes", str(2**28)),
        *("--optimizer.learning-rate", "8e-4", "--optimizer.num-warmup-steps", "1"),
        *("--train.evaluate-every", str(max(1, num_large // 3)), "--train.no-try-larger-image"),
    ]
    return variants


def run_variant(words: Sequence[str], folder: Path, data: str, seed: int) -> dict[str, Any] | None:
    """Train in a process of its own; return memory, time and quality, or None where it failed, which is told."""
    noted, words = folder.with_suffix(".json"), [*words, "--data", data, "--seed", str(seed)]
    if noted.is_file():
        kept: dict[str, Any] = json.loads(noted.read_text())
        if kept["words"] == words:
            return kept
    command = [*TRAIN, *words, "--out", str(folder), "--no-report", "--overwrite"]
    process = subprocess.Popen(command)
    try:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        if (
            process.returncode is None
        ):  # this script was stopped; the training would go on and slow what is measured next
            process.terminate()
            process.wait()
    if process.returncode != 0:
        print(f"training failed with exit status {process.returncode}: {' '.join(command)}", file=sys.stderr)
        return None
    manifest = json.loads((folder / "manifest.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["images_per_second"] for line in lines if "images_per_second" in line]
    held_out = manifest["holdout_map_at_r"]
    figures = {
        "words": words,
        "peak_gib": usage.ru_maxrss / 2**20,  # kilobytes on Linux
        "seconds": manifest["seconds"],
        "images_per_second": statistics.median(speeds),
        "frozen_map_at_r": held_out["0"],
        "map_at_r": held_out[str(manifest["kept_step"])],
        "state_mb": max((folder / "state").iterdir()).stat().st_size / 1e6,
        "difference_mb": export_difference(folder),
    }
    noted.write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def export_difference(folder: Path) -> float | None:
    """Return the size of the run's encoder as a difference of rank 8, in MB; None where the frozen start was kept."""
    from vitrieve import ConfigError, export

    try:
        return export(folder, folder.with_suffix(".delta"), delta_rank=DELTA_RANK, overwrite=True).num_bytes / 1e6
    except ConfigError as error:
        print(f"no difference of {folder}: {error}", file=sys.stderr)
        return None


def list_seen_data(teacher: str, data: str) -> str:
    """Name the data that a teacher was trained on, with the classes that measure; empty where it was not."""
    from vitrieve.data.sources import read_source
    from vitrieve.model.seen import list_seen

    return ", ".join(list_seen(teacher, [read_source(data)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", required=True, help="a source with classes: grocery:DIR, emoji, folder:DIR")
    parser.add_argument("--teacher", help="a larger encoder, or stored embeddings; without one nothing is distilled")
    parser.add_argument("--memory-gib", type=float, default=4.0, help="limit of the two-pass run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120, help=f"steps of {BATCH_SIZE} images")
    arguments = parser.parse_args()
    if arguments.teacher is not None and (seen := list_seen_data(arguments.teacher, arguments.data)):
        parser.error(
            f"{arguments.teacher} was trained on all classes of {seen}, also those that measure; name another."
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    arguments.out.mkdir(parents=True, exist_ok=True)
    variants = list_variants(arguments)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    failed = []
    for seed in range(arguments.seeds):  # one after the other in each seed: a slow hour of the machine meets all
        for name, words in variants.items():
            folder = arguments.out / f"{name.replace(', ', '-').replace(' ', '-')}_{seed}"
            figures = run_variant(words, folder, arguments.data, seed)
            if figures is None:
                failed.append(f"{name} of seed {seed}")
                continue
            found[name].append(figures)
            write_result(arguments.out / "few_weights.json", {"runs": found})
    print_table(found)
    if failed:
        raise SystemExit(f"not measured, because the training failed: {'; '.join(failed)}")


def print_table(found: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    print("| | GiB | images/s | seconds | MAP@R held out | gain on frozen | state, MB | difference of rank 8, MB |")
    print("|---|---|---|---|---|---|---|---|")
    for name, runs in found.items():
        if not runs:
            continue
        quality = [100 * run["map_at_r"] for run in runs]
        gain = statistics.fmean(100 * (run["map_at_r"] - run["frozen_map_at_r"]) for run in runs)
        spread = f" ± {statistics.stdev(quality):.1f}" if len(quality) > 1 else ""
        differences = [run["difference_mb"] for run in runs if run["difference_mb"] is not None]
        print(
            f"| {name} | {max(run['peak_gib'] for run in runs):.2f} "
            f"| {statistics.median(run['images_per_second'] for run in runs):.1f} "
            f"| {statistics.median(run['seconds'] for run in runs):.0f} "
            f"| {statistics.fmean(quality):.1f}{spread} | {gain:+.1f} | {runs[0]['state_mb']:.0f} "
            f"| {f'{statistics.fmean(differences):.2f}' if differences else 'none'} |"
        )


if __name__ == "__main__":
    main()
