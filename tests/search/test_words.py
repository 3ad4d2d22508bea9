"""Searching in words: what is found, what is mixed with pictures, and texts that cannot be searched for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.text_encoders import write_colors
from vitrieve.cli.main import main
from vitrieve.embed.collection import embed_images
from vitrieve.errors import ConfigError, InputError
from vitrieve.index.open import build_index, open_index
from vitrieve.index.store import TextBlock, VectorStore
from vitrieve.runtime.encoder import load_encoder
from vitrieve.search import words
from vitrieve.search.query import combine_examples
from vitrieve.search.request import MAX_TEXT_LENGTH, Example, SearchRequest, answer_to_text
from vitrieve.search.searcher import Searcher
from vitrieve.search.threshold import Threshold


@pytest.fixture(scope="module")
def colors_index(tiny_encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index that the encoder without a text part made."""
    folder = tmp_path_factory.mktemp("words")
    encoder = load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)
    embeddings = embed_images(encoder, write_colors(folder / "colors").records)
    build_index(embeddings, folder / "index", store="exact").close()
    return folder / "index"


@pytest.fixture
def searcher(colors_index: Path, aligned_folder: Path) -> Searcher:
    return Searcher.open(colors_index, load_encoder(aligned_folder, engine="onnx", num_threads=1))


@pytest.fixture(params=["exact", "lance"])
def kind_of_store(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class NamelessStore:
    """A store whose images have no words."""

    def __init__(self, store: VectorStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read_texts(self) -> Iterator[TextBlock]:
        return iter([])


def find_names(searcher: Searcher, *plus: Example, **given: object) -> list[str]:
    answer = searcher.answer(SearchRequest(plus=plus, **given))  # type: ignore[arg-type]
    return [result.metadata["name"] for result in answer.results]


def test_words_find_their_pictures_in_an_index_that_was_there_before(searcher: Searcher) -> None:
    answer = searcher.answer(SearchRequest(plus=(Example(text="dark red"),), k=10))
    assert "dark_red" in [result.metadata["name"] for result in answer.results]
    vector = searcher.encoder.encode_text("dark red")
    vectors, _ = searcher.store.get([result.image_id for result in answer.results])
    assert [result.score for result in answer.results] == pytest.approx(vectors @ vector, abs=1e-6)
    assert answer.ways == ("text_encoder", "words")


def fuse_slowly(rankings: list[tuple[float, list[list[str]]]], cosines: dict[str, float]) -> list[str]:
    """Reciprocal rank fusion of rankings with their weights, each a list of groups of equal images, by plain loops."""
    shares = dict.fromkeys(cosines, 0.0)
    for weight, ranking in rankings:
        rank = 1
        for group in ranking:
            for name in group:
                shares[name] += weight / (20 + rank)
            rank += len(group)
    return sorted(shares, key=lambda name: (-shares[name], -cosines[name], name))


def test_words_and_meaning_are_fused_by_their_ranks(searcher: Searcher) -> None:
    """Every image has "dark" or not, "red" or not; the names of files make no difference."""
    vectors, records = searcher.store.get(list(searcher.store.image_ids()))
    similarities = vectors @ searcher.encoder.encode_text("dark red")
    cosines = {record.image_id: float(one) for record, one in zip(records, similarities, strict=True)}
    nearest = sorted(cosines, key=lambda name: (-cosines[name], name))
    has = {record.image_id: record.metadata["name"].split("_") for record in records}
    both = [name for name in has if has[name] == ["dark", "red"]]
    # "dark" stands there twice, in the name and in the shade, and is as rare as "red".
    dark = [name for name in has if "dark" in has[name] and name not in both]
    red = [name for name in has if "red" in has[name] and name not in both]
    expected = fuse_slowly([(1, [[name] for name in nearest]), (2, [both, dark, red])], cosines)
    answer = searcher.answer(SearchRequest(plus=(Example(text="dark red"),), k=len(expected)))
    assert [result.image_id for result in answer.results] == expected
    pages = [searcher.answer(SearchRequest(plus=(Example(text="dark red"),), k=25, offset=at)) for at in (0, 25, 50)]
    assert [result.image_id for page in pages for result in page.results] == expected[:75]


def test_words_and_pictures_are_mixed_by_the_rule_of_examples(searcher: Searcher) -> None:
    examples = [Example(text="dark red"), Example(image_id="20_0.png"), Example(text="nothing blue")]
    unnamed = Searcher(NamelessStore(searcher.store), searcher.encoder)  # type: ignore[arg-type]
    answer = unnamed.answer(SearchRequest(plus=tuple(examples[:2]), minus=(examples[2],), k=3))
    texts = searcher.encoder.encode_text(["dark red", "nothing blue"])
    stored = searcher.store.get(["20_0.png"])[0]
    vector = combine_examples(np.stack([texts[0], stored[0]]), texts[1:])
    expected = [hit.record.image_id for hit in searcher.store.search(vector[None], 4)[0]]
    assert [result.image_id for result in answer.results] == [name for name in expected if name != "20_0.png"][:3]
    assert answer.ways == ("pictures", "text_encoder", "words")


def test_images_with_the_words_that_are_not_wanted_are_left_out(searcher: Searcher) -> None:
    names = find_names(searcher, Example(text="dark red"), k=200, minus=(Example(text="bright blue"),))
    assert len(names) == 105
    assert "bright_blue" not in names
    assert {"bright_red", "dark_blue"} <= set(names)


def test_filters_and_pages_hold_for_words(searcher: Searcher) -> None:
    everything = find_names(searcher, Example(text="dark red"), k=9, filter="shade=dull")
    assert {name.split("_")[0] for name in everything} == {"dull"}
    assert find_names(searcher, Example(text="dark red"), k=4, offset=5, filter="shade=dull") == everything[5:9]


def test_a_threshold_of_pictures_does_not_judge_words(searcher: Searcher) -> None:
    assert searcher.encoder.fingerprint
    judged = Searcher(
        searcher.store,
        searcher.encoder,
        threshold=Threshold(score=0.5, fingerprint=searcher.encoder.fingerprint, method="by hand"),
    )
    assert judged.answer(SearchRequest(plus=(Example(text="dark red"),))).is_match is None
    assert judged.answer(SearchRequest(plus=(Example(image_id="20_0.png"),))).is_match is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (" \t\n", "is empty"),
        ("red " * 2500, f"10,000 characters; at most {MAX_TEXT_LENGTH:,}"),
        ("red\udce9", "which is no part of a text"),
        ("red\0", "which is no part of a text"),
    ],
)
def test_a_text_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Example(text=text)


