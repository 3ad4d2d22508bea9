"""What `make bench` computes from its measurements, and how it takes them."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.usefixtures("benchmark_scripts")
SIDES = """
import sys
sys.path.insert(0, {benchmarks!r})
from contest import main

def build_side(side, num_mib):
    bytearray(3 * num_mib * 2**20)  # building may need more for a moment
    kept = bytearray(num_mib * 2**20)
    return lambda: float(len(bytearray(num_mib * 2**20) if side == "large" else kept))

main(lambda is_quick: [], "", build_side)
"""
PART = """
import sys
sys.path.insert(0, {benchmarks!r})
from contest import main
from lines import time_lines

main(lambda is_quick: time_lines("quick" if is_quick else "whole", "t", {{"vitrieve": [1.0]}}), "")
"""


@pytest.fixture
def contest() -> ModuleType:
    return import_module("contest")


@pytest.fixture
def lines() -> ModuleType:
    return import_module("lines")


@pytest.mark.parametrize("script", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_a_script_that_writes_of_the_machine_names_the_processor(script: Path) -> None:
    """``platform`` knows the architecture alone on Linux, or nothing."""
    text = script.read_text(encoding="utf-8")
    assert script.stem == "contest" or re.search(r"platform\.(processor|machine)\(", text) is None
    is_machine_written = re.search(r"\bjson\b", text) and re.search(r'"(machine|system|(num_)?cores)": ', text)
    assert not is_machine_written or re.search(r"\b(processor_name|describe_machine)\(\)", text)


def test_the_processor_has_a_name(contest: ModuleType) -> None:
    assert contest.processor_name() == contest.describe_machine()["processor"] != ""


def test_ratio_and_share_of_the_ceiling(lines: ModuleType) -> None:
    given = {"section": "s", "task": "t", "low": 0.0, "high": 0.0}
    ceiling = lines.Line(side="torch", value=200.0, unit="GFLOP/s", **given)
    ours = lines.Line(side="vitrieve", value=2.0, unit="s", gflop=100.0, **given)
    other = lines.Line(side="another", value=5_000.0, unit="ms", gflop=100.0, **given)
    assert ours.share_of(ceiling) == pytest.approx(0.25)
    assert other.share_of(ceiling) == pytest.approx(0.1)
    assert ours.times_better_than(replace(other, value=5.0, unit="s")) == pytest.approx(2.5)
    rate = lines.Line(side="vitrieve", value=50.0, unit="images/s", gflop=2.0, **given)
    assert rate.share_of(ceiling) == pytest.approx(0.5)
    assert rate.times_better_than(replace(rate, value=20.0)) == pytest.approx(2.5)
    assert replace(rate, gflop=None).share_of(replace(ceiling, unit="images/s")) == pytest.approx(0.25)


def test_ratios_say_whether_the_rounds_tell_the_sides_apart(lines: ModuleType) -> None:
    """The machine halves its speed in the second turn: the sides swing, their ratios in each turn do not."""
    seconds = {"vitrieve": [2.0, 4.0, 2.0], "slower": [3.0, 7.0, 3.2], "alike": [2.1, 3.9, 2.0]}
    ours, slower, alike = lines.time_lines("s", "t", seconds)
    assert ours.compare(slower)[:3] == pytest.approx((1.6, 1.5, 1.75))
    assert ours.compare(slower).describe() == "1.60 x (1.50 to 1.75)"
    assert ours.compare(alike)[:3] == pytest.approx((1.05, 0.975, 1.05))
    assert ours.compare(alike).doubt == "not told apart"
    faster, slow = lines.rate_lines("s", "t", {"vitrieve": [1.0, 2.0], "slow": [2.0, 3.0]}, 6, "images/s")
    assert faster.compare(slow)[:3] == pytest.approx((2.5 / 1.5, 1.5, 2.0))
    page = import_module("page").view_task("t", [ours, slower, alike], {})
    assert [side.ratio and side.ratio.doubt for side in page.sides] == [None, "", "not told apart"]


@pytest.mark.parametrize(
    ("own", "other", "spread", "doubt"),
    [
        ([2.0], [3.0], (1.5, 1.5), "one round: no spread"),
        ([2.0], [2.0], (1, 1), "one round: no spread"),
        ([2.0], [3.0, 5.0], (1.5, 2.5), "rounds: 1 beside 2"),
        ([2.0, 4.0], [3.0, 3.0, 5.0], (0.75, 2.5), "rounds: 2 beside 3; not told apart"),
        ([2.0, 4.0], [4.0, 8.0], (2, 2), ""),
        ([2.0, 4.0], [2.0, 5.0], (1, 1.25), "not told apart"),
    ],
)
def test_one_round_and_unequal_rounds_are_doubted(
    own: list[float], other: list[float], spread: tuple[float, float], doubt: str, lines: ModuleType
) -> None:
    ours, theirs = lines.time_lines("s", "t", {"vitrieve": own, "another": other})
    ratio = ours.compare(theirs)
    assert (ratio.low, ratio.high) == pytest.approx(spread)
    assert ratio.num_rounds == (len(own), len(other))
    assert ratio.doubt == doubt
    assert doubt in ratio.describe()
    (told,) = lines.list_ratios([ours, theirs])
    assert (told["ours"], told["side"], told["doubt"]) == ("vitrieve", "another", doubt)
    assert json.loads(json.dumps(told))["num_rounds"] == [len(own), len(other)]


def test_lines_of_an_older_result_are_doubted(lines: ModuleType) -> None:
    """They do not tell their rounds: the spread is from the worst beside the best to the reverse."""
    given = {"section": "s", "task": "t", "unit": "images/s"}
    ours = lines.Line(side="vitrieve", value=4.0, low=3.0, high=5.0, **given)
    ratio = ours.compare(lines.Line(side="another", value=2.0, low=1.0, high=4.0, **given))
    assert ratio[:3] == (2.0, 0.75, 5.0)
    assert ratio.doubt == "rounds not told; not told apart"


def test_doubts_stand_in_the_table_on_the_page_and_beside_the_curves(
    contest: ModuleType,
    lines: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = lines.time_lines("s", "one round", {"vitrieve": [2.0], "another": [3.0]})
    found += lines.time_lines("s", "growth", {"vitrieve": [1.0, 1.0], "another": [2.0, 3.0]}, size=10.0)
    found += lines.time_lines("s", "growth", {"vitrieve": [7.0, 9.0], "another": [8.0, 8.0]}, size=1000.0)
    monkeypatch.setattr(sys, "argv", ["part"])
    contest.main(lambda is_quick: found, "")
    table = capsys.readouterr().out
    page = import_module("page")
    machine = json.loads(next((BENCHMARKS / "results").glob("bench_*.json")).read_text())["machine"]
    page.write_page(machine, found, tmp_path / "page.html", is_quick=False)
    text = (tmp_path / "page.html").read_text()
    for remark in ("one round: no spread", "2.00 to 3.00", "0.89 to 1.14; not told apart"):
        assert table.count(remark) == 1
        assert text.count(remark) == 1


DEMO = """
demo:
\ttest ! -e demo && test -d "$$VITRIEVE_CACHE/weights" && test "$(VENV)" = /venv
\tmkdir -p "$$VITRIEVE_CACHE/emoji-v2" demo/run/encoder demo/run/report demo/embeddings demo/index
\ttouch -d @2000000010 "$$VITRIEVE_CACHE/emoji-v2/drawings.json"
\ttouch -d @2000000040 demo/run/metrics.jsonl
\ttouch -d @2000000100 demo/run/encoder/encoder.onnx
\ttouch -d @2000000090 demo/run/report/report.html
\ttouch -d @2000000101 demo/embeddings/manifest.json
\ttouch -d @2000000103 demo/index/manifest.json
\ttouch -d @2000000104 demo/search.html
"""
"""A demo whose report comes before the export, as in older states of the project."""


def test_the_demo_is_timed_part_by_part_from_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    (tmp_path / "cache" / "weights").mkdir(parents=True)
    (tmp_path / "checkout" / "demo").mkdir(parents=True)
    (tmp_path / "checkout" / "Makefile").write_text(DEMO)
    monkeypatch.setenv("VITRIEVE_CACHE", str(tmp_path / "cache"))
    demo = import_module("demo")
    monkeypatch.setattr(demo.time, "time", lambda: 2_000_000_000.0)
    seconds = demo.run_demo(tmp_path / "checkout", Path("/venv"))
    assert list(seconds.items()) == [
        ("drawing", 10),
        ("training", 30),
        ("report", 50),
        ("export", 10),
        ("embedding", 1),
        ("index", 2),
        ("search", 1),
        ("all", 0),
    ]


def test_speeds_of_the_catalog_are_all_of_one_machine() -> None:
    pytest.importorskip("torch", reason="needs vitrieve[train]")
    catalog_script = import_module("weights_catalog")
    catalog = {
        "speed_note": "torch 1.0, 8 threads of another, 2020-01-01",
        "weights": {"a": {"images_per_second": 9.0}},
    }
    catalog_script.begin_speeds(catalog)
    assert catalog["weights"] == {"a": {}}
    catalog["weights"]["a"]["images_per_second"] = 5.0
    catalog["speed_note"] = catalog["speed_note"][:-10] + "2020-01-01"
    catalog_script.begin_speeds(catalog)  # a later day of the same machine
    assert catalog["weights"] == {"a": {"images_per_second": 5.0}}
    assert not catalog["speed_note"].endswith("2020-01-01")


def test_lines_hold_the_median_and_the_spread(lines: ModuleType) -> None:
    (rate,) = lines.rate_lines("s", "t", {"vitrieve": [4.0, 1.0, 2.0]}, 8, "images/s")
    assert (rate.value, rate.low, rate.high) == (4.0, 2.0, 8.0)
    (time,) = lines.time_lines("s", "t", {"vitrieve": [4.0, 1.0, 2.0]}, "ms")
    assert (time.value, time.low, time.high) == (2000.0, 1000.0, 4000.0)


def test_sides_alternate_and_the_warm_up_does_not_count(contest: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "PAUSE_SECONDS", 0)
    turns: list[str] = []
    seconds = contest.alternate({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, 3)
    assert turns == ["a", "b"] * 4
    assert {side: len(rounds) for side, rounds in seconds.items()} == {"a": 3, "b": 3}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is restarted through Linux's /proc")
def test_memory_of_a_side_is_that_of_its_rounds(
    contest: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contest, "PAUSE_SECONDS", 0)
    script = tmp_path / "sides.py"
    script.write_text(SIDES.format(benchmarks=str(BENCHMARKS)))
    found = contest.alternate_processes(str(script), ("small", "large"), 2, num_mib=100)
    assert found["small"].extra_mib < 20
    assert found["large"].extra_mib == pytest.approx(100, abs=20)
    assert found["large"].check == 100 * 2**20
    assert len(found["large"].seconds) == 2


@pytest.mark.parametrize(
    ("most_seconds", "num_wanted", "num_rounds"), [(15, 5, 3), (75, 5, 3), (85, 5, 4), (1000, 5, 5), (15, 2, 2)]
)
def test_a_contest_ends_when_its_time_is_over_but_has_three_rounds(
    most_seconds: float,
    num_wanted: int,
    num_rounds: int,
    contest: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A round of two sides takes twenty seconds, as they say."""
    monkeypatch.setattr(contest, "PAUSE_SECONDS", 0)
    answer = {"seconds": 10.0, "before_mib": 0.0, "process_mib": 0.0, "check": None}
    script = tmp_path / "side.py"
    script.write_text(f"import sys\nfor _ in sys.stdin: print({json.dumps(answer)!r}, flush=True)\n")
    others = {side: ([sys.executable, str(script)], {}) for side in ("one", "another")}
    found = contest.alternate_processes("", (), num_wanted, most_seconds, others=others)
    assert [len(rounds.seconds) for rounds in found.values()] == [num_rounds] * 2


