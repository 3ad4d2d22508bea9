"""``compare`` runs a contest: every training and measurement, one after the other, and the page about them.

The folder holds ``contest.json`` (what every run depends on), ``runs/`` (the training at hand), ``results/`` (what came
of each: both are ``cells.py``), ``comparison.json`` and ``comparison.html``. Rounds go by seed:
the first seed of all methods on all data sets comes first, so that a contest that is stopped is a fair smaller one.
"""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrieve import __version__
from vitrieve.artifacts import has_artifact, is_partial, prepare_folder, read_manifest, reopen_folder, write_manifest
from vitrieve.comparison.begun import ResultKey, choose_spellings, describe_unnamed, list_results
from vitrieve.comparison.cells import RESULTS, RUNS, Cell, CellWork, Source, read_steps, write_json
from vitrieve.comparison.methods import (
    FROZEN,
    ContestSettings,
    Method,
    count_images_per_step,
    fit_budget,
    read_methods,
    require_a_step,
)
from vitrieve.comparison.page import PAGE_NAME, format_summary, title_sources, write_page
from vitrieve.comparison.statistics import Contest, Outcome, summarize
from vitrieve.data.holdout import split_for_training
from vitrieve.data.records import Dataset, require_trainable
from vitrieve.data.sources import list_protocols, read_source
from vitrieve.errors import ArtifactError, ConfigError, DataError, first_line
from vitrieve.evaluation.protocols import select_records
from vitrieve.folders import locking_folder
from vitrieve.progress import print_message
from vitrieve.settings import override_config
from vitrieve.training.run import choose_unseen_start, train

PLAN_NAME = "contest.json"
SUMMARY_NAME = "comparison.json"
SPEED_STEPS = 10
"""Steps of the measurement of the speed; the second half counts, when files and buffers are warm."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A contest that is done; printed, it is a table and the sentence about the winner.

    Attributes:
        folder: Folder of the contest.
        summary: What ``comparison.json`` holds.
    """

    folder: Path
    summary: Mapping[str, Any]

    @property
    def page(self) -> Path:
        """The page, in one file."""
        return self.folder / PAGE_NAME

    @property
    def verdict(self) -> str:
        """The sentence that says what won and by how much, or that nothing did."""
        return str(self.summary["verdict"]["text"])

    def __str__(self) -> str:
        return format_summary(self.summary)


def compare(
    methods: Sequence[str],
    data: Sequence[str | Path],
    out: str | Path = "comparison",
    *,
    resume: bool = False,
    overwrite: bool = False,
    **settings: Any,
) -> Comparison:
    """Compare training methods on data sets: one backbone, one budget, and one number of trials for all.

    Every method sees equally many images, in the time that the reference takes for them; holds the same training
    classes out; and is measured once on the test classes, with the settings that were best on the held-out ones. A
    method that fails or collapses stays in the table, with the reason; what no method is to blame for, such as a server
    that does not answer, stops the contest. Progress is shown on standard error.

    Args:
        methods: Recipes by name, with changes where wanted: ``small``, ``small:koleo.weight=0.3``. The frozen backbone
            is always added.
        data: Sources as ``read_source`` takes them. Every protocol of a source is measured that trains on the same
            images. Two spellings of one folder or file are one data set.
        out: Folder of the contest.
        resume: Go on with what ``out`` holds, finished or not: further methods, data sets and seeds are added, and no
            finished run is repeated. The page shows what this call names.
        overwrite: Empty ``out`` first; with ``resume``, nothing is emptied.
        settings: Fields of ``ContestSettings``: ``budget_minutes``, ``num_images``, ``seeds``, ``trials``,
            ``reference``, ``backbone``, ``weights``, ``image_size``, ``device``, ``num_threads``.

    Returns:
        Every figure, and the page.

    Raises:
        InputError: A method, a source, a setting or the folder cannot be used, or the disk is full.
        OSError: A disk cannot be read or written; as after every stop, a resumed contest goes on.
        KeyboardInterrupt: After Ctrl-C; a resumed contest goes on, in the middle of a training.
    """
    chosen = ContestSettings(**settings)
    competing = read_methods(methods, chosen)
    folder = Path(out)
    results = list_results(folder / RESULTS) if resume and (folder / PLAN_NAME).is_file() else ()
    sources = tuple(_read_source(source) for source in choose_spellings(map(str, data), results))
    if not sources:
        raise ConfigError("there is no data set to compare on; name one or more with --data.")
    start = choose_unseen_start(competing[0].config, [source.dataset for source in sources]).model.backbone
    competing = tuple(method.with_backbone(start) for method in competing)
    run = _ContestRun(folder, chosen, competing, sources)
    with locking_folder(folder):
        if resume:
            run.check_begun()  # what is refused stays as it is
            if has_artifact(folder):
                reopen_folder(folder)
        prepare_folder(folder, kind="comparison", is_overwrite=overwrite, is_resume=resume)
        run.make_plan()
        run.tell_unnamed(results)
        try:
            run.run_cells()
        except BaseException:
            run.write_summary_of_a_stop()
            raise
        summary = run.write_summary()
        write_manifest(folder, "comparison", {"methods": summary["methods"], "data": summary["data"]})
    return Comparison(folder=folder, summary=summary)


