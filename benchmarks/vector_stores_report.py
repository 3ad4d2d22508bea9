"""The table and the plots of vector_stores.py.

python benchmarks/vector_stores_report.py results/vector_stores_N_DATE.json     draws them again
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any, TypedDict


@dataclass(frozen=True, kw_only=True)
class Result:
    """One line of the table; bytes are per image, ``index_bytes`` of what is scanned, ``all_bytes`` with the rest."""

    engine: str
    kind: str
    recall_at_10: float
    p50_ms: float
    p95_ms: float
    index_bytes: float
    all_bytes: float
    build_seconds: float


class ShortVectors(TypedDict):
    """Codes of one size, and the recall@10 by them alone and with full vectors for 100 candidates."""

    codes: str
    bytes: int
    recall: float
    refined: float


SVG = 'xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="13"'
COLORS = {"codes alone": "#b4533c", "with full vectors for 100 candidates": "#2b6a99"}
ENGINE_COLORS = {"vitrieve": "#2b6a99", "FAISS": "#7a7a7a", "LanceDB alone": "#b4533c", "milvus-lite alone": "#8a6d1f"}
NAME_WIDTH, COLUMN_WIDTH, COLUMN_GAP, ROW_HEIGHT, HEAD_HEIGHT = 290, 190, 30, 22, 44
MIN_RECALL = 0.8
"""Where the bars of recall begin."""


def write_report(
    stem: Path, description: dict[str, Any], results: Sequence[Result], short: Sequence[ShortVectors]
) -> None:
    """Write ``stem`` .json, .md and .svg (the engines), and ``stem``-short.svg where short vectors were measured."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    contents = {**description, "results": [asdict(one) for one in results], "short_vectors": short}
    stem.with_suffix(".json").write_text(json.dumps(contents, indent=1) + "\n")
    stem.with_suffix(".md").write_text(to_markdown(description, results, short))
    stem.with_suffix(".svg").write_text(draw_engines(results))
    if short:
        stem.with_name(stem.name + "-short.svg").write_text(draw_short_vectors(short))


def to_markdown(description: dict[str, Any], results: Sequence[Result], short: Sequence[ShortVectors]) -> str:
    """Write both tables."""
    lines = [f"# Vector stores: {description['num_vectors']:,} vectors", "", json.dumps(description), ""]
    lines += ["Recall@10 against the exact result. *Index* bytes are scanned and want memory; *all* bytes are on disk,"]
    lines += ["with full vectors and metadata (FAISS and LanceDB alone keep no metadata).", ""]
    lines += ["| engine | kind | recall@10 | p50 ms | p95 ms | index B/image | all B/image | build s |"]
    lines += ["|---|---|---:|---:|---:|---:|---:|---:|"]
    for one in results:
        size = "in all" if math.isnan(one.index_bytes) else f"{one.index_bytes:,.0f}"
        lines.append(
            f"| {one.engine} | {one.kind} | {one.recall_at_10:.4f} | {one.p50_ms:.1f} | {one.p95_ms:.1f} "
            f"| {size} | {one.all_bytes:,.0f} | {one.build_seconds:,.1f} |"
        )
    if short:
        lines += ["", "## Short vectors", "", "| codes (FAISS) | bytes | recall@10 | with full vectors for 100 |"]
        lines += ["|---|---:|---:|---:|"]
        lines += [f"| {one['codes']} | {one['bytes']} | {one['recall']:.4f} | {one['refined']:.4f} |" for one in short]
    return "\n".join(lines) + "\n"


