"""Callbacks and loggers: what they are told, what their failures do, and that a resumed run is one record."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitrieve import Callback, ConfigError, HeldOutFigures, InBackground, Logger, RunEnd, RunStart, TrainedRun, train
from vitrieve.data.records import ImageRecord
from vitrieve.evaluation.examples import FRAME_PX, GAP_PX, TILE_PX, QueryExample, draw_examples
from vitrieve.training.callbacks import Watchers
from vitrieve.training.loggers import build_loggers

Train = Callable[..., TrainedRun]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve classes of four noisy pictures."""
    generator = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("photographs")
    for name in range(12):
        (folder / f"class{name:02}").mkdir()
        for number in range(4):
            pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"class{name:02}" / f"{number}.png")
    return folder


@pytest.fixture
def short(folder: Path, tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    monkeypatch.setattr("vitrieve.training.finishing.export_folder", lambda folder: None)

    def run(out: str = "run", **given: Any) -> TrainedRun:
        settings = {"logger": "none", "num_steps": 3, "report": False, **given}
        model = {"backbone": "test_vit", "weights": str(tiny_weights), "image_size": 32}
        small = {"model": model, "batch_size": 8, "num_threads": 1, "evaluate_every": 2}
        return train(f"folder:{folder}", "small", tmp_path / out, **small, **settings)

    return run


class Notes(Callback):
    """Keeps what it is told."""

    def __init__(self, fail_at: str = "", error: BaseException | None = None) -> None:
        self.told: list[tuple[str, Any]] = []
        self._fail_at, self._error = fail_at, error or ValueError("as the test wants")

    def _take(self, moment: str, value: Any) -> None:
        self.told.append((moment, value))
        if moment == self._fail_at:
            raise self._error

    def on_start(self, start: RunStart) -> None:
        self._take("start", start)

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        self._take(f"step {step}", values)

    def on_evaluation(self, figures: HeldOutFigures) -> None:
        self._take(f"evaluation {figures.step}", figures)

    def on_end(self, end: RunEnd) -> None:
        self._take("end", end)

    @property
    def moments(self) -> list[str]:
        return [moment for moment, _ in self.told]


class Broken(Logger):
    """Fails at every call."""

    name = "broken"
    calls = 0

    def _fail(self, *_: Any) -> None:
        self.calls += 1
        raise SystemExit("no server")

    on_start = on_step = on_evaluation = on_end = _fail


ALL = ["start", "evaluation 0", "step 1", "step 2", "evaluation 2", "step 3", "evaluation 3", "end"]


def read_record(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return record


def test_callbacks_are_told_of_every_moment_in_order(short: Train, tmp_path: Path) -> None:
    notes = Notes()
    run = short(callbacks=iter([notes]), report=True)
    assert notes.moments == ALL
    told = dict(notes.told)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert {"step": 2, **told["step 2"]} in lines
    held_out = told["evaluation 3"]
    assert {"step": 3, **{f"holdout_{name}": value for name, value in held_out.values.items()}} in lines
    assert len(held_out.examples) == 6
    assert [one.query for one in held_out.examples] == [one.query for one in told["evaluation 0"].examples]
    assert held_out.picture.size[1] == 6 * (TILE_PX + GAP_PX) + GAP_PX
    start, end = told["start"], told["end"]
    assert (start.name, start.step, start.num_steps) == ("run", 0, 3)
    assert start.settings["train.num_steps"] == 3
    assert start.facts["recipe"] == "small"
    assert (end.status, end.step, end.folder) == ("finished", 3, run.folder)
    assert end.results == run.results
    assert end.report.is_file()
    record = read_record(run.folder)
    assert record["id"] == start.run_id
    assert [one["status"] for one in record["attempts"]] == ["finished"]


def test_a_logger_that_fails_at_every_call_changes_nothing(short: Train, capsys: pytest.CaptureFixture[str]) -> None:
    broken, behind = Broken(), Broken()
    run = short(callbacks=[broken, InBackground(behind)])
    err = capsys.readouterr().err
    assert err.count("the logger broken failed, and the run goes on without it: SystemExit: no server") == 2
    assert (broken.calls, behind.calls) == (1, 1)
    assert run.summary["encoder_fingerprint"] == short("other").summary["encoder_fingerprint"]


@pytest.mark.parametrize("moment", ["step 2", "evaluation 2"])
def test_an_exception_in_a_callback_stops_the_run_and_its_steps_are_saved(
    short: Train, tmp_path: Path, moment: str
) -> None:
    notes, after = Notes(moment), Notes()
    with pytest.raises(ValueError, match="as the test wants") as caught:
        short(callbacks=[notes, after])
    told = " ".join(caught.value.__notes__)
    assert "a callback of the training" in told
    assert "The state after step 2 is saved" in told
    assert after.moments[-1] == "end"
    assert (after.told[-1][1].status, after.told[-1][1].step) == ("failed", 2)
    again = Notes()
    run = short(callbacks=[again], resume=True)
    assert "step 1" not in again.moments
    assert "step 3" in again.moments
    assert again.told[0][1].run_id == notes.told[0][1].run_id
    assert run.summary["encoder_fingerprint"] == short("other").summary["encoder_fingerprint"]
    attempts = read_record(run.folder)["attempts"]
    assert [one["status"] for one in attempts] == ["failed", "finished"]
    assert "as the test wants" in attempts[0]["reason"]


def test_an_interrupted_run_ends_as_interrupted(short: Train) -> None:
    notes = Notes("step 1", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        short(callbacks=[notes])
    assert notes.told[-1][1].status == "interrupted"


def test_an_exception_at_the_end_hides_no_other_and_leaves_a_finished_run(short: Train, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="as the test wants"):
        short(callbacks=[Notes("end")])
    assert (tmp_path / "run" / "manifest.json").is_file()
    with pytest.raises(OSError, match="first") as caught:
        short("other", callbacks=[Notes("step 1", OSError("first")), Notes("end")])
    assert "as the test wants" in " ".join(caught.value.__notes__)


def test_what_is_no_callback_and_what_would_never_be_called_is_refused(short: Train, tmp_path: Path) -> None:
    class Misspelt(Callback):
        def on_steps(self) -> None: ...

    for callbacks, message in (([Misspelt()], "on_steps would never be called"), ([print], "is no callback")):
        with pytest.raises(ConfigError, match=message):
            short(callbacks=callbacks)
    assert not (tmp_path / "run").exists()


def test_loggers_are_built_by_name_once() -> None:
    assert [one.name for one in build_loggers(["tensorboard", "tensorboard"])] == ["tensorboard"]
    assert build_loggers("none") == build_loggers(()) == ()
    with pytest.raises(ConfigError, match="unknown logger 'tensorbord'"):
        build_loggers("tensorbord")
    with pytest.raises(ConfigError, match="stands alone"):
        build_loggers(["none", "tensorboard"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitrieve.training.loggers.find_spec", lambda name: None)
        with pytest.raises(ConfigError, match=r"pip install 'vitrieve\[wandb\]'"):
            build_loggers("wandb")


START = RunStart(run_id="0" * 16, name="run", folder=Path(), settings={}, facts={}, step=0, num_steps=3)


def test_a_logger_that_hangs_delays_nothing_and_is_told() -> None:
    goes_on = threading.Event()

    class Hanging(Logger):
        name = "hanging"

        def on_step(self, step: int, values: Mapping[str, float]) -> None:
            goes_on.wait()

    told: list[str] = []
    watchers = Watchers(
        [InBackground(Hanging(), wait_seconds=0.1), InBackground(Hanging(), max_waiting=3)], told.append
    )
    watchers.start(START)
    for step in range(1, 9):
        watchers.step(step, {})
    watchers.end(RunEnd(status="finished", folder=Path(), step=8))
    goes_on.set()
    assert told == [
        "the logger hanging failed, and the run goes on without it: 3 moments wait for it",
        "the logger hanging failed, and the run goes on without it: it did not end within 0.1 s",
    ]


def test_a_logger_in_the_background_gets_all_in_order() -> None:
    got: list[tuple[int, Mapping[str, float]]] = []

    class Slow(Logger):
        def on_step(self, step: int, values: Mapping[str, float]) -> None:
            got.append((step, values))

    watchers = Watchers([InBackground(Slow())])
    watchers.start(START)
    values: dict[str, float] = {}
    for step in range(1, 100):
        values["loss"] = step  # changed after it was handed over
        watchers.step(step, values)
    watchers.end(RunEnd(status="finished", folder=Path(), step=99))
    assert got == [(step, {"loss": step}) for step in range(1, 100)]


def test_examples_are_drawn_with_their_verdicts(tmp_path: Path) -> None:
    for name, color in (("query", "blue"), ("found", "yellow")):
        Image.new("RGB", (30, 20), color).save(tmp_path / f"{name}.png")
    records = [
        ImageRecord(image_id=name, path=tmp_path / f"{name}.png", label=0, split="test")
        for name in ("query", "found", "vanished")
    ]
    example = QueryExample(query=records[0], found=tuple(records[1:]), verdicts=("right", "wrong"))
    sheet = np.asarray(draw_examples([example]))
    step, middle = TILE_PX + GAP_PX, GAP_PX + TILE_PX // 2
    line = sheet[middle]
    assert line[GAP_PX].tolist() == line[middle].tolist() == [0, 0, 255]
    assert line[2 * GAP_PX + step].tolist() == [27, 140, 80]
    assert line[2 * GAP_PX + step + FRAME_PX].tolist() == [255, 255, 0]
    assert line[2 * GAP_PX + 2 * step].tolist() == [200, 50, 45]
    assert line[2 * GAP_PX + 2 * step + FRAME_PX].tolist() == [255, 255, 255]


# The loggers themselves


def stop_and_resume(short: Train, logger: str) -> TrainedRun:
    """Stop a run after two of its three steps, and go on."""
    with pytest.raises(ValueError, match="as the test wants"):
        short(logger=logger, report=True, callbacks=[Notes("step 2")])
    return short(logger=logger, report=True, resume=True)


def test_tensorboard_reads_figures_settings_and_pictures(short: Train) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = stop_and_resume(short, "tensorboard")
    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    assert [event.step for event in events.Scalars("holdout_map_at_r")] == [0, 2, 3]
    assert events.Scalars("test/map_at_r")[0].value == pytest.approx(run.results[1].metrics["map_at_r"])
    assert [event.step for event in events.Images("holdout/examples")] == [0, 2, 3]
    assert "_hparams_/session_start_info" in events.summary_metadata


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk_under_tensorboard_is_told_once(tmp_path: Path) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    (logger,) = build_loggers("tensorboard")
    told: list[str] = []
    watchers = Watchers([logger], told.append)
    watchers.start(RunStart(**{**vars(START), "folder": tmp_path}))
    full = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115  # the logger closes it
    logger._file.close()  # type: ignore[attr-defined]
    logger._file, logger._records = full, RecordWriter(full)  # type: ignore[attr-defined]
    for step in (1, 2):
        watchers.step(step, {"loss": 1.5})
    assert len(told) == 1
    assert "No space left on device" in told[0]


@pytest.mark.filterwarnings("default")  # theirs
def test_wandb_keeps_one_offline_run(short: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs vitrieve[wandb]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = stop_and_resume(short, "wandb")
    run_id = read_record(run.folder)["id"]
    kept = sorted((run.folder / "wandb").glob(f"offline-run-*-{run_id}"))
    assert len(kept) == 2  # wandb sync joins them by the identity
    data = b"".join((one / f"run-{run_id}.wandb").read_bytes() for one in kept)
    for name in (b"loss", b"holdout_map_at_r", b"test/map_at_r", b"train.num_steps", b"holdout/examples", b"report"):
        assert name in data
    assert list(kept[1].glob("files/media/images/holdout/examples_*.png"))
    assert list(kept[1].glob("files/media/html/report_*.html"))


@pytest.mark.filterwarnings("default")  # theirs
def test_wandb_without_a_login_stops_nothing(
    short: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb", reason="needs vitrieve[wandb]")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "NETRC"):
        monkeypatch.setenv(name, str(tmp_path / "nobody"))
    assert short(logger="wandb").summary["num_steps"] == 3
    assert "the logger wandb failed, and the run goes on without it: nobody is logged in" in capsys.readouterr().err


@pytest.mark.filterwarnings("default")  # theirs
def test_mlflow_keeps_one_run_in_a_file(short: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mlflow", "sqlalchemy", "alembic"):
        pytest.importorskip(name, reason="needs vitrieve[mlflow]")
    from mlflow.tracking import MlflowClient

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    run = stop_and_resume(short, "mlflow")
    client = MlflowClient()
    experiment = client.get_experiment_by_name("vitrieve")
    (kept,) = client.search_runs([experiment.experiment_id])
    assert kept.data.tags["vitrieve.run_id"] == read_record(run.folder)["id"]
    assert kept.data.params["train.num_steps"] == "3"
    assert kept.info.status == "FINISHED"
    assert {metric.step for metric in client.get_metric_history(kept.info.run_id, "loss")} == {1, 2, 3}
    assert kept.data.metrics["test/map_at_r"] == pytest.approx(run.results[1].metrics["map_at_r"])
    assert [one.path for one in client.list_artifacts(kept.info.run_id, "report")] == ["report/report.html"]
    assert len(client.list_artifacts(kept.info.run_id, "holdout")) == 3


@pytest.mark.filterwarnings("default")  # theirs
def test_trackio_keeps_one_run(short: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="needs trackio")
    from trackio.sqlite_storage import SQLiteStorage

    run = stop_and_resume(short, "trackio")
    (name,) = SQLiteStorage.get_runs("vitrieve")
    assert name == f"run-{read_record(run.folder)['id'][:6]}"
    logs = SQLiteStorage.get_logs("vitrieve", name)
    assert {log["step"] for log in logs if "loss" in log} == {1, 2, 3}
    assert any("test/map_at_r" in log for log in logs)
    assert any("holdout/examples" in log for log in logs)
