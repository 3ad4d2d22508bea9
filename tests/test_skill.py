"""``docs/SKILL.md``, for coding agents: its commands, flags and shapes are the real ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from vitrieve.cli.flags import read_flags
from vitrieve.cli.main import COMMANDS, load_command, main

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "SKILL.md").read_text(encoding="utf-8")


def test_its_commands_and_flags_exist() -> None:
    lines = [line for line in TEXT.splitlines() if line.startswith("vitrieve ")]
    assert len(lines) > 5
    for line in lines:
        name = next(name for name in COMMANDS if line.startswith(f"vitrieve {name} "))
        command, module = load_command(name)
        known = {word for flag in read_flags(getattr(module, command.arguments)) for word in flag.spellings}
        assert set(re.findall(r"(?<= )--?[a-z][\w-]*", line)) <= known, line


def test_its_shapes_are_those_of_the_answers(
    tiny_encoder_folder: Path, class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes = {name: set(re.findall(r"`(\w+)`", rest)) for name, rest in re.findall(r"^- `(\w+)`: (.*)", TEXT, re.M)}
    out, index = str(tmp_path / "embeddings"), str(tmp_path / "index")
    assert (
        main(["embed", "--encoder", str(tiny_encoder_folder), "--data", str(class_folder), "--out", out, "--json"]) == 0
    )
    assert shapes["embed"] == set(json.loads(capsys.readouterr().out))
    assert main(["index", "--embeddings", out, "--out", index, "--json"]) == 0
    assert shapes["index"] == set(json.loads(capsys.readouterr().out))
    main(["doctor", "--json"])
    assert shapes["doctor"] <= set(json.loads(capsys.readouterr().out))
