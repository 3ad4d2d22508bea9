from __future__ import annotations

from typing import Any

import pytest

from vitrieve.errors import InputError
from vitrieve.evaluation.metrics import Exclusions, Relevance


def test_relevance_lists_rows_by_label_and_leaves_out_own_and_junk() -> None:
    exclusions = Exclusions(query_rows=[2, -1], query_junk=[5, -1], gallery_junk=[5, -1, 6, 5])
    relevance = Relevance([7, 8], [7, 8, 7, 8], exclusions)
    assert [sorted(relevance.relevant_rows(query).tolist()) for query in (0, 1)] == [[0, 2], [1, 3]]
    assert [sorted(relevance.excluded_rows(query).tolist()) for query in (0, 1)] == [[0, 2, 3], []]


def test_relevance_of_images_without_a_group_is_not_junk() -> None:
    relevance = Relevance([1, 1, 1], None, Exclusions(query_junk=[-1, -1, 4]))
    assert [relevance.excluded_rows(query).tolist() for query in range(3)] == [[0], [1], [2, 2]]


@pytest.mark.parametrize(
    ("gallery_labels", "exclusions", "part"),
    [
        (None, {"query_rows": [0, 1]}, "separate gallery"),
        (None, {"gallery_junk": [0, 1]}, "separate gallery"),
        ([1], {"query_rows": [0, 1]}, "below 1"),
        ([1], {"query_rows": [0, -2]}, "query_rows"),
        ([1], {"query_rows": [0]}, "2 integers"),
        ([1], {"query_junk": [0, 0]}, "both or neither"),
        ([1], {"query_junk": [0, 0], "gallery_junk": [0.5]}, "gallery_junk"),
        ([[1]], {}, "vector of integers"),
    ],
)
def test_relevance_refuses_what_does_not_fit(gallery_labels: Any, exclusions: dict[str, Any], part: str) -> None:
    with pytest.raises(InputError, match=part):
        Relevance([0, 1], gallery_labels, Exclusions(**exclusions))