def draw_engines(results: Sequence[Result]) -> str:
    """Draw a row of four bars for each line of the table; all but recall on logarithmic axes."""
    columns: dict[str, list[float]] = {
        f"recall@10, from {100 * MIN_RECALL:.0f} %": [100 * one.recall_at_10 for one in results],
        "latency p50, ms (mark: p95)": [one.p50_ms for one in results],
        "bytes an image, all": [one.all_bytes for one in results],
        "build, s": [one.build_seconds for one in results],
    }
    marks = []
    for number, one in enumerate(results):
        y = HEAD_HEIGHT + number * ROW_HEIGHT + 15
        marks.append(
            f'<text x="{NAME_WIDTH - 8}" y="{y}" text-anchor="end">{escape(f"{one.engine}, {one.kind}")}</text>'
        )
    for column, (title, values) in enumerate(columns.items()):
        left = NAME_WIDTH + column * (COLUMN_WIDTH + COLUMN_GAP)
        marks.append(f'<text x="{left}" y="26" font-weight="bold">{escape(title)}</text>')
        p95s = [one.p95_ms for one in results] if title.startswith("latency") else []
        low, high = min(values), max([*values, *p95s])
        for number, (one, value) in enumerate(zip(results, values, strict=True)):
            top = HEAD_HEIGHT + number * ROW_HEIGHT
            if column == 0:
                length = COLUMN_WIDTH * max(0.0, (value / 100 - MIN_RECALL) / (1 - MIN_RECALL))
            else:
                length = _log_length(value, low, high)
            color = ENGINE_COLORS.get(one.engine, "#555555")
            marks.append(f'<rect x="{left}" y="{top + 3}" width="{length:.1f}" height="15" fill="{color}"/>')
            if p95s:
                x = left + _log_length(p95s[number], low, high)
                marks.append(f'<rect x="{x:.1f}" y="{top + 1}" width="2" height="19" fill="#222222"/>')
            text = f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"
            white = 'stroke="#ffffff" stroke-width="3" paint-order="stroke"'
            marks.append(f'<text x="{left + 6}" y="{top + 15}" font-size="11" {white}>{text}</text>')
    width = NAME_WIDTH + 4 * (COLUMN_WIDTH + COLUMN_GAP)
    height = HEAD_HEIGHT + len(results) * ROW_HEIGHT + 10
    title = "Recall, latency, size and time to build of each index"
    return f'<svg {SVG} viewBox="0 0 {width} {height}"><title>{title}</title>{"".join(marks)}</svg>\n'


def _log_length(value: float, low: float, high: float) -> float:
    """Return the length of a bar; the least value has a tenth, so that it is seen."""
    share = math.log(value / low) / math.log(high / low) if high > low else 1.0
    return COLUMN_WIDTH * (0.1 + 0.9 * share)


def draw_short_vectors(short: Sequence[ShortVectors]) -> str:
    """Draw recall against bytes per image, on a logarithmic axis from 8 to 2,048 bytes."""
    left, top, width, height = 60, 20, 560, 320

    def place(size: float, recall: float) -> tuple[float, float]:
        return left + width * math.log2(size / 8) / 8, top + height * (1 - recall)

    marks = [f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#999"/>']
    for exponent in range(3, 12):
        x, _ = place(2**exponent, 0)
        marks.append(f'<text x="{x:.0f}" y="{top + height + 18}" text-anchor="middle">{2**exponent}</text>')
    for tenth in range(0, 11, 2):
        _, y = place(8, tenth / 10)
        marks.append(f'<text x="{left - 8}" y="{y + 4:.0f}" text-anchor="end">{10 * tenth} %</text>')
        marks.append(f'<line x1="{left}" x2="{left + width}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ddd"/>')
    for number, (name, color) in enumerate(COLORS.items()):
        for one in short:
            x, y = place(one["bytes"], one["refined"] if number else one["recall"])
            title = f"<title>{one['codes']}: {one['bytes']} bytes</title>"
            marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}">{title}</circle>')
        y = top + height - 30 + 18 * number
        marks.append(f'<text x="{left + width - 8}" y="{y}" text-anchor="end" fill="{color}">{name}</text>')
    foot = f'<text x="{left + width / 2}" y="{top + height + 40}" text-anchor="middle">bytes per image</text>'
    title = "Recall@10 against bytes per image"
    return f'<svg {SVG} viewBox="0 0 640 390"><title>{title}</title>{"".join(marks)}{foot}</svg>\n'


def main() -> None:
    path = Path(sys.argv[1])
    contents = json.loads(path.read_text())
    results = [Result(**one) for one in contents.pop("results")]
    short = contents.pop("short_vectors")
    write_report(path.with_suffix(""), contents, results, short)


if __name__ == "__main__":
    main()
