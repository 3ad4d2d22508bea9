"""Listing runs: real ones of every end, the settings that differ, damaged folders, and the page."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitrieve import Callback, DataError, ListedRun, ListedRuns, list_runs, train
from vitrieve.cli.main import main

MADE_BEFORE = Path(__file__).resolve().parents[1] / "made_before"


class Stop(Callback):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        raise self.error


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Path) -> Path:
    """Runs that ended well, failed, and were interrupted."""
    generator = np.random.default_rng(0)
    photographs = tmp_path_factory.mktemp("photographs")
    for name in range(12):
        (photographs / f"class{name:02}").mkdir()
        for number in range(4):
            pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(photographs / f"class{name:02}" / f"{number}.png")
    folder = tmp_path_factory.mktemp("runs")

    def run(name: str, **given: Any) -> None:
        model = {"backbone": "test_vit", "weights": str(tiny_weights), "image_size": 32}
        settings = {"batch_size": 8, "num_threads": 1, "evaluate_every": 2, "logger": "none", "num_steps": 3, **given}
        train(f"folder:{photographs}", "small", folder / name, model=model, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitrieve.training.finishing.export_folder", lambda folder: None)
        run("good")
        with pytest.raises(ValueError, match="as the test\nwants"):
            run("deep/failed", num_steps=4, callbacks=[Stop(ValueError("as the test\nwants"))])
        with pytest.raises(KeyboardInterrupt):
            run("interrupted", callbacks=[Stop(KeyboardInterrupt())])
    return folder


def find(listed: ListedRuns, name: str) -> ListedRun:
    return next(run for run in listed.runs if run.name == name)


def test_runs_of_every_end_have_their_figures(runs: Path) -> None:
    listed = list_runs(runs)

    assert {run.name: run.status for run in listed.runs} == {
        "deep/failed": "failed",
        "good": "finished",
        "interrupted": "interrupted",
    }
    assert not listed.damaged
    good = find(listed, "good")
    results = json.loads((runs / "good/report/results.json").read_text())["results"]
    assert [results[0]["map_at_r"], results[1]["map_at_r"]] == [
        good.before["map_at_r"],
        good.after["map_at_r"],
    ]
    manifest = json.loads((runs / "good/manifest.json").read_text())
    assert {str(step): value for step, value in good.held_out.items()} == manifest["holdout_map_at_r"]
    assert good.best == max(manifest["holdout_map_at_r"].values())
    assert good.seconds == manifest["seconds"]
    assert find(listed, "deep/failed").reason == "ValueError: as the test\nwants"


def test_the_table_shows_only_settings_that_differ(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(runs)]) == 0

    heading, failed, good, *_, reason, _ = capsys.readouterr().out.splitlines()
    assert heading.split()[-1] == "train.num_steps"
    assert "optimizer" not in heading
    assert (failed.split()[-1], good.split()[-1]) == ("4", "3")
    results = json.loads((runs / "good/report/results.json").read_text())["results"]
    before, after = (100 * one["recall_at_1"] for one in results)
    assert f"{before:.1f} → {after:.1f}" in good
    assert reason == 'deep/failed: failed: "ValueError: as the test\\nwants"'


def test_json_has_every_setting_and_the_page_its_curves(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", str(runs), "--json", "--html", str(tmp_path / "new" / "runs.html")]) == 0

    content = json.loads(capsys.readouterr().out)
    assert content["differing"] == ["train.num_steps"]
    assert all(run["settings"]["optimizer.learning_rate"] > 0 for run in content["runs"])
    page = (tmp_path / "new" / "runs.html").read_text(encoding="utf-8")
    assert page.count("<polyline") == 3
    assert not re.search(r"(?:src|href)=|<script|@import|url\(", page)


def test_damaged_folders_are_named_and_the_others_listed(runs: Path, tmp_path: Path) -> None:
    damages = {"manifest.json": "{", "config.json": "[]", "run.json": '{"attempts": 3}', "report/results.json": "{}"}
    for number, (name, text) in enumerate(damages.items()):
        shutil.copytree(runs / "good", tmp_path / str(number))
        (tmp_path / str(number) / name).write_text(text)
    shutil.copytree(runs / "good", tmp_path / "<b>whole")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text("no JSON")
    (tmp_path / "0.html").write_text("")

    listed = list_runs(tmp_path)
    listed.write_page(tmp_path / "0.html")

    assert [run.name for run in listed.runs] == ["<b>whole"]
    assert list(listed.damaged) == ["0", "1", "2", "3"]
    assert "config.json" in listed.damaged["1"]
    assert [line.split(":")[0] for line in str(listed).splitlines()[2:]] == ["0", "1", "2", "3"]
    assert "<b>" not in (tmp_path / "0.html").read_text(encoding="utf-8")


def test_a_finished_record_without_a_manifest_and_a_half_line_are_an_unfinished_run(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "good", tmp_path / "run")
    (tmp_path / "run" / "manifest.json").unlink()
    with (tmp_path / "run" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 9, "holdout_map_at_r"')

    run = list_runs(tmp_path).runs[0]

    assert (run.status, run.held_out) == ("unfinished", list_runs(runs / "good").runs[0].held_out)


def test_attempts_add_up_where_the_end_is_known(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "interrupted", tmp_path / "run")
    spans = [("00:00:00", "00:00:40"), ("01:00:00", "02:02:05")]
    attempts = [
        {"began": f"2026-01-01T{a}+00:00", "ended": f"2026-01-01T{b}+00:00", "status": "failed"} for a, b in spans
    ]
    record = {"attempts": [*attempts, {"began": "2026-01-02T00:00:00+00:00"}]}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))

    listed = list_runs(tmp_path)

    assert (listed.runs[0].status, listed.runs[0].seconds) == ("unfinished", 40 + 3725)
    assert "1 h 02 min" in str(listed)


def test_runs_of_earlier_versions_are_listed() -> None:
    assert {run.name: run.status for run in list_runs(MADE_BEFORE).runs} == {"run": "finished", "stopped": "unfinished"}


def test_a_folder_without_runs_and_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(tmp_path)]) == 0
    assert capsys.readouterr().err.endswith("has no runs\n")
    with pytest.raises(DataError, match="does not exist"):
        list_runs(tmp_path / "missing")
