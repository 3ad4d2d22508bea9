from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vitrieve.cli.main import main
from vitrieve.data.sources import read_collection
from vitrieve.embed.collection import embed_collection
from vitrieve.index.exact import build_index
from vitrieve.runtime.encoder import load_encoder


@pytest.fixture
def index_folder(tiny_encoder_folder: Path, picture_folder: Path, tmp_path: Path) -> Path:
    encoder = load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)
    embed_collection(encoder, read_collection(str(picture_folder)), tmp_path / "embeddings")
    build_index(tmp_path / "embeddings", tmp_path / "index")
    return tmp_path / "index"


def test_search_prints_one_object(index_folder: Path, picture_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    queries = [str(picture_folder / "02.png"), str(picture_folder / "05.png")]
    assert main(["search", "--index", str(index_folder), *queries, "-k", "3", "--json", "--num-threads", "1"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [query["query"] for query in result["queries"]] == queries
    assert [query["results"][0]["image_id"] for query in result["queries"]] == ["02.png", "05.png"]
    assert [len(query["results"]) for query in result["queries"]] == [3, 3]
    assert set(result["queries"][0]["results"][0]) == {"image_id", "score", "path", "metadata"}


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
        "    ['embed', '--encoder', encoder, '--images', pictures, '--out', out + '/embeddings'],\n"
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