@pytest.mark.parametrize("text", ["красное яблоко", "红苹果", "تفاحة حمراء", "לתפוח", "🍎🍏"])
def test_a_script_that_the_text_encoder_does_not_know_is_refused(text: str, searcher: Searcher) -> None:
    with pytest.raises(ConfigError, match="does not know the script"):
        find_names(searcher, Example(text=text))


def test_more_tokens_than_the_text_encoder_reads_are_refused(searcher: Searcher) -> None:
    assert find_names(searcher, Example(text="red " * 10))
    with pytest.raises(ConfigError, match=r"13 tokens long.* reads at most 12"):
        find_names(searcher, Example(text="red " * 11))


@pytest.fixture
def plain(colors_index: Path, tiny_encoder_folder: Path) -> Searcher:
    """A searcher whose encoder has no text part."""
    return Searcher.open(colors_index, load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1))


def test_words_alone_find_names_where_the_encoder_has_no_text_part(plain: Searcher) -> None:
    answer = plain.answer(SearchRequest(plus=(Example(text="drak red"),), k=100))
    names = [result.metadata["name"] for result in answer.results]
    assert names[:3] == ["dark_red"] * 3
    assert all("dark" in name or "red" in name for name in names)
    assert len(names) == 3 + 2 * 15
    assert answer.ways == ("words",)
    assert answer.is_match is None
    scores = [result.score for result in answer.results]
    assert scores == sorted(scores, reverse=True)
    assert 0 < scores[-1] < scores[0] < 1
    assert [result.image_id for result in answer.results[:3]] == ["01_0.png", "01_1.png", "01_2.png"]


def test_words_alone_have_pages_filters_and_groups(plain: Searcher) -> None:
    red = (Example(text="red"),)
    everything = find_names(plain, *red, k=100)
    assert len(everything) == 18
    assert find_names(plain, *red, k=7, offset=7) == everything[7:14]
    assert not plain.answer(SearchRequest(plus=red, k=7, offset=14)).has_more
    assert find_names(plain, *red, filter="shade=dull|light") == ["dull_red"] * 3 + ["light_red"] * 3
    with pytest.raises(InputError, match="colour"):
        find_names(plain, *red, filter="colour=red")
    groups = plain.answer(SearchRequest(plus=red, group_by="name")).results
    assert [(group.metadata["name"], len(group.others)) for group in groups[:2]] == [("black_red", 2), ("dark_red", 2)]
    assert find_names(plain, Example(text="red"), k=100, is_near_duplicate_grouped=True)


def test_words_alone_that_nothing_has_find_nothing(plain: Searcher) -> None:
    answer = plain.answer(SearchRequest(plus=(Example(text="红苹果"),)))
    assert (answer.results, answer.ways, answer.has_more) == ((), ("words",), False)
    assert "nothing: no name" in answer_to_text("text:红苹果", answer, 0)


