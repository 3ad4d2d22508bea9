"""``vitrieve duplicates`` on the command line."""

from __future__ import annotations

import codecs
import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrieve.cli.main import main


@pytest.fixture
def twice(picture_folder: Path) -> Path:
    (picture_folder / "<b>copy.png").write_bytes((picture_folder / "03.png").read_bytes())
    return picture_folder


def test_json_html_and_csv_show_the_groups_and_change_nothing(
    twice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, table = tmp_path / "page.html", tmp_path / "table.csv"
    words = ["duplicates", str(twice), "--level", "exact", "--json", "--html", str(page), "--csv", str(table)]
    assert main(words) == 0
    value = json.loads(capsys.readouterr().out)
    group = {"image_ids": ["03.png", "<b>copy.png"], "keep": "03.png", "level": "exact", "similarities": [1.0, 1.0]}
    assert value["groups"] == [group]
    text = page.read_text()
    assert text.count("data:image/jpeg;base64,") == 2
    assert "<b>copy" not in text
    assert "&lt;b&gt;copy.png" in text
    assert table.read_bytes().startswith(codecs.BOM_UTF8 + b"group,image_id,")  # as Excel knows UTF-8
    with table.open(encoding="utf-8-sig") as file:
        assert [(row["image_id"], row["keep"]) for row in csv.DictReader(file)] == [
            ("03.png", "true"),
            ("<b>copy.png", "false"),
        ]
    assert len(list(twice.iterdir())) == 13


def test_move_and_undo(twice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["duplicates", str(twice), "--level", "exact", "--move-to", str(tmp_path / "extra")]) == 0
    assert "1 files moved" in capsys.readouterr().out
    assert not (twice / "<b>copy.png").exists()
    assert main(["duplicates", "--undo", str(tmp_path / "extra" / "undo.json")]) == 0
    assert (twice / "<b>copy.png").exists()


@pytest.mark.parametrize("name", ["duplicates_undo.json", "other.json"])
def test_link_and_undo(name: str, twice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    flags = ["--undo-file", name] if name == "other.json" else []
    assert main(["duplicates", str(twice), "--level", "exact", "--link", *flags]) == 0
    assert (twice / "<b>copy.png").samefile(twice / "03.png")
    assert os.listdir() == [name]
    assert main(["duplicates", "--undo", name]) == 0
    assert not (twice / "<b>copy.png").samefile(twice / "03.png")


def test_a_tilde_that_no_shell_has_expanded_is_the_home_folder(
    twice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.chdir(twice)
    assert main(["duplicates", ".", "--level", "exact", "--move-to=~/extra"]) == 0
    assert sorted(os.listdir(tmp_path / "home" / "extra")) == ["<b>copy.png", "undo.json"]
    assert not (twice / "~").exists()


@pytest.mark.parametrize("name", [".", "extra", "more/extra"])
@pytest.mark.parametrize("kind", ["", "folder:"])
def test_nothing_is_moved_into_the_folder_that_is_searched(
    kind: str, name: str, twice: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(twice.rglob("*"))
    monkeypatch.chdir(twice)
    for folder in (name, str(twice / name)):
        assert main(["duplicates", f"{kind}{twice}", "--level", "exact", "--move-to", folder]) == 2
        error = capsys.readouterr().err
        assert "where the moved pictures may be found again" in error
        assert len(error.strip().splitlines()) == 1
    assert sorted(twice.rglob("*")) == before


@pytest.mark.parametrize("kind", ["index", "embeddings"])
def test_nothing_is_moved_into_the_folder_of_an_index(
    kind: str,
    twice: Path,
    tiny_encoder_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (twice / "deep").mkdir()
    (twice / "00.png").rename(twice / "deep" / "00.png")
    (twice / "<b>copy.png").rename(twice / "deep" / "copy.png")
    words = ["--encoder", str(tiny_encoder_folder), "--num-threads", "1"]
    if kind == "index":
        assert main(["sync", str(twice), "--index", str(tmp_path / "index"), *words]) == 0
    else:
        assert main(["embed", "--data", str(twice), "--out", str(tmp_path / "embeddings"), *words]) == 0
    before = sorted(twice.rglob("*"))
    words = ["duplicates", str(tmp_path / kind), "--level", "exact", "--move-to"]
    with monkeypatch.context() as patch:
        patch.setattr("vitrieve.curation.duplicates.duplicates", None)  # no work is begun
        for folder in (twice / "extra", twice, twice / "deep" / "extra", tmp_path / kind / "extra"):
            assert main([*words, str(folder)]) == 2
            assert "where the moved pictures may be found again" in capsys.readouterr().err
    assert sorted(twice.rglob("*")) == before
    assert main([*words, str(tmp_path / "extra")]) == 0
    assert (tmp_path / "extra" / "deep" / "copy.png").exists()


def test_nothing_is_looked_for_where_nothing_can_be_moved_or_linked(
    twice: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    refuse_writing: Callable[[Path], None],
) -> None:
    refuse_writing(tmp_path)
    monkeypatch.setattr("vitrieve.curation.duplicates.duplicates", None)  # no work is begun
    for flags in (["--move-to", str(tmp_path / "extra")], ["--link", "--undo-file", str(tmp_path / "undo.json")]):
        assert main(["duplicates", str(twice), "--level", "exact", *flags]) == 2
        assert "make the folder writable" in capsys.readouterr().err


def test_a_table_that_is_read_is_not_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitrieve.curation.duplicates.duplicates", None)  # no work is begun
    monkeypatch.setattr("vitrieve.curation.audit.audit", None)
    (tmp_path / "own.csv").write_text("path,label\n")
    for words in (["duplicates", f"table:{tmp_path}/own.csv"], ["data", "audit", f"--data=table:{tmp_path}/own.csv"]):
        assert main([*words, "--csv", str(tmp_path / "own.csv")]) == 2
        assert "own.csv is read, and would be lost" in capsys.readouterr().err
    assert (tmp_path / "own.csv").read_text() == "path,label\n"


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_page_that_cannot_be_written_loses_neither_report_nor_table_and_nothing_is_moved(
    flags: list[str], twice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, table = tmp_path / "page.html", tmp_path / "table.csv"
    page.with_name("page.html.tmp").mkdir()
    words = ["--html", str(page), "--csv", str(table), "--move-to", str(tmp_path / "extra")]
    assert main(["duplicates", str(twice), "--level", "exact", *words, *flags]) == 2
    told = capsys.readouterr()
    assert "page.html.tmp" in told.err
    found = json.loads(told.out)["groups"][0]["image_ids"] if flags else told.out
    assert "<b>copy.png" in found
    assert "copy.png" in table.read_text()
    assert not (tmp_path / "extra").exists()


def test_names_in_the_table_are_no_formulas(twice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("=1+1.png", "+a.png", "-a.png", "@a.png", "a=1.png"):
        (twice / name).write_bytes((twice / "03.png").read_bytes())
    table = tmp_path / "table.csv"
    assert main(["duplicates", str(twice), "--level", "exact", "--csv", str(table), "--json"]) == 0
    with table.open(encoding="utf-8-sig") as file:
        names = {row["image_id"] for row in csv.DictReader(file)}
    assert names == {"'=1+1.png", "'+a.png", "'-a.png", "'@a.png", "a=1.png", "03.png", "<b>copy.png"}
    assert "=1+1.png" in json.loads(capsys.readouterr().out)["groups"][0]["image_ids"]


def test_near_with_an_encoder(twice: Path, tiny_encoder_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["duplicates", str(twice), "--encoder", str(tiny_encoder_folder), "--threshold", "0.99999"]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["exact: keep 03.png", "    <b>copy.png"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "name a collection or an index"),
        (["a", "--undo", "b"], "name a collection or an index"),
        (["a", "--link", "--move-to", "b"], "give one"),
        (["--undo", "b", "--html", "a.html"], "--undo looks for nothing"),
        (["--undo", "b", "--csv", "a.csv"], "--undo looks for nothing"),
        (["--undo", "b", "--move-to", "c"], "--undo looks for nothing"),
        (["--undo", "b", "--link"], "--undo looks for nothing"),
        (["--undo", "b", "--undo-file", "c"], "--undo looks for nothing"),
        (["a", "--undo-file", "c"], "--undo-file belongs to --link: leave it out"),
        (["a", "--move-to", "b", "--undo-file", "c"], "--undo-file belongs to --link, and --move-to writes undo.json"),
        (["nowhere/at/all"], "not a folder that exists"),
        (["~nobody-at-all", "--move-to", "b"], "unknown source '~nobody-at-all'"),
        (["a", "--csv", "nowhere/at/all.csv"], "there is no folder nowhere/at; make it first"),
        (["a", "--html", "."], "is a folder; name a file"),
        (["a", "--move-to", __file__], "is no folder; name one for --move-to"),
        (["a", "--link", "--undo-file", "nowhere/undo.json"], "is no folder that is there"),
    ],
)
def test_wrong_use(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["duplicates", *words]) == 2
    assert part in capsys.readouterr().err


def test_an_unreadable_picture_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"nothing")
    assert main(["duplicates", str(tmp_path), "--level", "exact"]) == 0
    told = capsys.readouterr()
    assert "unreadable: b.png" in told.err
    assert "0 groups" in told.out
