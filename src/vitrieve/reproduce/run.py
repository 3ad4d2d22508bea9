"""Run the rows of a plan: each command in a process of its own, finished cells reused, failures told at the end."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitrieve.artifacts import MANIFEST_NAME, prepare_folder, read_manifest, write_manifest
from vitrieve.config import Device
from vitrieve.evaluation.run import RESULTS_NAME
from vitrieve.reproduce.commands import ANALYSIS_NAME, GRADIENTS_NAME, Cell, Step, build_cell
from vitrieve.reproduce.rows import Row, Source

LOG_NAME = "log.txt"
NUM_LOG_LINES = 3
"""Last lines of a failed command's log that are told."""


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """What a cell found.

    Attributes:
        seed: Of its training.
        commands: As a reader types them.
        results: For each test set the entries of its ``results.json``.
        analysis: Energy and histograms (``analyze.py``); empty without.
        gradients: Of ``gradients.py``; empty without.
        seconds: Of each command that was run.
    """

    seed: int
    commands: tuple[str, ...]
    results: Mapping[str, Sequence[Mapping[str, Any]]]
    analysis: Mapping[str, Any]
    gradients: Mapping[str, Any]
    seconds: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A cell that failed.

    Attributes:
        key: Of the row.
        seed: Of the training.
        command: The one that failed.
        reason: Last lines of its log.
    """

    key: str
    seed: int
    command: str
    reason: str


Say = Callable[[str], None]


class _CommandError(Exception):
    def __init__(self, step: Step, reason: str) -> None:
        super().__init__(reason)
        self.step = step


def build_cells(rows: Sequence[Row], sources: Mapping[str, Source], out: Path, num_seeds: int) -> tuple[Cell, ...]:
    """Build the cells of some rows: all of the first seed, then the others; rows without training have one seed."""
    return tuple(
        build_cell(row, seed, sources, out) for seed in range(num_seeds) for row in rows if seed == 0 or row.training
    )


def run_cells(cells: Sequence[Cell], say: Say, device: Device = "auto") -> tuple[Failure, ...]:
    """Run the cells that are not finished.

    A training that several cells share is run once, and deleted with the last cell that needs it. A failure ends its
    cell only. What an interruption leaves is gone on with by the next call.

    Args:
        cells: In the order of running.
        say: Told of every command and every result.
        device: Where the commands compute; it is no part of a cell's name.

    Returns:
        What failed.

    Raises:
        KeyboardInterrupt: After Ctrl-C, once the command at hand has ended.
    """
    failures: list[tuple[Cell, Failure]] = []
    start = time.monotonic()
    for number, cell in enumerate(cells, start=1):
        label = f"[{number}/{len(cells)}] {cell.row.key}, seed {cell.seed}"
        is_reused = is_finished(cell)
        if not is_reused:
            failure = _repeat_failure(cell, failures) or _try_cell(cell, label, say, device)
            if failure is not None:
                failures.append((cell, failure))
                say(f"{label}: failed: {failure.reason}")
                continue
        _drop_run(cell, cells[number:])
        spent = f"{(time.monotonic() - start) / 60:.0f} min so far"
        say(f"{label}: {_describe(read_cell(cell))} ({'found finished' if is_reused else spent})")
    return tuple(failure for _, failure in failures)


def read_cells(cells: Sequence[Cell]) -> dict[str, tuple[CellResult, ...]]:
    """Read the cells that are finished: key of a row -> its results, by rising seed; rows without any are not in it."""
    found: dict[str, tuple[CellResult, ...]] = {}
    for cell in filter(is_finished, cells):
        found[cell.row.key] = (*found.get(cell.row.key, ()), read_cell(cell))
    return found


def _try_cell(cell: Cell, label: str, say: Say, device: Device) -> Failure | None:
    try:
        _run_cell(cell, label, say, device)
    except _CommandError as error:
        return Failure(key=cell.row.key, seed=cell.seed, command=error.step.text, reason=str(error))
    return None


def _repeat_failure(cell: Cell, failures: Sequence[tuple[Cell, Failure]]) -> Failure | None:
    """Find the failure of the training that a cell shares with one before: it would only fail again."""
    for other, failure in failures:
        if cell.run is not None and other.run == cell.run and failure.command == cell.steps[0].text:
            return replace(failure, key=cell.row.key)
    return None


def is_finished(cell: Cell) -> bool:
    """Tell whether a cell has been run."""
    return (cell.folder / MANIFEST_NAME).is_file()


def _run_cell(cell: Cell, label: str, say: Say, device: Device) -> None:
    prepare_folder(cell.folder, is_resume=True)
    seconds = {}
    for step in cell.steps:
        if _is_done(step):
            continue
        say(f"{label}: {step.task}{f' on {step.test}' if step.test else ''} (log: {cell.folder / LOG_NAME})")
        start = time.monotonic()
        _run_step(step, cell.folder / LOG_NAME, device)
        seconds[" ".join(filter(None, (step.task, step.test)))] = round(time.monotonic() - start, 1)
        if step.task == "train":
            # The optimizer's state is most of a run, and a finished run is never gone on with.
            shutil.rmtree(step.out / "state", ignore_errors=True)
    _finish(cell, seconds)


def _is_done(step: Step) -> bool:
    return (step.out / MANIFEST_NAME).is_file() or step.out.is_file()


def _run_step(step: Step, log: Path, device: Device) -> None:
    """Run a command in a process of its own, its output appended to the log.

    Raises:
        _CommandError: It failed.
        KeyboardInterrupt: After it has ended: a training saves its state first.
    """
    words = [sys.executable, *step.words]
    if step.task in ("train", "evaluate"):
        words.append("--resume")
    elif step.task == "reduce":
        words.append("--overwrite")  # cannot go on; what an interruption left is made again
    if device != "auto":
        words += ["--device", device]
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {step.text}\n")
        file.flush()
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            status = process.wait()
        except KeyboardInterrupt:
            # The terminal has sent Ctrl-C to the command too.
            process.wait()
            raise
    if status != 0:
        raise _CommandError(step, _read_end(log) or f"status {status}")


def _read_end(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return errors[-1].removeprefix("error: ") if errors else " / ".join(lines[-NUM_LOG_LINES:])


def _finish(cell: Cell, seconds: Mapping[str, float]) -> None:
    """Keep the figures, delete what they were computed from, and mark the cell as finished."""
    results = {
        step.test: json.loads((step.out / RESULTS_NAME).read_text(encoding="utf-8"))["results"]
        for step in cell.steps
        if step.task == "evaluate"
    }
    contents = {
        "seed": cell.seed,
        "commands": [step.text for step in cell.steps],
        "results": results,
        "seconds": dict(seconds),
    }
    write_manifest(cell.folder, "reproduction", contents)
    for step in cell.steps:
        if step.task in ("reduce", "evaluate"):
            shutil.rmtree(step.out, ignore_errors=True)


def _drop_run(cell: Cell, later: Sequence[Cell]) -> None:
    """Delete a training that no unfinished cell of this call needs."""
    if cell.run is not None and not any(other.run == cell.run and not is_finished(other) for other in later):
        shutil.rmtree(cell.run, ignore_errors=True)


def read_cell(cell: Cell) -> CellResult:
    """Read a finished cell.

    Raises:
        ArtifactError: It is not finished, or damaged.
    """
    manifest = read_manifest(cell.folder, "reproduction")
    return CellResult(
        seed=manifest["seed"],
        commands=tuple(manifest["commands"]),
        results=manifest["results"],
        analysis=_read_json(cell.folder / ANALYSIS_NAME),
        gradients=_read_json(cell.folder / GRADIENTS_NAME),
        seconds=manifest["seconds"],
    )


def _read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _describe(result: CellResult) -> str:
    """Say the first figure of each test set."""
    figures = []
    for test, entries in result.results.items():
        entry = entries[0]
        name = "mean_average_precision" if "mean_average_precision" in entry else "recall_at_1"
        figures.append(f"{test} {name} {100 * entry[name]:.1f}")
    return ", ".join(figures)