def _read_source(name: str) -> Source:
    """Read a source under its first protocol, and under each other one that trains on the same images."""
    protocols = list_protocols(name)
    dataset = read_source(name)
    require_trainable(dataset)
    select_records(dataset)
    if split_for_training(dataset, is_holdout=True).held_out is None:
        raise DataError(
            f"{name} has too few training classes to hold some out, and these choose the settings and the state of "
            "every method. Give a source of ten classes or more, with several images each, or leave it out."
        )
    tests, notes = [dataset], []
    trained = {record.image_id for record in dataset.split("train", "validation")}
    for protocol in protocols[1:]:
        try:
            other = read_source(name, protocol=protocol)
            asked = {record.image_id for record in select_records(other)}
        except DataError as error:
            notes.append(f"{name}: the protocol {protocol} is left out: {error}")
            continue
        if asked & trained:
            notes.append(f"{name}: the protocol {protocol} is left out: its test images are training images here")
        else:
            tests.append(other)
    return Source(name, dataset, tuple(tests), tuple(notes), _digest_images(tests))


def _digest_images(tests: Sequence[Dataset]) -> str:
    digest = hashlib.sha256()
    for test in tests:
        for one in test.records:
            role = test.protocol, one.image_id, test.label_names[one.label], one.split, one.is_query, one.is_gallery
            digest.update(repr((*role, one.box)).encode())
    return digest.hexdigest()


