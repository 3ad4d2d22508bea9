"""The order for a run: its settings, its data sets, its folder, and who watches it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrieve.config import Config
from vitrieve.data.records import Dataset
from vitrieve.objective.own import OwnTerm, describe_own_terms
from vitrieve.settings import config_to_json
from vitrieve.training.callbacks import Callback


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """The order for a run.

    Attributes:
        recipe: Name that the configuration began with.
        base: The recipe's own configuration.
        config: The complete settings.
        datasets: Data sets that are trained and reported on, with their unreadable images, kept apart by ``set_apart``.
        out: Folder of the run.
        own_terms: Terms of the objective that are not of this package.
        callbacks: Who watches, loggers included.
        has_report: Whether the run ends with a report before and after on the test classes.
        is_overwrite: Whether what the folder holds is replaced.
        is_resume: Whether an unfinished run in the folder goes on.
    """

    recipe: str
    base: Config
    config: Config
    datasets: tuple[Dataset, ...]
    out: Path
    own_terms: tuple[OwnTerm, ...] = ()
    callbacks: tuple[Callback, ...] = ()
    has_report: bool = True
    is_overwrite: bool = False
    is_resume: bool = False


def describe_order(run: TrainingRun) -> dict[str, Any]:
    """Describe what a run was started with, which is the same for all processes of a training."""
    return {
        "recipe": run.recipe,
        "out": str(run.out),
        "report": run.has_report,
        "overwrite": run.is_overwrite,
        "resume": run.is_resume,
        "own_terms": describe_own_terms(run.own_terms),
        **config_to_json(run.config),
    }
