"""What a plan is made of: rows, each a few commands on data sets, with the figures they are compared with.

No row runs anything here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vitrieve.data import cub200, grocery, inshop, sfm120k, sop
from vitrieve.data.layout import data_parents
from vitrieve.errors import ConfigError, unknown_name_message
from vitrieve.reproduce.published import DATASET_TITLES, Figures, Measure

Chart = Literal["none", "sweep", "energy", "histograms", "gradients"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """A ``vitrieve train`` command without its folders and its seed.

    Attributes:
        recipe: Name of the recipe.
        source: Name of the data set.
        flags: What differs from the recipe.
    """

    recipe: str
    source: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Row:
    """One encoder and where it is measured.

    Attributes:
        key: Its name in ``--rows`` and on the page, unique in a plan.
        name: Its name in the published table; several rows have it where the paper trained on several sets.
        label: What a reader calls it.
        group: The heading it stands under.
        training: How it is trained; None: an encoder as it is.
        encoder: Weights name (or folder) of an encoder as it is; not read with ``training``.
        encoder_flags: Flags of ``vitrieve evaluate`` for an encoder as it is.
        embedding_dim: Dimensions to keep by a PCA of the training images; None: all.
        tests: Names of the data sets it is measured on.
        published: The figures it is compared with.
        has_gradients: Measure the directions of the contrastive gradient too, for figure 4.
        series: In a chart, the line it belongs to.
        x: In a chart of a sweep, its place on the axis.
        reference: Key of the row from which its change is told; empty: none.
    """

    key: str
    name: str
    label: str
    group: str
    training: Training | None = None
    encoder: str = ""
    encoder_flags: tuple[str, ...] = ()
    embedding_dim: int | None = None
    tests: tuple[str, ...]
    published: Figures = field(default_factory=dict)
    has_gradients: bool = False
    series: str = ""
    x: float | None = None
    reference: str = ""

    @property
    def sources(self) -> tuple[str, ...]:
        """The data sets that must be there, each once."""
        trained_on = (self.training.source,) if self.training else ()
        return tuple(dict.fromkeys((*trained_on, *self.tests)))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A table or figure as runs.

    Attributes:
        name: For example ``table3``.
        title: What it shows.
        claim: What the paper says it shows.
        rows: What to run, in order.
        notes: What a reader must know, for example what the paper leaves open.
        stand_in: The source it runs on in place of the paper's data; None: on the paper's own.
        shown: The measures of a stand-in; of the paper's own data they follow from the published figures.
        chart: What is drawn.
        x_name: Of the axis of a sweep.
        is_log_x: Whether that axis is logarithmic.
    """

    name: str
    title: str
    claim: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    stand_in: str | None = None
    shown: tuple[Measure, ...] = ()
    chart: Chart = "none"
    x_name: str = ""
    is_log_x: bool = False

    @property
    def stem(self) -> str:
        """Name of its pages: those of a stand-in stand beside the paper's own.

        >>> Plan(name="table3", title="", claim="", rows=(), stand_in="folder:my/pictures").stem
        'table3-pictures'
        """
        return self.name if self.stand_in is None else f"{self.name}-{self.stand_in.rstrip('/').split('/')[-1]}"

    @property
    def groups(self) -> dict[str, list[Row]]:
        """The rows under their headings, in order."""
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row.group, []).append(row)
        return groups

    @property
    def sources(self) -> tuple[str, ...]:
        """The data sets of all rows, each once."""
        return tuple(dict.fromkeys(source for row in self.rows for source in row.sources))


def list_measures(plan: Plan, rows: Iterable[Row]) -> tuple[Measure, ...]:
    """List what is shown of some rows: a stand-in's measures, or those with a published figure."""
    if plan.stand_in is not None or plan.shown:
        return plan.shown
    return tuple(dict.fromkeys(measure for row in rows for measure in row.published))


def choose_rows(plan: Plan, wanted: Sequence[str]) -> tuple[Row, ...]:
    """Choose rows by key, or by the name that several share; none wanted: all.

    Raises:
        ConfigError: An unknown row; the message lists the valid ones.
    """
    for name in wanted:
        if not any(name in (row.key, row.name) for row in plan.rows):
            valid = dict.fromkeys(row.key for row in plan.rows)
            raise ConfigError(unknown_name_message(f"row of {plan.stem}", name, valid))
    return tuple(row for row in plan.rows if not wanted or row.key in wanted or row.name in wanted)


def name_group(source: str) -> str:
    """Name the heading of the rows that train on a source."""
    tests = {"sfm120k": "SfM-120k, measured on ROxford and RParis"}
    return tests.get(source) or DATASET_TITLES.get(source, source)


def join_figures(figures: Figures, datasets: Sequence[str]) -> Mapping[Measure, float]:
    """Keep the figures that are of some data sets."""
    return {measure: value for measure, value in figures.items() if measure.dataset in datasets}


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
        name: As plans name it.
        spelling: As commands name it, ``sop:DIR``; with a folder that was looked for when it is missing.
        missing: What is not there and what to do; empty when it is there.
    """

    name: str
    spelling: str
    missing: str = ""


def find_sources(names: Iterable[str], data_root: Path | None) -> dict[str, Source]:
    """Look for data sets.

    Args:
        names: Names of benchmarks, ``grocery``, ``emoji``, or any source as ``NAME:PATH``, which is taken as it is.
        data_root: Folder with a folder for each data set; None: the folder that VITRIEVE_DATA names, then
            ``../shared/datasets``.
    """
    roots = (data_root,) if data_root is not None else data_parents()
    return {name: _find_source(name, roots) for name in names}


def _find_source(name: str, roots: Iterable[Path]) -> Source:
    roots = tuple(roots)
    folders = FOLDER_NAMES.get(name)
    if folders is None:
        return Source(name=name, spelling=name)
    for root in roots:
        for folder in folders:
            if (root / folder).is_dir():
                return Source(name=name, spelling=f"{name}:{root / folder}")
    looked = " and ".join(str(root) for root in roots)
    return Source(
        name=name,
        spelling=f"{name}:{roots[0] / folders[0]}",
        missing=f"{name} is missing: no folder {' or '.join(map(repr, folders))} in {looked}. "
        f"Where to get it: vitrieve data describe {name}",
    )


def list_missing(rows: Iterable[Row], sources: Mapping[str, Source]) -> tuple[str, ...]:
    """Say what is missing for some rows, each data set once."""
    needed = dict.fromkeys(name for row in rows for name in row.sources)
    return tuple(sources[name].missing for name in needed if sources[name].missing)


def is_runnable(row: Row, sources: Mapping[str, Source]) -> bool:
    """Tell whether all data sets of a row are there."""
    return not any(sources[name].missing for name in row.sources)
