"""``vitrieve map`` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from vitrieve.cli.main import main

pytest.importorskip("openTSNE", reason="needs vitrieve[map]")


def test_map_writes_a_page_and_points_of_an_index_and_of_embeddings(
    tiny_encoder_folder: Path, picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--encoder", str(tiny_encoder_folder), "--engine", "onnx", "--num-threads", "1"]
    assert main(["embed", "--data", str(picture_folder), "--out", str(tmp_path / "embeddings"), *words]) == 0
    assert main(["index", "--embeddings", str(tmp_path / "embeddings"), "--out", str(tmp_path / "index")]) == 0
    page, points = tmp_path / "map.html", tmp_path / "points.parquet"
    for folder, is_reused in (("index", False), ("index", True), ("embeddings", False)):
        capsys.readouterr()
        flags = ["--index", str(tmp_path / folder), "--json", "--html", str(page), "--parquet", str(points)]
        assert main(["map", *flags]) == 0
        value = json.loads(capsys.readouterr().out)
        assert (value["num_images"], value["is_reused"]) == (12, is_reused)
        assert value["points"] == str(tmp_path / folder / "map.parquet")
        assert 0 <= value["trustworthiness"] <= 1
        assert pq.read_table(points)["image_id"].to_pylist() == [f"{number:02}.png" for number in range(12)]
        assert page.read_text().count("data:image/jpeg;base64,") == 12
    assert main(["map", "--index", str(tmp_path / "index")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("map as it was kept: pictures 12, groups 2; ")
    assert said.endswith(" % of the 5 nearest pictures are among the 5 nearest here\n")


@pytest.mark.parametrize(
    ("num_images", "said"),
    [
        (1, "pictures 1, groups 1"),
        (3, "pictures 3, groups 1"),
        (4, "pictures 4, groups 1; 100 % of the nearest pictures are among the nearest here"),
    ],
)
def test_a_map_of_few_pictures_claims_nothing_that_it_cannot_measure(
    num_images: int,
    said: str,
    tiny_encoder_folder: Path,
    picture_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for path in sorted(picture_folder.iterdir())[num_images:]:
        path.unlink()
    words = ["--encoder", str(tiny_encoder_folder), "--engine", "onnx", "--num-threads", "1"]
    assert main(["embed", "--data", str(picture_folder), "--out", str(tmp_path / "embeddings"), *words]) == 0
    capsys.readouterr()
    assert main(["map", "--index", str(tmp_path / "embeddings"), "--html", str(tmp_path / "map.html")]) == 0
    assert capsys.readouterr().out == f"map laid out anew: {said}\n"
    assert (tmp_path / "map.html").read_text().count("data:image/jpeg;base64,") == num_images
    assert main(["map", "--index", str(tmp_path / "embeddings"), "--json"]) == 0
    assert ("trustworthiness" in json.loads(capsys.readouterr().out)) == (num_images > 3)


def test_map_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["map", "--index", str(tmp_path / "none")]) == 2
    assert "no finished index" in capsys.readouterr().err
