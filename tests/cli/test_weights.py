from __future__ import annotations

import json
from pathlib import Path

import pytest

import vitrieve
from vitrieve.cli.main import main
from vitrieve.config import DEFAULT_WEIGHTS, START_WEIGHTS, ModelConfig
from vitrieve.model.named_graph import has_named_graph
from vitrieve.model.pretrained import WEIGHTS
from vitrieve.recipes.small import small


def test_weights_list_prints_the_table(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITRIEVE_CACHE", str(tmp_path))
    assert main(["weights", "list"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "dinov2-vits14" in printed.out
    assert "90 MB" in printed.out


def test_weights_list_json(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRIEVE_CACHE", str(tmp_path))
    assert main(["weights", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["weights"]}
    assert rows["dinov2-vits14"]["backbone"] == "vit_small_patch14_dinov2"
    assert rows["dinov2-vits14"]["is_present"] is False
    assert rows["dinov2-vits14"]["num_bytes"] == 90_210_194
    assert "may have been fine-tuned" in rows["dinov2-vits14"]["note"]
    assert "Apache-2.0" in rows["dinov2-vits14"]["license"]


def test_one_constant_is_the_default_of_all_commands_and_one_that_of_all_trainings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["weights", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["default"] == DEFAULT_WEIGHTS
    assert listed["default_of_recipes"] == START_WEIGHTS == ModelConfig().backbone == small().model.backbone
    assert main(["weights", "list"]) == 0
    told = capsys.readouterr().out
    assert f"{DEFAULT_WEIGHTS} is the default of up, sync and embed; small starts from {START_WEIGHTS}" in told
    assert [row["name"] for row in listed["weights"] if row["is_default"]] == [DEFAULT_WEIGHTS]
    assert has_named_graph(WEIGHTS[DEFAULT_WEIGHTS])  # it must run without torch
    source = Path(vitrieve.__file__).parent
    texts = {str(path.relative_to(source)): path.read_text("utf-8") for path in source.rglob("*.py")}
    # The table and the constant; of the start of recipes also what stands for the paper's DeiT-S in recorded results.
    assert {name for name, text in texts.items() if f'"{DEFAULT_WEIGHTS}"' in text} == {
        "model/pretrained.py",
        "config.py",
    }
    assert {name for name, text in texts.items() if f'"{START_WEIGHTS}"' in text} == {
        "model/pretrained.py",
        "config.py",
        "reproduce/stand_in.py",
    }


def test_weights_pull_unknown_name_lists_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "pull", "dino-vits14"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Did you mean 'dinov2-vits14'" in printed.err


@pytest.mark.data
@pytest.mark.usefixtures("dinov2_weights")
def test_weights_pull_json_of_weights_that_are_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "pull", "dinov2-vits14", "--json"]) == 0
    pulled = json.loads(capsys.readouterr().out)
    assert pulled["was_present"] is True
    assert Path(pulled["path"]).is_file()
    assert len(pulled["sha256"]) == 64


def test_weights_describe_prints_both_counts(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="counting needs vitrieve[train]")
    assert main(["weights", "describe", "deit_small_patch16_224.fb_in1k", "--image-size", "384", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["image_size"] == 384
    assert described["num_tokens"] == 1 + 24 * 24
    assert 24.7e9 < described["linear_flops"] < 25e9 < described["flops"]
    assert main(["weights", "describe", "deit_small_patch16_224.fb_in1k"]) == 0
    printed = capsys.readouterr().out
    assert "21.7 M parameters; 8.5 GFLOPs an image at 224 px in linear layers, 9.2 with attention" in printed
    assert "Apache-2.0" in printed


def test_weights_describe_refuses_what_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="counting needs vitrieve[train]")
    assert main(["weights", "describe", "test_vit", "--image-size", "50"]) == 2
    assert "nearest valid: 48 or 64" in capsys.readouterr().err


def test_weights_describe_knows_nothing_of_the_hub(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "describe", "hf:owner/name"]) == 2
    assert "vitrieve weights pull tells its license" in capsys.readouterr().err
