from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from vitrieve.comparison.page import format_summary, spell_budget, title_sources, write_page
from vitrieve.comparison.statistics import Contest, summarize
from vitrieve.evaluation.charts import draw_critical_difference

from .conftest import make_contest, make_outcome


def make_summary(contest: Contest, **changed: Any) -> dict[str, Any]:
    data = list(contest.protocols)
    tests = [
        {"data": one, "protocol": "p", "license": f"license of {one}", "num_queries": 80, "num_classes": 20}
        for one in data
    ]
    runs = [
        {**one.contents, "data": one.data, "method": one.method, "seed": one.seed} for one in contest.outcomes.values()
    ]
    plan = {"reference": contest.methods[0], "budget_minutes": 4.0, "trials": 1, "backbone": "b", "image_size": 126}
    counts = {"num_images": 7168, "images_per_second": 29.87, "seeds": 3, "num_done": 9, "num_runs": 12}
    return {
        **plan,
        **counts,
        "methods": list(contest.names),
        "data": data,
        "titles": title_sources(data),
        "tests": tests,
        "runs": [{**run, "recipe": "small", "changes": {"train.seed": 0}} for run in runs],
        "vitrieve_version": "0",
        **summarize(contest),
        **changed,
    }


def test_page_has_every_row_its_reasons_and_nothing_unescaped(tmp_path: Path) -> None:
    name = "small:<b>&"
    failed = make_outcome(name, "bb", 1, 0, reason="the loss is <nan>")
    summary = make_summary(make_contest({"weak": 0.5, name: 0.6}, failed))
    write_page(summary, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<b>&amp;" not in text
    assert "<nan>" not in text
    assert "the loss is &lt;nan&gt;" in text
    assert text.count("license of ") == 3
    assert "http" not in text.replace("http-equiv", "")
    assert "a run failed" in text
    assert "9 of 12 runs are done" in text
    assert "vitrieve.train(&#39;a&#39;, &#39;small&#39;, &#39;runs/best&#39;, **{&#39;train.seed&#39;: 0})" in text
    for drawing in text.split("<svg")[1:]:
        ET.fromstring("<svg" + drawing.split("</svg>")[0] + "</svg>")


def test_page_of_a_contest_that_was_stopped_at_once(tmp_path: Path) -> None:
    contest = Contest(methods=("one",), protocols={"a": ("p",)}, num_seeds=1, outcomes={})
    summary = make_summary(contest, num_done=0)
    write_page(summary, tmp_path / "page.html")
    assert "not run yet" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "not run yet" in format_summary(summary)


def test_format_summary_is_a_table_and_the_verdict() -> None:
    lines = format_summary(make_summary(make_contest({"weak": 0.5, "strong": 0.6}))).split("\n")
    assert lines[0] == "Each run sees 7,168 images: what weak sees in 4 minutes, at 29.9 images a second."
    assert lines[2].split() == ["Recall@1", "/", "MAP@R,", "%", "a,", "p", "bb,", "p", "ccc,", "p"]
    assert [line.split()[0] for line in lines[3:6]] == ["strong", "weak", "frozen"]
    assert "60.3 ± 0.3 / 60.3 ± 0.3 ▲" in lines[3]
    assert lines[-1].startswith("strong won over 3 data sets")


def test_spell_budget_without_a_time() -> None:
    assert spell_budget({"num_images": 640, "images_per_second": None}) == "Each run sees 640 images."


def test_title_sources_adds_folders_until_titles_differ() -> None:
    names = ["grocery:x/a/few", "grocery:x/b//few/", "folder:c/few", "/p/photographs", "/", "emoji", "a:b"]
    titles = ["grocery:a/few", "grocery:b/few", "folder:few", "photographs", "/", "emoji", "a:b"]
    assert list(title_sources(names).values()) == titles
    assert title_sources(["folder:a", "folder:a/"]) == {"folder:a": "folder:a", "folder:a/": "folder:a/"}


def test_critical_difference_diagram_puts_everything_at_its_rank() -> None:
    ranks = [1.0, 2.0, 3.5, 3.5]
    drawing = str(draw_critical_difference(["best", "second", "a<b", "x" * 40], ranks, 1.25, [(0, 1), (2, 3)]))
    root = ET.fromstring(drawing)
    elbows = [one.attrib["points"] for one in root.iter("polyline")]
    starts = [float(points.split(",")[0]) for points in elbows]
    unit = (starts[1] - starts[0]) / (ranks[1] - ranks[0])
    assert starts == pytest.approx([starts[0] + unit * (rank - 1) for rank in ranks], abs=0.1)
    bars = [
        (float(one.attrib["x1"]), float(one.attrib["x2"]))
        for one in root.iter("line")
        if one.attrib["class"] == "clique"
    ]
    assert bars[0][1] - bars[0][0] == pytest.approx(1.25 * unit, abs=0.1)
    assert bars[1] == pytest.approx((starts[0] - 3, starts[1] + 3), abs=0.1)
    labels = [one.text for one in root.iter("text") if one.attrib["class"] == "label"]
    assert labels == ["best 1.00", "second 2.00", "3.50 a<b", f"3.50 {'x' * 18}…"]
    heights = [float(points.split(",")[-1]) for points in elbows]
    assert heights[0] == heights[3] < heights[1] == heights[2]
    width, height = (float(one) for one in root.attrib["viewBox"].split()[2:])
    assert max(heights) < height
    assert math.isclose(width, 560)