def test_a_picture_and_words_are_fused_where_the_encoder_has_no_text_part(plain: Searcher) -> None:
    picture, text = Example(image_id="20_0.png"), Example(text="blue")
    answer = plain.answer(SearchRequest(plus=(picture, text), k=200))
    assert answer.ways == ("pictures", "words")
    assert len(answer.results) == 107
    alone = [result.image_id for result in plain.answer(SearchRequest(plus=(picture,), k=200)).results]
    found = [result.image_id for result in answer.results]
    blue = [result.image_id for result in answer.results if "blue" in result.metadata["name"]]
    assert blue == [name for name in alone if name in blue]  # equal words: the picture decides
    assert sum(map(found.index, blue)) < sum(map(alone.index, blue))
    left = plain.answer(SearchRequest(plus=(picture,), minus=(text,), k=200))
    assert [result.image_id for result in left.results] == [name for name in alone if name not in blue]
    assert left.ways == ("pictures", "words")


def test_words_alone_say_what_they_cannot_do(plain: Searcher) -> None:
    with pytest.raises(ConfigError, match="no word to look for"):
        find_names(plain, Example(text="-- !"))
    with pytest.raises(ConfigError, match="a picture cannot be taken from that"):
        find_names(plain, Example(text="red"), minus=(Example(image_id="20_0.png"),))
    with pytest.raises(ConfigError, match="words alone have none"):
        find_names(plain, Example(text="red"), reranking="k_reciprocal")


def test_too_many_images_are_not_searched_by_words(
    plain: Searcher, searcher: Searcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "MAX_IMAGES", 107)
    assert searcher.answer(SearchRequest(plus=(Example(text="red"),))).ways == ("text_encoder",)
    with pytest.raises(ConfigError, match="has no text part"):
        find_names(plain, Example(text="red"))


def test_a_text_that_the_encoder_does_not_know_is_looked_for_as_words(
    aligned_folder: Path, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    encoder = load_encoder(aligned_folder, engine="onnx", num_threads=1)
    records = [
        replace(record, metadata={"name": "красное яблоко" if row == 3 else "pear"})
        for row, record in enumerate(write_colors(tmp_path / "colors").records)
    ]
    build_index(embed_images(encoder, records), tmp_path / "index", store="exact").close()
    searcher = Searcher.open(tmp_path / "index", encoder)
    answer = searcher.answer(SearchRequest(plus=(Example(text="Красное"),)))
    assert [result.image_id for result in answer.results] == [records[3].image_id]
    assert answer.ways == ("words",)
    with pytest.raises(ConfigError, match="does not know the script"):
        find_names(searcher, Example(text="зелёное"))


def test_words_are_those_of_the_index_as_it_is_now(
    kind_of_store: str, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    encoder = load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)
    embeddings = embed_images(encoder, write_colors(tmp_path / "colors").records[:3])
    build_index(embeddings, tmp_path / "index", store=kind_of_store).close()  # type: ignore[arg-type]
    searcher = Searcher.open(tmp_path / "index", encoder)
    assert find_names(searcher, Example(text="melon")) == []
    melon = replace(embeddings.records[0], image_id="a melon", metadata={"name": "new"})
    with closing(open_index(tmp_path / "index")) as other:
        other.upsert(embeddings.vectors[:1], [melon])
        assert find_names(searcher, Example(text="melon")) == ["new"]
        other.delete(["a melon"])
        assert find_names(searcher, Example(text="melon")) == []


def test_words_have_no_box_and_no_parts(searcher: Searcher) -> None:
    with pytest.raises(ConfigError, match="a box belongs to a picture"):
        Example(text="red", box=(0, 0, 1, 1))
    with pytest.raises(ConfigError, match="a text have no parts"):
        find_names(searcher, Example(text="red"), reranking="chamfer")


def test_the_command_searches_in_words(
    colors_index: Path, aligned_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["search", "--index", str(colors_index), "--encoder", str(aligned_folder), "--engine", "onnx"]
    line += ["--text", "dark red", "--minus", "text:bright red", "--json", "--html", str(tmp_path / "page.html")]
    assert main(line) == 0
    (query,) = json.loads(capsys.readouterr().out)["queries"]
    assert (query["query"], query["ways"]) == ("text:dark red", ["text_encoder", "words"])
    assert "“dark red”" in (tmp_path / "page.html").read_text()
    assert main([*line[:7], "--text", ""]) == 2
    assert "is empty" in capsys.readouterr().err


def test_searching_in_words_needs_no_torch(colors_index: Path, aligned_folder: Path, without_torch: str) -> None:
    code = (
        f"{without_torch}import sys\nfrom vitrieve.cli.main import main\n"
        f"sys.exit(main(['search', '--index', {str(colors_index)!r}, '--encoder', {str(aligned_folder)!r}, "
        "'--engine', 'onnx', '--text', 'dark red', '-k', '1', '--ids']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(".png")
