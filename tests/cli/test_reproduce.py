from __future__ import annotations

import json
from pathlib import Path

import pytest

from vitrieve.cli.main import main
from vitrieve.reproduce.plans import PLANS, plan_table
from vitrieve.reproduce.run import FOLDER_NAMES


def read_tables(text: str) -> dict[tuple[str, str, str], str]:
    """Read the cells of the Markdown tables: heading, row, column -> cell."""
    cells: dict[tuple[str, str, str], str] = {}
    heading, header = "", None
    for line in text.splitlines():
        if line.startswith("## "):
            heading, header = line.removeprefix("## "), None
        elif line.startswith("| "):
            found = [cell.strip() for cell in line.strip("|").split("|")]
            header = header or found
            cells.update({(heading, found[0], column): cell for column, cell in zip(header, found, strict=True)})
    return cells


@pytest.mark.parametrize("name", PLANS)
def test_plan_lists_published_figures_commands_and_what_is_missing(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", name, "--data-root", str(tmp_path), "--out", str(tmp_path / "out"), "--plan"]) == 0
    text = capsys.readouterr().out
    tables = read_tables(text)
    for row in plan_table(name).rows:
        for measure, value in row.published.items():
            assert tables[row.group, f"{row.label} (not run)", measure.title] == f"{value:.1f} / –"  # noqa: RUF001
        for source in row.sources:
            assert f"vitrieve data describe {source}" in text
    assert "vitrieve train irt_" in text
    assert "vitrieve evaluate --encoder" in text
    assert not (tmp_path / "out").exists()


def test_plan_as_json_holds_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["reproduce", "table4", "--rows", "snca-r50", "--num-seeds", "2", "--data-root", str(tmp_path)]
    assert main([*words, "--out", str(tmp_path), "--num-steps", "7", "--plan", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    (row,) = plan["rows"]
    assert row["published"] == {"SOP R@1": 78.0}
    assert row["commands"][0].startswith("vitrieve train snca_sop --data sop:")
    assert "--num-steps 7" in row["commands"][0]
    assert (plan["num_cells"], plan["num_finished"]) == (2, 0)
    assert len(plan["missing"]) == 1


@pytest.mark.parametrize("ending", ["md", "json"])
def test_a_page_that_cannot_be_written_is_refused_before_the_trainings(
    ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (tmp_path / FOLDER_NAMES["sop"][0]).mkdir()
    (out / f"table4.{ending}").mkdir(parents=True)
    words = ["--rows", "snca-r50", "--data-root", str(tmp_path), "--out", str(out)]
    assert main(["reproduce", "table4", *words]) == 2
    assert f"table4.{ending} is a folder; name a file in it" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == [f"table4.{ending}"]


def test_without_data_nothing_runs_and_what_is_missing_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["reproduce", "table9", "--data-root", str(tmp_path), "--out", str(out)]) == 2
    message = capsys.readouterr().err
    for name in ("sop", "cub200", "inshop", "sfm120k", "roxford5k", "rparis6k"):
        assert f"vitrieve data describe {name}" in message
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table1"], "unknown table or figure 'table1'"),
        (["table3", "--rows", "irt_p"], "unknown row of table3 'irt_p'"),
        (["table3", "--stand-in", "flowers"], "Valid: grocery, emoji"),
        (["table2", "--stand-in", "emoji"], "table2 has no stand-in"),
        (["table3", "--num-seeds", "0"], "--num-seeds is 0; expected 1 or more"),
        (["table3", "--num-steps", "-1"], "--num-steps is -1; expected 1 or more"),
    ],
)
def test_wrong_use_is_told_with_status_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", *words]) == 2
    assert message in capsys.readouterr().err


def test_stand_in_names_the_data_that_is_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "grocery-store").mkdir()
    words = ["reproduce", "table3", "--stand-in", "grocery", "--data-root", str(tmp_path), "--out", str(tmp_path)]
    assert main([*words, "--plan"]) == 0
    text = capsys.readouterr().out
    assert f"vitrieve train irt_r_small --data grocery:{tmp_path / 'grocery-store'} --num-steps 60" in text
    assert "missing" not in text


def test_failed_rows_end_with_status_1_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = f"folder:{tmp_path / 'nothing'}"
    words = ["reproduce", "table3", "--stand-in", source, "--rows", "irt_o", "--out", str(tmp_path / "out")]
    assert main(words) == 1
    printed = capsys.readouterr()
    assert "failed: irt_o, seed 0: " in printed.err
    assert "nothing" in printed.err
    assert "| O: as it is (failed)" in printed.out
    assert "| R: with KoLeo, against irt_l (not run)" in printed.out
    page = tmp_path / "out" / "table3-nothing.md"
    assert f"page: {page}" in printed.out
    assert "**irt_o, seed 0, failed:**" in page.read_text(encoding="utf-8")
