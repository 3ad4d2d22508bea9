"""The commands of a row, as a reader can copy them.

A cell is a row with a seed. Its name is made of its commands, without the folders they write: so a cell that another
table has run already is found again, and a change of any flag is another cell.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vitrieve.objective.losses import ObjectiveConfig
from vitrieve.reproduce.rows import Row, Source, Training

Task = Literal["train", "reduce", "evaluate", "analyze", "gradients"]
RUNS = "runs"
CELLS = "cells"
ANALYSIS_NAME = "analysis.json"
GRADIENTS_NAME = "gradients.json"
HASH_LENGTH = 10


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command.

    Attributes:
        task: What it does.
        words: Its words after ``python``, from ``-m`` on.
        out: The folder or file it writes.
        test: The data set it measures on; empty for training and reduction.
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
    """A row with a seed, its commands, and where they write.

    Attributes:
        row: The row.
        seed: Of the training; 0 where nothing is trained.
        steps: The commands, in order.
        folder: What is kept of it.
        run: The run it trains, shared by cells that differ in what follows; None: nothing is trained.
    """

    row: Row
    seed: int
    steps: tuple[Step, ...]
    folder: Path
    run: Path | None


def build_cell(row: Row, seed: int, sources: Mapping[str, Source], out: Path) -> Cell:
    """Build the commands of a row.

    Args:
        row: The row.
        seed: Of the training; not read by a row without one.
        sources: Where the data sets are.
        out: Folder of all results.
    """
    seed = seed if row.training else 0
    run = out / RUNS / _name_run(row.training, seed, sources) if row.training else None
    place = Path("CELL")
    name = _slug(row.training.recipe if row.training else row.encoder)
    words = [step.words for step in _build_steps(row, seed, sources, Path("RUN") if run else None, place)]
    folder = out / CELLS / f"{name}-{_hash([*words, run.name if run else ''])}"
    return Cell(row=row, seed=seed, steps=tuple(_build_steps(row, seed, sources, run, folder)), folder=folder, run=run)


def _name_run(training: Training, seed: int, sources: Mapping[str, Source]) -> str:
    words = _train_words(training, seed, sources, Path("RUN"))
    return f"{training.recipe}-seed{seed}-{_hash([words])}"


def _hash(parts: object) -> str:
    text = repr(parts)
    for former, present in ObjectiveConfig.FORMER_NAMES.items():  # so that cells of before the renaming are found
        now, before = (f"'--objective.{name}'".replace("_", "-") for name in (present, former))
        text = text.replace(now, before)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH]


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", Path(text).name)


def _train_words(training: Training, seed: int, sources: Mapping[str, Source], run: Path) -> tuple[str, ...]:
    return (
        *("-m", "vitrieve", "train", training.recipe, "--data", sources[training.source].spelling),
        *training.flags,
        *("--seed", f"{seed}", "--no-report", "--out", str(run)),
    )


def _build_steps(row: Row, seed: int, sources: Mapping[str, Source], run: Path | None, folder: Path) -> list[Step]:
    steps = []
    encoder = row.encoder
    if row.training is not None:
        assert run is not None
        encoder = str(run)
        steps.append(Step(task="train", words=_train_words(row.training, seed, sources, run), out=run))
        if row.embedding_dim is not None:
            steps.append(_reduce_step(row.training, row.embedding_dim, sources, encoder, folder))
            encoder = str(folder / "reduced")
    for test in row.tests:
        steps.append(_measure_step(row, test, sources[test].spelling, encoder, folder))
    first = row.tests[0]
    if not first.startswith(("roxford5k", "rparis6k")):
        out = folder / ANALYSIS_NAME
        words = ("-m", "vitrieve.reproduce.analyze", "--encoder", encoder, "--data", sources[first].spelling)
        steps.append(Step(task="analyze", words=(*words, *row.encoder_flags, "--out", str(out)), out=out, test=first))
    if row.has_gradients and row.embedding_dim is None:
        out = folder / GRADIENTS_NAME
        words = ("-m", "vitrieve.reproduce.gradients", "--run", encoder, "--data", sources[first].spelling)
        steps.append(Step(task="gradients", words=(*words, "--out", str(out)), out=out, test=first))
    return steps


def _reduce_step(
    training: Training, embedding_dim: int, sources: Mapping[str, Source], encoder: str, folder: Path
) -> Step:
    out = folder / "reduced"
    words = ("-m", "vitrieve", "reduce", "--encoder", encoder, "--data", sources[training.source].spelling)
    return Step(task="reduce", words=(*words, "--embedding-dim", f"{embedding_dim}", "--out", str(out)), out=out)


def _measure_step(row: Row, test: str, spelling: str, encoder: str, folder: Path) -> Step:
    out = folder / f"evaluation-{_slug(test.replace(':', '-'))}"
    words = ("-m", "vitrieve", "evaluate", "--encoder", encoder, "--data", spelling, *row.encoder_flags)
    return Step(task="evaluate", words=(*words, "--no-report", "--out", str(out)), out=out, test=test)
