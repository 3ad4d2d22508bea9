"""What other packages add, used from the command line: ``plugin_example`` as it is installed, and broken ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from vitrieve import plugins
from vitrieve.errors import ConfigError
from vitrieve.objective.own import read_plugin_loss

EXAMPLE = Path(__file__).parent / "plugin_example"


def install(project: Path, site: Path) -> None:
    """Put a project where Python finds it, with the metadata that an installer writes; it takes no network."""
    about = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    shutil.copytree(project / "src", site, dirs_exist_ok=True)
    folder = site / f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
    folder.mkdir()
    head = f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n"
    (folder / "METADATA").write_text(head, encoding="utf-8")
    groups = about["entry-points"].items()
    lines = [line for group, names in groups for line in (f"[{group}]", *(f"{n} = {v}" for n, v in names.items()))]
    (folder / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def install_broken(site: Path, group: str, name: str, package: str = "broken", code: str = "1 / 0\n") -> None:
    project = site.parent / f"project-{package}"
    (project / "src").mkdir(parents=True)
    (project / "src" / f"{package}.py").write_text(code, encoding="utf-8")
    text = f'[project]\nname = "{package}"\nversion = "0.1"\n[project.entry-points."{group}"]\n{name} = "{package}"\n'
    (project / "pyproject.toml").write_text(text, encoding="utf-8")
    install(project, site)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    install(EXAMPLE, folder)
    return folder


def run_with(site: Path, *words: object) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", "vitrieve", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )


@pytest.fixture
def lines_file(class_folder: Path) -> Path:
    """The list of the pictures of ``class_folder``, beside them."""
    file = class_folder / "lines.txt"
    pictures = sorted(class_folder.glob("*/*.png"))
    file.write_text("".join(f"{one.parent.name} {one.relative_to(class_folder)}\n" for one in pictures))
    return file


def test_a_command_of_another_package(site: Path, lines_file: Path) -> None:
    done = run_with(site, "count", "--data", f"lines:{lines_file}", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {f"class{number}": 4 for number in range(5)}
    assert "usage: vitrieve count" in run_with(site, "count", "--help").stdout
    assert (
        "unknown flag '--at-last'; the nearest valid ones: --at-least" in run_with(site, "count", "--at-last", 1).stderr
    )
    listed = run_with(site, "--help").stdout.splitlines()
    assert [line.split() for line in listed if line.startswith("  count ")] == [
        ["count", "added", "by", "vitrieve-example", "1.0"]
    ]


def test_a_source_of_another_package(site: Path, lines_file: Path, tmp_path: Path) -> None:
    done = run_with(site, "data", "check", "--data", f"lines:{lines_file}")
    assert done.returncode == 0, done.stderr
    assert "20 " in done.stdout
    assert "CLASS PATH    a line for each picture" in run_with(site, "data", "describe", "lines").stdout
    (tmp_path / "wrong.txt").write_text("one\n")
    done = run_with(site, "data", "check", "--data", f"lines:{tmp_path / 'wrong.txt'}")
    assert (done.returncode, done.stderr) == (2, f"error: {tmp_path / 'wrong.txt'}, line 1: expected CLASS PATH.\n")
    assert "lacks a path; write lines:FILE." in run_with(site, "data", "check", "--data", "lines").stderr


@pytest.mark.slow
def test_losses_of_another_package_train_and_resume(
    site: Path, lines_file: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    words = ["train", "small", "--data", f"lines:{lines_file}", "--out", tmp_path / "run", "--no-report"]
    words += ["--model.backbone", "test_vit", "--model.weights", tiny_weights, "--image-size", "32"]
    words += ["--num-steps", "2", "--batch-size", "4", "--loader.images-per-class", "2", "--no-holdout"]
    words += ["--num-threads", "1", "--json"]
    losses = ["--loss", "pull:weight=0.5,power=3", "--loss", "pull-to-centers:scale=2"]
    done = run_with(site, *words, *losses, "--objective.koleo.weight", "0.1")
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (pull, centers) = config["own_terms"].values()
    assert (pull["weight"], pull["settings"], centers["settings"]["scale"]) == (0.5, {"power": 3}, 2)
    step = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert step["loss"] == pytest.approx(0.5 * step["pull"] + step["PullToCenters"] + 0.1 * step["koleo"], rel=1e-4)
    assert "multi_similarity" not in step
    done = run_with(site, *words, "--loss", "pull:weight=0.5", "--resume")
    assert done.returncode == 2


def test_a_loss_of_another_package_refuses_what_it_does_not_take(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="needs vitrieve[train]")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(plugins, "_find_entries", plugins._find_entries.__wrapped__)
    for loss, message in (
        ("pull:powr=3", "unknown setting of the loss pull 'powr'. Did you mean 'power'?"),
        ("pull:power", "'power' is no setting; write NAME:weight=0.5,power=3."),
        ("pul", "no installed package adds the loss pul; the nearest: pull"),
        ("pull-to-centers:embedding_dim=x", "the loss pull-to-centers:embedding_dim=x cannot be made: "),
    ):
        with pytest.raises(ConfigError) as caught:
            read_plugin_loss(loss)
        assert message in str(caught.value)


def test_a_store_of_another_package(site: Path, tiny_encoder_folder: Path, class_folder: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    done = run_with(
        site, "sync", "--data", class_folder, "--index", index, "--encoder", tiny_encoder_folder, "--store", "counted"
    )
    assert done.returncode == 0, done.stderr
    query = class_folder / "class0" / "0.png"
    found = json.loads(run_with(site, "search", "--index", index, query, query, "-k", "3", "--json").stdout)
    assert len(str(found)) > 0
    assert sum(map(int, (index / "searches.txt").read_text().split())) == 2
    assert run_with(site, "index", "--verify", "--index", index).returncode == 0
    without = run_with(tmp_path / "nothing", "search", "--index", index, query)
    assert "is an index of the unknown store 'counted'; known: lance, exact, milvus, pgvector." in without.stderr
    done = run_with(site, "sync", "--data", class_folder, "--index", tmp_path / "other", "--store", "countd")
    assert "unknown store 'countd'. Did you mean 'counted'?" in done.stderr


def test_doctor_lists_what_other_packages_add(site: Path) -> None:
    told = json.loads(run_with(site, "doctor", "--json").stdout)
    listed = {(one["kind"], one["name"]): (one["package"], one["problem"]) for one in told["plugins"]}
    named = {
        ("source", "lines"),
        ("loss", "pull"),
        ("loss", "pull-to-centers"),
        ("store", "counted"),
        ("command", "count"),
    }
    assert {key: listed[key] for key in named} == dict.fromkeys(named, ("vitrieve-example 1.0", ""))


def test_a_broken_package_breaks_only_what_it_adds(site: Path, lines_file: Path) -> None:
    install_broken(site, "vitrieve.sources", "wreck")
    told = "the source wreck of the package broken 0.1 cannot be loaded (ZeroDivisionError: division by zero); "
    done = run_with(site, "data", "check", "--data", "wreck:somewhere")
    assert (done.returncode, done.stderr) == (2, f"error: {told}mend or uninstall that package.\n")
    assert run_with(site, "count", "--data", f"lines:{lines_file}").returncode == 0
    assert run_with(site, "data", "describe", "folder").returncode == 0
    done = run_with(site, "doctor")
    assert done.returncode == 1
    assert f"problem: {told}" in done.stdout


def test_a_broken_command_does_not_break_the_help(site: Path) -> None:
    install_broken(site, "vitrieve.commands", "wreck")
    assert "wreck" in run_with(site, "--help").stdout
    done = run_with(site, "wreck")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "the command wreck of the package broken 0.1 cannot be loaded" in done.stderr


def test_vitrieves_own_names_win_and_two_packages_exclude_each_other(site: Path, class_folder: Path) -> None:
    install_broken(site, "vitrieve.sources", "folder", package="hidden", code="")
    install_broken(site, "vitrieve.commands", "twice", package="one", code="def run(): pass\n")
    install_broken(site, "vitrieve.commands", "twice", package="two", code="def run(): pass\n")
    assert run_with(site, "data", "check", "--data", f"folder:{class_folder}").returncode == 0
    assert "is added by one 0.1 and two 0.1; uninstall one of them." in run_with(site, "twice").stderr
    assert "the source folder of hidden 0.1 is hidden by vitrieve's own." in run_with(site, "doctor").stdout


def test_something_else_than_the_contract_is_refused(site: Path, tmp_path: Path, class_folder: Path) -> None:
    install_broken(site, "vitrieve.sources", "module", package="one", code="")
    install_broken(site, "vitrieve.stores", "module", package="two", code="")
    install_broken(site, "vitrieve.commands", "module", package="three", code="")
    assert "expected a Source." in run_with(site, "data", "check", "--data", "module:x").stderr
    assert "expected a module with Arguments and run." in run_with(site, "module").stderr
