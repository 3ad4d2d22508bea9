"""What an evaluation measures on: a data set under each protocol, its cut-offs, and images that are added to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from vitrieve.data.records import Dataset
from vitrieve.data.revisited import use_whole_queries
from vitrieve.data.sources import is_folder_source, list_protocols, read_collection, read_source
from vitrieve.errors import ConfigError
from vitrieve.evaluation.metrics import check_cut_offs
from vitrieve.evaluation.protocols import add_distractors, select_records, take_all_classes
from vitrieve.evaluation.revisited import REVISITED_ROLES

Classes = Literal["test", "all"]


@dataclass(frozen=True, kw_only=True)
class EvaluationData:
    """Data sets to measure on, with the choices behind them, which an evaluation's manifest records.

    Attributes:
        datasets: One for each protocol; the first says the cut-offs.
        distractors: Source of the images that were added to the gallery; None: none were.
        whole_queries: The queries of a revisited benchmark are not cropped to their boxes.
        classes: Whether the classes kept for testing are measured, or all.
    """

    datasets: tuple[Dataset, ...]
    distractors: str | None = None
    whole_queries: bool = False
    classes: Classes = "test"


@dataclass(frozen=True, kw_only=True)
class DataChoices:
    """How a source is measured.

    Attributes:
        protocols: Protocols of the source; empty: its first, and of a revisited benchmark all three.
        classes: ``test``: the classes (or images) that the source keeps for testing; ``all``: every class, also those
            that training may have seen.
        ks: Cut-offs K of Recall@K (mP@K); empty: those that the field reports on the data set.
        distractors: Source of images that are added to the gallery and wrong for every query; None: none.
        whole_queries: Do not crop the queries of roxford5k and rparis6k to their boxes.
        exclude: Patterns of files to leave out of a folder, with the rules of gitignore.
    """

    protocols: tuple[str, ...] = ()
    classes: Classes = "test"
    ks: tuple[int, ...] = ()
    distractors: str | None = None
    whole_queries: bool = False
    exclude: tuple[str, ...] = ()


def read_evaluation_data(source: str, choices: DataChoices | None = None) -> EvaluationData:
    """Read a source under each protocol, as an evaluation measures it.

    Args:
        source: As ``read_source`` takes it.
        choices: What to measure of it; None: its first protocol (or all three of a revisited benchmark).

    Raises:
        DataError: The source cannot be read, or has nothing to measure on.
        ConfigError: A choice does not fit the source.
    """
    choices = choices or DataChoices()
    ks = tuple(sorted(set(check_cut_offs(choices.ks))))
    # Patterns leave files out of every folder; where there is none, the reader of the data set refuses them.
    is_data_meant = choices.distractors is None or not is_folder_source(choices.distractors)
    exclude = choices.exclude if is_data_meant or is_folder_source(source) else ()
    datasets = _read_protocols(source, choices.protocols, exclude)
    if choices.classes == "all":
        datasets = [take_all_classes(dataset) for dataset in datasets]
    if ks:
        datasets = [replace(dataset, ks=ks) for dataset in datasets]
    if choices.whole_queries:
        if datasets[0].ground_truth is None:
            raise ConfigError(
                f"--whole-queries is for roxford5k and rparis6k, not for {datasets[0].name}; leave it out."
            )
        datasets = [use_whole_queries(dataset) for dataset in datasets]
    if choices.distractors is not None:
        added = read_collection(choices.distractors, exclude=() if is_data_meant else choices.exclude)
        datasets = [add_distractors(dataset, added) for dataset in datasets]
    return EvaluationData(
        datasets=tuple(datasets),
        distractors=choices.distractors,
        whole_queries=choices.whole_queries,
        classes=choices.classes,
    )


def require_measurable(datasets: Sequence[Dataset]) -> None:
    """Refuse data sets without queries or gallery.

    Raises:
        DataError: As ``select_records``.
    """
    for dataset in datasets:
        select_records(dataset)


def _read_protocols(source: str, protocols: Sequence[str], exclude: Sequence[str]) -> list[Dataset]:
    """Read the data set under each protocol that is asked for, or that is measured without asking."""
    chosen = tuple(dict.fromkeys(protocols))  # a protocol given twice is one
    datasets = [read_source(source, protocol=protocol, exclude=exclude) for protocol in chosen or (None,)]
    if not chosen and datasets[0].ground_truth is not None:
        # Easy, medium and hard differ in what counts, not in images, and are published together.
        offered = list_protocols(source)
        datasets = [read_source(source, protocol=protocol) for protocol in REVISITED_ROLES if protocol in offered]
    return datasets
