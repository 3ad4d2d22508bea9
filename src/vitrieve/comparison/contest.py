"""``compare`` runs a contest: every training and measurement, one after the other, and the page about them.

The folder holds ``contest.json`` (what every run depends on), ``runs/`` (the training at hand), ``results/`` (what came
of each, written last, so that nothing is done twice), ``comparison.json`` and ``comparison.html``. Rounds go by seed:
the first seed of all methods on all data sets comes first, so that a contest that is stopped is a fair smaller one.
"""

from __future__ import annotations

import gc
import hashlib
import json
import re
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vitrieve import __version__
from vitrieve.artifacts import (
    has_artifact,
    is_full_disk,
    is_partial,
    prepare_folder,
    read_manifest,
    reopen_folder,
    replacing_durably,
    write_manifest,
    write_text_durably,
)
from vitrieve.comparison.methods import (
    FROZEN,
    ContestSettings,
    Method,
    Trial,
    count_images_per_step,
    fit_budget,
    list_trials,
    read_methods,
)
from vitrieve.comparison.page import PAGE_NAME, format_summary, title_sources, write_page
from vitrieve.comparison.statistics import Contest, Outcome, effective_rank, mean_cosine, summarize
from vitrieve.config import Config
from vitrieve.data.records import Dataset, require_trainable
from vitrieve.data.sources import list_protocols, read_source
from vitrieve.embed.collection import EmbedSettings
from vitrieve.errors import ArtifactError, ConfigError, DataError, VitrieveError
from vitrieve.evaluation.measure import Measurement
from vitrieve.evaluation.protocols import select_records
from vitrieve.evaluation.run import measure_protocols
from vitrieve.machine import read_peak_memory, restart_peak_memory
from vitrieve.model.encoder import build_encoder, save_encoder
from vitrieve.model.export import export_folder
from vitrieve.progress import print_message
from vitrieve.recipes import find_recipe
from vitrieve.runtime.device import resolve_device
from vitrieve.runtime.encoder import load_encoder
from vitrieve.settings import list_overrides, override_config
from vitrieve.training.metrics_log import METRICS_NAME
from vitrieve.training.run import choose_unseen_start, train

PLAN_NAME = "contest.json"
SUMMARY_NAME = "comparison.json"
RUNS, RESULTS = "runs", "results"
SPEED_STEPS = 10
"""Steps of the measurement of the speed; the second half counts, when files and buffers are warm."""
MAX_BEGINNINGS = 2
"""A training during which the process ended so often without a word is not tried again."""
KEPT_FILES = ("config.json", METRICS_NAME)
"""What stays of a measured run: its settings and its log."""


class Source(NamedTuple):
    """A data set of a contest.

    Attributes:
        name: Spelling of the source.
        dataset: Its first protocol, which trains.
        tests: Every protocol that is measured.
        notes: Sentences about protocols that are not.
    """

    name: str
    dataset: Dataset
    tests: tuple[Dataset, ...]
    notes: tuple[str, ...]


