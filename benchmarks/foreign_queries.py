"""Does a search say so when the wanted thing is not in the collection? Emoji against Grocery, and the reverse.

    python benchmarks/foreign_queries.py OUT [--num-queries 500]

Frozen dinov2-vits14 at 112 px; embeddings are kept in OUT (those of benchmarks/reranking_settings.py are taken). For
each collection an exact index of its test split is calibrated four ways, and asked by its own images (each leaves
itself out) and by those of the other collection. Writes benchmarks/results/foreign_queries_DATE.jsonl and prints a
table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

import numpy as np

from vitrieve.artifacts import MANIFEST_NAME
from vitrieve.data.sources import read_source
from vitrieve.embed.collection import embed_collection
from vitrieve.embed.embeddings import Embeddings, load_embeddings
from vitrieve.index.open import build_index
from vitrieve.index.store import VectorStore
from vitrieve.runtime.encoder import load_encoder
from vitrieve.search.request import Example, SearchRequest
from vitrieve.search.searcher import Searcher
from vitrieve.search.threshold import Threshold, calibrate_embeddings, calibrate_index

ENCODER, IMAGE_SIZE = "dinov2-vits14", 112
SOURCES = ("grocery", "emoji")


def take_split(embeddings: Embeddings, split: str) -> Embeddings:
    rows = [row for row, record in enumerate(embeddings.records) if record.split == split]
    records = tuple(embeddings.records[row] for row in rows)
    return dataclasses.replace(embeddings, vectors=np.asarray(embeddings.vectors[rows]), records=records)


def calibrate(store: VectorStore, held_out: Embeddings) -> dict[str, Threshold]:
    return {
        "own classes, balanced": calibrate_index(store, column="label"),
        "own classes, false accepts 5 %": calibrate_index(store, column="label", false_accept_rate=0.05),
        "without classes, false rejects 5 %": calibrate_index(store, column=None),
        "training classes, balanced": calibrate_embeddings(held_out, name="training split"),
    }


def count_matches(searcher: Searcher, examples: list[Example]) -> float:
    answers = [searcher.answer(SearchRequest(plus=(example,), k=1)) for example in examples]
    return float(np.mean([bool(answer.is_match) for answer in answers]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--num-queries", type=int, default=500)
    arguments = parser.parse_args()
    encoder = load_encoder(ENCODER, image_size=IMAGE_SIZE)
    found = {}
    for name in SOURCES:
        if not (arguments.out / name / MANIFEST_NAME).is_file():
            embed_collection(encoder, read_source(name), arguments.out / name, is_resume=True)
        found[name] = load_embeddings(arguments.out / name)
    path = Path(__file__).parent / "results" / f"foreign_queries_{time.strftime('%Y-%m-%d')}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for name, other in zip(SOURCES, reversed(SOURCES), strict=True):
            own, foreign = take_split(found[name], "test"), take_split(found[other], "test")
            store = build_index(own, arguments.out / f"{name}-index", store="exact", overwrite=True)
            generator = np.random.default_rng(0)
            drawn = [generator.choice(len(some.records), arguments.num_queries, False) for some in (own, foreign)]
            own_examples = [Example(image_id=own.records[row].image_id) for row in drawn[0]]
            foreign_examples = [Example(vector=foreign.vectors[row]) for row in drawn[1]]
            for method, threshold in calibrate(store, take_split(found[name], "train")).items():
                searcher = Searcher(store, encoder, threshold=threshold)
                result = {
                    "index": name, "method": method, **dataclasses.asdict(threshold),
                    "own_matched": count_matches(searcher, own_examples),
                    "foreign_matched": count_matches(searcher, foreign_examples),
                }  # fmt: skip
                file.write(json.dumps(result) + "\n")
                file.flush()
                accepted = threshold.false_accept_rate
                print(
                    f"| {name} | {method} | {threshold.score:.3f} | {100 * result['own_matched']:.1f} | "
                    f"{'' if accepted is None else f'{100 * accepted:.1f}'} | {100 * result['foreign_matched']:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
