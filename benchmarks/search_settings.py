"""Where two constants of searching come from: the weight of a minus example, and the similarity of near-duplicates.

    python benchmarks/search_settings.py OUT

Frozen dinov2-vits14 at 112 px; embeddings are kept in OUT (those of benchmarks/reranking_settings.py are taken). Writes
benchmarks/results/search_settings_DATE.jsonl, and prints it.

- minus: 800 images of the training split ask; the first of the ten nearest that is of another class is the minus
  example. What share of the ten nearest is then of the query's class (wanted), and of the minus example's (unwanted)?
- changed: how similar to itself is a picture that was changed a little? (60 pictures of the test split; percentiles 1,
  5, 25 and 50.) Beside it: what share of the test images has another image that near?
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from vitrieve.artifacts import MANIFEST_NAME
from vitrieve.data.decode import read_image
from vitrieve.data.sources import read_source
from vitrieve.embed.collection import embed_collection
from vitrieve.embed.embeddings import Embeddings, load_embeddings
from vitrieve.runtime.encoder import Encoder, load_encoder

ENCODER, IMAGE_SIZE = "dinov2-vits14", 112
MINUS_WEIGHTS = (0.0, 0.05, 0.15, 0.3, 0.5, 0.7)
NEAR = (0.97, 0.98, 0.985, 0.99, 0.995)
NUM_QUERIES, NUM_CHANGED = 800, 60


def save_again(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def cut(image: Image.Image, part: float) -> Image.Image:
    width, height = image.size
    return image.crop((int(width * part), int(height * part), int(width * (1 - part)), int(height * (1 - part))))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG of quality 50": lambda image: save_again(image, 50),
    "JPEG of quality 20": lambda image: save_again(image, 20),
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS),
    "15 % brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "2 % cut from every edge": lambda image: cut(image, 0.02),
    "5 % cut from every edge": lambda image: cut(image, 0.05),
}


def take_split(embeddings: Embeddings, split: str) -> tuple[np.ndarray, np.ndarray, list[int]]:
    rows = [row for row, record in enumerate(embeddings.records) if record.split == split]
    labels = np.array([embeddings.records[row].label for row in rows])
    return np.asarray(embeddings.vectors[rows], dtype=np.float32), labels, rows


def measure_minus(vectors: np.ndarray, labels: np.ndarray) -> Iterator[dict[str, Any]]:
    queries = np.random.default_rng(0).choice(len(labels), NUM_QUERIES, replace=False)
    pairs = []
    for query in queries:
        similarities = vectors @ vectors[query]
        similarities[query] = -np.inf
        wrong = [row for row in np.argsort(-similarities)[:10] if labels[row] != labels[query]]
        pairs += [(query, wrong[0])] if wrong else []
    for weight in MINUS_WEIGHTS:
        shares = []
        for query, minus in pairs:
            similarities = vectors @ (vectors[query] - weight * vectors[minus])
            similarities[[query, minus]] = -np.inf
            first = labels[np.argsort(-similarities)[:10]]
            shares.append(((first == labels[query]).mean(), (first == labels[minus]).mean()))
        wanted, unwanted = np.mean(shares, axis=0).round(3).tolist()
        yield {"kind": "minus", "weight": weight, "wanted": wanted, "unwanted": unwanted, "num_queries": len(pairs)}


def measure_changes(encoder: Encoder, embeddings: Embeddings) -> Iterator[dict[str, Any]]:
    vectors, _, rows = take_split(embeddings, "test")
    drawn = np.random.default_rng(0).permutation(len(rows))[:NUM_CHANGED]
    images = [read_image(embeddings.records[rows[place]]) for place in drawn]
    for name, change in CHANGES.items():
        cosines = (encoder.encode([change(image) for image in images]) * vectors[drawn]).sum(axis=1)
        yield {
            "kind": "changed",
            "change": name,
            "percentiles": np.percentile(cosines, [1, 5, 25, 50]).round(4).tolist(),
        }
    similarities = vectors @ vectors.T
    np.fill_diagonal(similarities, -np.inf)
    nearest = similarities.max(axis=1)
    for near in NEAR:
        yield {"kind": "another that near", "similarity": near, "share": round(float((nearest >= near).mean()), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    encoder = load_encoder(ENCODER, image_size=IMAGE_SIZE)
    path = Path(__file__).parent / "results" / f"search_settings_{time.strftime('%Y-%m-%d')}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for name in ("grocery", "emoji"):
            if not (arguments.out / name / MANIFEST_NAME).is_file():
                embed_collection(encoder, read_source(name), arguments.out / name, is_resume=True)
            embeddings = load_embeddings(arguments.out / name)
            vectors, labels, _ = take_split(embeddings, "train")
            for results in (measure_minus(vectors, labels), measure_changes(encoder, embeddings)):
                for result in results:
                    line = json.dumps({"data": name, **result})
                    print(line, flush=True)
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
