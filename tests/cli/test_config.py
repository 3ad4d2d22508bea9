"""Defaults that are kept in files: which of them counts, what is told, and what is refused."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest

from vitrieve.artifacts import prepare_folder, write_manifest
from vitrieve.cli import main as cli
from vitrieve.cli.defaults import FREE, add_kept, list_keepable, read_file
from vitrieve.cli.duplicates import Arguments as DuplicatesArguments
from vitrieve.cli.embed import Arguments as EmbedArguments
from vitrieve.cli.export import FormatChoice
from vitrieve.cli.fitting import APART, EVERY, ONLY_FOR, ONLY_WITH
from vitrieve.cli.flags import read_flags
from vitrieve.cli.main import COMMANDS, load_command, main
from vitrieve.cli.serve import Arguments as ServeArguments
from vitrieve.cli.train import Arguments as TrainArguments
from vitrieve.cli.up import Arguments as UpArguments
from vitrieve.index.store import SERVERS


@pytest.fixture
def user_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of the user's file, and a folder of work without a project's file."""
    monkeypatch.delenv("VITRIEVE_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    file = tmp_path / "home" / "vitrieve" / "config.toml"
    file.parent.mkdir(parents=True)
    return file


def test_a_flag_wins_over_the_project_the_user_and_every_command(user_file: Path) -> None:
    user_file.write_text('[all]\nengine = "torch"\nprecision = "fp32"\nnum-threads = 1\n[embed]\nnum-threads = 2\n')
    assert add_kept("embed", EmbedArguments, ["--data", "x"])[2:] == [
        *("--num-threads", "2", "--engine", "torch", "--precision", "fp32")
    ]
    Path("vitrieve.toml").write_text('[embed]\nengine = "onnx"\n[all]\nnum_threads = 3\n')
    words = add_kept("embed", EmbedArguments, ["--data", "x", "--precision=int8", "--", "y"])
    assert words == ["--data", "x", "--precision=int8", "--engine", "onnx", "--num-threads", "3", "--", "y"]
    assert (
        add_kept("embed", EmbedArguments, ["--num_threads", "9", "--engine", "auto", "--precision", "fp32"])[6:] == []
    )
    assert add_kept("embed", EmbedArguments, ["--help"]) == ["--help"]


def test_every_kind_of_value(user_file: Path) -> None:
    user_file.write_text(
        "[train]\nreport = false\nseed = 3\nexclude = ['a/', 'b c']\n[train.optimizer]\nlearning-rate = 1\n"
        "[train.objective]\nprefixes = [16, 32]\n"
    )
    assert add_kept("train", TrainArguments, ["small", "--data", "x"])[3:] == [
        *("--no-report", "--seed", "3", "--exclude", "a/", "--exclude", "b c"),
        *("--optimizer.learning-rate", "1", "--objective.prefixes", "16", "32"),
    ]
    assert add_kept("train", TrainArguments, ["small", "--report", "--seed=1", "--exclude", "x"])[5:7] == [
        "--optimizer.learning-rate",
        "1",
    ]


def test_a_command_tells_once_what_it_took(
    user_file: Path, class_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    user_file.write_text("[data.check]\nnum-threads = 1\n")
    assert main(["data", "check", "--data", str(class_folder)]) == 0
    assert capsys.readouterr().err.splitlines()[0] == f"from {user_file}: --num-threads 1"
    assert main(["data", "check", "--data", str(class_folder), "--num-threads", "2", "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("VITRIEVE_CONFIG", "off")
    assert main(["data", "check", "--data", str(class_folder)]) == 0
    assert "from " not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[embed\n", "cannot be read: Expected ']' at the end of a table declaration (at line 1, column 7)"),
        ("[embd]\nk = 1\n", "embd.k begins with no command; the nearest: embed"),
        (
            "[embed]\nbach-size = 1\n",
            "embed.bach-size is no flag of vitrieve embed that can be kept; the nearest: batch-s",
        ),
        ("[embed]\nbatch-size = 'x'\n", "embed.batch-size is 'x'; expected a whole number."),
        ("[embed]\nbatch-size = true\n", "embed.batch-size is True; expected a whole number."),
        ("[embed]\nengine = 'cuda'\n", "embed.engine is 'cuda'; expected one of auto, openvino, onnx, torch."),
        ("[embed]\nscales = 1.0\n", "embed.scales is 1.0; expected a list, each entry a number."),
        ("[embed]\noverwrite = true\n", "embed.overwrite is no flag of vitrieve embed that can be kept"),
        ("[embed]\nout = 'x'\n", "embed.out is no flag of vitrieve embed that can be kept"),
        ("[reproduce]\nnum-steps = 3\n", "reproduce.num-steps: vitrieve reproduce takes no defaults from files."),
        ("[compare]\nout = 'x'\n", "compare.out: vitrieve compare takes no defaults from files."),
        ("embed = 3\n", "embed is no flag; write COMMAND.FLAG, as in embed.batch-size."),
    ],
)
def test_a_wrong_file_is_one_line_that_names_file_and_key(
    user_file: Path, text: str, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    user_file.write_text(text)
    assert main(["embed", "--data", "x", "--encoder", "y", "--out", "z"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {user_file}")
    assert part in line


def test_a_value_out_of_range_is_refused(user_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    user_file.write_text("[train.optimizer]\ndecay-factor = 2.0\n")
    assert main(["train", "small", "--data", "x", "--out", "z"]) == 2
    assert "train.optimizer.decay-factor is 2.0; expected a number in (0, 1]." in capsys.readouterr().err


def test_a_folder_does_not_say_how_a_port_is_opened(user_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "set", "serve.host", "0.0.0.0", "--project"]) == 2
    assert "which lets others in" in capsys.readouterr().err
    assert not Path("vitrieve.toml").exists()
    Path("vitrieve.toml").write_text('[serve]\nhost = "0.0.0.0"\n')
    assert main(["serve", "--index", "x"]) == 2
    assert "which lets others in" in capsys.readouterr().err
    Path("vitrieve.toml").unlink()
    assert main(["config", "set", "serve.port", "9000"]) == 0
    assert add_kept("serve", ServeArguments, ["--index", "x"])[2:] == ["--port", "9000"]


def test_no_token_is_kept(user_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for key in ("serve.token", "serve.write-token"):
        assert main(["config", "set", key, "secret"]) == 2
        assert f"{key} is no flag of vitrieve serve that can be kept" in capsys.readouterr().err
    assert not user_file.exists()
    for name in COMMANDS:
        command, module = load_command(name)
        if (arguments_class := getattr(module, command.arguments, None)) is not None:
            assert not [flag for flag in list_keepable(arguments_class) if flag.endswith("token")]


def test_a_command_without_words_takes_what_is_kept(user_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    user_file.write_text('[serve]\nindex = "gone"\n[data.check]\ndata = "folder:gone"\n[train]\nseed = 3\n')
    for words in (["serve"], ["data", "check"]):
        assert main(words) == 2
        told, error = capsys.readouterr().err.splitlines()
        assert told.startswith(f"from {user_file}: --")
        assert "gone" in error
    assert main(["train"]) == 2
    assert "no recipe was named" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["x"],
        ["--", "x"],
        ["--num-threads", "2", "x"],
        ["--num-threads=2", "x"],
        ["--exclude", "a", "--allow-removals", "x"],
    ],
)
def test_a_collection_on_the_command_line_wins(user_file: Path, words: list[str]) -> None:
    user_file.write_text('[up]\ndata = "kept"\n[all]\nport = 9\n')
    assert "kept" not in add_kept("up", UpArguments, words)
    assert "--port" in add_kept("up", UpArguments, words)
    assert "kept" in add_kept("up", UpArguments, words[:-1])


def test_what_is_kept_for_all_is_for_those_that_take_it(user_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "set", "all.data", "x"]) == 0
    assert main(["config", "set", "all.protocol", "a", "b"]) == 0  # a list, of train and evaluate
    assert add_kept("train", TrainArguments, ["small"]) == ["small", "--protocol", "a", "b"]
    assert add_kept("embed", EmbedArguments, ["--out", "z"]) == ["--out", "z", "--data", "x"]
    assert main(["config", "show"]) == 0
    user_file.write_text("[all]\nbatch-size = 'x'\n")
    capsys.readouterr()
    assert main(["embed", "--data", "x", "--out", "z"]) == 2
    assert "all.batch-size is 'x'; expected a whole number." in capsys.readouterr().err


def test_a_flag_leaves_out_what_is_refused_beside_it(user_file: Path, tmp_path: Path) -> None:
    user_file.write_text('[duplicates]\nhtml = "a"\ncsv = "b"\nmove-to = "c"\nundo-file = "d"\nlevel = "exact"\n')
    assert main(["duplicates", "--undo", str(tmp_path / "gone.json")]) == 2
    assert add_kept("duplicates", DuplicatesArguments, ["--undo", "x"]) == ["--undo", "x", "--level", "exact"]
    assert "--move-to" not in add_kept("duplicates", DuplicatesArguments, ["x", "--link"])
    assert "--move-to" in add_kept("duplicates", DuplicatesArguments, ["x"])
    assert "--undo-file" in add_kept("duplicates", DuplicatesArguments, ["x", "--link"])
    assert "--undo-file" not in add_kept("duplicates", DuplicatesArguments, ["x", "--move-to", "y"])


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ("calibrate", "--data --encoder --exclude --index --num-threads"),
        ("calibrate --embeddings e", "--index --num-threads"),
        ("calibrate --data y", "--encoder --exclude --index --num-threads"),
        ("embed", "--data --encoder --exclude --num-threads --reuse"),
        ("embed --join", "--data --encoder --exclude --num-threads"),
        ("embed --ray a", "--data --encoder --exclude --num-threads --ray-actors"),
        ("evaluate", "--data --encoder --exclude --num-threads"),
        ("evaluate --rerank auto", "--data --encoder --exclude --index --num-threads"),
        ("export", "--encoder"),
        ("export --delta-rank 8", "--data --encoder --exclude"),
        ("export --weights a --delta-rank 8", "--encoder"),
        ("calibrate --data None", "--index --num-threads"),
        ("calibrate --embeddings None", "--data --encoder --exclude --index --num-threads"),
        ("index --embeddings e --out o", ""),
        ("index --verify", "--index"),
    ],
)
def test_what_is_kept_for_all_is_left_out_where_it_would_be_refused(user_file: Path, words: str, left: str) -> None:
    user_file.write_text(
        '[all]\ndata = "d"\nencoder = "e"\nexclude = ["x"]\nindex = "i"\nnum-threads = 2\n'
        '[embed]\nreuse = "r"\nray-actors = 3\n'
    )
    name, *given = words.split()
    command, module = load_command(name)
    added = add_kept(name, getattr(module, command.arguments), given)[len(given) :]
    assert sorted(word for word in added if word.startswith("--")) == left.split()


@pytest.mark.parametrize(
    ("words", "added"),
    [
        ("duplicates pictures", "--exclude --threshold"),
        ("duplicates index", "--threshold"),
        ("duplicates --level exact -- index", ""),
        ("duplicates", "--threshold"),
        ("duplicates --level=exact pictures", "--exclude"),
        ("duplicates table:t.csv", "--threshold"),
        ("evaluate --data pictures", "--exclude"),
        ("evaluate --data emoji", ""),
        ("evaluate", ""),
        ("evaluate --data emoji --distractors pictures", "--exclude"),
        ("evaluate --data emoji --rerank auto", "--index"),
        ("evaluate --data emoji --rerank=k_reciprocal", ""),
        ("evaluate --data emoji --rerank auto --compare e", ""),
        ("evaluate --data grocery:g --rerank auto --protocol zero_shot phone_to_catalogue", ""),
        ("evaluate --data roxford5k:r --rerank auto", ""),
        ("evaluate --data roxford5k:r --rerank auto --protocol hard", "--index"),
        ("train small --data emoji grocery:g", ""),
        ("train small --data emoji pictures", "--exclude"),
        ("up emoji --index new", "--exclude --store --uri"),
        ("up pictures --store lance --index new", "--exclude"),
        ("up pictures --index index", "--exclude"),
        ("up pictures --index index --uri u", "--exclude --store"),
        ("up pictures", "--exclude --index --store --uri"),
        ("sync --data emoji --index new", "--store --uri"),
        ("sync emoji --index index", ""),
        ("sync emoji --index index --uri u", "--store"),
        ("sync emoji --index index --store pgvector", ""),
        ("sync --data pictures --index index", "--exclude"),
        ("embed --data table:t.csv", ""),
        ("embed --data manifest:t.csv", ""),
        ("data check emoji", ""),
        ("data check pictures", "--exclude"),
        ("index --embeddings e", "--store --uri"),
        ("index --embeddings e --store exact", ""),
        ("index --embeddings e --store lance", "--code-bytes --index-kind"),
        ("index --embeddings e --store milvus", "--code-bytes --index-kind --uri"),
        ("index --embeddings e --store lance --index-kind flat", ""),
        ("index --embeddings e --index-kind ivf_pq", "--code-bytes --store --uri"),
        ("index --embeddings e --store lance --uri u", "--code-bytes --index-kind"),
        ("export --encoder e --delta-rank 3", "--data --exclude"),
        ("export --encoder e", "--data --delta-rank --exclude"),
        ("export --encoder e --format coreml", ""),
        ("export --encoder e --image-size 64", ""),
        ("calibrate --data pictures", "--exclude --false-reject-rate --index"),
        ("calibrate --column c --false-accept-rate 0.1", "--index"),
    ],
)
def test_what_is_kept_is_left_out_where_the_values_that_are_asked_for_refuse_it(
    user_file: Path, words: str, added: str
) -> None:
    user_file.write_text(
        '[all]\nexclude = ["x"]\nindex = "kept"\nstore = "pgvector"\nuri = "postgresql://h/d"\n'
        '[duplicates]\nthreshold = 0.9\n[index]\ncode-bytes = 8\nindex-kind = "ivf_pq"\n'
        '[export]\ndelta-rank = 8\ndata = "pictures"\n[calibrate]\ncolumn = "label"\nfalse-reject-rate = 0.1\n'
    )
    Path("pictures").mkdir()
    prepare_folder(Path("index"), kind="index")
    write_manifest(Path("index"), "index", {})
    name, *given = words.split() if not words.startswith("data ") else ["data check", *words.split()[2:]]
    command, module = load_command(name)
    result = add_kept(name, getattr(module, command.arguments), given)
    flags = [word for word in result if word.startswith("--") and word not in given]
    assert sorted(set(flags)) == added.split()


@pytest.mark.parametrize(
    ("kept", "words", "added"),
    [
        ('[duplicates]\nundo-file = "u"\nmove-to = "m"', "duplicates i", "--move-to"),
        ('[duplicates]\nundo-file = "u"\nmove-to = "m"', "duplicates i --link", "--undo-file"),
        ('[duplicates]\nundo-file = "u"', "duplicates --undo u", ""),
        ('[all]\ndata = "d"\n[calibrate]\nembeddings = "e"', "calibrate", "--embeddings"),
        ('[embed]\nray = ["auto"]\nray-actors = 2', "embed --reuse r", ""),
        ('[embed]\nreuse = "r"\nray = ["auto"]', "embed", "--reuse"),
        ("[export]\ndelta-rank = 8\nscales = [1]", "export --weights w", ""),
        ('[serve]\ncollections = "c"', "serve --index i", ""),
        ('[all]\nindex = "i"', "index --embeddings e --out o", ""),
        ('[index]\nstore = "pgvector"\nuri = "u"\nindex-kind = "flat"', "index", "--index-kind --store --uri"),
        ('[index]\nstore = "exact"\nindex-kind = "flat"', "index", "--index-kind --store"),
        ('[index]\nindex-kind = "ivf_rq"\nstore = "exact"', "index", "--store"),
        ('[index]\nstore = "exact"', "index --index-kind ivf_pq", "--store"),
        ('[export]\nformat = "coreml"', "export --delta-rank 8", ""),
        ('[export]\nformat = "coreml"', "export --weights w", ""),
        ('[export]\nformat = "coreml"\ndelta-rank = 8\ndata = "d"', "export", "--format"),
        ('[export]\nformat = "onnx"', "export --delta-rank 8", "--format"),
        ('[export]\ndata = "d"\nweights = "w"', "export", "--weights"),
        ('[export]\ndata = "d"\nweights = "w"\ndelta-rank = 8', "export", "--data --delta-rank"),
        ("[all]\nimage-size = 64\nscales = [1]", "export --delta-rank 8", ""),
        ("[all]\nimage-size = 64\nscales = [1]", "export --weights w", "--image-size"),
        ('[duplicates]\nlevel = "exact"', "duplicates i --threshold 0.9", ""),
        ('[duplicates]\nlevel = "near"', "duplicates i --threshold 0.9", "--level"),
        ('[evaluate]\ncompare = ["e"]', "evaluate --rerank auto --index i", ""),
        ('[evaluate]\ncompare = ["e"]\nindex = "i"', "evaluate --rerank auto", "--compare"),
        ('[evaluate]\nindex = "i"\ncompare = ["e"]', "evaluate", "--compare"),
        ('[all]\nembeddings = "f"', "evaluate --encoder a --compare b", ""),
        ('[all]\nexclude = ["x"]\ndata = "table:t.csv"', "embed", "--data"),
    ],
)
def test_of_two_flags_that_are_refused_together_the_one_that_counts_less_is_left_out(
    user_file: Path, kept: str, words: str, added: str
) -> None:
    user_file.write_text(kept)
    name, *given = words.split()
    command, module = load_command(name)
    result = add_kept(name, getattr(module, command.arguments), given)[len(given) :]
    assert sorted(word for word in result if word.startswith("--")) == added.split()


def test_a_default_that_is_none_of_an_index_is_left_out_and_a_flag_is_refused(
    user_file: Path, picture_folder: Path, tiny_encoder_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    embed = ["embed", "--data", str(picture_folder), "--encoder", str(tiny_encoder_folder), "--out", "embeddings"]
    assert main(embed) == 0
    user_file.write_text('[all]\nexclude = ["x"]\n')
    capsys.readouterr()
    assert main(["duplicates", "embeddings", "--level", "exact"]) == 0
    assert "--exclude" not in capsys.readouterr().err
    assert main(["duplicates", "embeddings", "--level", "exact", "--exclude", "x"]) == 2
    assert "--exclude leaves files out of a folder of pictures" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in {**APART, **ONLY_WITH, **ONLY_FOR} if name != EVERY])
def test_what_is_left_out_are_flags_of_the_command(name: str) -> None:
    command, module = load_command(name)
    flags = {flag.name: flag for flag in read_flags(getattr(module, command.arguments))}
    needed = ONLY_WITH.get(name, {})
    words = {word for one, others in APART.get(name, ()) for word in (one, *others.split())} | {*needed.values()}
    for word in {*words, *needed, *ONLY_FOR.get(name, {})}:
        flag, _, values = word.partition("=")
        assert flag in flags
        assert {*filter(None, values.split(","))} <= set(flags[flag].choices)


def test_values_that_are_written_down_are_those_of_today() -> None:
    assert {ONLY_WITH[name]["--uri"] for name in ("index", "sync", "up")} == {f"--store={','.join(SERVERS)}"}
    others = [one for one in get_args(FormatChoice) if one != "onnx"]
    assert f"--format={','.join(others)}" in dict(APART["export"])


def test_figures_that_are_compared_take_nothing(user_file: Path) -> None:
    user_file.write_text('[all]\ndevice = "cuda"\n')
    for name in FREE:
        command, module = load_command(name)
        assert add_kept(name, getattr(module, command.arguments), ["x"]) == ["x"]


def test_set_show_and_unset_keep_comments_and_order(user_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    user_file.write_text("# mine\n[search]\nk = 5  # few\n")
    for words in (
        ["embed.batch-size", "32"],
        ["train.optimizer.learning-rate", "1e-4"],
        ["train.exclude", "a", "b c"],
        ["data.check.num-threads", "2"],
        ["all.device", "cpu"],
        ["search.k", "7"],
        ["train.report", "false"],
    ):
        assert main(["config", "set", *words]) == 0
    text = user_file.read_text()
    assert text.startswith("# mine\n[search]\nk = 7")
    assert "# few" in text
    assert tomllib.loads(text) == {
        "search": {"k": 7},
        "embed": {"batch-size": 32},
        "train": {"optimizer": {"learning-rate": 1e-4}, "exclude": ["a", "b c"], "report": False},
        "data": {"check": {"num-threads": 2}},
        "all": {"device": "cpu"},
    }
    capsys.readouterr()
    assert main(["config", "show", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["files"] == [str(user_file)]
    assert [str(user_file), "search.k", 7] in shown["kept"]
    assert main(["config", "unset", "search.k"]) == 0
    assert "search" not in {one.split(".")[0] for one in tomllib.loads(user_file.read_text()) if one == "k"}
    assert main(["config", "unset", "search.k"]) == 2
    assert f"{user_file} does not keep search.k." in capsys.readouterr().err
    assert main(["config", "path"]) == 0
    assert capsys.readouterr().out == f"{user_file}\n"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[embed]\nnum_threads = 2\n", "embed.num-threads"),
        ('"embed.num-threads" = 2\n', "embed.num_threads"),
        ("embed = {num_threads = 2}\n", "embed.num_threads"),
        ("embed.num-threads = 2\n", "embed.num_threads"),
        ('["data check"]\nnum-threads = 2\n', "data.check.num-threads"),
        ("[embed]\nnum_threads = 1\nnum-threads = 2\n", "embed.num-threads"),
        ("[embed]\nnum_threads = 1\n[search]\nk = 5\n[embed.x]\ny = 1\n", "embed.num-threads"),
    ],
)
def test_set_and_unset_find_a_flag_however_it_is_spelled(user_file: Path, text: str, key: str) -> None:
    def list_values() -> list[Any]:
        return [one.value for one in read_file(user_file) if one.flag == "num-threads"]

    user_file.write_text(text)
    assert main(["config", "set", key, "4"]) == 0
    assert list_values() == [4]
    user_file.write_text(text)
    assert main(["config", "unset", key]) == 0
    assert list_values() == []
    assert ("k = 5" in text) == ("k = 5" in user_file.read_text())
    assert main(["config", "unset", key]) == 2


def test_one_flag_twice_is_refused(user_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    user_file.write_text("[embed]\nnum_threads = 1\nnum-threads = 2\n")
    assert main(["embed", "--data", "x", "--out", "z"]) == 2
    assert "has one flag twice, as embed.num_threads and as embed.num-threads" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["embed.batch-size", "many"], "expected a whole number."),
        (["embed.batch-size", "3", "4"], "takes one value, not 2."),
        (["embed.batch-sise", "3"], "the nearest: batch-size"),
        (["all.no-such-flag-anywhere", "3"], "is no flag of vitrieve all that can be kept"),
        (["embed.json", "true"], "is no flag of vitrieve embed that can be kept"),
    ],
)
def test_set_refuses_what_no_command_would_take(
    user_file: Path, words: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "set", *words]) == 2
    assert part in capsys.readouterr().err
    assert not user_file.exists()


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in FREE])
def test_what_can_be_kept_can_be_taken_back_on_the_command_line(name: str) -> None:
    command, module = load_command(name)
    for flag in list_keepable(getattr(module, command.arguments)).values():
        assert flag.takes != "nothing" or flag.negation
    assert cli.COMMANDS[name] == command


