from __future__ import annotations

import json
from pathlib import Path

import pytest

from vitrieve.cli.main import main


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