def test_parts_measured_again_replace_those_of_an_older_result(lines: ModuleType) -> None:
    """Lines of before do not tell their rounds; a task that the part no longer has goes with its old lines."""
    run = import_module("run")
    given = {"task": "t", "value": 1.0, "low": 1.0, "high": 1.0, "unit": "s"}
    old = [{"section": section, "side": "vitrieve", **given} for section in ("kept", "again")]
    old += [{"section": "kept", "side": "another", **given}, {**given, "section": "again", "side": "x", "task": "gone"}]
    new = lines.time_lines("again", "t", {"vitrieve": [2.0, 2.0], "another": [3.0, 3.0]})
    machine = {"date": "2026-01-01"}
    merged, found = run.replace_parts({"machine": machine, "lines": old}, new, {**machine, "date": "2026-01-02"})
    assert [(line.section, line.side, line.value) for line in found] == [
        ("kept", "vitrieve", 1.0),
        ("kept", "another", 1.0),
        ("again", "vitrieve", 2.0),
        ("again", "another", 3.0),
    ]
    assert [*merged["measured_again"]] == ["again"]
    assert [one["doubt"] for one in lines.list_ratios(found)] == ["rounds not told; not told apart", ""]


def test_every_result_names_its_machine(contest: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "results" / "new.json"
    contest.write_result(path, {"rows": [1], "machine": "that of an earlier call"})
    found = json.loads(path.read_text())
    assert found["rows"] == [1]
    assert {"date", "processor", "num_cores", "packages"} <= found["machine"].keys()


def test_scripts_that_write_results_name_the_machine() -> None:
    for path in BENCHMARKS.glob("*.py"):
        text = path.read_text()
        assert "RESULTS / " not in text or "write_result(" in text or "describe_machine()" in text, path.name


def test_the_suite_reads_what_a_part_writes(lines: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = import_module("run")
    (tmp_path / "part.py").write_text(PART.format(benchmarks=str(BENCHMARKS)))
    monkeypatch.setattr(run, "__file__", str(tmp_path / "run.py"))
    assert run.run_part("part", True) == lines.time_lines("quick", "t", {"vitrieve": [1.0]})


def test_a_part_that_fails_loses_none_before_it(
    lines: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = import_module("run")
    measured = {"loss": lines.time_lines("loss", "t", {"vitrieve": [2.0, 2.0, 2.0]})}
    monkeypatch.setattr(run, "run_part", lambda part, is_quick: measured[part])
    monkeypatch.setattr(run, "pin_threads", lambda: None)
    monkeypatch.setattr(sys, "argv", ["run.py", "--parts", "loss", "ranking", "--out", str(tmp_path / "new")])
    with pytest.raises(KeyError):
        run.main()
    (found,) = (tmp_path / "new").glob("bench_*.json")
    assert [line["section"] for line in json.loads(found.read_text())["lines"]] == ["loss"]
    assert found.with_suffix(".html").is_file()
    measured["ranking"] = lines.time_lines("ranking", "t", {"vitrieve": [1.0, 1.0, 1.0]})
    monkeypatch.setattr(sys, "argv", ["run.py", "--parts", "ranking", "--into", str(found)])
    run.main()
    assert [line["section"] for line in json.loads(found.read_text())["lines"]] == ["loss", "ranking"]


@pytest.mark.parametrize("name", ["processor", "instructions", "settings"])
def test_figures_of_two_machines_are_not_mixed(name: str, contest: ModuleType) -> None:
    run = import_module("run")
    machine = {"processor": "one", "instructions": ["avx2"], "settings": {"OMP_NUM_THREADS": "2"}}
    run.require_same_machine(machine, dict(machine))
    with pytest.raises(SystemExit, match="other"):
        run.require_same_machine(machine, {**machine, name: "other"})


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "results").glob("bench_*.json")), ids=lambda path: path.stem)
def test_every_page_kept_can_be_drawn_again_and_loads_nothing(path: Path, lines: ModuleType, tmp_path: Path) -> None:
    page = import_module("page")
    contents = json.loads(path.read_text())
    found = [lines.Line(**one) for one in contents["lines"]]
    page.write_page(contents["machine"], found, tmp_path / "page.html", is_quick=contents["is_quick"])
    text = (tmp_path / "page.html").read_text()
    assert all(line.side.split(",")[0].replace("'", "&#39;") in text for line in found)
    assert "src=" not in text
    assert "href=" not in text


def test_figures_have_three_digits_that_count(contest: ModuleType) -> None:
    format_figure = import_module("page").format_figure
    assert [format_figure(value) for value in (0, 0.01234, 5.678, 123.4, 12345.6)] == [
        "0",
        "0.0123",
        "5.68",
        "123",
        "12,346",
    ]
