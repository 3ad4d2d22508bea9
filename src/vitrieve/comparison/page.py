"""The page of a contest, ``comparison.html``, and the same as text for a terminal.

This file arranges what ``statistics.py`` has computed; ``templates/comparison.html.j2`` is the page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import PackageLoader
from markupsafe import Markup

from vitrieve.comparison.methods import FROZEN
from vitrieve.comparison.statistics import METRICS, spell_p
from vitrieve.evaluation.charts import NUM_COLORS, Line, draw_critical_difference, draw_lines
from vitrieve.evaluation.metrics import display_name
from vitrieve.evaluation.report import render_page
from vitrieve.quoting import quote_name
from vitrieve.writing import write_text_durably

PAGE_NAME = "comparison.html"
MARKS = {"better": "▲", "worse": "▼", "unclear": "≈"}
KINDS = {"failed": "failed", "collapsed": "collapsed", "kept frozen": "no gain", "trial failed": "a trial failed"}
"""Kind of a problem -> its word in the table."""


class MethodRow(NamedTuple):
    """A row of the table: a method with its figures of each test."""

    name: str
    rank: float | None
    words: tuple[str, ...]
    cells: tuple[Mapping[str, Any], ...]


class Diagram(NamedTuple):
    """The ranks by one metric."""

    title: str
    chart: Markup
    facts: str


class Curves(NamedTuple):
    """Held-out figures of some methods on one data set."""

    title: str
    names: tuple[str, ...]
    chart: Markup


def write_page(summary: Mapping[str, Any], path: Path) -> None:
    """Write the page of a contest, in one file that needs no other.

    Args:
        summary: What ``comparison.json`` holds.
        path: File to write.
    """
    page = render_page(
        "comparison.html.j2",
        PackageLoader("vitrieve.comparison"),
        summary=summary,
        rows=list(_list_rows(summary)),
        best=_find_best(summary),
        budget=spell_budget(summary),
        diagrams=list(_list_diagrams(summary)),
        curves=list(_list_curves(summary)),
        leader=_find_leader(summary),
        marks=MARKS,
        kinds=KINDS,
        spell_p=spell_p,
        num_colors=NUM_COLORS,
        licenses=list(dict.fromkeys((test["data"], test["license"]) for test in summary["tests"] if test["license"])),
    )
    write_text_durably(path, page)


def title_sources(names: Sequence[str]) -> dict[str, str]:
    """Shorten the spelling of each source to its kind and the fewest last parts of its path that tell it apart.

    Sources that stay alike, such as ``folder:a`` and ``folder:a/``, keep their spelling.

    >>> title_sources(["emoji", "grocery:../datasets/grocery-store"])
    {'emoji': 'emoji', 'grocery:../datasets/grocery-store': 'grocery:grocery-store'}
    >>> list(title_sources(["table:/data/low/manifest.csv", "table:/data/few/manifest.csv"]).values())
    ['table:low/manifest.csv', 'table:few/manifest.csv']
    """
    titles = {name: name for name in names}
    for num_parts in range(max((name.count("/") for name in names), default=0) + 1, 0, -1):
        short = {name: _keep_last_parts(name, num_parts) for name in names}
        counts = Counter(short.values())
        titles.update({name: title for name, title in short.items() if counts[title] == 1})
    return titles


def _keep_last_parts(source: str, num_parts: int) -> str:
    kind, colon, path = source.partition(":")
    if not colon or "/" in kind:
        kind, colon, path = "", "", source
    parts = [part for part in path.split("/") if part]
    return kind + colon + "/".join(parts[-num_parts:]) if parts else source


def spell_budget(summary: Mapping[str, Any]) -> str:
    """Say the budget in a sentence, in time and in images."""
    images = f"{summary['num_images']:,} images"
    if summary["images_per_second"] is None:
        return f"Each run sees {images}."
    return (
        f"Each run sees {images}: what {summary['reference']} sees in {summary['budget_minutes']:g} minutes, at "
        f"{summary['images_per_second']:.1f} images a second."
    )


def _list_rows(summary: Mapping[str, Any]) -> Iterator[MethodRow]:
    figures = {(one["method"], one["data"], one["protocol"]): one for one in summary["figures"]}
    ranks = summary["ranks"][METRICS[0]]
    for name in summary["order"]:
        kinds = Counter(one["kind"] for one in summary["problems"] if one["method"] == name)
        words = tuple(f"{KINDS[kind]}: {count}" for kind, count in kinds.items())
        cells = tuple(figures[name, test["data"], test["protocol"]] for test in summary["tests"])
        yield MethodRow(name, None if ranks is None else ranks["average_ranks"][name], words, cells)


def _find_best(summary: Mapping[str, Any]) -> set[tuple[str, str, str, str]]:
    """Find the best mean of each test and metric."""
    best = set()
    for test in summary["tests"]:
        for metric in METRICS:
            found = [
                one
                for one in summary["figures"]
                if (one["data"], one["protocol"]) == (test["data"], test["protocol"])
                and one[metric]["mean"] is not None
            ]
            if found:
                top = max(one[metric]["mean"] for one in found)
                best |= {
                    (one["method"], one["data"], one["protocol"], metric) for one in found if one[metric]["mean"] == top
                }
    return best


def _list_diagrams(summary: Mapping[str, Any]) -> Iterator[Diagram]:
    for metric, ranks in summary["ranks"].items():
        if ranks is None:
            continue
        names = list(ranks["average_ranks"])
        cliques = [(names.index(group[0]), names.index(group[-1])) for group in ranks["groups"]]
        chart = draw_critical_difference(
            names, list(ranks["average_ranks"].values()), ranks["critical_difference"], cliques
        )
        facts = (
            f"{ranks['num_data_sets']} data sets; Friedman's chi-square {ranks['chi_square']:.2f}, "
            f"p {spell_p(ranks['p_value'])} by permutation"
        )
        yield Diagram(display_name(metric), chart, facts)


def _list_curves(summary: Mapping[str, Any]) -> Iterator[Curves]:
    """Draw the held-out figures; beyond as many methods as there are colors, in further charts."""
    for data in summary["data"]:
        of_data = {one["method"]: one for one in summary["curves"] if one["data"] == data}
        names = [name for name in summary["order"] if name in of_data]
        for start in range(0, len(names), NUM_COLORS):
            chosen = names[start : start + NUM_COLORS]
            lines = [_draw_curve(of_data[name]) for name in chosen]
            chart = draw_lines(lines, "share of the images, %", "Held-out MAP@R, in percent,")
            yield Curves(summary["titles"][data], tuple(chosen), chart)


def _draw_curve(curve: Mapping[str, Any]) -> Line:
    xs, ys = ([100 * share for share in curve[name]] for name in ("shares", "map_at_r"))
    return Line(name=curve["method"], xs=xs, ys=ys)


def _find_leader(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List how the leader's first run on each data set is trained again, as no encoder is kept."""
    runs = {(run["data"], run["method"], run["seed"]): run for run in summary["runs"] if run["reason"] is None}
    name = summary["verdict"]["leader"]
    if name in (None, FROZEN):
        return []
    found = (runs.get((data, name, 0)) for data in summary["data"])
    return [
        {
            "data": run["data"],
            "code": f"vitrieve.train({run['data']!r}, {run['recipe']!r}, 'runs/best', **{run['changes']!r})",
        }
        for run in found
        if run is not None
    ]


