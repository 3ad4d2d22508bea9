from __future__ import annotations

from pathlib import Path

import pytest

from vitrieve.cli.arguments import parse_arguments
from vitrieve.cli.train import Arguments as TrainArguments
from vitrieve.config import Config, check_config
from vitrieve.errors import ConfigError
from vitrieve.recipes import RECIPES, find_recipe
from vitrieve.reproduce.plans import PLANS, Plan, TableRow, choose_rows, plan_table
from vitrieve.reproduce.run import build_cell, find_sources, list_missing
from vitrieve.reproduce.stand_in import KOLEO_WEIGHTS, MARGINS, StandIn, build_plan, plan_stand_in

STAND_INS = ("table3", "table4", "table5", "table6", "table7", "table9", "figure2", "figure3", "figure4", "figure5")


def all_plans() -> list[Plan]:
    own = [plan_table(name) for name in PLANS]
    return own + [plan_stand_in(name, StandIn(source=source)) for name in STAND_INS for source in ("grocery", "emoji")]


@pytest.fixture(scope="module", params=all_plans(), ids=lambda plan: plan.stem)
def plan(request: pytest.FixtureRequest) -> Plan:
    assert isinstance(request.param, Plan)
    return request.param


def read_config(row: TableRow) -> Config:
    """Resolve a training as the command line does."""
    assert row.training is not None
    words = ["--data", row.training.source, "--out", "RUN", *row.training.flags, "--seed", "3"]
    default = TrainArguments(data=(), out=Path("RUN"), config=find_recipe(row.training.recipe)())
    return parse_arguments(TrainArguments, words, "train", default).config


def test_rows_have_keys_of_their_own_and_recipes_that_exist(plan: Plan) -> None:
    keys = [row.key for row in plan.rows]
    assert len(set(keys)) == len(keys)
    for row in plan.rows:
        assert (row.training is None) == bool(row.encoder)
        assert not row.reference or (row.reference in keys and row.reference != row.key)
        if row.training is not None:
            assert row.training.recipe in RECIPES


