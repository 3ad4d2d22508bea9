"""A large batch on processes with little memory: python benchmarks/large_batch.py OUT --data SOURCE [--quick].

Trains ``small`` for a few steps with ``torchrun``, with a limit of memory for each process, and reads the most memory
that each process had over its whole life (the export included) when it ends. By default the claim of the guide: a batch
of 4,096 at 56 px on two processes of 3 GiB. A process above the limit makes the script fail. Written to
OUT/large_batch_DATE.json with the machine.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from contest import processor_name
from PIL import Image

MIB = 2**20
NUM_CLASSES, NUM_COPIES = 8, 8
"""Pictures of noise for ``--quick``."""


def write_pictures(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for label in range(NUM_CLASSES):
        (folder / f"class{label}").mkdir(parents=True)
        for copy in range(NUM_COPIES):
            pixels = generator.integers(0, 256, (48, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"class{label}" / f"{copy}.png")


def write_weights(path: Path) -> None:
    """Write random weights of a tiny model for ``--quick``."""
    from safetensors.torch import save_file

    from vitrieve.config import ModelConfig
    from vitrieve.model.encoder import build_encoder

    encoder = build_encoder(ModelConfig(backbone="test_vit", image_size=64), is_pretrained=False, seed=0)
    save_file(encoder.backbone.state_dict(), path)


def work(peaks: str, words: list[str]) -> int:
    """Run ``vitrieve`` as a rank; leave the most memory of this process in the folder of peaks."""
    from vitrieve.cli.main import main as run_command

    status = run_command(words)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    num_bytes = peak if sys.platform == "darwin" else peak * 1024
    (Path(peaks) / os.environ["RANK"]).write_text(str(num_bytes))
    return status


def read_plan(printed: str) -> str:
    found = re.search(r"^memory: .*$", printed, re.MULTILINE)
    if found is None:
        raise SystemExit(f"the run did not say how it keeps to the limit:\n{printed}")
    return found[0]


def build_words(given: argparse.Namespace, data: str, out: str) -> list[str]:
    """Return the words of ``vitrieve`` for a run."""
    words = ["train", "small", "--data", data, "--out", out, "--image-size", str(given.image_size)]
    words += ["--batch-size", str(given.batch_size), "--num-steps", str(given.num_steps), "--no-holdout", "--no-report"]
    return [*words, "--train.memory-limit-gib", f"{given.limit_gib:g}", "--num-threads", "1"]


def measure(given: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Train, and return what was seen."""
    words = [*build_words(given, given.data, str(folder / "run")), *given.more]
    kind, colon, _ = given.data.partition(":")
    source = f"{kind if colon else 'folder'}:DIR"  # no folders of this machine in the result
    hidden = [Path(word).name if word.startswith("/") else word for word in given.more]
    peaks = folder / "peaks"
    peaks.mkdir()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(given.processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*torchrun, __file__, "work", str(peaks), *words],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    speeds = [line["images_per_second"] for line in lines if "images_per_second" in line]
    peak_mib = [round(int((peaks / str(rank)).read_text()) / MIB) for rank in range(given.processes)]
    return {
        "command": " ".join(["torchrun", *torchrun[3:], "-m", "vitrieve", *build_words(given, source, "OUT"), *hidden]),
        "plan": read_plan(done.stderr),
        "limit_mib": round(given.limit_gib * 1024),
        "peak_mib": peak_mib,
        "images_per_second": statistics.median(speeds),
        "losses": [line["loss"] for line in lines if "loss" in line],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=Path("benchmarks/results"))
    parser.add_argument("--data", help="a source with training images, for example grocery:DIR")
    parser.add_argument("--quick", action="store_true", help="a small batch of noise and a tiny model")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--image-size", type=int, default=56)
    parser.add_argument("--num-steps", type=int, default=2)
    parser.add_argument("--limit-gib", type=float, default=3.0, help="limit of each process")
    given = parser.parse_args()
    given.more = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.quick:
            write_pictures(folder / "pictures")
            write_weights(folder / "tiny.safetensors")
            given.data, given.batch_size, given.limit_gib = f"folder:{folder / 'pictures'}", 256, 1.5
            given.image_size = 64
            given.more = ["--model.backbone", "test_vit", "--model.weights", str(folder / "tiny.safetensors")]
        if given.data is None:
            parser.error("--data is missing: a source with training images, for example grocery:DIR")
        found = measure(given, folder)
    machine = {"processor": processor_name(), "cores": os.cpu_count()}
    settings = {name: getattr(given, name) for name in ("processes", "batch_size", "image_size", "num_steps", "quick")}
    given.out.mkdir(parents=True, exist_ok=True)
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    path = given.out / f"large_batch{'_quick' if given.quick else ''}_{today}.json"
    contents = {"date": today, "machine": machine, "settings": settings, **found}
    path.write_text(json.dumps(contents, indent=2) + "\n")
    told = ", ".join(f"{peak:,}" for peak in found["peak_mib"])  # type: ignore[attr-defined]
    print(
        f"{given.batch_size:,} images on {given.processes} processes of {found['limit_mib']:,} MiB: at most {told} MiB"
    )
    print(path)
    if max(found["peak_mib"]) > found["limit_mib"]:  # type: ignore[call-overload, operator]
        raise SystemExit("a process had more memory than its limit")


if __name__ == "__main__":
    sys.exit(work(sys.argv[2], sys.argv[3:])) if sys.argv[1:2] == ["work"] else main()
