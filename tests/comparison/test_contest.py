"""A whole contest, on a tiny random model: what fails is a row, and what was stopped goes on to the same result."""

from __future__ import annotations

import errno
import functools
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitrieve
from vitrieve.cli.main import main
from vitrieve.comparison import cells, contest
from vitrieve.errors import ArtifactError, DataError
from vitrieve.folders import locking_folder
from vitrieve.training import finishing
from vitrieve.training import run as training_run

SMALL, CONTRASTIVE = "small:batch_size=6", "irt_l_small:batch_size=6"
EXPLODING = "small:batch_size=6,learning_rate=1e30,num_warmup_steps=0"
TIMES = ("training_seconds", "peak_bytes", "images_per_second")


@pytest.fixture(scope="module", autouse=True)
def _costs_are_counted_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "count_cost", functools.cache(training_run.count_cost))
        yield


@pytest.fixture
def _without_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch measure: most of the time of a tiny run is its export, which the test of the command has."""
    for module in (cells, finishing):
        monkeypatch.setattr(module, "export_folder", lambda folder: 1.0)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two folders of ten classes of three noisy pictures."""
    generator = np.random.default_rng(0)
    folders = []
    for name in ("one", "two"):
        folder = tmp_path_factory.mktemp("photographs") / name
        for number in range(10):
            (folder / f"class{number}").mkdir(parents=True)
            color = generator.integers(0, 200, 3)
            for copy in range(3):
                pixels = (color + generator.integers(0, 56, (32, 32, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"class{number}" / f"{copy}.png")
        folders.append(f"folder:{folder}")
    return folders[0], folders[1]


@pytest.fixture
def settings(tiny_weights: Path) -> dict[str, Any]:
    model = {"backbone": "test_vit", "weights": str(tiny_weights), "image_size": 32}
    return {**model, "num_images": 12, "seeds": 2, "num_threads": 1}


def strip_times(value: Any) -> Any:
    """Leave out what two runs cannot have in common."""
    if isinstance(value, dict):
        return {name: strip_times(one) for name, one in value.items() if name not in TIMES}
    return [strip_times(one) for one in value] if isinstance(value, list) else value


class Text(HTMLParser):
    """Collects what a page shows, and what it loads."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.loads = "", []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.loads += [value for name, value in attributes if name in ("src", "href") and value]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.usefixtures("_without_export")
def test_a_contest_with_a_failing_method_is_stopped_and_goes_on_to_the_same(
    sources: tuple[str, str], settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = [SMALL, EXPLODING]
    whole = vitrieve.compare(methods, sources[:1], tmp_path / "whole", **settings)

    train, calls = cells.train, []

    def stopping_train(data: Any, recipe: Any, out: Path, **given: Any) -> Any:
        calls.append(out.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train(data, recipe, out, **given)

    monkeypatch.setattr(cells, "train", stopping_train)
    with pytest.raises(KeyboardInterrupt):
        vitrieve.compare(methods, sources[:1], tmp_path / "stopped", **settings)
    # Seed 0 of both methods is done, and the page is there.
    stopped = json.loads((tmp_path / "stopped" / "comparison.json").read_text())
    assert (stopped["num_done"], stopped["num_runs"]) == (3, 5)
    assert (tmp_path / "stopped" / "comparison.html").is_file()
    with pytest.raises(ArtifactError, match="holds an unfinished result; pass --resume"):
        vitrieve.compare(methods, sources[:1], tmp_path / "stopped", **settings)
    with locking_folder(tmp_path / "stopped"), pytest.raises(ArtifactError, match="written by another process"):
        vitrieve.compare(methods, sources[:1], tmp_path / "stopped", resume=True, **settings)
    bare = sources[0].removeprefix("folder:")
    twice = [f"{bare}/", sources[0], Path(bare)]  # other spellings of what is there
    resumed = vitrieve.compare(methods, twice, tmp_path / "stopped", resume=True, **settings)
    assert len(calls) == 3 + 2  # nothing that was done is trained again
    assert strip_times(resumed.summary) == strip_times(whole.summary)

    problems = [one for one in whole.summary["problems"] if one["kind"] == "failed"]
    assert [(one["method"], one["seed"]) for one in problems] == [(EXPLODING, 0), (EXPLODING, 1)]
    assert problems[0]["reason"].startswith("query embeddings hold NaN or infinity")
    assert whole.summary["order"][-1] == EXPLODING
    assert "failed" in str(whole)
    # Of a measured run its settings and its log are left, and nothing large.
    left = {path.name for path in (tmp_path / "whole" / "runs").rglob("*") if path.is_file()}
    assert left == {"config.json", "metrics.jsonl"}
    page = Text(whole.page.read_text())
    assert page.loads == []
    assert EXPLODING in page.text
    assert whole.verdict in page.text
    assert "Each run sees 12 images." in page.text

    # A finished contest is refused, and grows with --resume; rules that changed are refused, and change nothing.
    with pytest.raises(ArtifactError, match="finished result"):
        vitrieve.compare(methods, sources[:1], tmp_path / "whole", **settings)
    with pytest.raises(ArtifactError, match="was begun with num_images 12, now 18"):
        vitrieve.compare(methods, sources[:1], tmp_path / "whole", resume=True, **{**settings, "num_images": 18})
    added = Path(sources[0].removeprefix("folder:")) / "class4" / "added.png"
    shutil.copy(added.with_name("0.png"), added)
    with pytest.raises(ArtifactError, match="had other images, or other classes"):
        vitrieve.compare(methods, sources[:1], tmp_path / "whole", resume=True, **settings)
    added.unlink()
    assert (tmp_path / "whole" / "manifest.json").is_file()


@pytest.mark.usefixtures("_without_export")
def test_trials_are_chosen_on_held_out_classes_and_contests_grow(
    sources: tuple[str, str],
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rates: list[float] = []
    train = cells.train

    def counting_train(data: Any, recipe: Any, out: Path, **given: Any) -> Any:
        rates.append(given.get("optimizer.learning_rate", 2e-4))
        return train(data, recipe, out, **given)

    monkeypatch.setattr(cells, "train", counting_train)
    held_out = {"as it is": 0.2, "0.333 times learning_rate": 0.4}
    monkeypatch.setattr(cells, "_best_held_out", lambda one: held_out[one["name"]])
    settings |= {"trials": 2}
    first = vitrieve.compare([SMALL], sources[:1], tmp_path / "out", **settings)
    assert rates == pytest.approx([2e-4, 2e-4 / 3, 2e-4 / 3])  # two with seed 0, the chosen one with seed 1
    runs = [one for one in first.summary["runs"] if one["method"] == SMALL]
    assert [one["chosen"] for one in runs] == ["0.333 times learning_rate"] * 2
    assert [trial["holdout_map_at_r"] for trial in runs[0]["trials"]] == [0.2, 0.4]

    grown = vitrieve.compare([SMALL], sources, tmp_path / "out", resume=True, **{**settings, "seeds": 1})
    assert len(rates) == 3 + 2
    assert "the page leaves out 1 result that this call does not name (seed 1)" in capsys.readouterr().err
    path = next((tmp_path / "out" / "results").glob("*/small*-seed-0.json"))
    path.write_text(path.read_text().replace("0.333 times learning_rate", "0.5 times margin"))
    with pytest.raises(ArtifactError, match="had other settings or trials"):
        vitrieve.compare([SMALL], sources, tmp_path / "out", resume=True, **{**settings, "seeds": 1})
    assert grown.summary["data"] == list(sources)
    assert grown.summary["ranks"]["map_at_r"]["num_data_sets"] == 2
    page = grown.page.read_text()
    assert page.count('class="chart"') == 2 + 2  # two diagrams, and a chart of curves for each data set
    assert "critical difference" in page


def test_the_command_measures_the_speed_once_and_prints_json(
    sources: tuple[str, str],
    settings: dict[str, Any],
    tiny_weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(contest, "_read_speed", lambda folder: 6.0)
    words = ["compare", CONTRASTIVE, "--data", sources[0], "--budget-minutes", "0.05", "--seeds", "1", "--json"]
    words += ["--backbone", "test_vit", "--weights", str(tiny_weights), "--image-size", "32", "--num-threads", "1"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert (found["num_images"], found["images_per_second"], found["budget_minutes"]) == (18, 6.0, 0.05)
    run = next(one for one in found["runs"] if one["method"] == CONTRASTIVE)
    assert (run["num_images"], run["num_steps"]) == (18, 3)
    assert found["page"] == str(tmp_path / "out" / "comparison.html")
    assert "[2/2]" in printed.err
    assert not (tmp_path / "out" / "runs" / "speed").exists()
    monkeypatch.setattr(contest, "_read_speed", lambda folder: pytest.fail("the speed is measured once"))
    assert main([*words, "--out", str(tmp_path / "out"), "--resume"]) == 0
    assert json.loads(capsys.readouterr().out)["num_images"] == 18


class Dropping(vitrieve.Callback):
    """Fails as a disk does that goes away during a step."""

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        if step == 2:
            raise OSError(errno.EIO, "Input/output error")


@pytest.mark.usefixtures("_without_export")
def test_a_disk_that_goes_away_stops_the_contest_which_goes_on_where_it_was(
    sources: tuple[str, str], settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ([SMALL], sources[:1], tmp_path / "out")
    settings |= {"seeds": 1, "resume": True}
    with monkeypatch.context() as patch:
        patch.setattr(cells, "train", functools.partial(cells.train, callbacks=[Dropping()]))
        with pytest.raises(OSError, match="Input/output error") as stopped:
            vitrieve.compare(*given, **settings)
    assert "with --resume goes on. To begin this training anew" in stopped.value.__notes__[-1]
    assert [path.name for path in (tmp_path / "out").glob("results/*/*")] == ["frozen.json", "frozen.npz"]
    assert list((tmp_path / "out").glob("runs/*/*/state/step_*2.safetensors"))

    def measuring_fails(*arguments: Any, **named: Any) -> None:
        raise DataError("1 of 1 images cannot be read.")

    begun: list[bool] = []
    train = cells.train

    def noting_train(*arguments: Any, **named: Any) -> Any:
        begun.append(named["resume"])
        return train(*arguments, **named)

    monkeypatch.setattr(cells, "train", noting_train)
    with monkeypatch.context() as patch:
        patch.setattr(cells, "measure_protocols", measuring_fails)
        with pytest.raises(DataError, match="cannot be read"):
            vitrieve.compare(*given, **settings)
    assert not (tmp_path / "out" / "manifest.json").exists()
    found = vitrieve.compare(*given, **settings)
    assert begun == [True]  # the training went on once, and what it made was measured by the last call
    assert [one["reason"] for one in found.summary["runs"]] == [None, None]


@pytest.mark.usefixtures("_without_export")
def test_a_training_whose_folder_was_removed_as_advised_is_made_again(
    sources: tuple[str, str], settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ([SMALL], sources[:1], tmp_path / "out")
    settings |= {"seeds": 1, "trials": 2, "resume": True}
    held_out = {"as it is": 0.4, "0.333 times learning_rate": 0.2}
    monkeypatch.setattr(cells, "_best_held_out", lambda one: held_out[one["name"]])
    trained: list[str] = []
    train = cells.train

    def noting_train(data: Any, recipe: Any, out: Path, **named: Any) -> Any:
        trained.append(out.name[-1])
        return train(data, recipe, out, **named)

    def damaging_load(folder: Path, **named: Any) -> Any:
        if folder.name != "frozen-trial-0":
            (folder / "encoder" / "manifest.json").write_text("{}")
        return load_encoder(folder, **named)

    monkeypatch.setattr(cells, "train", noting_train)
    load_encoder = cells.load_encoder
    with monkeypatch.context() as patch:
        patch.setattr(cells, "load_encoder", damaging_load)
        with pytest.raises(ArtifactError) as stopped:
            vitrieve.compare(*given, **settings)
    folder = next((tmp_path / "out").glob("runs/*/small*-trial-0"))
    assert f"To begin this training anew, remove {folder} first." in stopped.value.__notes__[-1]
    shutil.rmtree(folder)
    found = vitrieve.compare(*given, **settings)
    assert trained == ["0", "1", "0"]  # the other trial's encoder is gone too, and is not needed
    assert [one["reason"] for one in found.summary["runs"]] == [None, None]


@pytest.mark.usefixtures("_without_export")
def test_a_method_whose_teacher_cannot_be_loaded_is_a_row(
    sources: tuple[str, str], settings: dict[str, Any], tmp_path: Path
) -> None:
    taught = f"{SMALL},objective.distillation.weight=1,objective.distillation.teacher={tmp_path / 'gone'}"
    found = vitrieve.compare([taught, SMALL], sources[:1], tmp_path / "out", **{**settings, "seeds": 1})
    reasons = {one["method"]: one["reason"] for one in found.summary["runs"]}
    assert reasons[SMALL] is None
    assert reasons[taught].startswith("objective.distillation.teacher: ")


def test_a_training_that_ended_the_process_twice_is_a_row(tmp_path: Path) -> None:
    begun = tmp_path / "run.begun"
    begun.write_text("1")  # a process has begun it, and is gone
    with cells._counting_beginnings(tmp_path / "run"):
        assert begun.read_text() == "2"
    assert not begun.exists()  # it has ended with a word
    begun.write_text("2")
    with pytest.raises(vitrieve.ConfigError, match="ended 2 times"), cells._counting_beginnings(tmp_path / "run"):
        pass
    assert not begun.exists()


def test_a_folder_of_dots_has_results_of_its_own() -> None:
    assert all(re.fullmatch(r"\.+-[0-9a-f]{8}", cells._slug(name)) for name in (".", ".."))
    assert cells._slug("a.b") == "a.b"


def test_an_error_is_not_lost_to_a_page_that_cannot_be_written(
    sources: tuple[str, str], settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vitrieve.comparison.contest.write_page", fail)
    monkeypatch.setattr("vitrieve.comparison.contest._ContestRun.run_cells", stop)
    with pytest.raises(KeyboardInterrupt):
        vitrieve.compare([SMALL], sources[:1], tmp_path / "out", **settings)


def test_wrong_data_is_refused_before_anything_is_written(sources: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        vitrieve.compare(["small"], ["folder:nowhere"], tmp_path / "out")
    with pytest.raises(vitrieve.ConfigError, match="no data set"):
        vitrieve.compare(["small"], [], tmp_path / "out")
    one, two = (Path(source.removeprefix("folder:")) for source in sources)
    for number in range(4):
        shutil.copytree(one / f"class{number}", tmp_path / "data" / "train" / f"class{number}")
    shutil.copytree(two, tmp_path / "data" / "test")
    with pytest.raises(DataError, match="too few training classes to hold some out"):
        vitrieve.compare(["small"], [f"folder:{tmp_path / 'data'}"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_protocols_that_train_on_the_same_images_are_measured(grocery_folder: Path) -> None:
    source = contest._read_source(f"grocery:{grocery_folder}")
    assert [test.protocol for test in source.tests] == ["zero_shot", "phone_to_catalogue"]


def test_what_compare_has_not_begun_is_refused(sources: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / ".partial").touch()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="was not begun by compare"):
        vitrieve.compare(["small"], sources[:1], tmp_path, resume=True)
