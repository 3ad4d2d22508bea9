"""How long the commands take to answer: medians of five new processes each (--quick: three), page cache warm.

    python benchmarks/latency.py [--quick] [--json FILE]

`vitrieve --help`; `vitrieve search` with one photograph against 100,000 vectors (10,000 with --quick) of the default
index, by an exported DeiT-S; `load_encoder` and the first embedding; the index itself, asked by one vector in one
process. The last lines say whether torch was imported.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from collections_here import make_vectors, read_photographs
from contest import Line, main, time_lines
from embedding import ensure_encoder

from vitrieve.data.records import ImageRecord
from vitrieve.embed.embeddings import Embeddings
from vitrieve.index.open import StoreKind, build_index, open_index
from vitrieve.runtime.encoder import load_encoder

SECTION = "start-up and latency"
NUM_ROUNDS, MAX_CLASSES, NUM_QUERIES = 5, 11_000, 300
FIRST_EMBEDDING = """
import sys, time
start = time.perf_counter()
from PIL import Image
from vitrieve.runtime.encoder import load_encoder
load_encoder(sys.argv[1]).encode([Image.open(sys.argv[2]).convert("RGB")])
print(time.perf_counter() - start)
"""
HAS_TORCH = """
import sys
from vitrieve.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print("torch" in sys.modules, file=sys.stderr)
"""


def build_large_index(encoder: Path, folder: Path, num_vectors: int, store: StoreKind = "lance") -> np.ndarray:
    """Index real vectors with noise under the encoder's fingerprint; return some of them."""
    vectors, _ = make_vectors(num_vectors, 384, min(MAX_CLASSES, num_vectors // 5), seed=0)
    photograph = read_photographs()[1][0].path
    records = tuple(
        ImageRecord(image_id=f"{number:07d}", path=photograph, label=0, split="test") for number in range(num_vectors)
    )
    loaded = load_encoder(encoder)
    embeddings = Embeddings(
        vectors=vectors,
        records=records,
        failures=(),
        encoder_source=str(encoder),
        fingerprint=loaded.fingerprint,
        image_size=loaded.preprocessing.image_size,
    )
    build_index(embeddings, folder, store=store).close()
    return vectors[:: max(1, num_vectors // NUM_QUERIES)]


def time_processes(command: list[str], num_rounds: int) -> list[float]:
    """Run a command often; the first run warms the page cache and does not count."""
    seconds = []
    for _ in range(num_rounds + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def time_first_embedding(encoder: Path, photograph: Path, num_rounds: int) -> list[float]:
    command = [sys.executable, "-c", FIRST_EMBEDDING, str(encoder), str(photograph)]
    return [
        float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(num_rounds + 1)
    ][1:]


def is_torch_imported(words: list[str]) -> bool:
    done = subprocess.run([sys.executable, "-c", HAS_TORCH, *words], check=True, capture_output=True, text=True)
    return done.stderr.strip().endswith("True")


def time_queries(index: Path, queries: np.ndarray) -> list[float]:
    store = open_index(index)
    seconds = []
    for query in queries:
        start = time.perf_counter()
        store.search(query[None], 10)
        seconds.append(time.perf_counter() - start)
    store.close()
    return seconds[len(seconds) // 10 :]


def measure(is_quick: bool) -> list[Line]:
    num_vectors, num_rounds = (10_000, 3) if is_quick else (100_000, NUM_ROUNDS)
    photograph = read_photographs()[1][0].path
    python = [sys.executable, "-m", "vitrieve"]
    with tempfile.TemporaryDirectory() as folder:
        encoder = ensure_encoder(Path(folder) / "encoder")
        index = Path(folder) / "index"
        queries = build_large_index(encoder, index, num_vectors)
        exact = Path(folder) / "exact"
        build_large_index(encoder, exact, num_vectors, "exact")
        asked = [str(photograph), "--encoder", str(encoder)]
        search = ["search", "--index", str(index), *asked]
        torch_note = "torch is imported" if is_torch_imported(search) else "torch is not imported"
        tasks = {
            "vitrieve --help": (time_processes([*python, "--help"], num_rounds), "goal: under 1 s"),
            f"vitrieve search, one photograph, {num_vectors:,} images": (
                time_processes([*python, *search], num_rounds),
                f"goal: under 1.5 s; {torch_note}",
            ),
            f"vitrieve search, one photograph, {num_vectors:,} images, exact store": (
                time_processes([*python, "search", "--index", str(exact), *asked], num_rounds),
                "goal: under 1.5 s",
            ),
            "load_encoder and first embedding, DeiT-S": (
                time_first_embedding(encoder, photograph, num_rounds),
                "goal: under 1 s; new process, imports included",
            ),
        }
        lines = []
        for task, (seconds, note) in tasks.items():
            lines += time_lines(SECTION, task, {"vitrieve": seconds}, note=note)
        by_vector = time_queries(index, queries)
        task = f"the index, by vector, {num_vectors:,} images"
        note = f"p95 {1000 * np.percentile(by_vector, 95):.1f} ms"
        return lines + time_lines(SECTION, task, {"vitrieve": by_vector}, "ms", note=note)


if __name__ == "__main__":
    main(measure, __doc__)
