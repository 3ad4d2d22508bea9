"""A place in the plane for every picture, from its exact neighbors; ``clusters.py`` is next.

t-SNE by openTSNE: its repulsion is interpolated on a grid, so that a step costs the same for each picture whatever
their number, and it compiles nothing when it starts. It begins at the first two principal components, and runs in one
thread: so one seed gives one map.

Source: L. van der Maaten and G. Hinton, "Visualizing Data using t-SNE", 2008; G. Linderman et al., "Fast
interpolation-based t-SNE", 2019; D. Kobak and P. Berens, "The art of using t-SNE for single-cell transcriptomics", 2019
(start and learning rate).
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from importlib.util import find_spec
from typing import Any

import numpy as np

from vitrieve.errors import ConfigError
from vitrieve.mapping.neighbors import Neighbors
from vitrieve.progress import track
from vitrieve.similarity import BLOCK_BYTES, FloatArray, similarity_chunks

NUM_NEIGHBORS = 30
"""Neighbors of each picture that are to stay near."""
NEIGHBORS_PER_PERPLEXITY = 3
"""The usual share: so many neighbors, of which a third counts as much as all would with equal weights."""
NUM_PLAIN = 8
"""From so many pictures on there are neighbors to keep; fewer are placed by their principal components."""
EXAGGERATION = 12.0
EXAGGERATED_STEPS, STEPS = 250, 500
STEPS_PER_REPORT = 25
START_DEVIATION = 1e-4
JITTER = 0.01
"""Noise of the start, as a share of its deviation: without it copies would lie on each other for ever."""
NUM_MEASURED = 500
NUM_MEASURED_NEIGHBORS = 10


def lay_out(vectors: FloatArray, neighbors: Neighbors, *, seed: int = 0, show_progress: bool = False) -> FloatArray:
    """Place every picture, so that neighbors lie together.

    Args:
        vectors: ``(N, E)`` embeddings; any N.
        neighbors: Their neighbors; not looked at for fewer than ``NUM_PLAIN`` pictures.
        seed: Seed of the noise of the start.
        show_progress: Report progress on standard error.

    Returns:
        ``(N, 2)`` float32 in [-1, 1], the longer side from end to end. Memory: some hundred bytes for each picture.

    Raises:
        ConfigError: openTSNE is not installed.
    """
    check_library(len(vectors))
    start = find_principal_components(vectors)
    if len(vectors) < NUM_PLAIN:
        return _fit(start)
    deviation = start[:, 0].std() or 1.0
    noise = np.random.default_rng(seed).normal(size=start.shape)
    start = START_DEVIATION * (start / deviation + JITTER * noise)
    return _fit(_run_tsne(start, neighbors, show_progress=show_progress))


def check_library(num_images: int) -> None:
    """Refuse to lay out so many pictures where the library for it is missing: before their neighbors are looked for.

    Raises:
        ConfigError: openTSNE is not installed, and there are ``NUM_PLAIN`` pictures or more.
    """
    if num_images >= NUM_PLAIN and find_spec("openTSNE") is None:
        raise ConfigError("a map needs the package openTSNE: pip install 'vitrieve[map]'.")


def _run_tsne(start: np.ndarray, neighbors: Neighbors, *, show_progress: bool) -> np.ndarray:
    from openTSNE import TSNEEmbedding
    from openTSNE.affinity import PerplexityBasedNN
    from openTSNE.nearest_neighbors import PrecomputedNeighbors

    num_images, k = neighbors.rows.shape
    # Of vectors of unit length: the square of their distance.
    distances = np.sqrt(np.maximum(0.0, 2.0 - 2.0 * neighbors.similarities.astype(np.float64)))
    affinities = PerplexityBasedNN(
        knn_index=PrecomputedNeighbors(neighbors.rows.astype(np.int32), distances),
        perplexity=k / NEIGHBORS_PER_PERPLEXITY,
        n_jobs=1,
    )
    embedding = TSNEEmbedding(start, affinities, n_jobs=1, random_state=0)
    reports = _count_steps(show_progress)
    with closing(reports):
        next(reports)

        def report(*_: Any) -> None:
            next(reports, None)

        for num_steps, exaggeration in ((EXAGGERATED_STEPS, EXAGGERATION), (STEPS, 1.0)):
            embedding = embedding.optimize(
                num_steps,
                exaggeration=exaggeration,
                learning_rate=max(200.0, num_images / exaggeration),
                momentum=0.8,
                use_callbacks=True,
                callbacks=report,
                callbacks_every_iters=STEPS_PER_REPORT,
            )
    return np.asarray(embedding)


def _count_steps(show_progress: bool) -> Generator[int, None, None]:
    num_steps = EXAGGERATED_STEPS + STEPS
    reports = range(num_steps // STEPS_PER_REPORT + 1)
    return track(reports, "layout", total=num_steps, weight=STEPS_PER_REPORT, is_shown=show_progress)


def find_principal_components(vectors: FloatArray) -> np.ndarray:
    """Return the first two principal components of each row, ``(N, 2)`` float64; zeros where there are none.

    >>> find_principal_components(np.float32([[1, 0], [-1, 0]])).tolist()
    [[1.0, 0.0], [-1.0, 0.0]]
    """
    num_images, num_dims = vectors.shape
    components = np.zeros((num_images, 2))
    if num_images < 2:
        return components
    size = max(1, BLOCK_BYTES // (8 * num_dims))
    blocks = [slice(start, start + size) for start in range(0, num_images, size)]
    mean = sum(vectors[block].sum(axis=0, dtype=np.float64) for block in blocks) / num_images
    covariance = np.zeros((num_dims, num_dims))
    for block in blocks:
        centered = vectors[block] - mean
        covariance += centered.T @ centered
    axes = np.linalg.eigh(covariance)[1][:, :-3:-1]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])  # a sign of its own is chance
    for block in blocks:
        components[block, : axes.shape[1]] = (vectors[block] - mean) @ axes
    return components


def _fit(places: np.ndarray) -> FloatArray:
    low, high = places.min(axis=0), places.max(axis=0)
    half = float((high - low).max()) / 2
    return np.asarray((places - (low + high) / 2) / (half or 1.0), dtype=np.float32)


def count_measured_neighbors(num_images: int) -> int:
    """Return how many neighbors of a picture ``measure_layout`` compares: less than half of the others.

    >>> [count_measured_neighbors(num_images) for num_images in (3, 4, 12, 1000)]
    [0, 1, 5, 10]
    """
    return min(NUM_MEASURED_NEIGHBORS, (num_images - 2) // 2)


def measure_layout(vectors: FloatArray, places: FloatArray, *, seed: int = 0) -> dict[str, float]:
    """Measure how well places keep the nearest neighbors, over ``NUM_MEASURED`` pictures drawn by chance.

    Args:
        vectors: ``(N, E)`` embeddings.
        places: ``(N, 2)``.
        seed: Seed of the draw.

    Returns:
        ``neighbor_recall``, the share of the k nearest by similarity that are among the k nearest places, k being
        ``count_measured_neighbors``; and ``trustworthiness`` (J. Venna and S. Kaski, 2001), in [0, 1], which falls with
        pictures that lie near and are not alike. Empty for fewer than four pictures.
    """
    num_images = len(vectors)
    k = count_measured_neighbors(num_images)
    if k < 1:
        return {}
    chosen = np.random.default_rng(seed).permutation(num_images)[:NUM_MEASURED]
    num_kept = num_excess = 0
    for chunk, block in similarity_chunks(vectors[chosen], vectors):
        for row, similarities in zip(chosen[chunk].tolist(), block, strict=True):
            similarities[row] = -np.inf
            ranks = np.empty(num_images, dtype=np.int64)
            ranks[np.argsort(-similarities, kind="stable")] = np.arange(1, num_images + 1)
            distances = np.square(places - places[row], dtype=np.float64).sum(axis=1)
            distances[row] = np.inf
            near = ranks[np.argsort(distances, kind="stable")[:k]]
            num_kept += int(np.count_nonzero(near <= k))
            num_excess += int(np.maximum(near - k, 0).sum())
    most = len(chosen) * k * (2 * num_images - 3 * k - 1) / 2
    return {"neighbor_recall": num_kept / (len(chosen) * k), "trustworthiness": 1 - num_excess / most}
