"""Ways to look at the products of many queries, from fast to precise. Next: ``nearest.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vitrieve.similarity.candidates import (
    Look,
    PairLists,
    choose_group_size,
    find_open_pairs,
    kth_largest,
    split_queries,
)
from vitrieve.similarity.definition import FloatArray, IntArray
from vitrieve.similarity.product import Float32Product, Product, choose_products
from vitrieve.similarity.symmetric import SymmetricProduct, choose_symmetric_size, max_symmetric

MIN_GALLERY = 2048
"""A smaller gallery is compared whole."""
MIN_SYMMETRIC_SHARE = 0.75
"""Of a collection's images that are queries: for fewer of them, half of all products is no gain."""

Way = Callable[[IntArray], Iterator[Look]]
"""Given places of queries, looks at all of them."""


class Task(NamedTuple):
    """What is to be found.

    Attributes:
        queries: ``(Q, E)`` float32.
        gallery: ``(G, E)`` float32; it may be ``queries``.
        num_wanted: ``(Q,)`` int64: so many groups are to tell how near the neighbours are.
        hidden: Pairs that are not to be found.
    """

    queries: FloatArray
    gallery: FloatArray
    num_wanted: IntArray
    hidden: PairLists


def choose_ways(
    task: Task, places: IntArray, *, chunk_size: int | None = None, may_load_torch: bool = False
) -> Iterator[Way]:
    """Yield ways to look at queries: those that one leaves open are for the next. None is sure to settle all.

    Args:
        task: What is to be found, in a gallery of ``MIN_GALLERY`` rows at least.
        places: ``(P,)`` the queries that matter, one at least, each with at most ``max_wanted`` neighbours.
        chunk_size: Queries at a time; None: as memory allows.
        may_load_torch: As ``choose_products``.

    Raises:
        InputError: Rows that are too long.
    """
    products = choose_products(len(places), task.gallery, may_load_torch=may_load_torch)
    for number, product in enumerate(products):
        is_fastest = number == 0 and chunk_size is None
        if is_fastest and isinstance(product, Float32Product) and _gains_by_symmetry(task, places):
            yield partial(_look_by_symmetry, task, product)
        else:
            yield partial(_look_at_chunks, task, product, chunk_size)


def _look_at_chunks(task: Task, product: Product, chunk_size: int | None, places: IntArray) -> Iterator[Look]:
    """Multiply some queries at a time with the whole gallery."""
    for chunk in split_queries(places, product, len(task.gallery), chunk_size):
        results, bounds = product.multiply(task.queries[chunk])
        results[task.hidden.take(chunk)] = product.hidden
        num_wanted = int(task.num_wanted[chunk].max())
        groups = product.group(results, choose_group_size(num_wanted, results.shape[1]))
        yield Look(chunk, product, bounds, partial(kth_largest, groups.maxima), partial(find_open_pairs, groups))


def _look_by_symmetry(task: Task, product: Float32Product, places: IntArray) -> Iterator[Look]:
    """Multiply half of a collection with itself, and what wants many neighbours with the whole."""
    wants_few = _wants_few(task, places)
    few = places[wants_few]
    group_size = choose_symmetric_size(int(task.num_wanted[few].max()), len(task.gallery))
    yield from SymmetricProduct(task.gallery, product, group_size, task.hidden).looks(few)
    yield from _look_at_chunks(task, product, None, places[~wants_few])


def _gains_by_symmetry(task: Task, places: IntArray) -> bool:
    """Say whether a collection is compared with itself, and nearly all of its images are queries for few neighbours."""
    num_few = np.count_nonzero(_wants_few(task, places))
    return task.queries is task.gallery and bool(num_few >= MIN_SYMMETRIC_SHARE * len(task.gallery))


def _wants_few(task: Task, places: IntArray) -> npt.NDArray[np.bool_]:
    return task.num_wanted[places] <= max_symmetric(len(task.gallery))
