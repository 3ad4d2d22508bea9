from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from vitrieve.training.metrics_log import METRICS_NAME, MetricsLog


def read_steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / METRICS_NAME).read_text().splitlines()]


def test_metrics_log_writes_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with MetricsLog(tmp_path, start_step=0, num_steps=2) as log:
        for step in (1, 2):
            log.write(step, {"loss": 1.5, "images_per_second": 40.0})
            log.show(step, {"loss": 1.5, "images_per_second": 40.0, "seconds_left": 3.0})
    assert read_steps(tmp_path) == [1, 2]
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
