"""The commands of a row, and how they are run: each in a process of its own, finished cells reused, failures told.

A cell is a row with a seed. Its name is made of its commands, without the folders that they write: so a cell that
another table has run already is found again, and a change of any flag is another cell.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vitrieve.artifacts import MANIFEST_NAME, prepare_folder, read_manifest, write_manifest
from vitrieve.choices import Device
from vitrieve.data import cub200, grocery, inshop, sfm120k, sop
from vitrieve.data.layout import data_parents
from vitrieve.evaluation.run import RESULTS_NAME
from vitrieve.objective.losses import ObjectiveConfig
from vitrieve.reproduce.plans import TableRow, Training

Task = Literal["train", "reduce", "evaluate", "analyze", "gradients"]
RUNS = "runs"
CELLS = "cells"
ANALYSIS_NAME = "analysis.json"
GRADIENTS_NAME = "gradients.json"
LOG_NAME = "log.txt"
HASH_LENGTH = 10
NUM_LOG_LINES = 3
"""Last lines of a failed command's log that are told."""
FOLDER_NAMES = {
    "cub200": cub200.FOLDER_NAMES,
    "sop": sop.FOLDER_NAMES,
    "inshop": inshop.FOLDER_NAMES,
    "sfm120k": sfm120k.FOLDER_NAMES,
    "roxford5k": ("roxford5k",),
    "rparis6k": ("rparis6k",),
    "grocery": grocery.FOLDER_NAMES,
}
"""Names that a data set's folder may have under the root."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set of a plan.

    Attributes:
        name: Name in plans.
        spelling: Name in commands, ``sop:DIR``; of a missing data set with a folder where it was looked for.
        missing: Message about a missing data set, with the next step; empty when it is there.
    """

    name: str
    spelling: str
    missing: str = ""


def find_sources(names: Iterable[str], data_root: Path | None) -> dict[str, Source]:
    """Look for data sets.

    Args:
        names: Names of benchmarks, ``grocery``, ``emoji``, or any source as ``NAME:PATH``, which is taken as it is.
        data_root: Folder with a folder for each data set; None: the folder that VITRIEVE_DATA names.
    """
    roots = (data_root,) if data_root is not None else tuple(data_parents())
    return {name: _find_source(name, roots) for name in names}


def _find_source(name: str, roots: Sequence[Path]) -> Source:
    folders = FOLDER_NAMES.get(name)
    if folders is None:
        return Source(name=name, spelling=name)
    for root in roots:
        for folder in folders:
            if (root / folder).is_dir():
                return Source(name=name, spelling=f"{name}:{root / folder}")
    return Source(
        name=name,
        spelling=f"{name}:{roots[0] / folders[0]}",
        missing=f"{name} is missing: no folder {' or '.join(map(repr, folders))} in {' and '.join(map(str, roots))}. "
        f"Where to get it: vitrieve data describe {name}",
    )