def test_files_as_other_programs_and_systems_leave_them(user_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user_file.write_bytes(b"\xef\xbb\xbf[embed]\r\nnum-threads = 2\r\n")  # as Windows writes a text
    assert add_kept("embed", EmbedArguments, ["--data", "x"])[2:] == ["--num-threads", "2"]
    kept = user_file.with_name("dotfiles.toml")
    user_file.rename(kept)
    kept.chmod(0o600)
    user_file.symlink_to(kept)
    assert main(["config", "set", "embed.num-threads", "3"]) == 0
    assert user_file.is_symlink()
    assert kept.stat().st_mode & 0o777 == 0o600
    assert tomllib.loads(kept.read_text()) == {"embed": {"num-threads": 3}}
    assert sorted(path.name for path in user_file.parent.iterdir()) == ["config.toml", "dotfiles.toml"]


def test_a_number_in_the_place_of_a_table_is_one_line(user_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text, said in (("embed = 3\n", "embed is 3, where a table"), ("[embed]\noptions = 1\n", "options is 1, where")):
        user_file.write_text(text)
        key = "embed.num-threads" if "options" not in text else "embed.options.num-threads"
        for words in (["config", "set", key, "3"], ["config", "unset", key]):
            main(words)
            told = capsys.readouterr().err
            assert said in told or "no flag" in told
            assert "Traceback" not in told
        assert user_file.read_text() == text


def test_trap_the_home_folder_of_another_user_does_not_stop_every_command(
    user_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``sudo -E`` and containers leave HOME at a folder that this user must not look into."""
    stat = os.stat

    def refuse(path: Any, *words: Any, **options: Any) -> os.stat_result:
        if path == user_file or path == str(user_file):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *words, **options)

    monkeypatch.setattr("os.stat", refuse)
    assert add_kept("embed", EmbedArguments, ["--data", "x"]) == ["--data", "x"]
    monkeypatch.setenv("VITRIEVE_CONFIG", str(user_file))  # what is named must be read
    with pytest.raises(PermissionError):
        add_kept("embed", EmbedArguments, ["--data", "x"])


def test_a_file_that_the_variable_names_must_be_there(
    user_file: Path, class_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "check", "--data", str(class_folder)]
    monkeypatch.setenv("VITRIEVE_CONFIG", str(user_file))
    assert main(words) == 2
    assert main(["config", "show"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("error: ")] == said
    assert all(f"VITRIEVE_CONFIG names {user_file}, which is not there" in line for line in said)
    assert main(["config", "set", "data.check.num-threads", "1"]) == 0  # which makes the file
    assert main(words) == 0
    assert f"from {user_file}: --num-threads 1" in capsys.readouterr().err
    monkeypatch.setenv("VITRIEVE_CONFIG", str(user_file.parent))
    assert main(words) == 2
    assert f"{user_file.parent} cannot be read: Is a directory" in capsys.readouterr().err
    monkeypatch.setenv("VITRIEVE_CONFIG", str(user_file.parent / ("a" * 300)))
    assert main(words) == 2
    assert "which is not there" in capsys.readouterr().err
    for nothing in ("off", "", os.devnull):
        monkeypatch.setenv("VITRIEVE_CONFIG", nothing)
        user_file.unlink(missing_ok=True)
        assert main(words) == 0
