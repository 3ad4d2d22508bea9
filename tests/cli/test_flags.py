from __future__ import annotations

import re

import pytest

from vitrieve.cli.flags import read_flags
from vitrieve.cli.help_text import read_entry, read_help, run_help
from vitrieve.cli.main import COMMANDS, load_command


@pytest.mark.parametrize("name", COMMANDS)
def test_flags_are_those_of_the_help_text(name: str) -> None:
    command, module = load_command(name)
    flags = [flag for flag in read_flags(getattr(module, command.arguments)) if not flag.is_positional]
    _, _, boxes = read_help(run_help(name.split() + (["small"] if name == "train" else [])))
    told = [read_entry(entry).spelling for box in boxes for entry in box.flags]
    in_help = {word for entry in told for word in re.findall(r"(?<![\w-])--?[a-z0][\w.-]*", entry)} - {"-h", "--help"}
    assert {word for flag in flags for word in flag.spellings} == in_help
    for flag in flags:
        (entry,) = [entry for entry in told if flag.name in re.split(r"[ ,]+", entry)]
        if flag.choices:
            assert "{" in entry
        assert (flag.takes == "nothing") == (re.sub(r"--?[\w.-]+,? ?", "", entry) == "")


@pytest.mark.parametrize("name", COMMANDS)
def test_no_default_in_the_help_is_blank(name: str) -> None:
    text = " ".join(line.strip("│ ") for line in run_help(name.split() + ["small"] * (name == "train")).splitlines())
    assert not re.findall(r"\S+ \S+ \(default: ?(?:\(\)|\[\])?\)", text)
