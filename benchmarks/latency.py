"""How long the commands take to answer: medians of five new processes each (--quick: three), page cache warm.

    python benchmarks/latency.py [--quick] [--json FILE]

`vitrieve --help`; `vitrieve search` with one photograph against 100,000 vectors (10,000 with --quick) of the default
store and of the exact one, by an exported DeiT-S; `load_encoder` and the first embedding; both indexes themselves,
asked by one vector in one process. Sides take turns. The note of a search says whether torch was imported.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from collections_here import make_vectors, read_photographs
from contest import alternate, main
from embedding import ensure_encoder
from lines import Line, time_lines

from vitrieve.data.records import ImageRecord
from vitrieve.embed.embeddings import Embeddings
from vitrieve.index.open import build_index, open_index
from vitrieve.index.store import VectorStore
from vitrieve.runtime.encoder import load_encoder

SECTION = "start-up and latency"
NUM_ROUNDS, MAX_CLASSES, NUM_QUERIES = 5, 11_000, 300
LANCE, EXACT = "vitrieve, LanceDB", "vitrieve, exact store"
FIRST_EMBEDDING = """
import sys
from PIL import Image
from vitrieve.runtime.encoder import load_encoder
load_encoder(sys.argv[1]).encode([Image.open(sys.argv[2]).convert("RGB")])
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


class Task(NamedTuple):
    """What is done in new processes: its name, the command of each side, and what a reader should know."""

    name: str
    sides: dict[str, list[str]]
    note: str


def build_large_indexes(encoder: Path, folders: Mapping[str, Path], num_vectors: int) -> np.ndarray:
    """Index real vectors with noise under the encoder's fingerprint, in each store; return some of them."""
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
    build_index(embeddings, folders[LANCE]).close()
    build_index(embeddings, folders[EXACT], store="exact").close()
    return vectors[:: max(1, num_vectors // NUM_QUERIES)]


def list_tasks(encoder: Path, folders: Mapping[str, Path], photograph: Path, num_vectors: int) -> list[Task]:
    python = [sys.executable, "-m", "vitrieve"]
    words = ["search", str(photograph), "--encoder", str(encoder), "--index"]
    searches = {side: [*python, *words, str(folder)] for side, folder in folders.items()}
    has_torch = is_torch_imported([*words, str(folders[LANCE])])
    torch_note = "torch is imported" if has_torch else "torch is not imported"
    first = [sys.executable, "-c", FIRST_EMBEDDING, str(encoder), str(photograph)]
    return [
        Task("vitrieve --help", {"vitrieve": [*python, "--help"]}, "goal: under 1 s"),
        Task(f"vitrieve search, one photograph, {num_vectors:,} images", searches, f"goal: 1.5 s; {torch_note}"),
        Task(
            "load_encoder and first embedding, DeiT-S", {"vitrieve": first}, "goal: 1 s; new process, imports included"
        ),
    ]


def run_silently(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def is_torch_imported(words: list[str]) -> bool:
    done = subprocess.run([sys.executable, "-c", HAS_TORCH, *words], check=True, capture_output=True, text=True)
    return done.stderr.strip().endswith("True")


def time_queries(stores: Mapping[str, VectorStore], queries: Sequence[np.ndarray]) -> dict[str, list[float]]:
    """Ask each query of each store in turn; return seconds, without the first tenth, which warms up."""
    seconds: dict[str, list[float]] = {side: [] for side in stores}
    for query in queries:
        for side, store in stores.items():
            start = time.perf_counter()
            store.search(query[None], 10)
            seconds[side].append(time.perf_counter() - start)
    return {side: times[len(times) // 10 :] for side, times in seconds.items()}


def measure(is_quick: bool) -> list[Line]:
    num_vectors, num_rounds = (10_000, 3) if is_quick else (100_000, NUM_ROUNDS)
    photograph = read_photographs()[1][0].path
    lines = []
    with tempfile.TemporaryDirectory() as work:
        encoder = ensure_encoder(Path(work) / "encoder")
        folders = {LANCE: Path(work) / "lance", EXACT: Path(work) / "exact"}
        queries = build_large_indexes(encoder, folders, num_vectors)
        for name, sides, note in list_tasks(encoder, folders, photograph, num_vectors):
            seconds = alternate({side: partial(run_silently, words) for side, words in sides.items()}, num_rounds)
            lines += time_lines(SECTION, name, seconds, note=note)
        stores = {side: open_index(folder) for side, folder in folders.items()}
        by_vector = time_queries(stores, list(queries))
        for store in stores.values():
            store.close()
    task = f"the index, by vector, {num_vectors:,} images"
    for side, times in by_vector.items():
        note = f"p95 {1000 * np.percentile(times, 95):.1f} ms"
        lines += time_lines(SECTION, task, {side: times}, "ms", note=note)
    return lines


if __name__ == "__main__":
    main(measure, __doc__)
