"""Which few images show the variety of many."""

from __future__ import annotations

import numpy as np

from vitrieve.similarity import FloatArray, normalize

NUM_ROUNDS = 10


def choose_varied(vectors: FloatArray, num_images: int) -> list[int]:
    """Choose images that lie in the middle of as many groups; the largest group first.

    The groups are those of spherical k-means that begins at images far from each other (Gonzalez, 1985). So it is the
    same each time, and an odd picture is shown only where it is not alone.

    Args:
        vectors: ``(N, E)`` of unit length.
        num_images: Most images to choose.

    Returns:
        Different rows of ``vectors``, at most ``num_images``.

    >>> choose_varied(np.eye(3, dtype=np.float32)[[0, 1, 1, 2, 2, 2]], 3)
    [3, 1, 0]
    """
    num_images = min(num_images, len(vectors))
    if num_images <= 0:
        return []
    chosen = [int(np.argmax(vectors @ vectors.mean(axis=0)))]
    nearest = vectors @ vectors[chosen[0]]
    while len(chosen) < num_images:
        nearest[chosen] = np.inf
        chosen.append(int(np.argmin(nearest)))
        nearest = np.maximum(nearest, vectors @ vectors[chosen[-1]])
    centers = vectors[chosen]
    for _ in range(NUM_ROUNDS):
        groups = np.argmax(vectors @ centers.T, axis=1)
        sums = np.stack([vectors[groups == group].sum(axis=0) for group in range(num_images)])
        moved = np.where(np.any(sums != 0, axis=1, keepdims=True), sums, centers)
        centers = normalize(moved.astype(np.float32))
    similarities = vectors @ centers.T
    groups = np.argmax(similarities, axis=1)
    sizes = np.bincount(groups, minlength=num_images)
    middles = []
    for group in np.argsort(-sizes, kind="stable"):
        rows = np.flatnonzero(groups == group)
        if len(rows):
            middles.append(int(rows[np.argmax(similarities[rows, group])]))
    return middles
