from __future__ import annotations

import re

import pytest

from vitrieve.cli.flags import WITHOUT_FLAG, read_flags, read_words
from vitrieve.cli.help_text import read_entry, read_help, run_help
from vitrieve.cli.main import COMMANDS, load_command
from vitrieve.cli.search import Arguments as SearchArguments


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


@pytest.mark.parametrize(
    ("words", "box"),
    [
        ("--box None -k 5 a.jpg", ["None"]),
        ("--box=None -k 5 a.jpg", ["None"]),
        ("-k 5 a.jpg --box None", ["None"]),
        ("--box 0 0 1 .5 -k 5 a.jpg", ["0", "0", "1", ".5"]),
        ("--box=-1 0 1 .5 -k5 a.jpg", ["-1", "0", "1", ".5"]),
    ],
)
def test_a_flag_of_four_values_takes_none_of_the_words_behind_them(words: str, box: list[str]) -> None:
    found = read_words([*read_flags(SearchArguments)], words.split())
    assert found == {"--box": box, "--k": ["5"], WITHOUT_FLAG: ["a.jpg"]}
