"""Training on several processes of this machine: python benchmarks/ranks.py OUT [--quick].

Images a second of training ``small`` on pictures of noise, for 1 process with 1 and with 2 threads, and for 2 and 4
processes with 1 thread each; the batch is the same for all. Beside each, the same processes at the same time without
exchange, each training on its part of a batch alone: what is missing to that is the share of time in communication
(gathering, summing gradients, waiting for the slowest, and the loss over the whole batch on every process). Settings
take turns; the median of the turns is told. Written to OUT/ranks.json with the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from contest import processor_name
from PIL import Image

SETTINGS = ((1, 1), (1, 2), (2, 1), (4, 1))
"""Processes, and threads of each."""
NUM_CLASSES, NUM_COPIES = 16, 8
NUM_WARM = 2
"""Steps that are left out: the first ones decode the pictures."""


def write_pictures(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for label in range(NUM_CLASSES):
        (folder / f"class{label:02}").mkdir(parents=True)
        for copy in range(NUM_COPIES):
            pixels = generator.integers(0, 256, (160, 160, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"class{label:02}" / f"{copy}.png")


def work(pictures: Path, out: Path, batch_size: int, num_steps: int, backbone: str) -> None:
    """Train, as one of several ranks or alone."""
    from vitrieve.data.sources import read_source
    from vitrieve.model.encoder import build_encoder
    from vitrieve.recipes import find_recipe
    from vitrieve.settings import override_config
    from vitrieve.training.loop import fit_encoder
    from vitrieve.training.ranks import joining_ranks
    from vitrieve.training.relations import TrainingImages

    changes = {
        "model.backbone": backbone,
        "model.image_size": 112,
        "train.batch_size": batch_size,
        "train.num_steps": num_steps,
        "train.num_threads": int(os.environ["OMP_NUM_THREADS"]),
        "train.checkpoint_every": num_steps,
    }
    config = override_config(find_recipe("small")(), changes)
    out.mkdir(parents=True, exist_ok=True)
    with joining_ranks():
        encoder = build_encoder(config.model, is_pretrained=False, seed=0)
        fit_encoder(config, encoder, TrainingImages(read_source(f"folder:{pictures}").split("train")), out)


def read_rate(out: Path) -> float:
    """Return the median of the images a second of a run."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return statistics.median([line["images_per_second"] for line in lines if "images_per_second" in line][NUM_WARM:])


def measure(processes: int, threads: int, given: argparse.Namespace, pictures: Path) -> tuple[float, float]:
    """Return images a second of so many processes, together and each alone on its part."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "GLOO_SOCKET_IFNAME": "lo"}
    with tempfile.TemporaryDirectory() as folder:
        words = [__file__, "work", "--num-steps", str(given.num_steps), "--backbone", given.backbone]
        words += ["--pictures", str(pictures)]
        together = [*words, f"{folder}/together", "--batch-size", str(given.batch_size)]
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        subprocess.run([sys.executable, *torchrun, *together], env=environment, check=True)
        apart = [
            subprocess.Popen(
                [sys.executable, *words, f"{folder}/{number}", "--batch-size", str(given.batch_size // processes)],
                env=environment,
            )
            for number in range(processes)
        ]
        for process in apart:
            if process.wait():
                raise SystemExit("a process failed; its message is above")
        rates = [read_rate(Path(folder) / str(number)) for number in range(processes)]
        return read_rate(Path(folder) / "together"), sum(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=Path("benchmarks/results"))
    parser.add_argument("--quick", action="store_true", help="one turn of few steps with a tiny model")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    parser.add_argument("--num-steps", type=int, default=12)
    parser.add_argument("--num-turns", type=int, default=3)
    given = parser.parse_args()
    if given.quick:
        given.backbone, given.num_steps, given.num_turns, given.batch_size = "vit_tiny_patch16_224", 6, 1, 16
    found: dict[tuple[int, int], list[tuple[float, float]]] = {setting: [] for setting in SETTINGS}
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder) / "pictures")
        for _ in range(given.num_turns):
            for setting in SETTINGS:
                found[setting].append(measure(*setting, given, Path(folder) / "pictures"))
    rows = []
    for (processes, threads), rates in found.items():
        together, apart = (statistics.median(values) for values in zip(*rates, strict=True))
        share = max(0.0, 1 - together / apart) if processes > 1 else 0.0
        rows.append(
            {
                "processes": processes,
                "threads": threads,
                "images_per_second": together,
                "without_exchange": apart,
                "communication_share": share,
            }
        )
        print(f"{processes} x {threads}: {together:.1f} images/s, apart {apart:.1f}, in communication {share:.0%}")
    machine = {"processor": processor_name(), "cores": os.cpu_count()}
    settings = {name: getattr(given, name) for name in ("backbone", "batch_size", "num_steps", "num_turns", "quick")}
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "ranks.json"
    path.write_text(json.dumps({"machine": machine, "settings": settings, "rows": rows}, indent=2) + "\n")
    print(path)


def main_of_worker() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--num-steps", type=int, required=True)
    parser.add_argument("--backbone", required=True)
    given = parser.parse_args(sys.argv[2:])
    work(given.pictures, given.out, given.batch_size, given.num_steps, given.backbone)


if __name__ == "__main__":
    main_of_worker() if sys.argv[1:2] == ["work"] else main()
