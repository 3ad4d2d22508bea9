"""The map of a collection: computed once, kept beside the index, and computed anew when the index changed.

``map.parquet`` in the folder of the index (or of the embeddings) has a row for each picture: ``image_id``, ``x`` and
``y`` in [-1, 1], ``cluster``, ``nearest`` and ``nearest_similarity``, and the columns of its metadata. Its schema says
in the entry ``vitrieve_map`` of what vectors it was computed. It can be read as it is, by embedding-atlas for example.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vitrieve.curation.material import Material, open_material
from vitrieve.errors import ArtifactError, ConfigError, DataError
from vitrieve.mapping.clusters import choose_num_clusters, find_clusters
from vitrieve.mapping.layout import (
    NUM_NEIGHBORS,
    NUM_PLAIN,
    check_library,
    count_measured_neighbors,
    lay_out,
    measure_layout,
)
from vitrieve.mapping.neighbors import Neighbors, find_neighbors
from vitrieve.settings import check_seed
from vitrieve.similarity import IntArray
from vitrieve.writing import check_writable, replacing_durably

MAP_NAME = "map.parquet"
FORMAT_VERSION = 2
MAX_IMAGES = 500_000
"""The most pictures of a map: the time of their exact neighbors grows with the square of their number."""
FETCHED = 4096
"""Records read at a time."""
OWN_COLUMNS = ("image_id", "x", "y", "cluster", "nearest", "nearest_similarity")
_ENTRY = b"vitrieve_map"


@dataclass(frozen=True, kw_only=True)
class CollectionMap:
    """A map: a place and a group for every picture.

    Attributes:
        table: ``image_id`` (text), ``x`` and ``y`` (float32 in [-1, 1]), ``cluster`` (int32, from 0 for the largest),
            ``nearest`` (text: the most similar other picture; null for a single one), ``nearest_similarity`` (float32),
            and a column of texts for each column of metadata; one that has the name of another is ``metadata_NAME``.
            Where pictures are of several splits, ``split`` is such a column.
        digest: Digest of the names and vectors, the seed and the method.
        figures: How well the places keep the neighbors, as ``measure_layout`` gives it.
        path: Where the map is kept.
        is_reused: Whether places and groups were those of an earlier call.
        seconds: Times of its parts.
    """

    table: pa.Table
    digest: str
    figures: Mapping[str, float]
    path: Path
    is_reused: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def num_images(self) -> int:
        """Count the pictures."""
        return int(self.table.num_rows)

    @property
    def num_clusters(self) -> int:
        """Count the groups."""
        return int(np.max(self.clusters, initial=-1)) + 1

    @property
    def columns(self) -> list[str]:
        """List the names of the columns of metadata."""
        return list(self.table.column_names[len(OWN_COLUMNS) :])

    @property
    def image_ids(self) -> list[str]:
        """List the names of the pictures."""
        names: list[str] = self.table["image_id"].to_pylist()
        return names

    @property
    def places(self) -> np.ndarray:
        """Return ``(N, 2)`` float32."""
        return np.stack([self.table[name].to_numpy() for name in ("x", "y")], axis=1)

    @property
    def clusters(self) -> IntArray:
        """Return ``(N,)`` numbers of groups."""
        return np.asarray(self.table["cluster"].to_numpy(), dtype=np.int64)

    @property
    def nearest(self) -> IntArray:
        """Return ``(N,)`` rows of the most similar other pictures; -1 where there is none."""
        rows = {image_id: row for row, image_id in enumerate(self.image_ids)}
        return np.array([rows.get(name, -1) for name in self.table["nearest"].to_pylist()], dtype=np.int64)

    def to_json(self) -> dict[str, Any]:
        """Return what ``vitrieve map --json`` prints."""
        return {
            "points": str(self.path),
            "num_images": self.num_images,
            "num_clusters": self.num_clusters,
            "is_reused": self.is_reused,
            **{name: round(value, 4) for name, value in self.figures.items()},
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
        }

    def __str__(self) -> str:
        """Say in a line what was made."""
        recall, k = self.figures.get("neighbor_recall"), count_measured_neighbors(self.num_images)
        near = "nearest" if k == 1 else f"{k} nearest"
        kept = "" if recall is None else f"; {100 * recall:.0f} % of the {near} pictures are among the {near} here"
        state = "as it was kept" if self.is_reused else "laid out anew"
        return f"map {state}: pictures {self.num_images:,}, groups {self.num_clusters}{kept}"


def map_collection(folder: Path | str, *, seed: int = 0, show_progress: bool = False) -> CollectionMap:
    """Make the map of an index or of embeddings, and keep it in its folder.

    Places and groups are computed only where names, vectors or seed are not those of the map that is there; metadata is
    always read anew.

    Args:
        folder: Folder of an index or of embeddings.
        seed: Seed of the layout: on one machine, the same vectors and seed give the same map, bit for bit.
        show_progress: Report progress on standard error.

    Raises:
        ConfigError: No such seed, no extra ``map``, or more than ``MAX_IMAGES`` pictures.
        DataError: There is no picture, or the index changed while it was read.
        ArtifactError: The folder is missing, unfinished, damaged, of another kind, or read-only.
        DiskFullError: The map cannot be written.
    """
    check_seed(seed)
    folder = Path(folder)
    seconds: dict[str, float] = {}
    with ExitStack() as stack:
        with _timed("read", seconds):
            material = _open(folder, stack)
        check_writable(folder)
        digest = _digest(material, seed)
        path = folder / MAP_NAME
        old = find_map(folder)
        figures: Mapping[str, float]
        if old is not None and old.digest == digest:
            computed, figures = old.table.select(OWN_COLUMNS[1:]), old.figures
            is_reused = True
        else:
            computed, figures = _compute(material, seed, seconds, show_progress)
            is_reused = False
        with _timed("write", seconds):
            table = _build_table(material, computed, {"digest": digest, "seed": seed, "figures": figures})
            _write(path, table)
    return CollectionMap(table=table, digest=digest, figures=figures, path=path, is_reused=is_reused, seconds=seconds)


@contextmanager
def _timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Note how long a block takes."""
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