def list_missing(rows: Iterable[TableRow], sources: Mapping[str, Source]) -> tuple[str, ...]:
    """Say what is missing for some rows, each data set once."""
    needed = dict.fromkeys(name for row in rows for name in row.sources)
    return tuple(sources[name].missing for name in needed if sources[name].missing)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command.

    Attributes:
        task: What the command does.
        words: Words after ``python``, from ``-m`` on.
        out: Folder or file that it writes.
        test: Data set that it measures on; empty for training and reduction.
    """

    task: Task
    words: tuple[str, ...]
    out: Path
    test: str = ""

    @property
    def text(self) -> str:
        """The command as a reader types it."""
        words = ["vitrieve", *self.words[2:]] if self.words[1] == "vitrieve" else ["python", *self.words]
        return shlex.join(words)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A row with a seed, its commands, and the folders that they write.

    Attributes:
        row: The row.
        seed: Seed of the training; 0 where nothing is trained.
        steps: Commands in order.
        folder: Folder with what is kept.
        run: Folder of the training, shared by cells that differ in what follows; None: nothing is trained.
    """

    row: TableRow
    seed: int
    steps: tuple[Step, ...]
    folder: Path
    run: Path | None


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """The results of a finished cell.

    Attributes:
        seed: Seed of the training.
        results: For each test set the entries of its ``results.json``.
        analysis: Energy and histograms of ``analyze.py``; empty without.
        gradients: Results of ``gradients.py``; empty without.
        seconds: Duration of each command that was run.
    """

    seed: int
    results: Mapping[str, Sequence[Mapping[str, Any]]]
    analysis: Mapping[str, Any]
    gradients: Mapping[str, Any]
    seconds: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A cell that failed.

    Attributes:
        key: Key of the row.
        seed: Seed of the training.
        command: Command that failed.
        reason: Last lines of its log.
    """

    key: str
    seed: int
    command: str
    reason: str


def build_cells(rows: Sequence[TableRow], sources: Mapping[str, Source], out: Path, num_seeds: int) -> tuple[Cell, ...]:
    """Build the cells of some rows: all of the first seed, then the others; rows without training have one seed."""
    return tuple(
        build_cell(row, seed, sources, out) for seed in range(num_seeds) for row in rows if seed == 0 or row.training
    )


def build_cell(row: TableRow, seed: int, sources: Mapping[str, Source], out: Path) -> Cell:
    """Build the commands of a row.

    Args:
        row: The row.
        seed: Seed of the training; not read by a row without one.
        sources: The data sets.
        out: Folder of all results.
    """
    seed = seed if row.training else 0
    run = None
    if row.training is not None:
        words = _train_words(row.training, seed, sources, Path("RUN"))
        run = out / RUNS / f"{row.training.recipe}-seed{seed}-{_hash([words])}"
    name = _slug(row.training.recipe if row.training else row.encoder)
    named = [step.words for step in _build_steps(row, seed, sources, Path("RUN") if run else None, Path("CELL"))]
    folder = out / CELLS / f"{name}-{_hash([*named, run.name if run else ''])}"
    return Cell(row=row, seed=seed, steps=tuple(_build_steps(row, seed, sources, run, folder)), folder=folder, run=run)


def _hash(parts: object) -> str:
    text = repr(parts)
    for former, present in ObjectiveConfig.FORMER_NAMES.items():  # so that cells of before the renaming are found
        now, before = (f"'--objective.{name}'".replace("_", "-") for name in (present, former))
        text = text.replace(now, before)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH]


def _train_words(training: Training, seed: int, sources: Mapping[str, Source], run: Path) -> tuple[str, ...]:
    return (
        *("-m", "vitrieve", "train", training.recipe, "--data", sources[training.source].spelling),
        *training.flags,
        *("--seed", f"{seed}", "--no-report", "--out", str(run)),
    )


def _build_steps(row: TableRow, seed: int, sources: Mapping[str, Source], run: Path | None, folder: Path) -> list[Step]:
    steps: list[Step] = []

    def add(task: Task, module: Sequence[str], data: str, further: Sequence[str], out: Path, test: str = "") -> None:
        words = ("-m", *module, "--encoder" if task != "gradients" else "--run", encoder, "--data", data, *further)
        steps.append(Step(task=task, words=(*words, "--out", str(out)), out=out, test=test))

    encoder = row.encoder
    if row.training is not None and run is not None:
        steps.append(Step(task="train", words=_train_words(row.training, seed, sources, run), out=run))
        encoder = str(run)
        if row.embedding_dim is not None:
            data, out = sources[row.training.source].spelling, folder / "reduced"
            add("reduce", ("vitrieve", "reduce"), data, ("--embedding-dim", f"{row.embedding_dim}"), out)
            encoder = str(out)
    for test in row.tests:
        out = folder / f"evaluation-{_slug(test.replace(':', '-'))}"
        flags = (*row.encoder_flags, "--no-report")
        add("evaluate", ("vitrieve", "evaluate"), sources[test].spelling, flags, out, test)
    first = row.tests[0]
    data = sources[first].spelling
    if not first.startswith(("roxford5k", "rparis6k")):
        module = ("vitrieve.reproduce.analyze",)
        add("analyze", module, data, row.encoder_flags, folder / ANALYSIS_NAME, first)
    if row.has_gradients and row.embedding_dim is None:
        add("gradients", ("vitrieve.reproduce.gradients",), data, (), folder / GRADIENTS_NAME, first)
    return steps


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", Path(text).name)


def run_cells(cells: Sequence[Cell], say: Callable[[str], None], device: Device = "auto") -> tuple[Failure, ...]:
    """Run the cells that are not finished.

    A training that several cells share is run once, and deleted with the last cell that needs it. A failure ends its
    cell only. The next call goes on with what an interruption leaves.

    Args:
        cells: Cells in the order of running.
        say: Function that is told of every command and every result.
        device: Device of the commands; it is no part of a cell's name.

    Returns:
        The failures.

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
        if cell.run is not None and not any(
            other.run == cell.run and not is_finished(other) for other in cells[number:]
        ):
            shutil.rmtree(cell.run, ignore_errors=True)
        spent = f"{(time.monotonic() - start) / 60:.0f} min so far"
        say(f"{label}: {_describe(read_cell(cell))} ({'found finished' if is_reused else spent})")
    return tuple(failure for _, failure in failures)


