from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.search.memory_store import ForgetfulStore, MemoryStore
from vitrieve.data.records import ImageRecord
from vitrieve.errors import ConfigError, DataError, DecodeError, FingerprintError, InputError
from vitrieve.index.filter import Condition, FilterLike, parse_filter
from vitrieve.index.store import Hit, StoreInfo, VectorStore
from vitrieve.runtime.encoder import Encoder, load_encoder
from vitrieve.search.query import MINUS_WEIGHT, combine_examples, read_example
from vitrieve.search.request import Example, SearchAnswer, SearchRequest
from vitrieve.search.searcher import Searcher
from vitrieve.search.threshold import Threshold
from vitrieve.similarity import normalize

RERANKINGS = ("none", "average_query_expansion", "alpha_query_expansion", "k_reciprocal")


@pytest.fixture(scope="module")
def encoder(tiny_encoder_folder: Path) -> Encoder:
    return load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)


def fill(store: MemoryStore, num_images: int = 300, seed: int = 0) -> MemoryStore:
    """Clusters of ten images with labels, five artists, and every seventh image without an artist."""
    generator = np.random.default_rng(seed)
    centers = generator.normal(size=(num_images // 10 + 1, store.info.embedding_dim))
    vectors = normalize(
        centers[np.arange(num_images) // 10] + 0.7 * generator.normal(size=(num_images, store.info.embedding_dim))
    )
    records = [
        ImageRecord(
            image_id=f"{row:04}",
            path=Path(f"/{row:04}.png"),
            label=0,
            split="test",
            metadata={"label": f"class {row // 10}", "price": str(row)} | ({"artist": str(row % 5)} if row % 7 else {}),
        )
        for row in range(num_images)
    ]
    store.upsert(vectors, records)
    return store


def describe(encoder: Encoder) -> StoreInfo:
    return StoreInfo(
        kind="exact",
        fingerprint=encoder.fingerprint,
        encoder_source=encoder.source,
        image_size=encoder.preprocessing.image_size,
        embedding_dim=encoder.embedding_dim,
    )


@pytest.fixture
def store(encoder: Encoder) -> MemoryStore:
    return fill(MemoryStore(describe(encoder)))


@pytest.fixture
def searcher(store: MemoryStore, encoder: Encoder) -> Searcher:
    return Searcher(store, encoder)


def ids(answer: SearchAnswer) -> list[str]:
    return [result.image_id for result in answer.results]


def by_id(image_id: str, **settings: object) -> SearchRequest:
    return SearchRequest(plus=(Example(image_id=image_id),), **settings)  # type: ignore[arg-type]


def test_answer_by_vector_is_the_exact_order(searcher: Searcher, store: MemoryStore) -> None:
    vectors, records = store.get(list(store.image_ids()))
    query = np.random.default_rng(1).normal(size=vectors.shape[1])
    expected = np.argsort(-(vectors.astype(np.float64) @ query), kind="stable")[:10]
    answer = searcher.answer(SearchRequest(plus=(Example(vector=query),)))
    assert ids(answer) == [records[row].image_id for row in expected]
    scores = vectors[expected].astype(np.float64) @ query / np.linalg.norm(query)
    np.testing.assert_allclose([result.score for result in answer.results], scores, atol=1e-6)
    assert answer.has_more
    assert set(answer.timings_seconds) == {"decode", "encode", "search"}


def test_answer_by_id_leaves_out_the_image_but_not_its_copy(searcher: Searcher, store: MemoryStore) -> None:
    vectors, records = store.get(["0042"])
    copy = ImageRecord(image_id="0000-copy", path=records[0].path, label=0, split="test")
    store.upsert(vectors, [copy])
    answer = searcher.answer(by_id("0042"))
    assert ids(answer)[0] == "0000-copy"
    assert "0042" not in ids(answer)
    assert len(answer.results) == 10
    assert answer.results[0].score == pytest.approx(1, abs=1e-6)


def test_answer_refuses_an_unknown_id(searcher: Searcher) -> None:
    with pytest.raises(DataError, match="nobody"):
        searcher.answer(by_id("nobody"))


def test_answer_by_box_is_the_answer_for_the_cut_out(searcher: Searcher, picture_folder: Path) -> None:
    path = picture_folder / "05.png"
    box = (10.0, 4.0, 40.0, 33.0)
    with Image.open(path) as image:
        part = image.crop((10, 4, 40, 33))
    boxed = searcher.answer(SearchRequest(plus=(Example(picture=path, box=box),)))
    assert boxed.results == searcher.answer(SearchRequest(plus=(Example(picture=part),))).results
    assert boxed.results != searcher.answer(SearchRequest(plus=(Example(picture=path),))).results


def test_answer_names_the_query_whose_box_is_outside(searcher: Searcher, picture_folder: Path) -> None:
    request = SearchRequest(plus=(Example(picture=picture_folder / "05.png", box=(100, 100, 200, 200)),))
    with pytest.raises(DecodeError, match=r"05\.png.*no pixel"):
        searcher.answer(request)


@pytest.mark.parametrize("box", [(5, 0, 5, 9), (0, 0, float("nan"), 9), (0, 0, float("inf"), 9), (0, 0, 9)])
def test_example_refuses_a_box_that_is_none(box: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="box"):
        Example(picture=b"", box=box)  # type: ignore[arg-type]


def test_answer_of_plus_and_minus_is_the_stated_rule(searcher: Searcher, store: MemoryStore) -> None:
    plus, minus = ["0001", "0011"], ["0023", "0031", "0044"]
    vectors = store.get(plus + minus)[0].astype(np.float64)
    wanted, unwanted = vectors[:2].mean(axis=0), vectors[2:].mean(axis=0)
    query = wanted / np.linalg.norm(wanted) - MINUS_WEIGHT * unwanted / np.linalg.norm(unwanted)
    examples = {
        name: tuple(Example(image_id=image_id) for image_id in some) for name, some in (("p", plus), ("m", minus))
    }
    answer = searcher.answer(SearchRequest(plus=examples["p"], minus=examples["m"], k=20))
    all_vectors, records = store.get(list(store.image_ids()))
    order = np.argsort(-(all_vectors.astype(np.float64) @ query), kind="stable")
    expected = [records[row].image_id for row in order if records[row].image_id not in plus + minus]
    assert ids(answer) == expected[:20]


def test_answer_joins_examples_of_every_kind_in_order(
    searcher: Searcher, store: MemoryStore, encoder: Encoder, picture_folder: Path
) -> None:
    stored, given = store.get(["0100", "0101"])[0]
    pictures = encoder.encode([read_example(Example(picture=picture_folder / f"0{n}.png")) for n in (1, 2)])
    mixed = SearchRequest(
        plus=(
            Example(picture=picture_folder / "01.png"),
            Example(image_id="0100"),
            Example(picture=(picture_folder / "02.png").read_bytes()),
        ),
        minus=(Example(vector=given), Example(image_id="0100")),
    )
    vector = combine_examples(np.stack([pictures[0], stored, pictures[1]]), np.stack([given, stored]))
    expected = searcher.answer(SearchRequest(plus=(Example(vector=vector),), k=11))
    assert ids(searcher.answer(mixed)) == [image_id for image_id in ids(expected) if image_id != "0100"][:10]


def test_combine_examples_by_hand() -> None:
    plus, minus = np.float32([[1, 0], [0, 1]]), np.float32([[1, 0]])
    # (0.707, 0.707) - 0.5 * (1, 0) = (0.207, 0.707), of length 0.737
    np.testing.assert_allclose(combine_examples(plus, minus), [0.2811, 0.9597], atol=1e-4)
    np.testing.assert_allclose(combine_examples(plus[:1], np.float32([[1, 0]])), [1, 0], atol=1e-6)
    np.testing.assert_allclose(combine_examples(plus[:1], np.float32([[0, 1], [0, -1]])), [1, 0], atol=1e-6)


def test_combine_examples_refuses_plus_that_cancel_out() -> None:
    with pytest.raises(ConfigError, match="cancel out"):
        combine_examples(np.float32([[1, 0], [-1, 0]]), np.empty((0, 2), np.float32))


@pytest.mark.parametrize(
    "vector", [np.zeros(3), np.full(64, np.nan), np.zeros(64), np.array(["a"] * 64), np.full(64, 1e300)]
)
def test_answer_refuses_a_vector_that_does_not_fit(searcher: Searcher, vector: np.ndarray) -> None:
    width = searcher.encoder.embedding_dim
    given = np.resize(vector, width) if len(vector) == 64 else vector
    with pytest.raises(ConfigError, match="vector"):
        searcher.answer(SearchRequest(plus=(Example(vector=given),)))


def test_answer_filters(searcher: Searcher) -> None:
    answer = searcher.answer(by_id("0042", k=1000, filter=parse_filter(["artist=1|2", "price<100"])))
    assert {result.metadata["artist"] for result in answer.results} == {"1", "2"}
    assert len(answer.results) == sum(row % 5 in (1, 2) and row % 7 > 0 for row in range(100))
    assert not answer.has_more


@pytest.mark.parametrize(
    "filter", ["artist=1|2", ["artist=1|2"], Condition(column="artist", operator="=", values=(1, 2)), ("artist=2|1.0",)]
)
def test_a_filter_of_python_may_be_a_text(searcher: Searcher, filter: FilterLike) -> None:
    answer = searcher.answer(by_id("0042", k=1000, filter=filter))
    assert {result.metadata["artist"] for result in answer.results} == {"1", "2"}
    picture = Image.fromarray(np.zeros((40, 40, 3), np.uint8))
    assert searcher.search(picture, 300, filter=filter) == searcher.search(
        picture, 300, filter=parse_filter("artist=1|2")
    )
    for wrong in ("artist", "artist>=somebody"):
        with pytest.raises(InputError):
            searcher.search(picture, filter=wrong)
    with pytest.raises(ConfigError, match="no filter"):
        by_id("0042", filter="")


def test_answer_of_a_filter_that_nothing_passes(searcher: Searcher) -> None:
    answer = searcher.answer(by_id("0042", filter="artist=99"))
    assert answer.results == ()
    assert not answer.has_more


@pytest.mark.parametrize("kind", [MemoryStore, ForgetfulStore])
@pytest.mark.parametrize("reranking", RERANKINGS)
@pytest.mark.parametrize(
    "grouping", [{}, {"group_by": "label"}, {"group_by": "artist"}, {"is_near_duplicate_grouped": True}]
)
def test_pages_are_disjoint_and_equal_one_long_answer(
    kind: type[MemoryStore], reranking: str, grouping: dict[str, object], encoder: Encoder
) -> None:
    searcher = Searcher(fill(kind(describe(encoder))), encoder)
    pages = []
    while not pages or pages[-1].has_more:
        pages.append(searcher.answer(by_id("0042", k=29, offset=29 * len(pages), reranking=reranking, **grouping)))
    found = [image_id for page in pages for image_id in ids(page)]
    assert len(set(found)) == len(found)
    assert all(len(page.results) == 29 for page in pages[:-1])
    if kind is MemoryStore:
        assert found == ids(searcher.answer(by_id("0042", k=500, reranking=reranking, **grouping)))
    if kind is MemoryStore and not grouping:
        assert sorted(found) == sorted(set(searcher.store.image_ids()) - {"0042"})


def test_answer_behind_the_last_page_is_empty(searcher: Searcher) -> None:
    answer = searcher.answer(by_id("0042", offset=299))
    assert (answer.results, answer.has_more) == ((), False)
    assert len(searcher.answer(by_id("0042", offset=298)).results) == 1


def test_answer_refuses_a_page_too_far_back(searcher: Searcher) -> None:
    with pytest.raises(ConfigError, match="16,384"):
        searcher.answer(by_id("0042", offset=16_380))


def test_answer_fetches_no_deeper_than_its_page_needs(searcher: Searcher, store: MemoryStore) -> None:
    searcher.answer(by_id("0042"))
    assert store.depths == [12]


def test_group_by_shows_the_nearest_of_each_group(searcher: Searcher) -> None:
    plain = searcher.answer(by_id("0042", k=299))
    grouped = searcher.answer(by_id("0042", k=30, group_by="label"))
    first: dict[str, str] = {}
    for result in plain.results:
        first.setdefault(result.metadata["label"], result.image_id)
    assert ids(grouped) == list(first.values())
    assert not grouped.has_more
    behind = [other for result in grouped.results for other in result.others]
    assert len(behind) + 30 == 299
    for result in grouped.results:
        assert {other.metadata["label"] for other in result.others} == {result.metadata["label"]}
        scores = [result.score, *(other.score for other in result.others)]
        assert scores == sorted(scores, reverse=True)


def test_a_group_keeps_its_nearest_images_only(
    searcher: Searcher, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = searcher.answer(by_id("0042", k=30, group_by="label"))
    monkeypatch.setattr("vitrieve.search.ranking.MAX_GROUP_IMAGES", 3)
    cut = searcher.answer(by_id("0042", k=30, group_by="label"))
    assert ids(cut) == ids(whole)
    assert max(len(result.others) for result in whole.results) > 2
    assert [result.others for result in cut.results] == [result.others[:2] for result in whole.results]


def test_group_by_fetches_more_until_there_are_enough_groups(searcher: Searcher, store: MemoryStore) -> None:
    answer = searcher.answer(by_id("0042", k=28, group_by="label"))
    assert len(answer.results) == 28
    assert answer.has_more
    assert store.depths == sorted(store.depths)
    assert len(store.depths) > 1


def test_group_by_leaves_images_without_the_column_alone(searcher: Searcher) -> None:
    answer = searcher.answer(by_id("0042", k=299, group_by="artist"))
    alone = [result for result in answer.results if "artist" not in result.metadata]
    assert len(alone) == sum(row % 7 == 0 for row in range(300) if row != 42)
    assert not any(result.others for result in alone)
    assert len(answer.results) == len(alone) + 5


def test_group_by_leaves_empty_cells_alone(searcher: Searcher, store: MemoryStore) -> None:
    """A table writes an empty cell where a picture has no value: it is none that pictures could share."""
    for image_id, (vector, record) in list(store.images.items()):
        store.images[image_id] = (vector, replace(record, metadata={"artist": "", **record.metadata}))
    answer = searcher.answer(by_id("0042", k=299, group_by="artist"))
    alone = [result for result in answer.results if not result.metadata["artist"]]
    assert len(alone) == sum(row % 7 == 0 for row in range(300) if row != 42)
    assert not any(result.others for result in alone)
    assert len(answer.results) == len(alone) + 5


@pytest.mark.parametrize("settings", [{"is_near_duplicate_grouped": True}, {"reranking": "k_reciprocal"}])
def test_an_image_that_is_removed_during_a_search_is_left_out(settings: dict[str, object], encoder: Encoder) -> None:
    class Removing(MemoryStore):
        def search(self, queries: np.ndarray, k: int, filter: FilterLike = ()) -> list[list[Hit]]:
            found = super().search(queries, k, filter)
            self.delete([found[0][2].record.image_id])  # the image itself is the first
            return found

    usual = ids(Searcher(fill(MemoryStore(describe(encoder))), encoder).answer(by_id("0042", **settings)))
    store = fill(Removing(describe(encoder)))
    found = ids(Searcher(store, encoder).answer(by_id("0042", **settings)))
    assert len(found) == 10
    assert set(found) <= set(store.image_ids())
    assert set(usual) - set(found)


def test_group_by_refuses_an_unknown_column(searcher: Searcher) -> None:
    with pytest.raises(InputError, match=r"'labels'\. Did you mean 'label'"):
        searcher.answer(by_id("0042", group_by="labels"))


def test_near_duplicates_stand_behind_the_nearest(searcher: Searcher, store: MemoryStore) -> None:
    (vector,), (record,) = store.get(["0123"])
    noise = np.random.default_rng(2).normal(size=(3, len(vector))) * 1e-4
    copies = [
        ImageRecord(image_id=f"copy {n}", path=record.path, label=0, split="test", metadata={"label": "else"})
        for n in range(3)
    ]
    store.upsert(normalize(vector + noise), copies)
    request = by_id("0121", k=300, is_near_duplicate_grouped=True)
    answer = searcher.answer(request)
    names = {"0123", *(copy.image_id for copy in copies)}
    (group,) = (result for result in answer.results if result.image_id in names)
    assert {group.image_id, *(other.image_id for other in group.others)} == names
    assert sum(len(result.others) for result in answer.results) == 3
    both = searcher.answer(by_id("0121", k=300, is_near_duplicate_grouped=True, group_by="label"))
    # The copies equal no group's first image, which is 0127 for theirs: their own value makes them one group.
    assert [len(result.others) for result in both.results if result.metadata["label"] == "else"] == [2]
    assert len(both.results) == 31


@pytest.mark.parametrize("reranking", RERANKINGS[1:])
def test_reranking_keeps_scores_and_moves_images(reranking: str, searcher: Searcher) -> None:
    plain = {result.image_id: result.score for result in searcher.answer(by_id("0042", k=299)).results}
    answer = searcher.answer(by_id("0042", k=299, reranking=reranking))
    assert ids(answer) != list(plain)
    assert {result.image_id: result.score for result in answer.results} == pytest.approx(plain, abs=1e-6)
    own = [result.metadata["label"] == "class 4" for result in answer.results[:9]]
    assert sum(own) >= sum(image_id.startswith("004") for image_id in list(plain)[:9])


@pytest.mark.parametrize("reranking", RERANKINGS)
def test_answer_of_an_index_with_one_image(reranking: str, encoder: Encoder) -> None:
    searcher = Searcher(fill(MemoryStore(describe(encoder)), 1), encoder)
    assert searcher.answer(by_id("0000", reranking=reranking)).results == ()
    vector = np.ones(encoder.embedding_dim)
    assert ids(searcher.answer(SearchRequest(plus=(Example(vector=vector),), reranking=reranking))) == ["0000"]


def test_is_match_looks_at_the_nearest_image_on_every_page(store: MemoryStore, encoder: Encoder) -> None:
    nearest = Searcher(store, encoder).answer(by_id("0042")).results[0].score
    for score, expected in ((nearest, True), (nearest + 0.01, False)):
        threshold = Threshold(score=score, fingerprint=encoder.fingerprint, method="by hand")
        searcher = Searcher(store, encoder, threshold=threshold)
        for settings in ({}, {"offset": 50}, {"reranking": "k_reciprocal"}, {"reranking": "alpha_query_expansion"}):
            answer = searcher.answer(by_id("0042", **settings))
            assert (answer.is_match, answer.threshold) == (expected, score)


def test_is_match_of_nothing_and_of_several(store: MemoryStore, encoder: Encoder) -> None:
    threshold = Threshold(score=-1.0, fingerprint=encoder.fingerprint, method="by hand")
    searcher = Searcher(store, encoder, threshold=threshold)
    assert searcher.answer(by_id("0042", filter=parse_filter(["label=none"]))).is_match is False
    two = SearchRequest(plus=(Example(image_id="0042"), Example(image_id="0043")))
    assert (searcher.answer(two).is_match, searcher.answer(two).threshold) == (None, None)
    assert Searcher(store, encoder).answer(by_id("0042")).is_match is None


def test_searcher_refuses_the_threshold_of_another_encoder(store: MemoryStore, encoder: Encoder) -> None:
    with pytest.raises(FingerprintError, match="calibrate"):
        Searcher(store, encoder, threshold=Threshold(score=0.5, fingerprint="0" * 64, method="by hand"))


def test_memory_store_follows_the_protocol(store: MemoryStore) -> None:
    checked: VectorStore = store
    assert checked.count() == 300


def test_answer_takes_an_opened_picture(searcher: Searcher, picture_folder: Path) -> None:
    data = (picture_folder / "03.png").read_bytes()
    with Image.open(io.BytesIO(data)) as picture:
        opened = searcher.answer(SearchRequest(plus=(Example(picture=picture),)))
    assert opened.results == searcher.answer(SearchRequest(plus=(Example(picture=data),))).results