def _open(folder: Path, stack: ExitStack) -> Material:
    if not (folder / "manifest.json").is_file():
        raise ArtifactError(f"{folder} is no finished index and no embeddings; make one with vitrieve up or embed.")
    material = open_material(folder, None, stack, has_vectors=True)
    num_images = len(material.image_ids)
    if num_images == 0:
        raise DataError(f"{folder} holds no picture, so there is nothing to map; add some with vitrieve sync.")
    if num_images > MAX_IMAGES:
        raise ConfigError(
            f"{folder} holds {num_images:,} pictures; a map takes at most {MAX_IMAGES:,}. Map a part of the collection."
        )
    return material


def _compute(
    material: Material, seed: int, seconds: dict[str, float], show_progress: bool
) -> tuple[pa.Table, dict[str, float]]:
    """Return the columns ``OWN_COLUMNS`` but for the first, and how well the places keep the neighbors."""
    vectors = np.asarray(material.vectors)
    check_library(len(vectors))
    if len(vectors) == 1:
        nobody = Neighbors(np.full((1, 1), -1), np.full((1, 1), np.nan, dtype=np.float32))
        return _build_computed(material, np.zeros((1, 2), dtype=np.float32), np.zeros(1, dtype=np.int64), nobody), {}
    with _timed("neighbors", seconds):
        neighbors = find_neighbors(vectors, NUM_NEIGHBORS, shown_as="nearest vectors" if show_progress else None)
    with _timed("layout", seconds):
        places = lay_out(vectors, neighbors, seed=seed, show_progress=show_progress)
    with _timed("clusters", seconds):
        clusters = find_clusters(neighbors, choose_num_clusters(len(vectors)))
    with _timed("measure", seconds):
        figures = measure_layout(vectors, places, seed=seed)
    return _build_computed(material, places, clusters, neighbors), figures