class Cell(NamedTuple):
    """One result of a contest; ``method`` is None for the frozen backbone."""

    source: Source
    method: Method | None
    seed: int

    @property
    def name(self) -> str:
        """Name of the method."""
        return FROZEN if self.method is None else self.method.name


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
    method that fails or collapses stays in the table, with the reason. Progress is shown on standard error.

    Args:
        methods: Recipes by name, with changes where wanted: ``small``, ``small:koleo.weight=0.3``. The frozen backbone
            is always added.
        data: Sources as ``read_source`` takes them. Every protocol of a source is measured that trains on the same
            images.
        out: Folder of the contest.
        resume: Go on with what ``out`` holds, finished or not: further methods, data sets and seeds are added, and no
            finished run is repeated.
        overwrite: Empty ``out`` first.
        settings: Fields of ``ContestSettings``: ``budget_minutes``, ``num_images``, ``seeds``, ``trials``,
            ``reference``, ``backbone``, ``weights``, ``image_size``, ``device``, ``num_threads``.

    Returns:
        Every figure, and the page.

    Raises:
        InputError: A method, a source, a setting or the folder cannot be used, or the disk is full.
        KeyboardInterrupt: After Ctrl-C; a resumed contest goes on, in the middle of a training.
    """
    chosen = ContestSettings(**settings)
    competing = read_methods(methods, chosen)
    sources = tuple(_read_source(str(source)) for source in dict.fromkeys(data))
    if not sources:
        raise ConfigError("there is no data set to compare on; name one or more with --data.")
    start = choose_unseen_start(competing[0].config, [source.dataset for source in sources]).model.backbone
    competing = tuple(method.with_backbone(start) for method in competing)
    folder = Path(out)
    run = _ContestRun(folder, chosen, competing, sources)
    if resume:
        run.check_begun()  # what is refused stays as it is
        if has_artifact(folder):
            reopen_folder(folder)
    prepare_folder(folder, is_overwrite=overwrite, is_resume=resume)
    run.make_plan()
    try:
        run.run_cells()
    finally:
        summary = run.write_summary()
    write_manifest(folder, "comparison", {"methods": summary["methods"], "data": summary["data"]})
    return Comparison(folder=folder, summary=summary)


def _read_source(name: str) -> Source:
    """Read a source under its first protocol, and under each other one that trains on the same images."""
    protocols = list_protocols(name)
    dataset = read_source(name)
    require_trainable(dataset)
    select_records(dataset)
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
    return Source(name, dataset, tuple(tests), tuple(notes))


class _ContestRun:
    """The work of a contest, in its folder."""

    def __init__(
        self, folder: Path, settings: ContestSettings, methods: Sequence[Method], sources: Sequence[Source]
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._methods = tuple(methods)
        self._sources = tuple(sources)
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
        for cell in self._list_cells():
            self._check_result(cell)

    def _list_others(self) -> Iterator[Path]:
        """List what is neither hidden nor left by a contest that was stopped before its plan was written."""
        return (path for path in self._folder.iterdir() if not path.name.startswith(".") and path.name != RUNS)

    def _check_result(self, cell: Cell) -> None:
        """Refuse a result that was made when the method had other settings."""
        path = self._result_path(cell)
        if not path.is_file():
            return
        found = json.loads(path.read_text(encoding="utf-8"))["method_settings"]
        if found != json.loads(json.dumps(_list_method_settings(cell.method))):
            raise ArtifactError(
                f"{path} was made when {cell.name} had other settings. Remove it to run it again, or give another "
                "--out."
            )

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
        self._plan = {**self._describe_rules(), "num_images": num_images, "images_per_second": speed}
        _write_json(path, self._plan)

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

    # The runs

    def run_cells(self) -> None:
        """Do what is not done, round by round."""
        cells = list(self._list_cells())
        todo = [cell for cell in cells if not self._result_path(cell).is_file()]
        for cell in cells:
            if self._result_path(cell).is_file():
                self._strip_runs(cell)  # a kill may have come between the result and this
        start, num_before = time.monotonic(), len(cells) - len(todo)
        for number, cell in enumerate(todo, start=1):
            label = f"[{num_before + number}/{len(cells)}] {self._label(cell)}"
            print_message(label)
            told = self._run_frozen(cell) if cell.method is None else self._run_method(cell, cell.method)
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

    def _run_frozen(self, cell: Cell) -> str:
        """Measure the backbone as it comes, pooled as the reference pools it."""
        config = self._methods[0].config
        folder = self._run_folder(cell, 0)
        shutil.rmtree(folder, ignore_errors=True)
        headless = replace(config.model, head_norm=False, head_dim=None)  # an untrained head says nothing
        save_encoder(build_encoder(headless), folder)
        export_folder(folder)
        return self._finish(cell, folder, {"trials": []})

    def _strip_runs(self, cell: Cell) -> None:
        folder = self._run_folder(cell, 0).parent
        for path in folder.glob(f"{self._result_path(cell).stem}-trial-*"):
            _strip_run(path)

    def _run_method(self, cell: Cell, method: Method) -> str:
        """Train every trial, measure the best, and keep the result."""
        trials = self._choose_trials(cell, method)
        outcomes = []
        best: dict[str, Any] | None = None
        for number, trial in enumerate(trials):
            outcome = self._try_trial(cell, method, number, trial)
            outcomes.append(outcome)
            if outcome["reason"] is None and (best is None or _best_held_out(outcome) > _best_held_out(best)):
                if best is not None:
                    _strip_run(self._run_folder(cell, best["number"]))
                best = outcome
            else:
                _strip_run(self._run_folder(cell, number))
        contents: dict[str, Any] = {
            "trials": [
                {"name": one["name"], "reason": one["reason"], "holdout_map_at_r": _best_held_out(one)}
                for one in outcomes
            ]
        }
        if best is None:
            return self._write_result(cell, {**contents, "reason": outcomes[0]["reason"]}, {})
        contents |= {"chosen": best["name"], **best["summary"]}
        try:
            return self._finish(cell, self._run_folder(cell, best["number"]), contents)
        except Exception as error:
            reason = f"measuring failed: {_explain(error)}"
        return self._write_result(cell, {**contents, "reason": reason}, {})

    def _choose_trials(self, cell: Cell, method: Method) -> tuple[Trial, ...]:
        """List the trials: all of them with the first seed, afterwards the one that was chosen with it."""
        trials = list_trials(method.config, self._plan["trials"])
        if cell.seed == 0:
            return trials
        first = json.loads(self._result_path(cell._replace(seed=0)).read_text(encoding="utf-8"))
        return tuple(trial for trial in trials if trial.name == first.get("chosen", trials[0].name))

    def _try_trial(self, cell: Cell, method: Method, number: int, trial: Trial) -> dict[str, Any]:
        """Train one trial, or read what came of it; a failure becomes a reason."""
        path = self._result_path(cell, f"-trial-{number}")
        if path.is_file():
            read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return read
        outcome: dict[str, Any] = {"number": number, "name": trial.name, "reason": None}
        try:
            config = fit_budget(override_config(method.config, trial.changes), self._plan["num_images"], cell.seed)
            outcome["summary"] = self._train(cell, method, number, config)
        except Exception as error:
            outcome["reason"] = _explain(error)
        _write_json(path, outcome)
        return outcome

    def _train(self, cell: Cell, method: Method, number: int, config: Config) -> dict[str, Any]:
        """Train, or go on with a training; return its summary."""
        folder = self._run_folder(cell, number)
        changes = list_overrides(config, find_recipe(method.recipe)())
        peak_bytes = None
        if not has_artifact(folder):
            is_begun = is_partial(folder)
            if not is_begun:
                shutil.rmtree(folder, ignore_errors=True)  # the log of a result that was removed to be made again
            with _counting_beginnings(folder):
                peak = _start_peak(config)
                train(
                    cell.source.dataset,
                    method.recipe,
                    folder,
                    resume=is_begun,
                    report=False,
                    **changes,
                )
                peak_bytes = peak()
        manifest = read_manifest(folder, "run")
        steps = _read_steps(folder)
        images_per_step = count_images_per_step(config)
        for name in ("state", "tensorboard"):
            shutil.rmtree(folder / name, ignore_errors=True)
        return {
            "recipe": method.recipe,
            "changes": changes,
            "num_steps": manifest["num_steps"],
            "num_images": images_per_step * manifest["num_steps"],
            "kept_step": manifest["kept_step"],
            "holdout_map_at_r": manifest["holdout_map_at_r"],
            "training_seconds": sum(images_per_step / step["images_per_second"] for step in steps),
            "peak_bytes": peak_bytes,
        }

    def _finish(self, cell: Cell, folder: Path, contents: Mapping[str, Any]) -> str:
        """Measure an encoder on every test of the data set, keep the result, and remove the encoder."""
        settings = self._settings
        encoder = load_encoder(folder, device=settings.device, num_threads=settings.num_threads)
        embed = EmbedSettings(
            num_threads=settings.num_threads,
            max_bad_fraction=self._methods[0].config.train.max_bad_fraction,
            show_progress=True,
        )
        measurements = measure_protocols(encoder, cell.source.tests, cell.name, settings=embed)
        encoder.close()
        queries = {f"{one.result.protocol}/{name}": values for one in measurements for name, values in _score(one)}
        tests = [_describe_test(one) for one in measurements]
        told = self._write_result(cell, {**contents, "reason": None, "tests": tests}, queries)
        _strip_run(folder)
        return told

    def _write_result(self, cell: Cell, contents: dict[str, Any], queries: Mapping[str, np.ndarray]) -> str:
        path = self._result_path(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        if queries:
            with replacing_durably(path.with_suffix(".npz")) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, **queries)  # type: ignore[arg-type]
        key = {"data": cell.source.name, "method": cell.name, "seed": cell.seed}
        _write_json(path, {**key, "method_settings": _list_method_settings(cell.method), **contents})
        for trial in path.parent.glob(f"{path.stem}-trial-*.json"):
            trial.unlink()
        if contents["reason"] is not None:
            return f"failed: {contents['reason']}"
        figures = (f"{100 * test['recall_at_1']:.1f} / {100 * test['map_at_r']:.1f}" for test in contents["tests"])
        return f"Recall@1 / MAP@R {', '.join(figures)}"

    # What it has found

    def write_summary(self) -> dict[str, Any]:
        """Write ``comparison.json`` and the page about what is done so far."""
        cells = list(self._list_cells())
        outcomes = {
            (cell.source.name, cell.name, cell.seed): self._read_outcome(cell)
            for cell in cells
            if self._result_path(cell).is_file()
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
        _write_json(self._folder / SUMMARY_NAME, summary)
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

    def _read_outcome(self, cell: Cell) -> Outcome:
        path = self._result_path(cell)
        contents = json.loads(path.read_text(encoding="utf-8"))
        queries: dict[str, dict[str, np.ndarray]] = {}
        if contents["reason"] is None:
            with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
                for key in arrays.files:
                    protocol, name = key.split("/")
                    queries.setdefault(protocol, {})[name] = arrays[key].astype(np.float64)
        return Outcome(data=cell.source.name, method=cell.name, seed=cell.seed, contents=contents, queries=queries)

    def _result_path(self, cell: Cell, ending: str = "") -> Path:
        name = FROZEN if cell.method is None else f"{_slug(cell.name)}-seed-{cell.seed}"
        return self._folder / RESULTS / _slug(cell.source.name) / f"{name}{ending}.json"

    def _run_folder(self, cell: Cell, number: int) -> Path:
        name = self._result_path(cell, f"-trial-{number}").stem
        return self._folder / RUNS / _slug(cell.source.name) / name


def _slug(text: str) -> str:
    """Spell a name as a file's, different for different names."""
    short = re.sub(r"[^A-Za-z0-9._-]+", "_", text)[-40:]
    return short if short == text else f"{short}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _write_json(path: Path, contents: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_durably(path, json.dumps(contents, indent=2) + "\n")


