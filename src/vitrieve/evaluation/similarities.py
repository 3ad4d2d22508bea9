"""Similarities of a task's queries to its whole gallery, a block at a time, however large the gallery is.

Next file: ``run.py``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vitrieve.similarity import FloatArray, IntArray, similarity

QUERY_BLOCK_BYTES = 512 * 2**20
"""Of similarities at a time: the 70 queries of revisited Oxford and a million distractors take 281 MB."""
GALLERY_BLOCK_SIZE = 8192
"""Gallery rows taken from the embeddings, which may be a memory map larger than memory, at a time."""


def similarity_blocks(
    vectors: FloatArray, query_rows: IntArray, gallery_rows: IntArray, *, block_bytes: int = QUERY_BLOCK_BYTES
) -> Iterator[tuple[slice, FloatArray]]:
    """Compute the similarities of some queries to the whole gallery at a time, in order.

    Unlike ``similarity.similarity_chunks`` it never holds a copy of the gallery's embeddings.

    Args:
        vectors: ``(N, E)`` embeddings, also a memory map.
        query_rows: ``(Q,)`` rows of ``vectors`` that ask.
        gallery_rows: ``(G,)`` rows of ``vectors`` that can be found, at least one.
        block_bytes: Size of a block of similarities to stay below, where one query allows it. Changes no value.

    Yields:
        Which queries, and their ``(q, G)`` similarities: a fresh array that the caller may change.
    """
    num_gallery = len(gallery_rows)
    num_rows = max(1, block_bytes // (4 * num_gallery))
    for start in range(0, len(query_rows), num_rows):
        queries = np.asarray(vectors[query_rows[start : start + num_rows]])
        block = np.empty((len(queries), num_gallery), dtype=np.float32)
        for first in range(0, num_gallery, GALLERY_BLOCK_SIZE):
            places = slice(first, first + GALLERY_BLOCK_SIZE)
            block[:, places] = similarity(queries, vectors[gallery_rows[places]])
        yield slice(start, start + len(queries)), block
