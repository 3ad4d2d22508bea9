"""Actors of Ray beside one process: python benchmarks/ray_actors.py OUT --encoder ENCODER --data SOURCE.

The pictures of a source are embedded by ``vitrieve embed`` with one thread, and with as many threads as there are
cores; then on Ray, started on this machine, with 1, 2 and 4 actors of one thread each. Ways take turns, and the median
of the turns is told: seconds from the start of the command to its end, and seconds of the encoding alone. The vectors
of each way are compared with those of the first. Written to OUT/ray_actors.json with the machine.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from contest import processor_name

from vitrieve.embed.embeddings import load_embeddings
from vitrieve.machine import count_cores

NUM_ACTORS = (1, 2, 4)


def measure(words: list[str], out: Path) -> dict[str, float]:
    """Embed with these words; return the seconds of the command, and of its encoding as its progress tells them."""
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    command = [sys.executable, "-m", "vitrieve", "embed", "--out", str(out), *words]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if ended.returncode:
        sys.exit(ended.stderr)
    encoding = re.findall(r"^embed: \d+/\d+, ([\d.]+) s$", ended.stderr, re.MULTILINE)
    return {"seconds": seconds, "encoding_seconds": float(encoding[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--num-turns", type=int, default=3)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    ways = {
        "embed, 1 thread": ["--num-threads", "1"],
        f"embed, {count_cores()} threads": ["--num-threads", str(count_cores())],
        **{f"Ray, {number} actors": ["--ray", "--ray-actors", str(number)] for number in NUM_ACTORS},
    }
    turns: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    differences = {}
    for _ in range(arguments.num_turns):
        first = None
        for way, words in ways.items():
            out = arguments.out / "embeddings"
            turns[way].append(measure(["--encoder", arguments.encoder, "--data", arguments.data, *words], out))
            vectors = np.array(load_embeddings(out).vectors)
            first = vectors if first is None else first
            differences[way] = float(np.abs(vectors - first).max())
            shutil.rmtree(out)
    rows = []
    for way, found in turns.items():
        medians = {name: statistics.median(turn[name] for turn in found) for name in found[0]}
        rate = len(first) / medians["encoding_seconds"] if first is not None else 0.0
        rows.append({"way": way, **medians, "images_per_second": rate, "largest_difference": differences[way]})
        print(f"{way:20} {medians['seconds']:8.1f} s {rate:8.1f} images/s  difference {differences[way]:.1e}")
    content = {
        "encoder": arguments.encoder,
        "data": arguments.data,
        "num_images": 0 if first is None else len(first),
        "num_cores": count_cores(),
        "processor": processor_name(),
        "ways": rows,
        "turns": turns,
    }
    (arguments.out / "ray_actors.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
