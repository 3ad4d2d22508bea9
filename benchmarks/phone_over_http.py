"""`vitrieve up` on a catalogue: seconds until the page is ready, and phone photographs asked over HTTP.

    python benchmarks/phone_over_http.py GROCERY_FOLDER OUT [--encoder dinov2-vits14] [--num-queries 200]

A copy of the catalogue pictures (GROCERY_FOLDER/iconic) is brought up with an empty index; test photographs drawn with
a fixed seed are sent to POST /search?k=1, and the product of the first answer is compared with theirs. Beside it, for
the same encoder: Recall@1 of `vitrieve evaluate --protocol phone_to_catalogue`, over all test photographs, and over the
drawn ones alone (embedded and ranked in this process). Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from contest import processor_name

from vitrieve.data.records import ImageRecord
from vitrieve.data.sources import read_source
from vitrieve.embed.batches import encode_batches
from vitrieve.runtime.encoder import load_encoder
from vitrieve.similarity import top_k

PROTOCOL = "phone_to_catalogue"


def measure_over_http(
    words: list[str], queries: list[ImageRecord], products: dict[str, int], out: Path
) -> dict[str, Any]:
    """Bring the catalogue up, ask, and stop it; ``products`` gives the label of each image of the index."""
    begun = time.monotonic()
    with (out / "up.log").open("w") as log:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        while httpx.get(f"{address}readyz", timeout=60).status_code != 200:
            time.sleep(0.05)
        httpx.get(address, timeout=60).raise_for_status()
        ready_seconds = time.monotonic() - begun
        num_right, seconds = 0, []
        for query in queries:
            begun = time.monotonic()
            answer = (
                httpx.post(f"{address}search?k=1", content=query.path.read_bytes(), timeout=60)
                .raise_for_status()
                .json()
            )
            seconds.append(time.monotonic() - begun)
            num_right += products[answer["results"][0]["image_id"]] == query.label
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    return {
        "page_ready_seconds": ready_seconds,
        "recall_at_1_over_http": num_right / len(queries),
        "p50_ms": 1e3 * float(np.percentile(seconds, 50)),
        "p95_ms": 1e3 * float(np.percentile(seconds, 95)),
    }


def measure_here(encoder_name: str, queries: list[ImageRecord], gallery: list[ImageRecord]) -> float:
    """Return Recall@1 of the same photographs, embedded and ranked without service, index or files in between."""
    encoder = load_encoder(encoder_name)
    asked, found = (
        np.concatenate([batch.vectors for batch in encode_batches(encoder, [records])])
        for records in (queries, gallery)
    )
    nearest = top_k(asked, found, 1)[1][:, 0]
    return float(np.mean([gallery[row].label == query.label for row, query in zip(nearest, queries, strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--encoder", default="dinov2-vits14")
    parser.add_argument("--num-queries", type=int, default=200)
    arguments = parser.parse_args()
    out, folder = arguments.out, arguments.folder
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    catalogue = out / "iconic"
    shutil.copytree(folder / "iconic", catalogue)
    records = read_source(f"grocery:{folder}", protocol=PROTOCOL).records
    gallery = [record for record in records if record.is_gallery and not record.is_query and record.split == "test"]
    phones = [record for record in records if record.is_query and record.split == "test"]
    chosen = np.random.default_rng(0).choice(len(phones), arguments.num_queries, replace=False)
    queries = [phones[row] for row in chosen]
    products = {record.path.relative_to(folder / "iconic").as_posix(): record.label for record in gallery}
    words = [sys.executable, "-m", "vitrieve"]
    up = [*words, "up", str(catalogue), "--index", str(out / "index"), "--encoder", arguments.encoder, "--port", "0"]
    result = measure_over_http(up, queries, products, out)
    evaluate = ["evaluate", "--encoder", arguments.encoder, "--data", f"grocery:{folder}", "--protocol", PROTOCOL]
    evaluate += ["--no-report", "--json", "--out", str(out / "evaluation")]
    evaluated = json.loads(subprocess.run([*words, *evaluate], stdout=subprocess.PIPE, check=True).stdout)
    result |= {
        "recall_at_1_evaluate": evaluated["results"][0]["recall_at_1"],
        "recall_at_1_same_photographs": measure_here(arguments.encoder, queries, gallery),
        "encoder": arguments.encoder,
        "num_queries": len(queries),
        "num_catalogue": len(gallery),
        "date": time.strftime("%Y-%m-%d"),
        "machine": processor_name(),
        "num_cores": os.cpu_count(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