@pytest.mark.parametrize(
    "plan", [plan for plan in all_plans() if plan.stand_in == "grocery" or plan.name in ("table2", "table7")],
    ids=lambda plan: plan.stem,
)  # fmt: skip
def test_flags_of_every_row_are_accepted_by_train(plan: Plan) -> None:
    chosen = {row.training: row for row in plan.rows if row.training is not None}
    for row in list(chosen.values())[:: max(1, len(chosen) // 4)]:
        config = read_config(row)
        check_config(config)
        assert config.train.seed == 3


def test_stand_in_of_table5_is_the_grid_of_the_issue() -> None:
    rows = plan_stand_in("table5", StandIn(source="grocery", num_steps=45)).rows
    assert len(rows) == 12
    found = set()
    for row in rows[::5]:
        config = read_config(row)
        found.add((config.objective.contrastive.margin, config.objective.koleo.weight))
        assert row.key == f"b{config.objective.contrastive.margin:g}-l{config.objective.koleo.weight:g}"
        assert (config.train.num_steps, config.objective.memory_start_step) == (45, 15)
        assert not config.train.holdout
        assert config.train.frozen_share == 0
    assert {row.key for row in rows} == {f"b{margin:g}-l{weight:g}" for margin in MARGINS for weight in KOLEO_WEIGHTS}
    assert len(found) == 3


def test_stand_in_of_table7_sweeps_dimensions_and_resolution() -> None:
    rows = plan_stand_in("table7", StandIn(source="grocery")).rows
    sweep = {row.key: row.embedding_dim for row in rows if row.x is not None}
    assert [sweep[f"irt_r-{dims}"] for dims in (8, 16, 32, 64, 128, 256, 384)] == [8, 16, 32, 64, 128, 256, None]
    (large,) = (row for row in rows if row.key == "vit-224-128")
    assert read_config(large).model.image_size == 224
    assert large.embedding_dim == 128


@pytest.mark.parametrize("source", ["grocery", "folder:my/pictures"])
@pytest.mark.parametrize("name", STAND_INS)
def test_trained_rows_start_from_an_encoder_that_the_plan_names(name: str, source: str) -> None:
    # Whatever the default start becomes, it is that of the row that is measured as it is.
    stand_in = StandIn(source=source)
    for row in plan_stand_in(name, stand_in).rows:
        if row.training is not None:
            flags = row.training.flags
            assert flags.count("--model.backbone") == 1, row.key
            start = flags[flags.index("--model.backbone") + 1]
            assert start == (stand_in.convnet if "convnet" in row.key else stand_in.vit), row.key


def test_stand_in_of_table4_has_one_objective_a_row() -> None:
    for row in plan_stand_in("table4", StandIn(source="grocery")).rows:
        active = list(read_config(row).objective.terms)
        expected = {"nsoftmax": "normalized_softmax", "snca": "scalable_nca", "contrastive": "contrastive"}
        assert active == [expected[row.key.split("-")[0]]]
        assert (read_config(row).model.backbone == "efficientnet-lite0") == row.key.endswith("convnet")


@pytest.mark.parametrize("name", ["table2", "table8"])
def test_plan_stand_in_says_why_there_is_none(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} has no stand-in: .*Valid: table3"):
        plan_stand_in(name, StandIn(source="grocery"))


def test_plan_table_lists_valid_names() -> None:
    with pytest.raises(ConfigError, match=r"unknown table or figure 'table1'.*figure5, table2"):
        plan_table("table1")


def test_build_plan_lists_valid_stand_ins() -> None:
    assert build_plan("table3", "emoji", None).stand_in == "emoji"
    assert build_plan("table3", "folder:my/pictures", None).stand_in == "folder:my/pictures"
    with pytest.raises(ConfigError, match=r"unknown stand-in 'grocerys'. Valid: grocery, emoji, .*folder:DIR"):
        build_plan("table3", "grocerys", None)


@pytest.mark.parametrize("name", ["table1", "table0"])
def test_build_plan_refuses_unknown_names_with_and_without_a_stand_in(name: str) -> None:
    for stand_in in (None, "emoji"):
        with pytest.raises(ConfigError, match="unknown table or figure"):
            build_plan(name, stand_in, None)


def test_choose_rows_takes_keys_and_shared_names() -> None:
    plan = plan_table("table3")
    assert len(choose_rows(plan, ())) == 12
    assert [row.key for row in choose_rows(plan, ["irt_l-sop"])] == ["irt_l-sop"]
    assert len(choose_rows(plan, ["irt_l"])) == 4
    with pytest.raises(ConfigError, match=r"unknown row of table3 'irt_lsop'. Did you mean 'irt_l-sop'.*irt_r-sfm120k"):
        choose_rows(plan, ["irt_lsop"])


def test_same_training_is_one_run_in_every_table(tmp_path: Path) -> None:
    def run(name: str, key: str) -> Path | None:
        plan = plan_stand_in(name, StandIn(source="grocery"))
        (row,) = (row for row in plan.rows if row.key == key)
        return build_cell(row, 0, find_sources(plan.sources, tmp_path), tmp_path).run

    runs = {run("table3", "irt_l"), run("table5", "b0.5-l0"), run("table9", "cls"), run("table4", "contrastive-vit")}
    assert len(runs | {run("table7", "irt_l-8"), run("figure4", "b0.5-l0")}) == 1
    assert run("table3", "irt_r") == run("table5", "b0.5-l0.7") != run("table5", "b0.7-l0.7")


def test_cells_differ_by_seed_flags_and_what_follows(tmp_path: Path) -> None:
    plan = plan_stand_in("table7", StandIn(source="grocery"))
    sources = find_sources(plan.sources, tmp_path)
    cells = [build_cell(row, seed, sources, tmp_path) for row in plan.rows for seed in (0, 1)]
    folders = {cell.folder for cell in cells}
    # The backbone rows and the sweep share those with 128 and with all dimensions.
    assert len(folders) == len(cells) - 2 * 2
    again = build_cell(plan.rows[0], 0, sources, tmp_path / "elsewhere")
    assert again.folder.name == cells[0].folder.name


def test_find_sources_tells_what_is_missing_and_where_it_looked(tmp_path: Path) -> None:
    (tmp_path / "Stanford_Online_Products").mkdir()
    plan = plan_table("table9")
    sources = find_sources(plan.sources, tmp_path)
    assert sources["sop"].spelling == f"sop:{tmp_path / 'Stanford_Online_Products'}"
    assert [row.tests for row in plan.rows if not list_missing([row], sources)] == [("sop",)] * 4
    (text,) = (text for text in list_missing(plan.rows, sources) if text.startswith("cub200"))
    assert str(tmp_path) in text
    assert "vitrieve data describe cub200" in text


def test_find_sources_follows_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "roxford5k").mkdir()
    monkeypatch.setenv("VITRIEVE_DATA", str(tmp_path))
    assert find_sources(["roxford5k"], None)["roxford5k"].spelling == f"roxford5k:{tmp_path / 'roxford5k'}"
    assert find_sources(["folder:any/where"], None)["folder:any/where"].spelling == "folder:any/where"
