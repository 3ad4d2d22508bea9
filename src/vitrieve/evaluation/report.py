"""The report: one self-contained HTML page, without any request to elsewhere.

This file turns measurements into what the page says; ``templates/report.html.j2`` is the page. All names come
from users' files and are escaped by the template engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import BaseLoader, ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vitrieve import __version__
from vitrieve.evaluation.analysis import (
    Gallery,
    GroupFigures,
    build_galleries,
    count_similarities,
    cumulative_energy,
    difference_interval,
    list_group_figures,
)
from vitrieve.evaluation.charts import (
    NUM_COLORS,
    IntervalSeries,
    Line,
    draw_histogram,
    draw_intervals,
    draw_lines,
    shown_bins,
)
from vitrieve.evaluation.measure import Measurement
from vitrieve.evaluation.metrics import display_name, name_average, name_first
from vitrieve.evaluation.reranking import RerankingReport, RerankingRow
from vitrieve.quoting import make_breakable
from vitrieve.rerank.names import NO_RERANKING
from vitrieve.writing import write_text_durably

MAX_GROUP_ROWS = 400
"""Classes, or queries, in the table: beyond these (the worst), a page becomes heavy and nobody reads on."""
MAX_FAILURES_SHOWN = 20
HEADLINES = ("recall_at_1", "r_precision", "map_at_r", "mean_average_precision", "mp_at_1", "mp_at_10")
ENERGY_SHARE = 0.9


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its interval: a fraction, or a difference of fractions."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """For a difference: ``better`` or ``worse`` when its interval leaves out zero, else ``unclear``."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "unclear"


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """A metric: one figure for each encoder, and one difference from the first for each further encoder."""

    name: str
    is_headline: bool
    figures: tuple[Estimate, ...]
    differences: tuple[Estimate, ...]


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """A class or a query: for each encoder its two headline figures, and the change of the second, first to last.

    ``count`` is the number of queries of a class, or of images to be found for a query.
    """

    name: str
    count: int
    firsts: tuple[float, ...]
    averages: tuple[float, ...]
    change: float


@dataclass(frozen=True, kw_only=True)
class GroupTable:
    """The classes or queries, the worst under the last encoder first; ``num_rows`` counts those not shown too."""

    title: str
    group_name: str
    plural: str
    count_name: str
    first_name: str
    average_name: str
    rows: tuple[GroupRow, ...]
    num_rows: int


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """An encoder's energy in words: how many of its dimensions hold ``ENERGY_SHARE`` of the variance."""

    encoder: str
    num_dims: int
    embedding_dim: int


@dataclass(frozen=True, kw_only=True)
class HistogramView:
    """An encoder's histogram and its two means."""

    encoder: str
    positive_mean: float
    negative_mean: float
    chart: Markup


@dataclass(frozen=True, kw_only=True)
class RerankingLine:
    """One way of re-ranking: its figures, and what it adds to the average precision (None for the first line).

    ``is_chosen`` marks the way that is kept, which may be none.
    """

    name: str
    is_chosen: bool
    figures: tuple[float, ...]
    gain: Estimate | None
    milliseconds: float
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class RerankingTable:
    """What re-ranking adds to one encoder on held-out training classes or on the test split."""

    encoder_number: int
    title: str
    metrics: tuple[str, ...]
    average_name: str
    lines: tuple[RerankingLine, ...]
    reason: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """Everything about one protocol."""

    title: str
    facts: tuple[str, ...]
    notes: tuple[str, ...]
    license: str
    failures: tuple[tuple[str, str], ...]
    num_failures: int
    encoders: tuple[str, ...]
    metrics: tuple[MetricRow, ...]
    metrics_chart: Markup
    histograms: tuple[HistogramView, ...]
    energy_chart: Markup
    spectra: tuple[Spectrum, ...]
    groups: GroupTable
    rerankings: tuple[RerankingTable, ...]
    galleries: tuple[Gallery, ...]


