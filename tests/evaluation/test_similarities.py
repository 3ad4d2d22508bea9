from __future__ import annotations

import numpy as np
import pytest

from vitrieve.evaluation import measure as similarities
from vitrieve.evaluation.measure import similarity_blocks
from vitrieve.similarity import normalize, similarity


@pytest.mark.parametrize("block_bytes", [1, 4 * 30 * 3, 2**20])
def test_similarity_blocks_equals_the_whole_matrix_bit_for_bit(
    block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(similarities, "GALLERY_BLOCK_SIZE", 7)
    vectors = normalize(np.random.default_rng(0).standard_normal((40, 5)))
    query_rows, gallery_rows = np.array([3, 39, 0, 8, 8]), np.arange(30)[::-1] + 5
    whole = similarity(vectors[query_rows], vectors[gallery_rows])
    seen = np.zeros(5, dtype=int)
    for rows, block in similarity_blocks(vectors, query_rows, gallery_rows, block_bytes=block_bytes):
        assert np.array_equal(block, whole[rows])
        assert block.nbytes <= max(block_bytes, 4 * 30)
        seen[rows] += 1
    assert seen.tolist() == [1] * 5


def test_similarity_blocks_never_copies_the_gallery(tmp_path: object) -> None:
    import tracemalloc

    vectors = np.ones((60_000, 16), dtype=np.float32)
    tracemalloc.start()
    ((_, block),) = similarity_blocks(vectors, np.arange(2), np.arange(60_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Row numbers and similarities of the gallery, and a few copies of one block; a copy of the gallery has 3.8 MB
    # in float32, and rounding it takes twice as much again.
    assert block.shape == (2, 60_000)
    assert peak < 60_000 * 16 + 6 * similarities.GALLERY_BLOCK_SIZE * 16 * 8
