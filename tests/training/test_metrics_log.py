from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import pytest
from tensorboard.summary.writer.record_writer import RecordWriter

from vitrieve.errors import DiskFullError
from vitrieve.training.metrics_log import METRICS_NAME, MetricsLog


def read_steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / METRICS_NAME).read_text().splitlines()]


def test_metrics_log_writes_lines_and_events(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with MetricsLog(tmp_path, start_step=0, num_steps=2) as log:
        for step in (1, 2):
            log.write(step, {"loss": 1.5, "images_per_second": 40.0})
            log.show(step, {"loss": 1.5, "images_per_second": 40.0, "seconds_left": 3.0})
    assert read_steps(tmp_path) == [1, 2]
    assert list((tmp_path / "tensorboard").glob("events*"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "step 2/2  loss 1.5  images/s 40  3 s left" in captured.err


def test_metrics_log_drops_what_a_killed_run_wrote_after_its_state(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "loss": 0.0}) + "\n" for step in range(1, 6)]
    (tmp_path / METRICS_NAME).write_text("".join(lines) + '{"step": 6, "lo')
    with MetricsLog(tmp_path, start_step=3, num_steps=9) as log:
        log.write(4, {"loss": 1.0})
    assert read_steps(tmp_path) == [1, 2, 3, 4]


def test_metrics_log_drops_a_line_that_was_cut_off(tmp_path: Path) -> None:
    (tmp_path / METRICS_NAME).write_text('{"step": 1, "loss": 0.0}\n{"step": 2, "lo')
    with MetricsLog(tmp_path, start_step=5, num_steps=9):
        pass
    assert read_steps(tmp_path) == [1]


def test_metrics_log_from_the_start_forgets_the_measurement_that_is_done_again(tmp_path: Path) -> None:
    (tmp_path / METRICS_NAME).write_text('{"step": 0, "holdout_map_at_r": 0.5}\n{"step": 1, "loss": 0.0}\n')
    with MetricsLog(tmp_path, start_step=0, num_steps=9) as log:
        log.write(0, {"holdout_map_at_r": 0.5})
    assert read_steps(tmp_path) == [0]


def test_metrics_log_leaves_no_event_in_memory(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, start_step=0, num_steps=9) as log:
        log.write(1, {"loss": 1.5})
        (path,) = (tmp_path / "tensorboard").glob("events*")
        assert b"loss" in path.read_bytes()


def test_metrics_log_keeps_the_lines_after_a_damaged_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.dumps({"step": step, "loss": 0.0}).encode() + b"\n" for step in range(1, 7)]
    damaged = [lines[0], b'{"step": 2, "lo\n', b"\x00\xff\n", *lines[3:5], b'{"step": 99}\n', lines[5]]
    (tmp_path / METRICS_NAME).write_bytes(b"".join(damaged))
    with MetricsLog(tmp_path, start_step=6, num_steps=9) as log:
        log.write(7, {"loss": 1.0})
    assert read_steps(tmp_path) == [1, 4, 5, 6, 7]
    assert f"{METRICS_NAME}: 2 damaged lines are left out\n" in capsys.readouterr().err


def test_metrics_log_says_that_a_log_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with MetricsLog(tmp_path, start_step=3, num_steps=9):
        pass
    assert f"{METRICS_NAME} is missing: the figures of the steps before are lost\n" in capsys.readouterr().err
    (tmp_path / "new").mkdir()
    with MetricsLog(tmp_path / "new", start_step=0, num_steps=9):
        pass
    assert capsys.readouterr().err == ""


def test_metrics_log_writes_events_that_tensorboard_reads_and_no_thread(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    before = threading.active_count()
    for start, last in ((0, 4), (2, 3)):  # killed after step 4, gone on with from the state after step 2
        with MetricsLog(tmp_path, start_step=start, num_steps=9) as log:
            assert threading.active_count() == before
            for step in range(start + 1, last + 1):
                log.write(step, {"loss": start + step / 8, "koleo": 0.5})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(events.Tags()["scalars"]) == ["koleo", "loss"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.125), (2, 0.25), (3, 2.375)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_metrics_log_names_the_events_file_on_a_full_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = MetricsLog(tmp_path, start_step=0, num_steps=9)
    log._events._file.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    full = Path("/dev/full").open("wb")  # noqa: SIM115  # the log closes it
    log._events._file, log._events._records = full, RecordWriter(full)
    with pytest.raises(DiskFullError, match=f"{path} cannot be written: the disk is full"), log:
        log.write(1, {"loss": 1.5})
    assert capsys.readouterr().err == ""


def test_metrics_log_shows_bar_count_and_figures_on_a_narrow_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("COLUMNS", "80"), ("TERM", "xterm"), ("NO_COLOR", ""), ("CI", "")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    values = {name: 0.25 for name in ("loss", "multi_similarity", "koleo", "mean_positive_similarity", "memory_fill")}
    with MetricsLog(tmp_path, start_step=0, num_steps=400) as log:
        log.show(40, {**values, "seconds_left": 96.0})
    printed = capsys.readouterr().err
    assert "40/400" in printed
    assert "\N{BOX DRAWINGS HEAVY HORIZONTAL}" in printed
    assert "96 s left" in printed


@pytest.mark.parametrize("is_terminal", [True, False])
def test_metrics_log_tracks_work_between_steps(
    tmp_path: Path, is_terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    with MetricsLog(tmp_path, start_step=0, num_steps=2) as log:
        assert list(log.track(iter("abc"), "mine negatives", 3)) == ["a", "b", "c"]
        log.show(1, {"loss": 0.5})
    printed = capsys.readouterr()
    assert printed.out == ""
    if not is_terminal:
        assert "mine negatives: 3/3" in printed.err