class _ContestRun:
    """The work of a contest, in its folder."""

    def __init__(
        self, folder: Path, settings: ContestSettings, methods: Sequence[Method], sources: Sequence[Source]
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._methods = tuple(methods)
        self._sources = tuple(sources)
        self._work = CellWork(folder=folder, settings=settings, reference=self._methods[0].config)
        self._plan: dict[str, Any] = {}

    # The plan

    def check_begun(self) -> None:
        """Refuse to go on with something else than a contest, or with one of other rules or settings.

        Raises:
            ArtifactError: The folder holds something else, or figures that would not be comparable.
        """
        path = self._folder / PLAN_NAME
        if has_artifact(self._folder):
            read_manifest(self._folder, "comparison")
        elif is_partial(self._folder) and not path.is_file() and any(self._list_others()):
            raise ArtifactError(f"{self._folder} was not begun by compare; give another --out.")
        if not path.is_file():
            return
        found = json.loads(path.read_text(encoding="utf-8"))
        expected = self._describe_rules()
        if self._settings.num_images:
            expected["num_images"] = self._settings.num_images
        for name, value in expected.items():
            if found[name] != value:
                raise ArtifactError(
                    f"{self._folder} was begun with {name} {found[name]}, now {value}: its runs would not be "
                    "comparable. Give what it was begun with, or another --out."
                )
        require_a_step(self._methods, found["num_images"])
        for cell in self._list_cells():
            self._work.check(cell)

    def _list_others(self) -> Iterator[Path]:
        """List what is neither hidden nor left by a contest that was stopped before its plan was written."""
        return (path for path in self._folder.iterdir() if not path.name.startswith(".") and path.name != RUNS)

    def _describe_rules(self) -> dict[str, Any]:
        settings, reference = self._settings, self._methods[0]
        return {
            "reference": reference.name,
            "budget_minutes": None if settings.num_images else settings.budget_minutes,
            "trials": settings.trials,
            "backbone": reference.config.model.backbone,
            "weights": reference.config.model.weights,
            "image_size": reference.config.model.image_size,
        }

    def make_plan(self) -> None:
        """Read what every run depends on, or write it; then the speed of the reference is measured, once."""
        for note in (note for source in self._sources for note in source.notes):
            print_message(note)
        path = self._folder / PLAN_NAME
        if path.is_file():
            self._plan = json.loads(path.read_text(encoding="utf-8"))
            return
        num_images, speed = self._settings.num_images, None
        if num_images is None:
            speed = self._measure_speed()
            num_images = max(1, round(60 * self._settings.budget_minutes * speed))
            require_a_step(self._methods, num_images)
        self._plan = {**self._describe_rules(), "num_images": num_images, "images_per_second": speed}
        write_json(path, self._plan)

    def _measure_speed(self) -> float:
        """Measure how many images the reference sees in a second of training, on the first data set."""
        print_message(f"measuring the speed of {self._methods[0].name}, which turns minutes into a number of images")
        folder = self._folder / RUNS / "speed"
        shutil.rmtree(folder, ignore_errors=True)
        config = self._methods[0].config
        config = fit_budget(config, SPEED_STEPS * count_images_per_step(config), seed=0)
        train(self._sources[0].dataset, override_config(config, {"train.holdout": False}), folder, report=False)
        speed = _read_speed(folder)
        shutil.rmtree(folder)
        return speed

    def tell_unnamed(self, results: Sequence[ResultKey]) -> None:
        """Say which results of before the page leaves out."""
        named = (ResultKey(cell.source.name, cell.name, cell.seed) for cell in self._list_cells())
        if told := describe_unnamed(results, named):
            print_message(told)

    # The runs

    def run_cells(self) -> None:
        """Do what is not done, round by round."""
        cells = list(self._list_cells())
        todo = [cell for cell in cells if not self._work.is_done(cell)]
        for cell in cells:
            if self._work.is_done(cell):
                self._work.strip_runs(cell)  # a kill may have come between the result and this
        start, num_before = time.monotonic(), len(cells) - len(todo)
        for number, cell in enumerate(todo, start=1):
            label = f"[{num_before + number}/{len(cells)}] {self._label(cell)}"
            print_message(label)
            told = self._work.run(cell, self._plan["num_images"])
            spent = time.monotonic() - start
            left = self._estimate_seconds(spent, todo[:number], todo[number:])
            print_message(f"{label}: {told} ({_spell_time(spent)} so far{left})")
            gc.collect()  # an encoder is a ring of references, and a batch may hold gigabytes
            if number < len(todo) and todo[number].source is not cell.source:
                self.write_summary()

    def _label(self, cell: Cell) -> str:
        """Name a result for people."""
        title = title_sources([source.name for source in self._sources])[cell.source.name]
        return f"{title}, {cell.name}" + (f", seed {cell.seed}" if cell.method else "")

    def _list_cells(self) -> Iterator[Cell]:
        for seed in range(self._settings.seeds):
            for source in self._sources:
                if seed == 0:
                    yield Cell(source, None, 0)
                yield from (Cell(source, method, seed) for method in self._methods)

    def _estimate_seconds(self, spent: float, done: Sequence[Cell], left: Sequence[Cell]) -> str:
        """Say how long the rest takes, by the trainings so far; before the first by the speed, where that is known."""
        num_done, num_left = (sum(map(self._count_trainings, cells)) for cells in (done, left))
        speed = self._plan["images_per_second"]
        if num_done:
            each = spent / num_done
        elif speed is not None:
            each = self._plan["num_images"] / speed
        else:
            return ""
        return f", about {_spell_time(each * num_left)} left"

    def _count_trainings(self, cell: Cell) -> int:
        return 0 if cell.method is None else self._plan["trials"] if cell.seed == 0 else 1

    # What it has found

    def write_summary_of_a_stop(self) -> None:
        """Write the page after an error; if that fails too, print why, and let the first error continue."""
        try:
            self.write_summary()
        except Exception as error:  # a full disk, for example, which may be what stopped the contest
            print_message(f"the page about what is done could not be written: {first_line(error)}")

    def write_summary(self) -> dict[str, Any]:
        """Write ``comparison.json`` and the page about what is done so far."""
        cells = list(self._list_cells())
        outcomes = {
            (cell.source.name, cell.name, cell.seed): self._work.read(cell)
            for cell in cells
            if self._work.is_done(cell)
        }
        contest = Contest(
            methods=tuple(method.name for method in self._methods),
            protocols={source.name: tuple(test.protocol for test in source.tests) for source in self._sources},
            num_seeds=self._settings.seeds,
            outcomes=outcomes,
        )
        summary = {
            **self._plan,
            "methods": list(contest.names),
            "data": list(contest.protocols),
            "titles": title_sources(list(contest.protocols)),
            "seeds": self._settings.seeds,
            "num_done": len(outcomes),
            "num_runs": len(cells),
            **summarize(contest),
            "tests": self._list_tests(outcomes),
            "runs": [one.contents for one in outcomes.values()],
            "vitrieve_version": __version__,
        }
        write_json(self._folder / SUMMARY_NAME, summary)
        write_page(summary, self._folder / PAGE_NAME)
        return summary

    def _list_tests(self, outcomes: Mapping[tuple[str, str, int], Outcome]) -> list[dict[str, Any]]:
        """List the tests with their numbers of queries and of gallery images, where they were measured."""
        tests = []
        for source in self._sources:
            frozen = outcomes.get((source.name, FROZEN, 0))
            measured = {} if frozen is None else {one["protocol"]: one for one in frozen.contents["tests"]}
            for test in source.tests:
                counts = measured.get(test.protocol, {})
                names = ("num_queries", "num_classes", "num_gallery")
                about = {"data": source.name, "name": test.name, "protocol": test.protocol, "license": test.license}
                tests.append({**about, **{name: counts.get(name) for name in names}})
        return tests


def _read_speed(folder: Path) -> float:
    """Read the images a second of the second half of a run."""
    steps = read_steps(folder)
    return statistics.median(step["images_per_second"] for step in steps[len(steps) // 2 :])


def _spell_time(seconds: float) -> str:
    """Spell a time.

    >>> _spell_time(59), _spell_time(11_000)
    ('59 s', '3 h 3 min')
    """
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
