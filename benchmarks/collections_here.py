"""Collections, clip art, photographs and real embeddings for the benchmarks: Grocery where it is, emoji otherwise."""

from __future__ import annotations

import os
import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from vitrieve.data.records import Dataset, ImageRecord
from vitrieve.data.sources import read_source
from vitrieve.machine import cache_folder

ENCODER, IMAGE_SIZE = "dinov2-vits14", 112
FEW = 3_000
"""Pictures that are enough for the classes of a quick run."""
CLIP_ART = Path("/usr/share/openclipart/png")
"""Where the package openclipart-png has its drawings."""
MIN_DRAWINGS = 8
"""Drawings that a class of clip art has at least."""
NOISE_NORM = 0.35
"""Length of the noise of a copy: a cosine near 0.94, as between two crops of a picture."""


def find_grocery() -> Path | None:
    """Return the folder of Grocery; None where it is not."""
    return find_folder("grocery-store")


def find_folder(name: str) -> Path | None:
    """Return the folder of a data set, below ``VITRIEVE_DATA`` or beside the checkout; None where it is not."""
    roots = [Path(os.environ["VITRIEVE_DATA"])] if "VITRIEVE_DATA" in os.environ else []
    roots.append(Path(__file__).parents[2] / "shared" / "datasets")
    return next((root / name for root in roots if (root / name).is_dir()), None)


def find_collections() -> dict[str, str]:
    """Return the source of each collection that is here, by its name; emoji are fetched when they are first read."""
    folders = {
        "grocery": ("grocery:{}", find_grocery()),
        "clothing-small": ("folder:{}/images", find_folder("clothing-small")),
        "cub200-subset": ("cub200:{}", find_folder("cub200-subset")),
    }
    found = {name: spelling.format(folder) for name, (spelling, folder) in folders.items() if folder is not None}
    return {"emoji": "emoji", **found}


def spell(label: str) -> str:
    """Turn the name of a class into words.

    >>> spell("001.Black_footed_Albatross"), spell("Golden-Delicious")
    ('Black footed Albatross', 'Golden Delicious')
    """
    return " ".join(re.sub(r"^\d+\.", "", label).replace("_", " ").replace("-", " ").split())


def read_clip_art(folder: Path) -> Dataset:
    """Read the drawings below a folder; those in folders of one name are a class.

    Raises:
        SystemExit: The package is not installed.
    """
    of_class: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.rglob("*.png")):
        of_class[spell(path.parent.name)].append(path)
    names = sorted(name for name, paths in of_class.items() if len(paths) >= MIN_DRAWINGS)
    if not names:
        raise SystemExit(f"no drawings below {folder}: install the package openclipart-png of Debian.")
    records = [
        ImageRecord(
            image_id=path.relative_to(folder).as_posix(),
            path=path,
            label=label,
            split="test" if label % 2 else "train",
        )
        for label, name in enumerate(names)
        for path in of_class[name]
    ]
    return Dataset(name="clip-art", protocol="zero_shot", records=records, label_names=tuple(names))


def read_photographs() -> tuple[str, list[ImageRecord]]:
    """Return the source's name and its pictures."""
    folder = find_grocery()
    source = "emoji" if folder is None else f"grocery:{folder}"
    return source.partition(":")[0], list(read_source(source).records)


def ensure_real_vectors(num_wanted: int | None = None) -> np.ndarray:
    """Embed Grocery (where it is) and emoji, unless an earlier run did; ``(N, 384)`` float32 in the cache's folder.

    Args:
        num_wanted: Up to ``FEW`` are the first pictures alone, so that a quick run need not wait; None: all.
    """
    name = "emoji" if find_grocery() is None else "grocery-emoji"
    path = cache_folder() / "benchmarks" / f"vectors-{name}.npy"
    num_records = None
    if num_wanted is not None and num_wanted <= FEW and not path.exists():
        path, num_records = path.with_name(f"vectors-{name}-{FEW}.npy"), FEW
    if not path.exists():
        _embed_pictures(path, num_records)
    return np.load(path)


def _embed_pictures(path: Path, num_records: int | None) -> None:
    from vitrieve.embed.batches import encode_batches
    from vitrieve.runtime.encoder import load_encoder

    encoder = load_encoder(ENCODER, image_size=IMAGE_SIZE)
    records = read_photographs()[1]
    if find_grocery() is not None and (num_records is None or num_records > len(records)):
        records += read_source("emoji").records
    records = records[:num_records]
    batches = [records[start : start + 32] for start in range(0, len(records), 32)]
    print(f"embedding {len(records):,} pictures, once", file=sys.stderr, flush=True)
    vectors = np.concatenate([batch.vectors for batch in encode_batches(encoder, batches)])
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"partial-{os.getpid()}.npy")
    np.save(partial, vectors)
    partial.replace(path)


def make_vectors(num_rows: int, num_dims: int, num_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(N, E)`` unit vectors, real ones with noise (a real one a class), and their labels ``(N,)``."""
    generator = np.random.default_rng(seed)
    real = ensure_real_vectors(num_classes)
    real = np.pad(real, ((0, 0), (0, max(0, num_dims - real.shape[1]))))[:, :num_dims]
    labels = np.arange(num_rows) % num_classes
    vectors = np.empty((num_rows, num_dims), dtype=np.float32)
    for start in range(0, num_rows, 65_536):
        stop = min(start + 65_536, num_rows)
        noise = generator.standard_normal((stop - start, num_dims), dtype=np.float32)
        noise *= NOISE_NORM / np.linalg.norm(noise, axis=1, keepdims=True)
        vectors[start:stop] = real[labels[start:stop] % len(real)] + noise
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors, labels
