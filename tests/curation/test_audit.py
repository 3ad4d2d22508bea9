"""The whole audit on a made collection, and the corrected table that comes of decisions."""

from __future__ import annotations

import codecs
import csv
import json
import os
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from vitrieve import audit, correct_labels, embed_collection, read_source
from vitrieve.cli.main import main
from vitrieve.curation.audit import AuditReport, LabelError, NearPair, OddPicture, OverlappingClasses
from vitrieve.curation.decisions import spell_table_path
from vitrieve.curation.pages import write_audit_csv, write_audit_page
from vitrieve.data.records import ImageRecord
from vitrieve.errors import ArtifactError, ConfigError, DataError
from vitrieve.runtime.encoder import Encoder


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with splits, eight pictures a class of one color each, and one fault of each kind."""
    folder, generator = tmp_path / "shop", np.random.default_rng(0)
    colors = {"blue": (20, 20, 220), "green": (20, 200, 20), "red": (220, 20, 20)}
    for split in ("train", "test"):
        for name, color in colors.items():
            (folder / split / name).mkdir(parents=True)
            for number in range(8):
                pixels = np.clip(np.array(color) + generator.integers(-20, 36, (40, 40, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    train, test = folder / "train", folder / "test"
    shutil.move(train / "red" / "7.png", train / "blue" / "really_red.png")
    shutil.copy(test / "green" / "0.png", train / "green" / "leak.png")
    shutil.copy(train / "blue" / "1.png", train / "red" / "double.png")
    with Image.open(train / "green" / "3.png") as image:
        image.filter(ImageFilter.GaussianBlur(9)).save(train / "green" / "3.png")
        image.resize((8, 8)).save(train / "green" / "4.png")
        image.point(lambda value: value // 8).save(train / "green" / "5.png")
    (train / "green" / "bad.png").write_bytes(b"no picture")
    return folder


def test_audit_finds_what_was_planted(shop: Path, encoder: Encoder) -> None:
    report = audit(f"folder:{shop}", encoder, threshold=0.99999)
    wrong = {error.image_id: error for error in report.label_errors}
    error = wrong["train/blue/really_red.png"]
    assert (error.label, error.suggested_label) == ("blue", "red")
    assert "/red/" in error.evidence
    scores = [error.score for error in report.label_errors]
    assert scores == sorted(scores, reverse=True)
    (leak,) = report.duplicates_across_splits
    assert set(leak.image_ids) == {"test/green/0.png", "train/green/leak.png"}
    (double,) = report.duplicates_across_classes
    assert set(double.image_ids) == {"train/blue/1.png", "train/red/double.png"}
    odd = {kind: {one.image_id for one in found} for kind, found in report.odd.items()}
    assert "train/green/3.png" in odd["blurred"]
    assert odd["tiny"] == {"train/green/4.png"}
    assert odd["dark"] == {"train/green/5.png"}
    assert [image_id for image_id, _ in report.unreadable] == ["train/green/bad.png"]


def test_embeddings_give_the_same_audit_and_must_be_of_the_source(
    shop: Path, encoder: Encoder, tmp_path: Path, class_folder: Path
) -> None:
    embed_collection(encoder, read_source(f"folder:{shop}"), tmp_path / "embeddings")
    again = audit(f"folder:{shop}", embeddings=tmp_path / "embeddings", threshold=0.99)
    assert again == audit(f"folder:{shop}", encoder, threshold=0.99)
    with pytest.raises(DataError, match="knows nothing of 20 of 20 pictures"):
        audit(f"folder:{class_folder}", embeddings=tmp_path / "embeddings")
    dataset = read_source(f"folder:{shop}")
    cropped = tuple(replace(record, box=(0.0, 0.0, 9.0, 9.0)) for record in dataset.records)
    with pytest.raises(DataError, match="look at different regions of"):
        audit(replace(dataset, records=cropped), embeddings=tmp_path / "embeddings")


def test_decisions_become_a_table_that_is_a_source(shop: Path, tmp_path: Path, encoder: Encoder) -> None:
    source = f"folder:{shop}"
    write_audit_csv(audit(source, encoder, threshold=0.99999), tmp_path / "audit.csv")
    with (tmp_path / "audit.csv").open() as file:
        assert file.read(1) == "\ufeff", "Excel takes UTF-8 for another encoding without it"
        rows = list(csv.DictReader(file))
    for row in rows:
        if row["image_id"] == "train/blue/really_red.png":
            row["action"] = "relabel"
        elif row["image_id"] == "train/green/leak.png":
            row["action"] = "drop"
    decisions = tmp_path / "decisions.csv"
    with decisions.open("w") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    table = correct_labels(source, decisions, tmp_path / "corrected.csv")
    assert (table.num_relabeled, table.num_dropped) == (1, 1)
    before, after = read_source(source), read_source(f"table:{tmp_path / 'corrected.csv'}")
    expected = {
        record.path.resolve(): (before.label_names[record.label], record.split, record.is_query)
        for record in before.records
        if record.path.name != "leak.png"
    }
    expected[shop / "train" / "blue" / "really_red.png"] = ("red", "train", True)
    found = {
        record.path.resolve(): (after.label_names[record.label], record.split, record.is_query)
        for record in after.records
    }
    assert found == expected
    with pytest.raises(ArtifactError, match="is there already"):
        correct_labels(source, decisions, tmp_path / "corrected.csv")


def test_a_table_in_a_linked_folder_lists_files_that_are_there(class_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "deep" / "disk" / "u").mkdir(parents=True)
    (tmp_path / "scratch").symlink_to("deep/disk")
    (tmp_path / "decisions.csv").write_text("image_id,action\nclass0/0.png,drop\n")
    out = tmp_path / "scratch" / "u" / "out.csv"
    assert correct_labels(f"folder:{class_folder}", tmp_path / "decisions.csv", out).num_images == 19
    paths = {record.path.resolve() for record in read_source(f"table:{out}").records}
    assert paths == set(class_folder.rglob("*.png")) - {class_folder / "class0" / "0.png"}
    assert spell_table_path(out.parent / "photos" / "a.jpg", out.parent) == os.path.join("photos", "a.jpg")


def test_a_table_and_its_pictures_below_one_link_can_move_together(tmp_path: Path) -> None:
    (tmp_path / "disk" / "1" / "work" / "out").mkdir(parents=True)
    (tmp_path / "home").symlink_to("disk/1")  # as where /home or /tmp is a link
    work = tmp_path / "home" / "work"
    assert spell_table_path(work / "photos" / "a.jpg", work / "out") == os.path.join("..", "photos", "a.jpg")


def test_a_picture_follows_its_class_into_its_split(tmp_path: Path) -> None:
    names = ["a.png", "b b.png", "~c.png", "d.png"]
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    rows = ["path,label,split,x_1,y_1,x_2,y_2,shop", "a.png,one,train,0,0,4.5,4,x", "b b.png,one,train,,,,,y"]
    (tmp_path / "table.csv").write_text("\n".join([*rows, "./~c.png,two,test,,,,,", '"d.png",two,test,,,,,"a, b"']))
    (tmp_path / "decisions.csv").write_text("image_id,action,new_label\na.png,relabel,two\nb b.png,keep,\n")
    (tmp_path / "below").mkdir()
    correct_labels(f"table:{tmp_path / 'table.csv'}", tmp_path / "decisions.csv", tmp_path / "below" / "out.csv")
    dataset = read_source(f"table:{tmp_path / 'below' / 'out.csv'}")
    first, second, third, fourth = dataset.records
    assert (dataset.label_names[first.label], first.split, first.box) == ("two", "test", (0, 0, 4.5, 4))
    assert (dataset.label_names[second.label], second.split, dict(second.metadata)) == ("one", "train", {"shop": "y"})
    assert third.path.resolve() == tmp_path / "~c.png"
    assert dict(fourth.metadata) == {"shop": "a, b"}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "has no column 'image_id'"),
        ("image_id,label\n", "has no column 'action'"),
        ("image_id,action\nclass0/0.png,erase\n", "unknown action 'erase'"),
        ("image_id,action\nclass0/0.png,relabel\n", "needs a label"),
        ("image_id,action\nclass0/0.png,keep\n", "changes nothing"),
        ("image_id,action\nnowhere.png,drop\n", "does not have, for example nowhere.png"),
        ("image_id,label,action\nclass0/0.png,class3,drop\n", "which was class3 and is class0; audit again"),
        ("image_id,action,new_label\nclass0/0.png,drop,\nclass0/0.png,relabel,class1\n", "decide for one"),
        ("image_id,action,new_label\nclass0/0.png,relabel,Class 1\n", "no picture has; class1 is there"),
        ("image_id,action,new_label\nclass0/0.png,relabel,clsas1\n", "write the action new instead of relabel"),
        ("image_id,action\nclass0/0.png,new\n", "new needs a label"),
        ("image_id,action,suggested_label\nclass0/0.png,new,class1\n", "new needs a label"),
        ("image_id,action,new_label\nclass0/0.png,new,class1\n", "calls the label class1 new, which pictures have"),
        (
            "image_id,action,new_label\nclass0/0.png,relabel,Granny Smith\nclass0/1.png,relabel,Granysmith\n",
            "Granny Smith is another new label",
        ),
        ("image_id;label\n", "has no column 'action'"),
        ("image_id,action\n" + "".join(f"class{c}/{i}.png,drop\n" for c in range(5) for i in range(4)), "drops all 20"),
    ],
)
def test_decisions_that_cannot_be_carried_out(class_folder: Path, tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "decisions.csv").write_text(text)
    with pytest.raises(DataError, match=part):
        correct_labels(f"folder:{class_folder}", tmp_path / "decisions.csv", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_decisions_of_a_spreadsheet_are_read(class_folder: Path, tmp_path: Path, delimiter: str) -> None:
    rows = [
        ("image_id", "action", "new_label"),
        ("class0/0.png", "relabel", "Äpfel, rot"),
        ("class0/1.png", "drop", ""),
    ]
    text = "\r\n".join(map(delimiter.join, rows)) + "\r\n"
    (tmp_path / "decisions.csv").write_text(text, encoding="utf-8-sig", newline="")
    table = correct_labels(f"folder:{class_folder}", tmp_path / "decisions.csv", tmp_path / "out.csv")
    assert (table.num_relabeled, table.num_dropped, table.new_labels) == (1, 1, ("Äpfel, rot",))
    (tmp_path / "decisions.csv").write_text(text, encoding="cp1252", newline="")
    with pytest.raises(DataError, match=r"is not UTF-8 text .*; save it as CSV UTF-8"):
        correct_labels(f"folder:{class_folder}", tmp_path / "decisions.csv", tmp_path / "again.csv")


def test_zeros_that_a_spreadsheet_took_away_are_told(tmp_path: Path) -> None:
    for label in ("0002", "0003"):
        (tmp_path / "people" / label).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 8)).save(tmp_path / "people" / label / f"{number}.png")
    source, file = f"folder:{tmp_path / 'people'}", tmp_path / "decisions.csv"
    header = "image_id,label,action,new_label,suggested_label\n"
    for row, label, meant in (
        ("0002/0.png,2,drop,,", "2", "0002"),
        ("0002/0.png,,relabel,,3", "3", "0003"),
        ("0002/0.png,0002,relabel,3.0,", "3.0", "0003"),
    ):
        file.write_text(f"{header}{row}\n")
        with pytest.raises(DataError, match=f"has the label {label} where {meant} seems to be meant.* as text"):
            correct_labels(source, file, tmp_path / "out.csv")
    file.write_text(f"{header}0002/0.png,0002,new,3,\n0002/1.png,0002,relabel,,0003\n")
    assert correct_labels(source, file, tmp_path / "out.csv").new_labels == ("3",)


def test_dates_that_a_spreadsheet_made_of_labels_are_told(tmp_path: Path) -> None:
    for label in ("adult", "4-6"):
        (tmp_path / "sizes" / label).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "sizes" / label / "0.png")
    source, file = f"folder:{tmp_path / 'sizes'}", tmp_path / "decisions.csv"
    header = "image_id,label,action,new_label,suggested_label\n"
    for row in ("adult/0.png,adult,relabel,,04-Jun", "4-6/0.png,04-Jun,relabel,adult,"):
        file.write_text(f"{header}{row}\n")
        with pytest.raises(DataError, match=r"04-Jun.* made dates or numbers of labels, import their columns as text"):
            correct_labels(source, file, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
    file.write_text(f"{header}adult/0.png,adult,relabel,4-6,\nadult/0.png,adult,relabel,,4-6\n")
    assert correct_labels(source, file, tmp_path / "out.csv").new_labels == ()


def test_a_label_that_no_picture_has_is_told_and_begins_a_class(
    class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decisions = tmp_path / "decisions.csv"
    rows = ["class0/0.png,relabel,class9", "class0/1.png,new,clas1", "class0/2.png,relabel,class1"]
    decisions.write_text("\n".join(["image_id,action,new_label", *rows, "class1/0.png,relabel,clas1"]))
    words = ["data", "audit", "--data", f"folder:{class_folder}", "--apply", str(decisions), "--out"]
    assert main([*words, str(tmp_path / "new.csv")]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("20 pictures, 4 with another label, 0 dropped")
    assert second == "new labels: clas1, class9"
    labels = set(read_source(f"table:{tmp_path / 'new.csv'}").label_names)
    assert labels == {"clas1", "class9", *(f"class{number}" for number in range(5))}


def test_a_source_that_no_table_can_hold_is_refused(class_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.csv"):
        correct_labels(f"folder:{class_folder}", tmp_path / "decisions.csv", tmp_path / "out.parquet")
    with pytest.raises(DataError, match="cannot be read as CSV"):
        correct_labels(f"folder:{class_folder}", tmp_path / "none.csv", tmp_path / "out.csv")


def test_one_label_and_one_picture_are_said(tmp_path: Path, encoder: Encoder) -> None:
    (tmp_path / "only" / "one").mkdir(parents=True)
    Image.new("RGB", (20, 20), (200, 100, 0)).save(tmp_path / "only" / "one" / "a.png")
    report = audit(f"folder:{tmp_path / 'only'}", encoder)
    assert report.label_errors == report.overlapping_classes == report.odd["outlier"] == ()
    assert report.threshold is None
    assert "one label only" in report.notes[0]
    with pytest.raises(ConfigError, match="threshold is 2"):
        audit(f"folder:{tmp_path / 'only'}", encoder, threshold=2)


def test_command_writes_page_csv_and_json_and_applies(
    shop: Path, tiny_encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, table = tmp_path / "audit.html", tmp_path / "audit.csv"
    words = ["data", "audit", "--data", f"folder:{shop}"]
    flags = ["--encoder", str(tiny_encoder_folder), "--html", str(page), "--csv", str(table), "--json"]
    assert main([*words, *flags]) == 0
    value = json.loads(capsys.readouterr().out)
    assert {"image_id", "label", "suggested_label", "score"} <= set(value["label_errors"][0])
    assert value["threshold"] is None
    assert 0.8 <= value["calibration"]["least_agreement"] <= 1
    assert "data:image/jpeg;base64," in page.read_text()
    decisions = tmp_path / "decisions.csv"
    decisions.write_text("image_id,action,new_label\ntrain/blue/really_red.png,relabel,red\n")
    assert main([*words, "--apply", str(decisions), "--out", str(tmp_path / "new.csv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_relabeled"] == 1
    assert main([*words, "--apply", str(decisions)]) == 2
    assert "give both or none" in capsys.readouterr().err
    for flags in (["--html", str(tmp_path / "other.html")], ["--csv", str(tmp_path / "other.csv")]):
        assert main([*words, "--apply", str(decisions), "--out", str(tmp_path / "other.csv"), *flags]) == 2
        assert "--apply looks for nothing: leave out --html and --csv" in capsys.readouterr().err
    assert not (tmp_path / "other.csv").exists()
    assert main([*words, "--encoder", str(tiny_encoder_folder), "--threshold", "0.999"]) == 0
    assert "probable label errors" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_page_that_cannot_be_written_loses_neither_report_nor_table(
    flags: list[str], shop: Path, tiny_encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, table = tmp_path / "audit.html", tmp_path / "audit.csv"
    page.with_name("audit.html.tmp").mkdir()
    words = ["--encoder", str(tiny_encoder_folder), "--threshold", "0.999", "--html", str(page), "--csv", str(table)]
    assert main(["data", "audit", "--data", f"folder:{shop}", *words, *flags]) == 2
    told = capsys.readouterr()
    assert "audit.html.tmp" in told.err
    assert json.loads(told.out)["label_errors"] if flags else "probable label errors" in told.out
    assert "train/blue/really_red.png" in table.read_text()


class Parsed(HTMLParser):
    """Tags of a page with their attributes, and its texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())

    def list_values(self, tag: str, name: str) -> list[str | None]:
        return [attributes[name] for one, attributes in self.tags if one == tag and name in attributes]