def is_finished(cell: Cell) -> bool:
    """Tell whether a cell has been run."""
    return (cell.folder / MANIFEST_NAME).is_file()


def read_cells(cells: Sequence[Cell]) -> dict[str, tuple[CellResult, ...]]:
    """Read the cells that are finished: key of a row -> its results, by rising seed; rows without any are not in it."""
    found: dict[str, tuple[CellResult, ...]] = {}
    for cell in filter(is_finished, cells):
        found[cell.row.key] = (*found.get(cell.row.key, ()), read_cell(cell))
    return found


def read_cell(cell: Cell) -> CellResult:
    """Read a finished cell.

    Raises:
        ArtifactError: The cell is not finished, or damaged.
    """
    manifest = read_manifest(cell.folder, "reproduction")
    further = {}
    for name in (ANALYSIS_NAME, GRADIENTS_NAME):
        path = cell.folder / name
        further[name] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return CellResult(
        seed=manifest["seed"],
        results=manifest["results"],
        analysis=further[ANALYSIS_NAME],
        gradients=further[GRADIENTS_NAME],
        seconds=manifest["seconds"],
    )


def _describe(result: CellResult) -> str:
    """Say the first metric of each test set."""
    texts = []
    for test, (entry, *_) in result.results.items():
        name = "mean_average_precision" if "mean_average_precision" in entry else "recall_at_1"
        texts.append(f"{test} {name} {100 * entry[name]:.1f}")
    return ", ".join(texts)


def _repeat_failure(cell: Cell, failures: Sequence[tuple[Cell, Failure]]) -> Failure | None:
    """Find the failure of the training that a cell shares with one before: it would only fail again."""
    for other, failure in failures:
        if cell.run is not None and other.run == cell.run and failure.command == cell.steps[0].text:
            return replace(failure, key=cell.row.key)
    return None


def _try_cell(cell: Cell, label: str, say: Callable[[str], None], device: Device) -> Failure | None:
    """Run the commands of a cell that are not done, and mark it as finished."""
    prepare_folder(cell.folder, kind="reproduction", is_resume=True)
    seconds = {}
    for step in cell.steps:
        if (step.out / MANIFEST_NAME).is_file() or step.out.is_file():
            continue
        say(f"{label}: {step.task}{f' on {step.test}' if step.test else ''} (log: {cell.folder / LOG_NAME})")
        start = time.monotonic()
        reason = _run_step(step, cell.folder / LOG_NAME, device)
        if reason is not None:
            return Failure(key=cell.row.key, seed=cell.seed, command=step.text, reason=reason)
        seconds[" ".join(filter(None, (step.task, step.test)))] = round(time.monotonic() - start, 1)
        if step.task == "train":
            # The optimizer's state is most of a run, and a finished run is never gone on with.
            shutil.rmtree(step.out / "state", ignore_errors=True)
    _finish(cell, seconds)
    return None


def _run_step(step: Step, log: Path, device: Device) -> str | None:
    """Run a command in a process of its own, its output appended to the log.

    Returns:
        Why the command failed; None when it did not.

    Raises:
        KeyboardInterrupt: After the command has ended: a training saves its state first.
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
    return None if status == 0 else _read_end(log) or f"status {status}"


def _read_end(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return errors[-1].removeprefix("error: ") if errors else " / ".join(lines[-NUM_LOG_LINES:])


def _finish(cell: Cell, seconds: Mapping[str, float]) -> None:
    """Keep the results, delete what they were computed from, and mark the cell as finished."""
    results = {
        step.test: json.loads((step.out / RESULTS_NAME).read_text(encoding="utf-8"))["results"]
        for step in cell.steps
        if step.task == "evaluate"
    }
    commands = [step.text for step in cell.steps]
    contents = {"seed": cell.seed, "commands": commands, "results": results, "seconds": seconds}
    write_manifest(cell.folder, "reproduction", contents)
    for step in cell.steps:
        if step.task in ("reduce", "evaluate"):
            shutil.rmtree(step.out, ignore_errors=True)