def write_report(
    measurements: Sequence[Measurement], path: Path, *, rerankings: Sequence[Sequence[RerankingReport]] = ()
) -> None:
    """Write the report of some encoders under some protocols.

    The size stays below 5 MB: pictures are small and their number is bounded.

    Args:
        measurements: Measurements of every encoder under every protocol, encoders in the same order under each; the
            first encoder is the reference. The pictures are read again, for thumbnails.
        path: File to write.
        rerankings: What re-ranking adds, for each measurement; empty where it was not measured.
    """
    groups: dict[tuple[str, str], list[tuple[Measurement, Sequence[RerankingReport]]]] = {}
    for measurement, reports in zip(measurements, rerankings or [()] * len(measurements), strict=True):
        key = (measurement.result.dataset, measurement.result.protocol)
        groups.setdefault(key, []).append((measurement, reports))
    sections = [
        replace(
            _build_section([measurement for measurement, _ in group], len(groups)),
            rerankings=tuple(_list_rerankings([reports for _, reports in group])),
        )
        for group in groups.values()
    ]
    page = render_page(
        "report.html.j2",
        sections=sections,
        encoders=sections[0].encoders,
        num_colors=NUM_COLORS,
        kinds={section.groups.group_name for section in sections},
        energy_percent=round(ENERGY_SHARE * 100),
        version=__version__,
    )
    write_text_durably(path, page)