@pytest.mark.parametrize("hostile", ["<img src=x onerror=alert(1)>", "\"'><script>alert(1)</script>", "</script><!--"])
def test_the_page_shows_hostile_names_and_labels_as_text(tmp_path: Path, hostile: str) -> None:
    names = (f"a {hostile}", "b.png")
    for number, color in enumerate(("red", "blue")):
        Image.new("RGB", (20, 20), color).save(tmp_path / f"{number}.png")
    records = {
        name: ImageRecord(image_id=name, path=tmp_path / f"{number}.png", label=number, split="train")
        for number, name in enumerate(names)
    }
    labels = (f"label {hostile}", f"other {hostile}")
    pair = NearPair(image_ids=(names[0], names[1]), labels=labels, splits=("train", "train"), similarity=1.0)
    error = LabelError(image_id=names[0], label=labels[0], suggested_label=labels[1], score=0.9, evidence=names[1])
    report = AuditReport(
        name=f"data {hostile}",
        num_images=2,
        label_errors=(error,),
        duplicates_across_splits=(),
        duplicates_across_classes=(pair,),
        overlapping_classes=(OverlappingClasses(labels=labels, overlap=0.5),),
        odd={"dark": (OddPicture(image_id=names[0], label=labels[0], value=0.1),)},
        unreadable=((f"bad {hostile}", f"reason {hostile}"),),
        threshold=None,
        calibration=None,
        notes=(f"note {hostile}",),
        label_names=labels,
        records=records,
    )
    write_audit_page(report, tmp_path / "audit.html")
    page = Parsed((tmp_path / "audit.html").read_text(encoding="utf-8"))
    sources = page.list_values("img", "src")
    assert len(sources) == 7, "two pictures of the error and of each copy, one of what is dark"
    assert all(source is not None and source.startswith("data:image/jpeg;base64,") for source in sources)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.list_values("option", "value")[:2] == list(labels)
    assert page.list_values("input", "value") == [labels[1], labels[1], labels[0], ""]
    assert page.list_values("div", "data-label") == [labels[0], labels[0], labels[1], labels[0]]
    assert page.list_values("div", "data-image") == [names[0], names[0], names[1], names[0]]
    assert set(page.list_values("img", "alt")) == set(names)
    whole = " ".join(page.texts)
    for text in (*labels, *names, f"data {hostile}", f"note {hostile}", f"bad {hostile}", f"reason {hostile}"):
        assert text in whole