def _strip_run(folder: Path) -> None:
    """Remove all of a run but its settings and its log; its encoder is trained again by the same settings and seed."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.name in KEPT_FILES:
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def _read_steps(folder: Path) -> list[dict[str, float]]:
    """Read the lines of the log that are of steps, not of measurements."""
    lines = (folder / METRICS_NAME).read_text(encoding="utf-8").splitlines()
    return [step for step in map(json.loads, lines) if "images_per_second" in step]


def _read_speed(folder: Path) -> float:
    """Read the images a second of the second half of a run."""
    steps = _read_steps(folder)
    return statistics.median(step["images_per_second"] for step in steps[len(steps) // 2 :])


def _best_held_out(outcome: Mapping[str, Any]) -> float:
    """Return the best MAP@R of a trial on the held-out classes; below all others where there is none."""
    return max(outcome.get("summary", {}).get("holdout_map_at_r", {}).values(), default=-1.0)


def _list_method_settings(method: Method | None) -> dict[str, Any]:
    """List the settings that tell a method from the defaults; those that only say how to compute are left out.

    So a loss that a newer version adds changes nothing.
    """
    if method is None:
        return {}
    listed = list_overrides(method.config, Config())
    return {name: value for name, value in listed.items() if name not in ("train.device", "train.num_threads")}


@contextmanager
def _counting_beginnings(folder: Path) -> Iterator[None]:
    """Count how often a training was begun and the process ended without a word, by a file beside its folder.

    Raises:
        ConfigError: Too often.
    """
    path = folder.with_name(folder.name + ".begun")
    count = int(path.read_text(encoding="utf-8")) if path.is_file() else 0
    path.parent.mkdir(parents=True, exist_ok=True)
    if count >= MAX_BEGINNINGS:
        path.unlink()
        raise ConfigError(
            f"the process ended {count} times during this training without a message: it was killed, perhaps for "
            "memory, or it crashed."
        )
    write_text_durably(path, f"{count + 1}")
    try:
        yield
    finally:
        path.unlink()


def _start_peak(config: Config) -> Callable[[], int | None]:
    """Forget the most memory so far; return what tells the most since, of the GPU where one trains."""
    if resolve_device(config.train.device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated
    return read_peak_memory if restart_peak_memory() else lambda: None


def _explain(error: Exception) -> str:
    """Say in a sentence why a method failed; what is no method's fault goes on.

    Raises:
        Exception: The disk is full, or a package is missing.
    """
    if is_full_disk(error) or isinstance(error, ImportError):
        raise error
    text = str(error) if isinstance(error, VitrieveError) else f"{type(error).__name__}: {error}"
    return re.split(r"\.\s", text, maxsplit=1)[0].rstrip(".")


def _score(measurement: Measurement) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the class and the figures of every scored query."""
    scores = measurement.scores
    first, average = scores.headlines
    values = scores.values((1,))
    yield "groups", scores.groups[scores.is_scored].astype(np.int32)
    yield "recall_at_1", values[first].astype(np.float32)
    yield "map_at_r", values[average]


def _describe_test(measurement: Measurement) -> dict[str, Any]:
    """Return the figures of a test, and what tells a collapse."""
    result, scores = measurement.result, measurement.scores
    vectors = np.asarray(measurement.vectors)
    first, average = scores.headlines
    return {
        "protocol": result.protocol,
        "recall_at_1": float(scores.values((1,))[first].mean()),
        "map_at_r": float(scores.values((1,))[average].mean()),
        "num_queries": result.num_queries,
        "num_classes": len(np.unique(scores.groups[scores.is_scored])),
        "num_gallery": result.num_gallery,
        "effective_rank": effective_rank(vectors),
        "mean_cosine": mean_cosine(vectors),
    }


def _spell_time(seconds: float) -> str:
    """Spell a time.

    >>> _spell_time(59), _spell_time(11_000)
    ('59 s', '3 h 3 min')
    """
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
