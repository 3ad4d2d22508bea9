"""The figures of an evaluation as plain text, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitrieve.quoting import quote_name

if TYPE_CHECKING:
    from vitrieve.evaluation.run import EvaluationResult


def format_results(results: Sequence[EvaluationResult]) -> str:
    """Lay results out as plain text: a table for each protocol, percentages with their intervals below."""
    groups: dict[tuple[str, str], list[EvaluationResult]] = {}
    for result in results:
        groups.setdefault((result.dataset, result.protocol), []).append(result)
    return "\n\n".join(_format_group(group) for group in groups.values())


def _format_group(group: Sequence[EvaluationResult]) -> str:
    first = group[0]
    whole = {f"recall_at_{k}" for k in first.whole_cut_offs}
    rows = [["", *(_spell(name) + ("*" if name in whole else "") for name in first.metrics)]]
    for result in group:
        rows.append([quote_name(result.encoder), *(f"{value * 100:.1f}" for value in result.metrics.values())])
        ends = (result.intervals[name] for name in result.metrics)
        rows.append(["  95 % interval", *(f"{low * 100:.1f}-{high * 100:.1f}" for low, high in ends)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return "\n".join([_format_setting(group), *lines])


def _format_setting(group: Sequence[EvaluationResult]) -> str:
    result = group[0]
    sizes = " and ".join(str(size) for size in sorted({one.image_size for one in group}))
    text = (
        f"{quote_name(result.dataset)}, {result.protocol}: {result.num_queries:,} queries, "
        f"{result.num_gallery:,} gallery images, {sizes} px; figures in %"
    )
    if result.num_skipped_queries:
        text += f"\nqueries left out, as nothing relevant is in the gallery: {result.num_skipped_queries:,}"
    if result.num_unreadable:
        text += f"\nimages left out, as they cannot be read: {result.num_unreadable:,}"
    if result.whole_cut_offs:
        text += "\n* K is as large as the gallery: this is 100 % whatever the encoder does"
    return text


def _spell(metric: str) -> str:
    names = {"r_precision": "R-prec", "map_at_r": "MAP@R", "mean_average_precision": "mAP"}
    return names.get(metric) or metric.replace("recall_at_", "R@").replace("mp_at_", "mP@")
