"""What every re-ranking does to Recall and MAP@R, what it costs, and what a hold-out would keep.

    python benchmarks/reranking.py OUT [--encoder dinov2-vits14] [--image-size 126] [--data emoji/zero_shot]

On Grocery (phone_to_catalogue and zero_shot), emoji and cub200-subset, or those of them that are named and are here.
For each, every way of rerank/reranker.py and the head of ELViS, learned on the training classes, is measured on the
test classes: all metrics, milliseconds a query, bytes an image. Beside it stands what `vitrieve evaluate --rerank auto`
keeps after measuring on held-out training classes. Every result names its encoder.

A stopped run goes on where it was: OUT/COLLECTION-PROTOCOL keeps the head once it is learned, and what was measured on
the test classes and on the held-out ones; all is made anew with another encoder. The results so far are in
benchmarks/results/reranking_DATE.json after each collection, and their tables are printed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from collections_here import find_collections
from contest import RESULTS, write_result

from vitrieve.data.records import Dataset
from vitrieve.data.sources import read_source
from vitrieve.embed.collection import EmbedSettings
from vitrieve.evaluation.reranking import choose_reranking, learn_for_choice, report_rerankings
from vitrieve.evaluation.run import measure_protocols
from vitrieve.rerank.names import LEARNT
from vitrieve.rerank.remember import KeptReranking, load_kept, save_kept
from vitrieve.rerank.reranker import RERANKERS, Reranker
from vitrieve.runtime.encoder import Encoder, load_encoder
from vitrieve.writing import write_text_durably

MEASURED = ("grocery/phone_to_catalogue", "grocery/zero_shot", "emoji/zero_shot", "cub200-subset/zero_shot")
SETTINGS = EmbedSettings(show_progress=True)


def measure_one(encoder: Encoder, collection: str, protocol: str, folder: Path) -> dict[str, Any]:
    """Measure every way on the test classes, then choose on held-out ones; ``folder`` keeps each part."""
    dataset = read_source(find_collections()[collection], protocol=protocol)

    def test() -> dict[str, Any]:
        learnt = learn_once(encoder, dataset, folder)
        (measurement,) = measure_protocols(encoder, [dataset], encoder.name, settings=SETTINGS, has_intervals=True)
        ways = (*RERANKERS, LEARNT)
        (tested,) = report_rerankings(measurement, encoder, ways, SETTINGS, learnt=learnt)
        intervals = measurement.result.to_json()["intervals"]
        return {"intervals": intervals, "test": tested.to_json(), "text": str(tested)}

    def choose() -> dict[str, Any]:
        learnt = learn_once(encoder, dataset, folder)
        chosen = choose_reranking(encoder, dataset, name=encoder.name, settings=SETTINGS, learnt=learnt)
        return {"held_out": chosen.to_json(), "text": str(chosen)}

    tested, chosen = (keep_part(folder / f"{part.__name__}.json", encoder, part) for part in (test, choose))
    return {
        "data": f"{collection}/{protocol}",
        "encoder": encoder.name,
        "fingerprint": encoder.fingerprint,
        "image_size": encoder.preprocessing.image_size,
        "engine": f"{encoder.engine} {encoder.precision}",
        **tested,
        **chosen,
        "text": f"{tested['text']}\n\n{chosen['text']}",
    }


def learn_once(encoder: Encoder, dataset: Dataset, folder: Path) -> Reranker | None:
    """Learn the head on training classes, unless an earlier part or run did."""
    kept = load_kept(folder)
    if kept is not None and kept.fingerprint == encoder.fingerprint:
        return kept.reranker
    learnt = learn_for_choice(encoder, dataset, SETTINGS)
    if learnt is not None:
        kept = KeptReranking(name=LEARNT, fingerprint=encoder.fingerprint, reason="learned", head=learnt.head)
        save_kept(kept, folder)
    return learnt


def keep_part(path: Path, encoder: Encoder, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Measure a part, unless an earlier run did with the same encoder."""
    if not path.is_file() or json.loads(path.read_text())["fingerprint"] != encoder.fingerprint:
        measured = {"fingerprint": encoder.fingerprint, **measure()}
        write_text_durably(path, json.dumps(measured, indent=2) + "\n")
    kept: dict[str, Any] = json.loads(path.read_text())
    return kept


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
    results = RESULTS / f"reranking_{time.strftime('%Y-%m-%d')}.json"
    for name in arguments.data:
        collection, _, protocol = name.partition("/")
        if collection not in find_collections():
            print(f"{name}: not here")
            continue
        folder = arguments.out / f"{collection}-{protocol}"
        folder.mkdir(exist_ok=True)
        found.append(measure_one(encoder, collection, protocol, folder))
        print(found[-1]["text"], end="\n\n", flush=True)
        write_result(results, {"figures": found})
    print(f"written: {results}" if found else "nothing was measured")


if __name__ == "__main__":
    main()
