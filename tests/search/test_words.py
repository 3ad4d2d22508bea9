"""Searching in words: what is found, what is mixed with pictures, and texts that cannot be searched for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.text_encoders import write_colors
from vitrieve.cli.main import main
from vitrieve.embed.collection import embed_images
from vitrieve.errors import ConfigError
from vitrieve.index.open import build_index
from vitrieve.runtime.encoder import load_encoder
from vitrieve.search.query import combine_examples
from vitrieve.search.request import MAX_TEXT_LENGTH, Example, SearchRequest
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


def find_names(searcher: Searcher, *plus: Example, **given: object) -> list[str]:
    answer = searcher.answer(SearchRequest(plus=plus, **given))  # type: ignore[arg-type]
    return [result.metadata["name"] for result in answer.results]


def test_words_find_their_pictures_in_an_index_that_was_there_before(searcher: Searcher) -> None:
    answer = searcher.answer(SearchRequest(plus=(Example(text="dark red"),), k=10))
    assert "dark_red" in [result.metadata["name"] for result in answer.results]
    vector = searcher.encoder.encode_text("dark red")
    vectors, records = searcher.store.get(list(searcher.store.image_ids()))
    nearest = records[int(np.argmax(vectors @ vector))]
    assert answer.results[0].image_id == nearest.image_id
    assert answer.ways == ("text_encoder",)


def test_words_and_pictures_are_mixed_by_the_rule_of_examples(searcher: Searcher) -> None:
    examples = [Example(text="dark red"), Example(image_id="20_0.png"), Example(text="bright blue")]
    answer = searcher.answer(SearchRequest(plus=tuple(examples[:2]), minus=(examples[2],), k=3))
    texts = searcher.encoder.encode_text(["dark red", "bright blue"])
    stored = searcher.store.get(["20_0.png"])[0]
    vector = combine_examples(np.stack([texts[0], stored[0]]), texts[1:])
    expected = [hit.record.image_id for hit in searcher.store.search(vector[None], 4)[0]]
    assert [result.image_id for result in answer.results] == [name for name in expected if name != "20_0.png"][:3]
    assert answer.ways == ("pictures", "text_encoder")


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


def test_an_encoder_without_a_text_part_says_how_to_make_one(colors_index: Path, tiny_encoder_folder: Path) -> None:
    plain = Searcher.open(colors_index, load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1))
    with pytest.raises(ConfigError, match=r"has no text part.*vitrieve align"):
        find_names(plain, Example(text="dark red"))


def test_words_have_no_box_and_no_parts(searcher: Searcher) -> None:
    with pytest.raises(ConfigError, match="a box belongs to a picture"):
        Example(text="red", box=(0, 0, 1, 1))
    with pytest.raises(ConfigError, match="a text have no parts"):
        find_names(searcher, Example(text="red"), reranking="chamfer")


def test_the_command_searches_in_words(
    colors_index: Path, aligned_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["search", "--index", str(colors_index), "--encoder", str(aligned_folder), "--engine", "onnx"]
    words += ["--text", "dark red", "--minus", "text:bright red", "--json", "--html", str(tmp_path / "page.html")]
    assert main(words) == 0
    (query,) = json.loads(capsys.readouterr().out)["queries"]
    assert (query["query"], query["ways"]) == ("text:dark red", ["text_encoder"])
    assert "“dark red”" in (tmp_path / "page.html").read_text()
    assert main([*words[:7], "--text", ""]) == 2
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