@pytest.mark.browser
def test_decisions_that_the_page_saves_can_be_applied(
    page: Any, shop: Path, tiny_encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd_name = shop / "train" / "blue" / 'a,"b"\'<i>.png'
    shutil.move(shop / "train" / "blue" / "really_red.png", odd_name)
    words, html, csv_file = ["data", "audit", "--data", f"folder:{shop}"], tmp_path / "audit.html", tmp_path / "d.csv"
    flags = ["--encoder", str(tiny_encoder_folder), "--threshold", "0.99999"]
    assert main([*words, *flags, "--html", str(html)]) == 0
    page.goto(html.as_uri())

    def decide(image_id: str, action: str, label: str | None = None) -> None:
        finding = page.locator(f".finding[data-image={json.dumps(image_id)}]").first
        finding.get_by_label("Decision").select_option(action)
        if label is not None:
            finding.get_by_label("New label").fill(label)

    decide(f"train/blue/{odd_name.name}", "relabel", "red")
    decide("train/green/leak.png", "drop")
    decide("train/green/5.png", "keep")
    decide("train/green/4.png", "new", 'tiny, "green"')
    decide("train/green/3.png", "drop")
    page.get_by_role("button", name="Save decisions (5)").wait_for()
    decide("train/green/3.png", "")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save decisions (4)").click()
    download.value.save_as(csv_file)
    assert csv_file.read_bytes().startswith(codecs.BOM_UTF8)
    capsys.readouterr()
    assert main([*words, "--apply", str(csv_file), "--out", str(tmp_path / "out.csv")]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("2 with another label, 1 dropped")
    assert second == 'new labels: tiny, "green"'
    before, after = read_source(f"folder:{shop}"), read_source(f"table:{tmp_path / 'out.csv'}")
    expected = {record.path.resolve(): before.label_names[record.label] for record in before.records}
    del expected[(shop / "train" / "green" / "leak.png").resolve()]
    expected[odd_name.resolve()] = "red"
    expected[(shop / "train" / "green" / "4.png").resolve()] = 'tiny, "green"'
    assert {record.path.resolve(): after.label_names[record.label] for record in after.records} == expected
