"""What every re-ranking does to Recall and MAP@R, what it costs, and what a hold-out would keep.

    python benchmarks/reranking.py OUT [--encoder dinov2-vits14] [--image-size 126] [--data emoji/zero_shot]

On Grocery (phone_to_catalogue and zero_shot), emoji and cub200-subset, or those of them that are named and are here.
For each, every way of rerank/reranker.py and the head of ELViS, learned on the training classes, is measured on the
test classes: all metrics, milliseconds a query, bytes an image. Beside it stands what `vitrieve evaluate --rerank auto`
keeps after measuring on held-out training classes. Every result names its encoder.

A stopped run goes on where it was: OUT/COLLECTION-PROTOCOL.json is written when a collection is done, and measured anew
with another encoder. The end writes benchmarks/results/reranking_DATE.json and prints its tables.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from collections_here import find_collections
from contest import RESULTS, write_result

from vitrieve.artifacts import write_text_durably
from vitrieve.data.sources import read_source
from vitrieve.embed.collection import EmbedSettings
from vitrieve.evaluation.reranking import choose_reranking, report_rerankings
from vitrieve.evaluation.run import measure_protocols
from vitrieve.rerank.names import LEARNT
from vitrieve.rerank.reranker import RERANKERS
from vitrieve.runtime.encoder import Encoder, load_encoder

MEASURED = ("grocery/phone_to_catalogue", "grocery/zero_shot", "emoji/zero_shot", "cub200-subset/zero_shot")
SETTINGS = EmbedSettings(show_progress=True)


def measure_one(encoder: Encoder, collection: str, protocol: str) -> dict[str, Any]:
    """Measure every way on the test classes, then choose on held-out ones."""
    dataset = read_source(find_collections()[collection], protocol=protocol)
    (measurement,) = measure_protocols(encoder, [dataset], encoder.name, settings=SETTINGS, has_intervals=True)
    (tested,) = report_rerankings(measurement, encoder, (*RERANKERS, LEARNT), SETTINGS)
    chosen = choose_reranking(encoder, dataset, name=encoder.name, settings=SETTINGS)
    return {
        "data": f"{collection}/{protocol}",
        "encoder": encoder.name,
        "fingerprint": encoder.fingerprint,
        "image_size": encoder.preprocessing.image_size,
        "engine": f"{encoder.engine} {encoder.precision}",
        "intervals": measurement.result.to_json()["intervals"],
        "test": tested.to_json(),
        "held_out": chosen.to_json(),
        "text": f"{tested}\n\n{chosen}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--encoder", default="dinov2-vits14")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--data", nargs="+", choices=MEASURED, default=list(MEASURED))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    encoder = load_encoder(arguments.encoder, image_size=arguments.image_size)
    found: list[dict[str, Any]] = []
    for name in arguments.data:
        collection, _, protocol = name.partition("/")
        if collection not in find_collections():
            print(f"{name}: not here")
            continue
        path = arguments.out / f"{collection}-{protocol}.json"
        if not path.is_file() or json.loads(path.read_text())["fingerprint"] != encoder.fingerprint:
            write_text_durably(path, json.dumps(measure_one(encoder, collection, protocol), indent=2) + "\n")
        found.append(json.loads(path.read_text()))
        print(found[-1]["text"], end="\n\n", flush=True)
    results = RESULTS / f"reranking_{time.strftime('%Y-%m-%d')}.json"
    write_result(results, {"figures": found})
    print(f"written: {results}")


if __name__ == "__main__":
    main()
