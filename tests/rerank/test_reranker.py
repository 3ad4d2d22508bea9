from __future__ import annotations

import typing

import numpy as np
import pytest

from vitrieve.errors import ConfigError
from vitrieve.rerank.names import LEARNT, RerankerName
from vitrieve.rerank.neighbors import expand_queries, k_reciprocal_distances, superglobal_scores
from vitrieve.rerank.parts import ByteArray, PartKind, to_bytes
from vitrieve.rerank.reranker import RERANKERS, Shortlist, find_reranker
from vitrieve.similarity import normalize, similarity


def draw_shortlist(num_images: int, seed: int = 0) -> Shortlist:
    generator = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return normalize(generator.normal(size=(int(np.prod(shape[:-1])), shape[-1]))).reshape(shape)

    query, images = draw(1, 8)[0], draw(num_images, 8)
    order = np.argsort(-(images @ query))
    parts = to_bytes(draw(5, 6)), to_bytes(draw(num_images, 5, 6))

    def find_parts(kind: PartKind) -> tuple[ByteArray, ByteArray]:
        return parts

    return Shortlist(query=query, vectors=images[order], find_parts=find_parts)


def test_the_table_has_every_name_of_the_type() -> None:
    assert set(typing.get_args(RerankerName)) == {*RERANKERS, LEARNT}
    assert all(name == reranker.name and reranker.summary for name, reranker in RERANKERS.items())
    with pytest.raises(ConfigError, match="Did you mean 'superglobal'"):
        find_reranker("superglobals")
    with pytest.raises(ConfigError, match="learned on your labeled pictures"):
        find_reranker(LEARNT)


@pytest.mark.parametrize("name", RERANKERS)
@pytest.mark.parametrize("num_images", [0, 1, 2, 30])
def test_every_reranker_orders_every_length(name: str, num_images: int) -> None:
    shortlist = draw_shortlist(num_images)
    scores = RERANKERS[name].score(shortlist)
    assert scores.shape == (num_images,)
    assert np.isfinite(scores).all()
    assert sorted(RERANKERS[name].order(shortlist)) == list(range(num_images))


@pytest.mark.parametrize("name", RERANKERS)
def test_equal_images_keep_their_order(name: str) -> None:
    one = draw_shortlist(1)
    assert one.find_parts is not None
    query, images = one.find_parts("patches")
    same = Shortlist(
        query=one.query,
        vectors=np.repeat(one.vectors, 6, axis=0),
        find_parts=lambda kind: (query, np.repeat(images, 6, axis=0)),
    )
    assert RERANKERS[name].order(same).tolist() == list(range(6))


def test_ways_by_vectors_are_the_published_ones() -> None:
    shortlist = draw_shortlist(20)
    query, vectors = shortlist.query, shortlist.vectors
    for name, alpha in (("average_query_expansion", 0.0), ("alpha_query_expansion", 3.0)):
        expanded = expand_queries(query[None], vectors[None, :2], alpha=alpha)
        np.testing.assert_allclose(RERANKERS[name].score(shortlist), (vectors @ expanded[0]), atol=1e-6)
    both = np.concatenate([query[None], vectors])
    reciprocal = k_reciprocal_distances(similarity(both, both), 1)[0]
    np.testing.assert_allclose(RERANKERS["k_reciprocal"].score(shortlist), -reciprocal)
    np.testing.assert_allclose(RERANKERS["superglobal"].score(shortlist), superglobal_scores(query, vectors))


def test_tiles_take_the_best_of_what_their_name_says() -> None:
    shortlist = draw_shortlist(3)
    table = shortlist.compare_parts("tiles")
    expected = {
        "query_tiles": [max(row[0] for row in one) for one in table],
        "image_tiles": [max(one[0]) for one in table],
        "tiles": [max(max(row) for row in one) for one in table],
    }
    for name, scores in expected.items():
        np.testing.assert_allclose(RERANKERS[name].score(shortlist), scores)
