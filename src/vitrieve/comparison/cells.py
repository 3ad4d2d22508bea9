"""One result of a contest: the trials of a method on a data set with a seed, the best of them measured and kept.

``results/`` has what came of each, written last, and ``runs/`` the training at hand: what was stopped goes on, and
nothing is done twice.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vitrieve.artifacts import has_artifact, is_partial, read_manifest
from vitrieve.comparison.failures import explain_failure
from vitrieve.comparison.methods import (
    FROZEN,
    ContestSettings,
    Method,
    Trial,
    count_images_per_step,
    fit_budget,
    list_trials,
)
from vitrieve.comparison.statistics import Outcome, effective_rank, mean_cosine
from vitrieve.config import Config
from vitrieve.data.records import Dataset
from vitrieve.embed.collection import EmbedSettings
from vitrieve.errors import ArtifactError, ConfigError, DataError
from vitrieve.evaluation.measure import Measurement
from vitrieve.evaluation.run import measure_protocols
from vitrieve.machine import read_peak_memory, restart_peak_memory
from vitrieve.model.encoder import build_encoder, leave_out_untrained, save_encoder
from vitrieve.model.export import export_folder
from vitrieve.recipes import find_recipe
from vitrieve.runtime.device import resolve_device
from vitrieve.runtime.encoder import load_encoder
from vitrieve.settings import list_overrides, override_config
from vitrieve.training.metrics_log import METRICS_NAME
from vitrieve.training.run import train
from vitrieve.writing import replacing_durably, write_text_durably

RUNS, RESULTS = "runs", "results"
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
        digest: SHA-256 of the names, classes and roles of all images.
    """

    name: str
    dataset: Dataset
    tests: tuple[Dataset, ...]
    notes: tuple[str, ...]
    digest: str


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
class CellWork:
    """The work on single results.

    Attributes:
        folder: Folder of the contest.
        settings: Settings of the contest.
        reference: Configuration of the reference, whose model all share.
    """

    folder: Path
    settings: ContestSettings
    reference: Config

    def is_done(self, cell: Cell) -> bool:
        """Tell whether there is a result."""
        return self._result_path(cell).is_file()

    def run(self, cell: Cell, num_images: int) -> str:
        """Train and measure; return what came of it in a few words.

        Args:
            cell: The result that is wanted.
            num_images: Number of images that each training sees.
        """
        if cell.method is None:
            return self._run_frozen(cell)
        return self._run_method(cell, cell.method, num_images)

    def read(self, cell: Cell) -> Outcome:
        """Read a result."""
        path = self._result_path(cell)
        contents = json.loads(path.read_text(encoding="utf-8"))
        queries: dict[str, dict[str, np.ndarray]] = {}
        if contents["reason"] is None:
            with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
                for key in arrays.files:
                    protocol, name = key.split("/")
                    queries.setdefault(protocol, {})[name] = arrays[key].astype(np.float64)
        return Outcome(data=cell.source.name, method=cell.name, seed=cell.seed, contents=contents, queries=queries)

    def check(self, cell: Cell) -> None:
        """Refuse a result that was made when the method had other settings or trials, or the source other images.

        Raises:
            ArtifactError: The message names the file.
        """
        path = self._result_path(cell)
        if not path.is_file():
            return
        found = json.loads(path.read_text(encoding="utf-8"))
        is_same = found["method_settings"] == json.loads(json.dumps(_list_method_settings(cell.method)))
        if cell.method is not None and cell.seed == 0:
            names = [trial.name for trial in list_trials(cell.method.config, self.settings.trials)]
            is_same = is_same and names == [trial["name"] for trial in found["trials"]]
        if not is_same:
            raise ArtifactError(
                f"{path} was made when {cell.name} had other settings or trials. Remove it to run it again, or give "
                "another --out."
            )
        if found.get("images_sha256", cell.source.digest) != cell.source.digest:  # older results have none
            raise ArtifactError(
                f"{path} was made when {cell.source.name} had other images, or other classes: its figures would not be "
                "comparable. Restore the source, or give another --out."
            )

    def strip_runs(self, cell: Cell) -> None:
        """Remove the encoders that are left of a result."""
        folder = self._run_folder(cell, 0).parent
        for path in folder.glob(f"{self._result_path(cell).stem}-trial-*"):
            _strip_run(path)

    def _run_frozen(self, cell: Cell) -> str:
        """Measure the backbone as it comes, pooled as the reference pools it."""
        folder = self._run_folder(cell, 0)
        shutil.rmtree(folder, ignore_errors=True)
        save_encoder(build_encoder(leave_out_untrained(self.reference.model)), folder)
        export_folder(folder)
        return self._finish(cell, folder, {"trials": []})

    def _run_method(self, cell: Cell, method: Method, num_images: int) -> str:
        """Train every trial, measure the best, and keep the result."""
        outcomes = []
        best: dict[str, Any] | None = None
        for number, trial in enumerate(self._choose_trials(cell, method)):
            outcome = self._try_trial(cell, method, number, trial, num_images)
            outcomes.append(outcome)
            if outcome["reason"] is None and (best is None or _best_held_out(outcome) > _best_held_out(best)):
                if best is not None:
                    _strip_run(self._run_folder(cell, best["number"]))
                best = outcome
            else:
                _strip_run(self._run_folder(cell, number))
        contents: dict[str, Any] = {
            "trials": [
                {
                    "name": one["name"],
                    "reason": one["reason"],
                    "holdout_map_at_r": None if one["reason"] else _best_held_out(one),
                }
                for one in outcomes
            ]
        }
        if best is None:
            return self._write_result(cell, {**contents, "reason": outcomes[0]["reason"]}, {})
        folder = self._run_folder(cell, best["number"])
        if not has_artifact(folder):  # someone removed it to begin the training anew
            self._result_path(cell, f"-trial-{best['number']}").unlink()
            return self._run_method(cell, method, num_images)
        contents |= {"chosen": best["name"], **best["summary"]}
        try:
            return self._finish(cell, folder, contents)
        except Exception as error:  # whatever a method's encoder does, the contest goes on and the page says it
            reason = f"measuring failed: {explain_failure(error, folder)}"
        return self._write_result(cell, {**contents, "reason": reason}, {})

    def _choose_trials(self, cell: Cell, method: Method) -> tuple[Trial, ...]:
        """List the trials: all of them with the first seed, afterwards the one that was chosen with it."""
        trials = list_trials(method.config, self.settings.trials)
        if cell.seed == 0:
            return trials
        first = json.loads(self._result_path(cell._replace(seed=0)).read_text(encoding="utf-8"))
        return tuple(trial for trial in trials if trial.name == first.get("chosen", trials[0].name))

    def _try_trial(self, cell: Cell, method: Method, number: int, trial: Trial, num_images: int) -> dict[str, Any]:
        """Train one trial, or read what came of it; a failure of the method becomes a reason."""
        path = self._result_path(cell, f"-trial-{number}")
        if path.is_file():
            read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return read
        outcome: dict[str, Any] = {"number": number, "name": trial.name, "reason": None}
        try:
            config = fit_budget(override_config(method.config, trial.changes), num_images, cell.seed)
            outcome["summary"] = self._train(cell, method, number, config)
        except Exception as error:  # a loss that fails in its own way is a row of the page, not the end of the contest
            outcome["reason"] = explain_failure(error, self._run_folder(cell, number))
        write_json(path, outcome)
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
        if not manifest["holdout_map_at_r"]:
            raise DataError("so many images are unreadable that no class could be held out")
        steps = read_steps(folder)
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
        settings = self.settings
        encoder = load_encoder(folder, device=settings.device, num_threads=settings.num_threads)
        embed = EmbedSettings(
            num_threads=settings.num_threads,
            max_bad_fraction=self.reference.train.max_bad_fraction,
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
        key = {"data": cell.source.name, "method": cell.name, "seed": cell.seed, "images_sha256": cell.source.digest}
        write_json(path, {**key, "method_settings": _list_method_settings(cell.method), **contents})
        for trial in path.parent.glob(f"{path.stem}-trial-*.json"):
            trial.unlink()
        if contents["reason"] is not None:
            return f"failed: {contents['reason']}"
        figures = (f"{100 * test['recall_at_1']:.1f} / {100 * test['map_at_r']:.1f}" for test in contents["tests"])
        return f"Recall@1 / MAP@R {', '.join(figures)}"

    def _result_path(self, cell: Cell, ending: str = "") -> Path:
        name = FROZEN if cell.method is None else f"{_slug(cell.name)}-seed-{cell.seed}"
        return self.folder / RESULTS / _slug(cell.source.name) / f"{name}{ending}.json"

    def _run_folder(self, cell: Cell, number: int) -> Path:
        name = self._result_path(cell, f"-trial-{number}").stem
        return self.folder / RUNS / _slug(cell.source.name) / name


def _slug(text: str) -> str:
    """Spell a name as a file's, different for different names."""
    short = re.sub(r"[^A-Za-z0-9._-]+", "_", text)[-40:]
    is_name = short == text and text.strip(".") != ""  # . and .. would name the folders above
    return short if is_name else f"{short}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def write_json(path: Path, contents: Mapping[str, Any]) -> None:
    """Write a file, and the folder that it is in."""
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


def read_steps(folder: Path) -> list[dict[str, float]]:
    """Read the lines of the log that are of steps, not of measurements."""
    lines = (folder / METRICS_NAME).read_text(encoding="utf-8").splitlines()
    return [step for step in map(json.loads, lines) if "images_per_second" in step]


def _best_held_out(outcome: Mapping[str, Any]) -> float:
    """Return the best MAP@R of a trial that did not fail, on the held-out classes."""
    return float(max(outcome["summary"]["holdout_map_at_r"].values()))


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
