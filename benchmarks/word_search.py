"""How long a search in words takes beside a search by picture, in one process, with an encoder that has no text part.

    python benchmarks/word_search.py [--quick] [--json FILE]

100,000 images (10,000 with --quick) in the default index, held in memory as a service holds it, with one of 2,000
labels and a description of twelve words of 30,000, drawn by Zipf's law. Each search is of three words; of three with a
typo; of one that every image has; and of a picture and three words, which are fused. The note says the 95th percentile.
"""

from __future__ import annotations

import io
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from collections_here import read_photographs
from contest import Line, main, time_lines
from embedding import ensure_encoder
from latency import build_large_index

from vitrieve.index.open import open_index
from vitrieve.runtime.encoder import load_encoder
from vitrieve.search.request import Example, SearchRequest
from vitrieve.search.searcher import Searcher

SECTION = "searching in words"
NUM_WORDS, NUM_DESCRIBING, NUM_LABELS, NUM_ROUNDS, NUM_WARM = 30_000, 12, 2_000, 100, 5
BATCH = 4_096


def draw_words(generator: np.random.Generator) -> list[str]:
    """Draw different words of three to ten letters."""
    words: dict[str, None] = {}
    while len(words) < NUM_WORDS:
        letters = generator.integers(ord("a"), ord("z") + 1, generator.integers(3, 11))
        words["".join(map(chr, letters))] = None
    return list(words)


def describe(index: Path, words: list[str], generator: np.random.Generator) -> None:
    """Give every image of an index a label and a description."""
    shares = 1 / np.arange(1, NUM_WORDS + 1)
    store = open_index(index)
    image_ids = list(store.image_ids())
    for start in range(0, len(image_ids), BATCH):
        vectors, records = store.get(image_ids[start : start + BATCH])
        drawn = generator.choice(NUM_WORDS, (len(records), NUM_DESCRIBING), p=shares / shares.sum())
        store.upsert(
            vectors,
            [
                replace(
                    record,
                    metadata={
                        "label": words[int(generator.integers(NUM_LABELS))],
                        "description": " ".join(words[row] for row in rows),
                        "kind": "photograph",
                    },
                )
                for record, rows in zip(records, drawn, strict=True)
            ],
        )
    store.optimize()
    store.close()


def measure(is_quick: bool) -> list[Line]:
    num_images = 10_000 if is_quick else 100_000
    generator = np.random.default_rng(0)
    words = draw_words(generator)
    photograph = read_photographs()[1][0].path.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        encoder = ensure_encoder(Path(folder) / "encoder")
        index = Path(folder) / "index"
        build_large_index(encoder, index, num_images)
        describe(index, words, generator)
        searcher = Searcher.open(index, load_encoder(encoder))
        searcher.store.hold(4 * 2**30)
        started = time.perf_counter()
        searcher.words.find()
        lines = time_lines(
            SECTION, f"reading the words of {num_images:,} images", {"vitrieve": [time.perf_counter() - started]}
        )

        def ask(num: int, ending: str = "") -> Example:
            return Example(text=" ".join(words[int(row)] + ending for row in generator.integers(0, NUM_LABELS, num)))

        picture = Example(picture=io.BytesIO(photograph).getvalue())
        requests = {
            "a picture": lambda: (picture,),
            "three words": lambda: (ask(3),),
            "three words with a typo": lambda: (ask(3, "q"),),
            "a word that every image has": lambda: (Example(text="photograph"),),
            "a picture and three words": lambda: (picture, ask(3)),
        }
        for name, build in requests.items():
            seconds = []
            for _ in range(NUM_ROUNDS + NUM_WARM):
                request = SearchRequest(plus=build())
                start = time.perf_counter()
                searcher.answer(request)
                seconds.append(time.perf_counter() - start)
            seconds = seconds[NUM_WARM:]
            note = f"p95 {1000 * np.percentile(seconds, 95):.1f} ms"
            lines += time_lines(SECTION, f"{name}, {num_images:,} images", {"vitrieve": seconds}, "ms", note=note)
        searcher.close()
    return lines


if __name__ == "__main__":
    main(measure, __doc__)