def render_page(template: str, *loaders: BaseLoader, **context: Any) -> str:
    """Render a page in the report's style; all text in it is escaped.

    Args:
        template: Name of the template.
        loaders: Where templates are found beside those of the report.
        context: What the template is given, every name that it uses.
    """
    environment = Environment(
        loader=ChoiceLoader([*loaders, PackageLoader("vitrieve.evaluation")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=lambda fraction: f"{100 * fraction:.1f}",
        points=lambda difference: format_points(100 * difference),
        breakable=make_breakable,
    )
    return environment.get_template(template).render(context)


def _build_section(group: Sequence[Measurement], num_protocols: int) -> Section:
    last = group[-1]
    histograms = [count_similarities(measurement) for measurement in group]
    bins = shown_bins(histograms)
    energies = [cumulative_energy(measurement.vectors) for measurement in group]
    encoders = tuple(measurement.result.encoder for measurement in group)
    metrics = _build_metrics(group)
    return Section(
        title=f"{last.result.dataset} · {last.result.protocol}",
        facts=_list_facts(group),
        notes=last.dataset.notes,
        license=last.dataset.license,
        failures=last.failures[:MAX_FAILURES_SHOWN],
        num_failures=len(last.failures),
        encoders=encoders,
        metrics=metrics,
        metrics_chart=_draw_metrics(encoders, metrics),
        histograms=tuple(
            HistogramView(
                encoder=name,
                positive_mean=histogram.positive_mean,
                negative_mean=histogram.negative_mean,
                chart=draw_histogram(histogram, bins),
            )
            for name, histogram in zip(encoders, histograms, strict=True)
        ),
        energy_chart=_draw_energy(encoders, energies),
        spectra=tuple(
            Spectrum(encoder=name, num_dims=int(np.searchsorted(energy, ENERGY_SHARE)) + 1, embedding_dim=len(energy))
            for name, energy in zip(encoders, energies, strict=True)
        ),
        groups=_build_groups(group),
        rerankings=(),
        galleries=tuple(build_galleries(group, num_protocols)),
    )


def _list_rerankings(reports: Sequence[Sequence[RerankingReport]]) -> Iterator[RerankingTable]:
    """Lay out what was measured of each encoder, the choice before the figures on the test split."""
    for number, of_encoder in enumerate(reports):
        for report in of_encoder:
            names = tuple(report.rows[0].metrics) if report.rows else ()
            kept = report.chosen.name if report.chosen is not None else NO_RERANKING
            yield RerankingTable(
                encoder_number=number,
                title=report.describe(),
                metrics=tuple(map(display_name, names)),
                average_name=display_name(report.average) if names else "",
                lines=tuple(
                    _build_line(
                        row, report.average, is_chosen=report.chooses and row.reranking == kept, first=report.rows[0]
                    )
                    for row in report.rows
                ),
                reason=report.reason,
            )


def _build_line(row: RerankingRow, average: str, *, is_chosen: bool, first: RerankingRow) -> RerankingLine:
    gain = None
    if row.gain is not None:
        gain = Estimate(value=row.metrics[average] - first.metrics[average], low=row.gain[0], high=row.gain[1])
    return RerankingLine(
        name=row.reranking,
        is_chosen=is_chosen,
        figures=tuple(row.metrics.values()),
        gain=gain,
        milliseconds=row.milliseconds,
        num_bytes=row.bytes_per_image,
    )


def _list_facts(group: Sequence[Measurement]) -> tuple[str, ...]:
    """Say in a few words what was measured on, and at which size."""
    measurement = group[0]
    result, task = measurement.result, measurement.task
    sizes = " and ".join(str(size) for size in sorted({one.result.image_size for one in group}))
    facts = [
        f"{result.num_queries:,} queries",
        f"{result.num_gallery:,} gallery images",
        f"input of {sizes} px",
    ]
    if task.listed is None:
        facts.insert(2, f"{len(np.unique(task.gallery_labels)):,} classes in the gallery")
    if np.array_equal(task.query_rows, task.gallery_rows):
        facts.append("every image searches among all others")
    if measurement.dataset.junk_key is not None:
        facts.append(f"images of the query's own {measurement.dataset.junk_key} are left out")
    if result.num_drawn_from is not None:
        facts.append(f"the queries are drawn at random from {result.num_drawn_from:,}")
    if result.num_skipped_queries:
        facts.append(f"queries left out, as nothing relevant is in the gallery: {result.num_skipped_queries:,}")
    if result.whole_cut_offs:
        names = ", ".join(f"Recall@{k}" for k in result.whole_cut_offs)
        facts.append(f"* {names}: K is as large as the gallery, so this is 100 % whatever the encoder does")
    return tuple(facts)


def _build_metrics(group: Sequence[Measurement]) -> tuple[MetricRow, ...]:
    first = group[0]
    intervals = [difference_interval(first.scores, other.scores, first.dataset.ks) for other in group[1:]]
    whole = {f"recall_at_{k}" for k in first.result.whole_cut_offs}
    return tuple(
        MetricRow(
            name=display_name(name) + ("*" if name in whole else ""),
            is_headline=name in HEADLINES,
            figures=tuple(
                Estimate(
                    value=one.result.metrics[name],
                    low=one.result.intervals[name][0],
                    high=one.result.intervals[name][1],
                )
                for one in group
            ),
            differences=tuple(
                Estimate(value=other.result.metrics[name] - value, low=interval[name][0], high=interval[name][1])
                for other, interval in zip(group[1:], intervals, strict=True)
            ),
        )
        for name, value in first.result.metrics.items()
    )


def _draw_energy(encoders: Sequence[str], energies: Sequence[npt.NDArray[np.float64]]) -> Markup:
    lines = [
        Line(name=name, xs=range(1, len(energy) + 1), ys=(100 * energy).tolist())
        for name, energy in zip(encoders, energies, strict=True)
    ]
    return draw_lines(lines, "principal components", "Share of the variance, in percent,", is_log_x=True)


def _draw_metrics(encoders: Sequence[str], metrics: Sequence[MetricRow]) -> Markup:
    series = [
        IntervalSeries(
            name=name,
            values=[row.figures[number].value for row in metrics],
            intervals=[(row.figures[number].low, row.figures[number].high) for row in metrics],
        )
        for number, name in enumerate(encoders)
    ]
    return draw_intervals([row.name for row in metrics], series)


def _build_groups(group: Sequence[Measurement]) -> GroupTable:
    """List the classes or queries, the worst under the last encoder first."""
    first = group[0]
    rows = [
        GroupRow(
            name=_name_group(first, figures[0].group),
            count=_count_group(first, figures[0]),
            firsts=tuple(one.first for one in figures),
            averages=tuple(one.average for one in figures),
            change=figures[-1].average - figures[0].average,
        )
        for figures in zip(*(list_group_figures(one.scores) for one in group), strict=True)
    ]
    rows.sort(key=lambda row: (row.averages[-1], row.firsts[-1], row.name))
    is_query = first.scores.group_name == "query"
    return GroupTable(
        title="Queries, the worst first" if is_query else "Classes, the worst first",
        group_name=first.scores.group_name,
        plural="queries" if is_query else "classes",
        count_name="to be found" if is_query else "queries",
        first_name=name_first(first.scores),
        average_name=name_average(first.scores),
        rows=tuple(rows[:MAX_GROUP_ROWS]),
        num_rows=len(rows),
    )


def _name_group(measurement: Measurement, group: int) -> str:
    task = measurement.task
    if measurement.scores.group_name == "query":
        return task.records[int(task.query_rows[group])].image_id
    return measurement.dataset.label_names[group]


def _count_group(measurement: Measurement, figures: GroupFigures) -> int:
    if measurement.scores.group_name == "query":
        return int(measurement.scores.num_relevant[figures.group])
    return figures.num_queries


def format_points(points: float) -> str:
    """Write a difference in percentage points, signed, with a true minus.

    >>> format_points(-3.12), format_points(0.001)
    ('−3.1', '0.0')
    """
    points = round(points, 1)
    return f"{points:+.1f}".replace("-", "\N{MINUS SIGN}") if points else "0.0"
