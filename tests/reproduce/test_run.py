"""Real rows with a tiny encoder: one module-wide run serves the tests, and its processes are forks of one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="needs vitrieve[train]")

from tests.forked import ForkedVitrieve
from vitrieve.artifacts import write_manifest
from vitrieve.reproduce import run
from vitrieve.reproduce.page import collect_outcomes, write_page
from vitrieve.reproduce.plans import Plan, TableRow, Training, choose_rows
from vitrieve.reproduce.run import Cell, build_cell, build_cells, find_sources, is_finished, read_cells, run_cells
from vitrieve.reproduce.stand_in import StandIn, plan_stand_in


@dataclass
class Reproduction:
    """A stand-in of table3 that has been run, but for its last row."""

    stand_in: StandIn
    plan: Plan
    out: Path
    cells: tuple[Cell, ...]
    said: list[str]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifteen classes of four pictures, no two alike, of similar colors: none is found surely, or surely not."""
    folder = tmp_path_factory.mktemp("pictures") / "photographs"
    generator = np.random.default_rng(0)
    for number in range(15):
        (folder / f"product{number:02}").mkdir(parents=True)
        color = generator.integers(90, 120, 3)
        for copy in range(4):
            pixels = (color + generator.integers(0, 100, (40, 36, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"product{number:02}" / f"{copy}.png")
    return folder


class ForkedProcess:
    """What ``run_cells`` sees of a command that is a fork; the rows that fail have processes as users have them."""

    def __init__(self, forked_vitrieve: ForkedVitrieve, words: Sequence[str], stdout: IO[str]) -> None:
        _, flag, module, *rest = words
        assert flag == "-m"
        self._ended = forked_vitrieve(rest, module=module)
        stdout.write(self._ended.printed)

    def wait(self) -> int:
        return self._ended.status


@pytest.fixture(scope="module")
def reproduction(
    pictures: Path,
    tiny_weights: Path,
    tiny_encoder_folder: Path,
    forked_vitrieve: ForkedVitrieve,
    tmp_path_factory: pytest.TempPathFactory,
) -> Reproduction:
    stand_in = StandIn(
        source=f"folder:{pictures}",
        vit=str(tiny_encoder_folder),
        vit_flags=(
            *("--model.backbone", "test_vit", "--model.weights", str(tiny_weights), "--image-size", "32"),
            *("--batch-size", "6", "--num-threads", "1"),
            # So large that three steps change the ranking.
            *("--optimizer.learning-rate", "0.01", "--optimizer.num-warmup-steps", "0"),
        ),
        image_sizes=(32,),
        sweep_dims=(4, 64),
        short_dim=8,
        num_steps=3,
    )
    plan = plan_stand_in("table3", stand_in)
    out = tmp_path_factory.mktemp("reproduction")
    cells = build_cells(choose_rows(plan, ["irt_o", "irt_l"]), find_sources(plan.sources, None), out, 1)
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.subprocess, "Popen", lambda words, stdout, **_: ForkedProcess(forked_vitrieve, words, stdout))
        failures = run_cells(cells, said.append)
    assert not failures, failures
    return Reproduction(stand_in=stand_in, plan=plan, out=out, cells=cells, said=said)


def test_run_cells_trains_measures_and_keeps_little(reproduction: Reproduction) -> None:
    found = read_cells(reproduction.cells)
    assert list(found) == ["irt_o", "irt_l"]
    (trained,) = found["irt_l"]
    (entry,) = trained.results[reproduction.stand_in.source]
    assert 0 <= entry["recall_at_1"] <= 1
    assert len(trained.analysis["energy"]) == 64
    assert trained.analysis["energy"][-1] == pytest.approx(1, abs=1e-5)
    assert 0 <= trained.gradients["nuclear_norm"] <= 1
    assert set(trained.seconds) == {"train", *(f"{name} {reproduction.stand_in.source}" for name in (
        "evaluate", "analyze", "gradients"))}  # fmt: skip
    commands = json.loads((reproduction.cells[1].folder / "manifest.json").read_text())["commands"]
    assert len(commands) == 4
    assert "--resume" not in " ".join(commands)
    assert not any((reproduction.out / "runs").iterdir())
    sizes = sum(path.stat().st_size for path in reproduction.out.rglob("*") if path.is_file())
    assert sizes < 200_000


def test_run_cells_reuses_finished_cells_also_of_other_tables(reproduction: Reproduction) -> None:
    plan = plan_stand_in("table5", reproduction.stand_in)
    cells = build_cells(choose_rows(plan, ["b0.5-l0"]), find_sources(plan.sources, None), reproduction.out, 1)
    log = cells[0].folder / "log.txt"
    before = log.read_bytes()
    said: list[str] = []
    assert run_cells((*reproduction.cells, *cells), said.append) == ()
    assert [text.endswith("(found finished)") for text in said] == [True] * 3
    assert log.read_bytes() == before


def test_build_cells_gives_untrained_rows_one_seed(reproduction: Reproduction) -> None:
    sources = find_sources(reproduction.plan.sources, None)
    cells = build_cells(reproduction.plan.rows, sources, reproduction.out, 3)
    assert [(cell.row.key, cell.seed) for cell in cells] == [
        *(("irt_o", 0), ("irt_l", 0), ("irt_r", 0)),
        *(("irt_l", 1), ("irt_r", 1), ("irt_l", 2), ("irt_r", 2)),
    ]
    assert [is_finished(cell) for cell in cells] == [True, True, False, False, False, False, False]


def test_page_of_a_run_holds_its_figures_and_commands(reproduction: Reproduction) -> None:
    found = read_cells(reproduction.cells)
    sources = find_sources(reproduction.plan.sources, None)
    outcomes = collect_outcomes(reproduction.plan, sources, (), reproduction.out, 1)
    page = write_page(reproduction.plan, outcomes, reproduction.out)
    assert page.name == "table3-photographs.md"
    ours = [100 * found[key][0].results[reproduction.stand_in.source][0]["map_at_r"] for key in ("irt_o", "irt_l")]
    assert 0 < ours[0] < 100
    assert ours[1] != ours[0]
    content = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert [row["figures"][1]["mean"] for row in content["rows"]] == [*ours, None]
    assert content["rows"][1]["figures"][1]["change_from_reference"] == pytest.approx(ours[1] - ours[0])
    text = page.read_text(encoding="utf-8")
    assert f"{ours[1]:.1f}" in text
    assert "vitrieve train irt_l_small --data folder:" in text
    assert "83.0 (+30.2)" in text  # SOP R@1 of IRT_L in the paper, and its change from IRT_O


def make_row(key: str, training: Training | None, encoder: str, source: str) -> TableRow:
    return TableRow(key=key, name=key, label=key, group="g", training=training, encoder=encoder, tests=(source,))


def test_run_cells_goes_on_after_a_failed_row_and_says_which(tmp_path: Path, pictures: Path) -> None:
    source = f"folder:{pictures}"
    training = Training(recipe="no_such_recipe", source=source)
    shared = make_row("also_broken", training, "", source)
    rows = [make_row("broken", training, "", source), replace(shared, embedding_dim=4)]
    rows.append(make_row("no_encoder", None, str(tmp_path / "no_encoder"), source))
    cells = build_cells(rows, find_sources([source], None), tmp_path, 1)
    said: list[str] = []
    failures = run_cells(cells, said.append)
    assert [failure.key for failure in failures] == ["broken", "also_broken", "no_encoder"]
    assert "no_such_recipe" in failures[0].reason
    assert failures[1].command == failures[0].command
    assert not (cells[1].folder / "log.txt").exists()  # the training they share is not tried again
    assert "no_encoder" in failures[2].reason
    assert read_cells(cells) == {}


def finish_steps(cell: Cell, tasks: Sequence[str]) -> None:
    """Write what some commands of a cell would have written."""
    cell.folder.mkdir(parents=True)
    (cell.folder / ".partial").touch()
    for step in cell.steps:
        if step.task not in tasks:
            continue
        if step.task == "analyze":
            step.out.write_text('{"energy": [1.0]}', encoding="utf-8")
            continue
        step.out.mkdir(parents=True)
        if step.task == "evaluate":
            results = {"results": [{"protocol": "zero_shot", "recall_at_1": 0.5, "map_at_r": 0.25}]}
            (step.out / "results.json").write_text(json.dumps(results), encoding="utf-8")
        write_manifest(step.out, "run" if step.task == "train" else "evaluation", {})


def test_run_cells_goes_on_after_the_last_finished_command(tmp_path: Path) -> None:
    # The recipe does not exist: a command that was started again would fail.
    row = make_row("row", Training(recipe="no_such_recipe", source="emoji"), "", "emoji")
    cell = build_cell(row, 0, find_sources(["emoji"], None), tmp_path)
    finish_steps(cell, ("train", "evaluate", "analyze"))
    said: list[str] = []
    assert run_cells([cell], said.append) == ()
    assert read_cells([cell])["row"][0].results["emoji"][0]["recall_at_1"] == 0.5
    assert "emoji recall_at_1 50.0" in said[-1]
    assert cell.run is not None
    assert not cell.run.exists()


def test_run_is_kept_while_an_unfinished_cell_needs_it(pictures: Path, tmp_path: Path) -> None:
    source = f"folder:{pictures}"
    training = Training(recipe="no_such_recipe", source=source)
    rows = [make_row("full", training, "", source), replace(make_row("short", training, "", source), embedding_dim=8)]
    cells = build_cells(rows, find_sources([source], None), tmp_path, 1)
    assert cells[0].run == cells[1].run
    finish_steps(cells[0], ("train", "evaluate", "analyze"))
    failures = run_cells(cells, lambda text: None)
    assert [failure.key for failure in failures] == ["short"]  # the run is not a real one: its reduction fails
    assert "vitrieve reduce" in failures[0].command
    assert cells[0].run is not None
    assert cells[0].run.is_dir()
