"""BM25 over words: against a plain double loop, against a library, and word by word."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrieve.index.filter import resolve_filter
from vitrieve.index.store import TextBlock
from vitrieve.search.words import MAX_TYPO_WORDS, KeptWords, WordIndex, count_typos, list_query_words, list_words

VOCABULARY = [
    "milk",
    "milky",
    "milkshake",
    "arla",
    "arlo",
    "oat",
    "oats",
    "drink",
    "drinks",
    "organic",
    "orgnaic",
    "1l",
    "10",
]


def build(texts: Sequence[str | None], names: Sequence[str] | None = None) -> WordIndex:
    """Index one column of texts; the names of images and files have no letters unless they are given."""
    names = [f"-{'_' * row}" for row in range(len(texts))] if names is None else names
    paths = pa.array([f"/{name}" for name in names])
    return WordIndex([TextBlock(pa.array(names, pa.string()), paths, {"text": pa.array(texts, pa.string())})])


def measure_typos(one: str, other: str) -> int:
    """Optimal string alignment by plain recursion."""
    if not one or not other:
        return len(one) + len(other)
    best = min(
        measure_typos(one[:-1], other) + 1,
        measure_typos(one, other[:-1]) + 1,
        measure_typos(one[:-1], other[:-1]) + (one[-1] != other[-1]),
    )
    if len(one) > 1 and len(other) > 1 and one[-1] == other[-2] and one[-2] == other[-1]:
        best = min(best, measure_typos(one[:-2], other[:-2]) + 1)
    return best


def weigh(asked: str, word: str, vocabulary: set[str]) -> float:
    """Say what a word of an image counts for a word that is asked for."""
    longer = {other for other in vocabulary if len(asked) >= 3 and other.startswith(asked) and other != asked}
    if asked in vocabulary or longer:
        return 1.0 if word == asked else 0.5 if word in longer else 0.0
    allowed = 0 if len(asked) < 4 or any(sign.isdigit() for sign in asked + word) else 1 if len(asked) < 8 else 2
    return 0.5 if allowed and measure_typos(asked, word) <= allowed else 0.0


def score_slowly(images: Sequence[Sequence[str]], asked: Sequence[str]) -> list[float]:
    """BM25 as the docstring of ``WordIndex.score`` has it, one image and one word after the other."""
    vocabulary = {word for words in images for word in words}
    mean = max(1.0, sum(map(len, images)) / len(images))
    scores, most = [0.0] * len(images), 0.0
    for one in asked:
        frequencies = [sum(weigh(one, word, vocabulary) for word in words) for words in images]
        having = sum(frequency > 0 for frequency in frequencies)
        idf = math.log(1 + (len(images) - having + 0.5) / (having + 0.5))
        most += idf
        for row, words in enumerate(images):
            saturation = 1.2 * (0.25 + 0.75 * len(words) / mean)
            scores[row] += idf * frequencies[row] / (frequencies[row] + saturation)
    return [score / most for score in scores] if most else scores


@given(
    images=st.lists(st.lists(st.sampled_from(VOCABULARY), max_size=8), min_size=1, max_size=12),
    asked=st.lists(
        st.sampled_from([*VOCABULARY, "mlik", "drnk", "organci", "organics", "or", "zebra", "1"]),
        max_size=MAX_TYPO_WORDS,
        unique=True,
    ),
)
def test_score_equals_a_double_loop(images: list[list[str]], asked: list[str]) -> None:
    found = build([" ".join(words) for words in images]).score(asked)
    assert found == pytest.approx(score_slowly(images, asked), abs=1e-12)


def test_score_of_whole_words_equals_that_of_a_library() -> None:
    bm25s = pytest.importorskip("bm25s", reason="needs bm25s")
    generator = np.random.default_rng(0)
    words = [f"w{number:03}x" for number in range(200)]  # no word begins with another, and digits have no typos
    images = [list(generator.choice(words, generator.integers(1, 30))) for _ in range(300)]
    library = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
    library.index(images, show_progress=False)
    index = build([" ".join(image) for image in images])
    for _ in range(20):
        asked = list(dict.fromkeys(generator.choice(words, 4).tolist()))
        theirs, ours = library.get_scores(asked), index.score(asked)
        assert np.count_nonzero(ours)
        has_all = ours > 0
        assert np.array_equal(has_all, theirs > 0)
        assert ours[has_all] / ours.max() == pytest.approx(theirs[has_all] / theirs.max(), rel=1e-5)


@given(st.text("abcé ", max_size=6), st.text("abcé ", max_size=6), st.integers(0, 3))
def test_typos_equal_plain_recursion(one: str, other: str, most: int) -> None:
    expected = measure_typos(one, other)
    found = count_typos(one, other, most)
    assert found == expected if expected <= most else found > most


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Crème-Brûlée", ["creme", "brulee"]),
        ("STRASSE straße", ["strasse", "strasse"]),
        ("й и", ["и", "и"]),
        ("ﬁsh ½", ["fish", "1", "2"]),
        ("हिन्दी", ["हिन्दी"]),
        ("милк_молоко", ["милк", "молоко"]),
        ("🍎.png", ["🍎", "png"]),
        ("日本茶 tea", ["日", "本", "茶", "日本", "本茶", "tea"]),
        ("が", ["が"]),
        ("한국", ["한국"]),
        ("abc日本", ["abc", "日", "本", "日本"]),
        ("--- \t\n", []),
        ("", []),
    ],
)
def test_words_of_many_scripts(text: str, words: list[str]) -> None:
    assert list_words(text) == words


@pytest.mark.parametrize(
    ("text", "other", "is_same"),
    [
        ("❤\ufe0f", "❤", True),
        ("❤\ufe0e", "❤", True),
        ("葛\U000e0100", "葛", True),
        ("\u0645\u064f\u062d\u064e\u0645\u0651\u064e\u062f", "\u0645\u062d\u0645\u062f", True),  # short vowels
        ("\u0645\u062d\u0640\u0640\u0645\u062f", "\u0645\u062d\u0645\u062f", True),  # a longer stroke
        ("\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd", "\u05e9\u05dc\u05d5\u05dd", True),  # points of Hebrew
        ("\u0915\u0940", "\u0915", False),  # the vowel of a syllable in Hindi
        ("\u0622", "\u0627", False),  # an alef that is another letter
    ],
)
def test_marks_that_make_no_other_word(text: str, other: str, is_same: bool) -> None:
    assert (list_words(text) == list_words(other)) is is_same
    assert (list_query_words(text) == list_query_words(other)) is is_same


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12), min_size=1, max_size=4))
def test_every_word_of_an_image_finds_it(texts: list[str]) -> None:
    index = build(texts)
    for row, text in enumerate(texts):
        for word in list_query_words(text):
            assert index.score([word])[row] > 0
        words = list_query_words(text)
        assert index.holds(words)[row] == bool(words)


def test_prefixes_and_typos_find_what_was_meant() -> None:
    index = build(["Arla Milk", "Oatly Oat-Drink", "Golden Delicious apple", None, "Strawberries 2021"])
    for text, place in [
        ("arla milk", 0), ("mil", 0), ("mlik", 0), ("arl", 0), ("oatdly", 1), ("drikn", 1), ("delicous", 2),
        ("dilicous", 2), ("APPLES", 2), ("strawberies", 4), ("202", 4),
    ]:  # fmt: skip
        assert np.flatnonzero(index.score(list_query_words(text))).tolist() == [place], text
    assert not index.score(["zebra"]).any()
    assert not index.score(["2022"]).any()
    assert not index.score(["ml"]).any()


def test_typos_are_forgiven_in_so_many_words_of_a_text() -> None:
    unknown = [f"zzz{chr(97 + number)}zz" for number in range(MAX_TYPO_WORDS)]
    index = build(["banana"])
    assert index.score([*unknown[1:], "bananna"]).any()
    assert not index.score([*unknown, "bananna"]).any()


def test_a_rare_word_and_the_word_itself_count_more() -> None:
    index = build(["milk", "milk", "milk shake", "milkshake"])
    assert np.argmax(index.score(["milk", "shake"])) == 2
    scores = index.score(["milk"])
    assert scores[0] == scores[1] > scores[3] > 0


def test_the_names_of_images_and_files_are_words() -> None:
    names = pa.array(["b/pear_1.jpg", "item 7"])
    paths = pa.array(["/home/me/b/pear_1.jpg", "/home/me/melon.png"])
    index = WordIndex([TextBlock(names, paths, {})])
    assert index.lengths.tolist() == [4, 4]  # the file's name is not counted twice
    assert np.flatnonzero(index.score(["melon"])).tolist() == [1]
    assert np.flatnonzero(index.score(["pear"])).tolist() == [0]
    assert not index.score(["home"]).any()


def test_blocks_of_different_columns_are_one_index_in_the_order_of_names() -> None:
    blocks = [
        TextBlock(pa.array(["c", "a"]), pa.array(["/c", "/a"]), {"x": pa.array(["one", None])}),
        TextBlock(pa.array(["b"]), pa.array(["/b"]), {"y": pa.array(["two"])}),
        TextBlock(pa.array([], pa.string()), pa.array([], pa.string()), {"z": pa.array([], pa.string())}),
    ]
    index = WordIndex(blocks)
    assert index.names(np.arange(3)) == ["a", "b", "c"]
    assert index.find(["c", "a", "", "zz", "b"]).tolist() == [2, 0, -1, -1, 1]
    assert np.flatnonzero(index.score(["one"])).tolist() == [2]
    tests = resolve_filter("x!=one", ["x", "y"], lambda columns: dict.fromkeys(columns, 0))  # type: ignore[arg-type]
    assert index.passes(np.array([0, 1, 2]), tests).tolist() == [True, True, False]


def test_an_empty_index_answers_nothing() -> None:
    index = WordIndex([])
    assert index.score(["milk"]).shape == (0,)
    assert index.holds(["milk"]).shape == (0,)
    assert index.find(["a"]).tolist() == [-1]


def test_texts_are_read_again_only_after_a_change() -> None:
    class Store:
        stamp: object = 1
        num_reads = 0

        def read_stamp(self) -> object:
            return self.stamp

        def count(self) -> int:
            return 1

        def read_texts(self) -> list[TextBlock]:
            self.num_reads += 1
            return [TextBlock(pa.array([f"n{self.num_reads}"]), pa.array(["/"]), {})]

    store = Store()
    kept = KeptWords(store)  # type: ignore[arg-type]
    assert kept.find() is kept.find()
    store.stamp = 2
    assert kept.find().names(np.arange(1)) == ["n2"]
    store.stamp = None  # the index is being replaced: what is read may be neither
    kept.find()
    kept.find()
    assert store.num_reads == 4
