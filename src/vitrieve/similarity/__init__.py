"""Nearness: what it is, and the ways to compute it fast that find the same, bit for bit.

In reading order:
    definition.py   the only definition of similarity, in NumPy; blocks of similarities, and how ties are ordered
    product.py      products of lower precision with a proven bound on their error; the one in float32, by NumPy
    bfloat16.py     the one in bfloat16, by torch, where it is there
    candidates.py   which pairs of a product deserve a look
    symmetric.py    a collection against itself in float32: half of the product
    ways.py         which of these, and in which order
    nearest.py      the k nearest rows: a bounded product chooses candidates, the definition decides
    counting.py     how many other images stand before each relevant one: counting instead of sorting

Next: ``artifacts.py``.
"""

from vitrieve.similarity.counting import Counts, RankedQuery, count_before
from vitrieve.similarity.definition import (
    BLOCK_BYTES,
    GALLERY_BLOCK_SIZE,
    MAX_CHUNK_SIZE,
    FloatArray,
    IntArray,
    as_embeddings,
    normalize,
    order_nearest,
    similarity,
    similarity_chunks,
)
from vitrieve.similarity.nearest import top_k

__all__ = [
    "BLOCK_BYTES",
    "GALLERY_BLOCK_SIZE",
    "MAX_CHUNK_SIZE",
    "Counts",
    "FloatArray",
    "IntArray",
    "RankedQuery",
    "as_embeddings",
    "count_before",
    "normalize",
    "order_nearest",
    "similarity",
    "similarity_chunks",
    "top_k",
]
