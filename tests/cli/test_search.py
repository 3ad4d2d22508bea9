from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vitrieve.cli.main import main
from vitrieve.data.sources import read_collection
from vitrieve.embed.collection import embed_collection
from vitrieve.index.open import build_index
from vitrieve.runtime.encoder import load_encoder
from vitrieve.search.threshold import Threshold, save_threshold


@pytest.fixture
def index_folder(tiny_encoder_folder: Path, picture_folder: Path, tmp_path: Path) -> Path:
    encoder = load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)
    embed_collection(encoder, read_collection(str(picture_folder)), tmp_path / "embeddings")
    build_index(tmp_path / "embeddings", tmp_path / "index", store="exact")
    return tmp_path / "index"


def test_search_prints_one_object(index_folder: Path, picture_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    queries = [str(picture_folder / "02.png"), str(picture_folder / "05.png")]
    assert main(["search", "--index", str(index_folder), *queries, "-k", "3", "--json", "--num-threads", "1"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [query["query"] for query in result["queries"]] == queries
    assert [query["results"][0]["image_id"] for query in result["queries"]] == ["02.png", "05.png"]
    assert [len(query["results"]) for query in result["queries"]] == [3, 3]
    assert set(result["queries"][0]["results"][0]) == {"image_id", "score", "path", "metadata", "box", "others"}
    assert (result["queries"][0]["is_match"], result["queries"][0]["has_more"]) == (None, True)
    assert set(result["queries"][0]["timings_seconds"]) == {"decode", "encode", "search"}


def test_search_prints_readable_lines(
    index_folder: Path, picture_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", str(picture_folder / "02.png"), "--index", str(index_folder), "-k", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[1].split() == ["1", "1.0000", "02.png"]


def test_search_writes_a_page(
    index_folder: Path, picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    words = ["search", "--index", str(index_folder), str(picture_folder / "02.png"), "--html", str(page), "--json"]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["queries"]
    assert str(page) in printed.err
    assert "02.png" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["{pictures}/gone.png"], "gone.png"),
        (["{pictures}/bad.png"], "bad.png"),
        (["{pictures}/02.png", "-k", "0"], "k is 0"),
        (["{pictures}/02.png", "--encoder", "./nowhere"], "does not exist"),
        ([], "name one or more pictures"),
        (["--id", "nobody.png"], "nobody.png"),
        (["{pictures}/02.png", "--filter", "label"], "no filter"),
        (["{pictures}/02.png", "--filter", "size=large"], "unknown metadata column 'size'"),
        (["{pictures}/02.png", "--group-by", "label"], "the images of this index have no metadata"),
        (["--box", "0", "0", "9", "{pictures}/02.png"], "--box takes 4 numbers after one another, not 0 0 9 "),
        (["{pictures}/02.png", "--box"], "--box takes 4 numbers after one another, and none is given"),
        (["{pictures}/02.png", "{pictures}/03.png", "--box", "0", "0", "9", "9"], "one picture"),
        (["--id", "02.png", "--box", "0", "0", "9", "9"], "a box belongs to a picture"),
        (["{pictures}/02.png", "--box", "99", "99", "120", "120"], "no pixel"),
        (["{pictures}/02.png", "--ids", "--json"], "give one"),
        (["{pictures}/02.png", "-0"], "--ids"),
        (["{pictures}/02.png", "--offset", "-1"], "offset is -1"),
        (["{pictures}/02.png", "--top", "3"], "nearest valid ones"),
    ],
)
def test_search_refuses_wrong_input_with_one_message(
    words: list[str], part: str, index_folder: Path, picture_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (picture_folder / "bad.png").write_text("no picture")
    given = [word.format(pictures=picture_folder) for word in words]
    assert main(["search", "--index", str(index_folder), *given]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert part in printed.err
    assert printed.err.count("error: ") == 1


def search_json(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    assert main(["search", *words, "--json", "--num-threads", "1"]) == 0
    queries: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["queries"]
    return queries


def list_ids(query: dict[str, Any]) -> list[str]:
    return [result["image_id"] for result in query["results"]]


def test_search_by_id_and_by_examples(
    index_folder: Path, picture_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--index", str(index_folder), "-k", "20"]
    by_id, by_file = search_json([*words, "--id", "02.png", str(picture_folder / "02.png")], capsys)[::-1]
    assert (by_file["query"], by_id["query"]) == (str(picture_folder / "02.png"), "id:02.png")
    assert list_ids(by_id) == [image_id for image_id in list_ids(by_file) if image_id != "02.png"]
    several = search_json([*words, "--plus", "id:02.png", "--plus", str(picture_folder / "03.png")], capsys)
    (both,) = search_json([*words, "--id", "02.png", "--plus", str(picture_folder / "03.png")], capsys)
    assert list_ids(several[0]) == list_ids(both)
    assert list_ids(both)[0] == "03.png"
    (without,) = search_json([*words, "--id", "02.png", "--minus", "id:03.png"], capsys)
    assert "03.png" not in list_ids(without)
    assert list_ids(without) != [image_id for image_id in list_ids(by_id) if image_id != "03.png"]


def test_search_pages_and_boxes(index_folder: Path, picture_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--index", str(index_folder), str(picture_folder / "02.png")]
    (all_of_it,) = search_json([*words, "-k", "12"], capsys)
    pages = [search_json([*words, "-k", "5", "--offset", str(offset)], capsys)[0] for offset in (0, 5, 10)]
    assert [image_id for page in pages for image_id in list_ids(page)] == list_ids(all_of_it)
    assert [page["has_more"] for page in pages] == [True, True, False]
    (boxed,) = search_json([*words, "--box", "0", "0", "20", "20"], capsys)
    assert boxed["results"][0]["score"] < 1
    picture = str(picture_folder / "02.png")
    for before in (["--box", "0", "0", "20", "20", picture], ["--box=0", "0", "20", "20", "-k", "10", picture]):
        (found,) = search_json(["--index", str(index_folder), *before], capsys)
        assert found["results"] == boxed["results"]
    (whole,) = search_json(["--index", str(index_folder), "--box", "None", picture], capsys)
    assert whole["results"][0]["score"] > boxed["results"][0]["score"]


@pytest.fixture
def labeled_index(tiny_encoder_folder: Path, class_folder: Path, tmp_path: Path) -> Path:
    encoder = load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)
    embed_collection(encoder, read_collection(f"folder:{class_folder}"), tmp_path / "embeddings")
    build_index(tmp_path / "embeddings", tmp_path / "index", store="exact")
    return tmp_path / "index"


def test_search_filters_groups_and_reranks(
    labeled_index: Path, class_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--index", str(labeled_index), str(class_folder / "class1" / "0.png"), "-k", "20"]
    (filtered,) = search_json([*words, "--filter", "label=class2|class3", "--filter", "label!=class3"], capsys)
    assert {result["metadata"]["label"] for result in filtered["results"]} == {"class2"}
    (grouped,) = search_json([*words, "--group-by", "label"], capsys)
    assert sorted(result["metadata"]["label"] for result in grouped["results"]) == [f"class{n}" for n in range(5)]
    assert [len(result["others"]) for result in grouped["results"]] == [3] * 5
    (merged,) = search_json([*words, "--near-duplicates"], capsys)
    assert len(merged["results"]) + sum(len(result["others"]) for result in merged["results"]) == 20
    (reranked,) = search_json([*words, "--rerank", "k_reciprocal"], capsys)
    assert len(reranked["results"]) == 20
    assert main(["search", *words, "--group-by", "label"]) == 0
    assert "(+3)" in capsys.readouterr().out


def test_search_says_that_nothing_matches(
    labeled_index: Path, picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = load_encoder(json.loads((labeled_index / "manifest.json").read_text())["encoder_source"])
    for score, expected in ((1.1, False), (-1.0, True)):
        save_threshold(Threshold(score=score, fingerprint=encoder.fingerprint, method="m"), labeled_index)
        words = ["--index", str(labeled_index), str(picture_folder / "02.png")]
        (query,) = search_json(words, capsys)
        assert (query["is_match"], query["threshold"]) == (expected, score)
        assert main(["search", *words, "--html", str(tmp_path / "page.html")]) == 0
        assert ("probably not" in capsys.readouterr().out) is not expected
        assert ("Probably not" in (tmp_path / "page.html").read_text(encoding="utf-8")) is not expected


def test_search_prints_names_for_pipes(
    tiny_encoder_folder: Path, picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)
    (picture_folder / "02.png").rename(picture_folder / "two\nlines.png")
    embed_collection(encoder, read_collection(str(picture_folder)), tmp_path / "embeddings")
    build_index(tmp_path / "embeddings", tmp_path / "index", store="exact")
    words = ["search", "--index", str(tmp_path / "index"), str(picture_folder / "03.png"), "-k", "12"]
    assert main([*words, "--ids", "-0"]) == 0
    names = capsys.readouterr().out.split("\0")
    assert names[0] == "03.png"
    assert names.pop() == ""
    assert sorted(names) == sorted([*(f"{n:02}.png" for n in range(12) if n != 2), "two\nlines.png"])
    assert main([*words, "--ids"]) == 2
    printed = capsys.readouterr()
    assert (printed.out, "-0" in printed.err) == ("", True)
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 13
    assert any(line.endswith('"two\\nlines.png"') for line in lines)
    assert main([*words[:-1], "1", "--ids"]) == 0
    assert capsys.readouterr().out == "03.png\n"


def test_search_refuses_a_missing_index(
    tmp_path: Path, picture_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", "--index", str(tmp_path / "nothing"), str(picture_folder / "02.png")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_embed_index_and_search_without_torch(
    without_torch: str, tiny_encoder_folder: Path, picture_folder: Path, tmp_path: Path
) -> None:
    script = (
        f"{without_torch}"
        "import sys\n"
        "from vitrieve.cli.main import main\n"
        "encoder, pictures, out = sys.argv[1:]\n"
        "steps = (\n"
        "    ['embed', '--encoder', encoder, '--data', pictures, '--out', out + '/embeddings'],\n"
        "    ['index', '--embeddings', out + '/embeddings', '--out', out + '/index'],\n"
        "    ['search', '--index', out + '/index', pictures + '/04.png', '-k', '1', '--html', out + '/page.html'],\n"
        ")\n"
        "statuses = [main(words) for words in steps]\n"
        "assert not {'torch', 'timm', 'torchvision'} & set(sys.modules)\n"
        "sys.exit(statuses != [0, 0, 0])\n"
    )
    words = [sys.executable, "-c", script, str(tiny_encoder_folder), str(picture_folder), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["1", "1.0000", "04.png"]
