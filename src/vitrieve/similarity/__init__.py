"""Nearness: its one definition, and fast paths that find the same, bit for bit.

In reading order:
    definition.py   the only definition of similarity, in NumPy; blocks of similarities, and the order of ties
    product.py      products in float32 and, where the processor has it, bfloat16, with a bound on their error
    nearest.py      the k nearest rows: a bounded product chooses candidates, the definition decides
    pairs.py        all pairs of a collection above a threshold, in the same way
    counting.py     how many other images stand before each relevant one: counting instead of sorting
"""

from vitrieve.similarity.counting import Counts, RankedQuery, count_before
from vitrieve.similarity.definition import (
    BLOCK_BYTES,
    GALLERY_BLOCK_SIZE,
    MAX_CHUNK_SIZE,
    FloatArray,
    IntArray,
    as_embeddings,
    multiply,
    normalize,
    order_nearest,
    similarity,
    similarity_chunks,
)
from vitrieve.similarity.nearest import top_k
from vitrieve.similarity.pairs import Pairs, pairs_above

__all__ = [
    "BLOCK_BYTES",
    "GALLERY_BLOCK_SIZE",
    "MAX_CHUNK_SIZE",
    "Counts",
    "FloatArray",
    "IntArray",
    "Pairs",
    "RankedQuery",
    "as_embeddings",
    "count_before",
    "multiply",
    "normalize",
    "order_nearest",
    "pairs_above",
    "similarity",
    "similarity_chunks",
    "top_k",
]