def _build_computed(material: Material, places: np.ndarray, clusters: IntArray, neighbors: Neighbors) -> pa.Table:
    names = [None if row < 0 else _spell(material.image_ids[row]) for row in neighbors.rows[:, 0].tolist()]
    return pa.table(
        {
            "x": pa.array(places[:, 0], pa.float32()),
            "y": pa.array(places[:, 1], pa.float32()),
            "cluster": pa.array(clusters, pa.int32()),
            "nearest": pa.array(names, pa.string()),
            "nearest_similarity": pa.array(neighbors.similarities[:, 0], pa.float32(), from_pandas=True),
        }
    )


def _digest(material: Material, seed: int) -> str:
    """Hash all that places and groups depend on."""
    digest = hashlib.sha256(json.dumps([FORMAT_VERSION, seed, NUM_NEIGHBORS, NUM_PLAIN]).encode())
    for image_id in material.image_ids:
        digest.update(json.dumps(image_id).encode() + b"\n")
    for start in range(0, len(material.vectors), FETCHED):
        digest.update(np.ascontiguousarray(material.vectors[start : start + FETCHED], dtype="<f4").tobytes())
    return digest.hexdigest()


def _build_table(material: Material, computed: pa.Table, entry: Mapping[str, Any]) -> pa.Table:
    columns: dict[str, Any] = {
        "image_id": pa.array([_spell(image_id) for image_id in material.image_ids], pa.string()),
        **{name: computed[name] for name in computed.column_names},
    }
    for name, values in _read_metadata(material).items():
        own = name in columns or name.startswith("metadata_")
        columns[f"metadata_{name}" if own else name] = pa.array(values, pa.string())
    value = json.dumps({"format_version": FORMAT_VERSION, **entry}).encode()
    return pa.table(columns).replace_schema_metadata({_ENTRY: value})


def _read_metadata(material: Material) -> dict[str, list[str | None]]:
    """Return the metadata by column, a value or None for each picture; and the splits where there are several."""
    num_images = len(material.image_ids)
    columns: dict[str, list[str | None]] = {}
    splits: list[str | None] = [None] * num_images
    for start in range(0, num_images, FETCHED):
        rows = range(start, min(start + FETCHED, num_images))
        for row, record in zip(rows, material.fetch(rows), strict=True):
            splits[row] = record.split
            for name, value in record.metadata.items():
                columns.setdefault(_spell(name), [None] * num_images)[row] = _spell(value)
    if len(set(splits)) > 1:
        columns.setdefault("split", splits)
    return dict(sorted(columns.items()))


def _spell(text: str) -> str:
    r"""Spell bytes that are no text as ``\xNN``: Parquet holds UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def _write(path: Path, table: pa.Table) -> None:
    try:
        with replacing_durably(path) as temporary, temporary.open("wb") as file:
            pq.write_table(table, file)  # pyarrow opens no file whose name is not UTF-8
    except OSError as error:
        raise ArtifactError(f"the map cannot be kept in {path.parent} ({error}); make the folder writable.") from None


def write_points(collection_map: CollectionMap, path: Path | str) -> None:
    """Write the map to another Parquet file, for embedding-atlas or other programs.

    Args:
        collection_map: The map.
        path: File to write; its folder is made where needed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, collection_map.table)


def find_map(folder: Path | str) -> CollectionMap | None:
    """Read the map that is kept in a folder; None where there is none that can be read.

    It may be of an earlier state of the index.
    """
    path = Path(folder) / MAP_NAME
    try:
        table = pq.read_table(path)
        entry = json.loads((table.schema.metadata or {})[_ENTRY])
        if entry["format_version"] != FORMAT_VERSION or table.column_names[: len(OWN_COLUMNS)] != list(OWN_COLUMNS):
            return None
        return CollectionMap(
            table=table, digest=entry["digest"], figures=dict(entry["figures"]), path=path, is_reused=True
        )
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError):
        return None
