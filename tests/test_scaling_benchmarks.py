"""The simulation of ``benchmarks/billion.py`` against cases that are worked by hand, and what is published of sizes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"


@pytest.fixture
def billion(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(RESULTS.parent))
    return import_module("billion")


def simulate(billion: ModuleType, num_parts: int, num_machines: int, lives: Iterable[float]) -> tuple[Any, ...]:
    """Simulate machines that take 5 s to start and 1 s for a part, and 100 s to be replaced; the times in seconds."""
    found = billion.simulate(
        num_parts * billion.PART_IMAGES,
        num_machines,
        billion.Measured(rate=billion.PART_IMAGES, start_seconds=5.0),
        replace_seconds=100.0,
        lives=itertools.chain(lives, itertools.repeat(1e9)),
    )
    return round(found.hours * 3600, 6), round(found.machine_hours * 3600, 6), found.num_losses, found.num_twice


def test_without_losses_the_parts_are_shared(billion: ModuleType) -> None:
    assert simulate(billion, 10, 2, []) == (10, 20, 0, 0)
    assert simulate(billion, 11, 2, []) == (11, 22, 0, 0)
    assert simulate(billion, 2, 3, []) == (6, 18, 0, 0)


def test_a_lost_machine_costs_its_part_and_its_successor_starts_anew(billion: ModuleType) -> None:
    # Two parts until 7 s; of the third a half, 128 images. The next is there at 107.5 s, and embeds from 112.5 s on.
    assert simulate(billion, 4, 1, [7.5]) == (114.5, 7.5 + 7, 1, 128)
    # Lost before its first part, at 3 s: the next embeds from 108 s on.
    assert simulate(billion, 4, 1, [3.0]) == (112, 3 + 9, 1, 0)
    # The other machine goes on: it makes the parts 2, 4, 5 and 6 until 9 s, before a successor is there.
    assert simulate(billion, 6, 2, [7.5, 1e9]) == (9, 7.5 + 9, 1, 128)


def test_lives_have_the_mean_that_is_asked_for(billion: ModuleType) -> None:
    lives = list(itertools.islice(billion.draw_lives(4.0, 0), 20_000))
    assert sum(lives) / len(lives) == pytest.approx(4 * 3600, rel=0.03)
    assert lives[:5] == list(itertools.islice(billion.draw_lives(4.0, 0), 5))


def test_rates_are_read_from_what_was_measured(billion: ModuleType, tmp_path: Path) -> None:
    assert tuple(billion.read_measured(billion.MEASURED)) == pytest.approx((76.95, 0.767), rel=1e-3)
    rows = [
        ("embed, 1 thread", 99.0, 30.0, 29.0),
        ("Ray, 1 actors", 10.0, 70.0, 60.0),
        ("Ray, 2 actors", 20.0, 42.0, 30.0),
    ]
    names = ("way", "images_per_second", "seconds", "encoding_seconds")
    (tmp_path / "ray_actors.json").write_text(
        json.dumps({"ways": [dict(zip(names, row, strict=True)) for row in rows]})
    )
    assert tuple(billion.read_measured(tmp_path / "ray_actors.json")) == (20.0, 12.0)


def test_the_published_table_follows_from_its_own_settings(billion: ModuleType) -> None:
    """Its smallest row is computed again."""
    content = json.loads((RESULTS / "billion_2026-11-29.json").read_text())
    assert (content["kind"], content["measured"]) == ("computed", billion.MEASURED.name)
    measured = billion.read_measured(billion.MEASURED)
    assert (content["rate"], content["start_seconds"]) == measured
    least_hours = content["num_images"] / measured.rate / 3600
    for row in content["rows"]:
        assert least_hours < row["machine_hours"] < 1.05 * least_hours
        assert row["hours"] > least_hours / row["machines"]


def test_the_picture_and_the_table_have_the_measured_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """python benchmarks/ten_million.py --chart RESULTS docs/images/ten_million.svg draws it again."""
    monkeypatch.syspath_prepend(str(RESULTS.parent))
    ten_million = import_module("ten_million")
    rows = ten_million.read_rows(RESULTS / "ten_million_2026-11-29.jsonl")
    assert (REPOSITORY / "docs" / "images" / "ten_million.svg").read_text() == ten_million.draw_chart(rows)
    guide = (REPOSITORY / "docs" / "guides" / "scaling.md").read_text()
    for row in rows:
        store, kind = row["way"].split("/")
        values = (row["all"]["recall_at_10"], row["all"]["p50_seconds"], row["filtered"]["recall_at_10"])
        recall, milliseconds, filtered = f"{values[0]:.4f}", f"{1000 * values[1]:.0f} ms", f"{values[2]:.4f}"
        line = f"| {row['num_vectors']:,} | `{store}`, `{kind}` | {recall} | {milliseconds} |"
        (found,) = [one for one in guide.splitlines() if one.startswith(line)]
        assert f" {filtered} |" in found
        assert f"| {row['index_bytes'] / row['num_vectors']:,.0f} | {row['build_seconds']:,.0f} s |" in found
