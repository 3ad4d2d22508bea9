from __future__ import annotations

import io
import shlex
import sys
from dataclasses import dataclass

import pytest

from vitrieve.cli.arguments import find_nearest, list_flags, parse_arguments, spell_command
from vitrieve.cli.embed import Arguments as EmbedArguments
from vitrieve.config import Config
from vitrieve.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """For tests."""

    out: str
    """Where to."""
    num_steps: int = 10
    """How many."""
    json: bool = False
    """One object."""


def test_a_command_that_is_spelled_can_be_pasted() -> None:
    words = ["--data", "a b", "--out", "x", "--exclude", "a/", "--exclude", "b/", "--scales", "1.0", "0.5"]
    given = parse_arguments(EmbedArguments, [*words, "--shard", "2/16", "--resume"], "vitrieve embed")
    spelled = shlex.split(spell_command("embed", given))
    assert spelled[:2] == ["vitrieve", "embed"]
    assert parse_arguments(EmbedArguments, spelled[2:], "vitrieve embed") == given


def parse(*words: str) -> Arguments:
    return parse_arguments(Arguments, words, "vitrieve fake")


def test_parse_arguments_reads_flags() -> None:
    assert parse("--out", "x", "--num-steps", "3", "--json") == Arguments(out="x", num_steps=3, json=True)
    assert parse("--out=x", "--no-json") == Arguments(out="x")


def test_parse_arguments_changes_single_fields_of_a_default() -> None:
    default = Config()
    config = parse_arguments(Config, ["--objective.koleo.weight", "0.3"], "vitrieve train small", default)
    assert config.objective.koleo.weight == 0.3
    assert config.model == default.model


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (["--out", "x", "--num-step", "3"], "--num-steps"),
        (["--output", "x"], "--out"),
        (["--out", "x", "--no-such-field=3"], "--no-json"),
    ],
)
def test_parse_arguments_names_the_nearest_flags(words: list[str], nearest: str) -> None:
    with pytest.raises(ConfigError, match="unknown flag") as caught:
        parse(*words)
    assert nearest in str(caught.value)
    assert "vitrieve fake --help" in str(caught.value)


def test_parse_arguments_finds_a_dotted_flag_by_its_last_part() -> None:
    with pytest.raises(ConfigError, match=r"the nearest valid ones: --objective\.koleo\.weight"):
        parse_arguments(Config, ["--koleo-weight", "1"], "vitrieve train small", Config())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--out", "x", "--num-steps", "many"], "parsing --num-steps: invalid literal for int() with base 10: 'many'."),
        ([], "Missing from vitrieve fake: --out STR Where to. (required)."),
        (["--out", "x", "stray"], "Unrecognized options: stray."),
    ],
)
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_parse_arguments_explains_other_mistakes_in_one_line(
    words: list[str], expected: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    with pytest.raises(ConfigError) as caught:
        parse(*words)
    assert str(caught.value).endswith(f"{expected} See: vitrieve fake --help")
    assert "\n" not in str(caught.value)


def test_parse_arguments_help_goes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    printed = capsys.readouterr()
    assert "How many." in printed.out
    assert printed.err == ""


@pytest.mark.parametrize("columns", ["40", "200"])
def test_list_flags_does_not_depend_on_the_terminal(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    default = Config()
    flags = list_flags(Config, "vitrieve train small", default)
    assert "--objective.contrastive.no-mean-nonzero" in flags
    assert "--train.checkpoint-every" in flags


def test_find_nearest_is_never_empty() -> None:
    assert find_nearest("--zzz", ["--out"]) == ["--out"]
    assert find_nearest("--zzz", []) == []