def format_summary(summary: Mapping[str, Any]) -> str:
    """Lay the figures out as plain text: a row for each method, then the sentence about the winner."""
    titles = [f"{quote_name(summary['titles'][test['data']])}, {test['protocol']}" for test in summary["tests"]]
    table = [["Recall@1 / MAP@R, %", *titles]]
    for row in _list_rows(summary):
        table.append([quote_name(row.name), *map(_spell_cell, row.cells)])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    problems = [
        f"{KINDS[one['kind']]}: {quote_name(one['method'])} on {quote_name(summary['titles'][one['data']])}, "
        f"seed {one['seed']}: "
        f"{one['reason']}"
        for one in summary["problems"]
    ]
    return "\n".join([spell_budget(summary), "", *lines, "", *problems, summary["verdict"]["text"]])


def _spell_cell(figures: Mapping[str, Any]) -> str:
    if figures["map_at_r"]["mean"] is None:
        return "failed" if figures["has_failed"] else "not run yet"
    spelled = " / ".join(_spell_figure(figures[metric]) for metric in reversed(METRICS))
    difference = figures[METRICS[0]]["difference"]
    mark = "" if difference is None else f" {MARKS[difference['verdict']]}"
    return spelled + mark + (" (a run failed)" if figures["has_failed"] else "")


def _spell_figure(figure: Mapping[str, Any]) -> str:
    deviation = figure["deviation"]
    return f"{100 * figure['mean']:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")
