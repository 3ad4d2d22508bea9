from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import types
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from vitrieve import __version__
from vitrieve.cli import console, failures
from vitrieve.cli import main as cli
from vitrieve.cli.main import Command
from vitrieve.errors import DataError, NonFiniteLossError

ENTRY = [sys.executable, "-m", "vitrieve"]
IN_ORDER = [
    "doctor",
    "data check",
    "data audit",
    "data pack",
    "data describe",
    "weights list",
    "weights pull",
    "weights use",
    "weights describe",
    "train",
    "runs",
    "evaluate",
    "compare",
    "reduce",
    "adapt",
    "align",
    "reproduce",
    "export",
    "quantize",
    "push",
    "pull",
    "embed",
    "index",
    "sync",
    "up",
    "calibrate",
    "duplicates",
    "map",
    "search",
    "explain",
    "serve",
    "feedback",
    "mcp",
    "config show",
    "config set",
    "config unset",
    "config path",
    "completion",
]


def run_vitrieve(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*ENTRY, *words], capture_output=True, text=True, check=False)


def install(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    """Put a command ``fake`` into the table, whose module's ``main`` is ``run``."""
    module = types.ModuleType("vitrieve_fake_command")
    vars(module)["main"] = run
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.COMMANDS, "fake", Command(module.__name__, "for tests"))


def raising(error: BaseException) -> Any:
    def run(argv: list[str], prog: str) -> int:
        raise error

    return run


def test_help_lists_the_commands_in_the_order_of_the_pipeline(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr()
    lines = [line.strip() for line in printed.out.splitlines() if line.startswith("  ")]
    assert [line.split("  ")[0] for line in lines] == IN_ORDER
    assert printed.err == ""


def test_help_needs_neither_torch_nor_numpy() -> None:
    script = (
        "import sys; from vitrieve.cli.main import main; main(['--help']); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'timm', 'numpy', 'tyro')))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0


def test_version() -> None:
    assert run_vitrieve("--version").stdout == f"vitrieve {__version__}\n"


def test_no_command_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "usage:" in printed.err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["serch"], "Did you mean 'search'"),
        (["weights", "pul"], "Did you mean 'weights pull'"),
        (["--no-such"], "unknown command '--no-such'"),
    ],
)
def test_unknown_command_names_the_nearest(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    printed = capsys.readouterr()
    assert part in printed.err
    assert len(printed.err.splitlines()) == 1
    assert printed.out == ""


def test_a_group_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["weights"]) == 2
    assert "weights pull" in capsys.readouterr().err
    assert cli.main(["weights", "--help"]) == 0
    assert "weights pull" in capsys.readouterr().out


@pytest.mark.parametrize("name", IN_ORDER)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*name.split(), "--help"]) == 0
    assert f"usage: vitrieve {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name in IN_ORDER if name != "train"])
def test_every_command_refuses_an_unknown_flag(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*name.split(), "--no-such-field", "3"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: unknown flag '--no-such-field'; the nearest valid ones: --")
    assert len(printed.err.splitlines()) == 1


@pytest.mark.parametrize("name", IN_ORDER)
def test_every_summary_fits_a_line(name: str) -> None:
    assert len(cli.COMMANDS[name].summary) < 80


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (DataError("the folder is empty."), 2, "error: the folder is empty.\n"),
        (NonFiniteLossError("koleo is NaN at step 3."), 1, "error: koleo is NaN at step 3.\n"),
        (
            OSError(28, "No space left on device", "out/vectors.npy"),
            2,
            "error: out/vectors.npy cannot be written: the disk is full; ",
        ),
        (PermissionError(13, "Permission denied", "out"), 2, "error: out: Permission denied.\n"),
        (SystemExit(2), 2, ""),
        (SystemExit(0), 0, ""),
    ],
)
def test_main_turns_errors_into_one_message(
    error: BaseException,
    status: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install(monkeypatch, raising(error))
    assert cli.main(["fake"]) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(message)
    assert printed.err.splitlines()[1:] == []


def test_main_names_the_package_that_an_extra_would_bring(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, raising(ModuleNotFoundError("No module named 'torch'", name="torch")))
    assert cli.main(["fake"]) == 2
    assert capsys.readouterr().err.startswith("error: this needs the package 'torch'")
    install(monkeypatch, raising(ModuleNotFoundError("No module named 'vitrieve.oops'", name="vitrieve.oops")))
    assert cli.main(["fake"]) == 3


def test_results_spell_a_name_that_is_no_text() -> None:
    script = (
        "from vitrieve.cli.console import print_json; from vitrieve.cli.console import spell_every_name; "
        "spell_every_name(); "
        "print_json({'path': 'caf\\udce9.jpg'})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"path": "caf\udce9.jpg"}


def test_main_says_of_a_fault_of_ours_that_it_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, raising(ZeroDivisionError("by\nnothing")))
    assert cli.main(["fake"]) == 3
    printed = capsys.readouterr().err
    assert printed.startswith("error: a fault of vitrieve, not of yours: ZeroDivisionError: by\\nnothing (test_main.py")
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), DataError("the folder is empty."), OSError(28, "full")])
@pytest.mark.parametrize("way", ["flag first", "flag last", "variable"])
def test_main_shows_the_traceback_to_those_who_ask(
    error: Exception, way: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, raising(error))
    status = cli.main(["fake"])
    assert "Traceback" not in capsys.readouterr().err
    if way == "variable":
        monkeypatch.setenv("VITRIEVE_DEBUG", "1")
    words = {"flag first": ["--debug", "fake"], "flag last": ["fake", "--debug"], "variable": ["fake"]}[way]
    assert cli.main(words) == status
    printed = capsys.readouterr().err
    assert "Traceback (most recent call last):\n" in printed
    assert printed.splitlines()[-1].startswith("error: ")


def test_main_leaves_a_word_after_the_dashes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    install(monkeypatch, lambda argv, prog: seen.append(argv) or 0)
    assert cli.main(["fake", "--debug", "--", "--debug"]) == 0
    assert seen == [["--", "--debug"]]


def test_a_full_disk_behind_a_foreign_error_is_none_of_our_faults(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, raising(RuntimeError("LanceError(IO): No space left on device (os error 28), /build/io.rs:1")))
    assert cli.main(["fake"]) == 2
    assert capsys.readouterr().err == "error: the disk is full; free some space.\n"


def test_results_that_cannot_be_written_are_one_message() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*ENTRY, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: the disk is full; free some space.\n"


def test_nothing_that_is_printed_breaks_out_of_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\nerror: forged\x1b[2J\x9b\x7f\u202egpj.exe\udcff\u2028.png"
    spelled = "a\\nerror: forged\\u001b[2J\\u009b\\u007f\\u202egpj.exe\\udcff\\u2028.png"
    console.print_error(name)
    console.print_message(name)
    console.print_result(name)
    console.print_json({"name": name})
    printed = capsys.readouterr()
    assert printed.err == f"error: {spelled}\n{spelled}\n"
    first, *rest = printed.out.split("\n")
    assert first == spelled
    assert json.loads("\n".join(rest)) == {"name": name}
    assert (printed.out + printed.err).replace("\n", "").isprintable()


def test_sigterm_ends_a_command_as_ctrl_c_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(argv: list[str], prog: str) -> int:
        signal.raise_signal(signal.SIGTERM)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    install(monkeypatch, run)
    assert cli.main(["fake"]) == 143
    assert capsys.readouterr().err == "interrupted.\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_sigterm_that_some_code_drops_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: list[str], prog: str) -> int:
        with suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)
        threading.Event().wait(60)
        return 0

    before = signal.getsignal(signal.SIGALRM)
    monkeypatch.setattr(failures, "REMINDER_SECONDS", 0.01)
    install(monkeypatch, run)
    assert cli.main(["fake"]) == 143
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_no_reminder_of_a_sigterm_disturbs_the_cleaning_up(monkeypatch: pytest.MonkeyPatch) -> None:
    num_reminders, is_clean, is_ending = 0, False, failures._is_ending

    def count(error: BaseException | None) -> bool:
        nonlocal num_reminders
        num_reminders += 1
        return is_ending(error)

    def run(argv: list[str], prog: str) -> int:
        nonlocal is_clean
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            try:
                raise OSError  # what it meets on the way is another error
            except OSError:
                while num_reminders < 3:
                    signal.pause()
            is_clean = True
        return 0

    monkeypatch.setattr(failures, "REMINDER_SECONDS", 0.01)
    monkeypatch.setattr(failures, "_is_ending", count)
    install(monkeypatch, run)
    assert cli.main(["fake"]) == 143
    assert is_clean


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"is_resumable": True}, "run the same command with --resume to go on."),
        ({"is_repeatable": True}, "run the same command to go on."),
        ({}, "interrupted."),
    ],
)
def test_main_says_how_to_go_on_after_an_interruption(
    settings: dict[str, bool], part: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, raising(KeyboardInterrupt()))
    command = Command(cli.COMMANDS["fake"].module, "for tests", **settings)
    monkeypatch.setitem(cli.COMMANDS, "fake", command)
    assert cli.main(["fake"]) == 130
    message = capsys.readouterr().err
    assert part in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("name", IN_ORDER)
def test_a_command_is_repeatable_when_it_syncs(name: str) -> None:
    assert cli.COMMANDS[name].is_repeatable == (name in ("sync", "up"))


@pytest.mark.parametrize("name", IN_ORDER)
def test_a_command_is_resumable_when_it_has_the_flag(name: str) -> None:
    command = cli.COMMANDS[name]
    arguments = getattr(importlib.import_module(command.module), command.arguments)
    assert command.is_resumable == hasattr(arguments, "resume")


def test_main_passes_words_and_status(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def run(argv: list[str], prog: str) -> int:
        seen.append((argv, prog))
        return 1

    install(monkeypatch, run)
    assert cli.main(["fake", "small", "--out", "x"]) == 1
    assert seen == [(["small", "--out", "x"], "vitrieve fake")]


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    script = f"{sys.executable} -m vitrieve doctor --json | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["{", "0"]
    assert done.stderr == ""


def test_another_pipe_that_breaks_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, raising(BrokenPipeError(32, "Broken pipe")))
    assert cli.main(["fake"]) == 2
    assert capsys.readouterr().err == "error: Broken pipe.\n"


def test_a_reader_that_leaves_the_help_is_no_error() -> None:
    reading, broken = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*ENTRY, "train", "small", "--help"], stdout=broken, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(broken)
    assert (done.returncode, done.stderr) == (0, "")


def test_nobody_is_asked_without_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)  # as ``<&-`` and pythonw leave it
    assert not console.ask("remove all?")


def test_results_go_to_standard_output_alone() -> None:
    done = run_vitrieve("doctor", "--json")
    assert done.returncode in (0, 1)
    assert json.loads(done.stdout)["versions"]["vitrieve"] == __version__
    assert done.stderr == ""


NOISY = """
import ctypes, os, subprocess, sys
from vitrieve.cli import main as cli
from vitrieve.cli.main import Command
from vitrieve.cli.console import print_json, print_result

class noisy:
    @staticmethod
    def main(argv, prog):
        print("a library prints")
        os.write(1, b"C code prints\\n")
        ctypes.CDLL(None).puts(b"C code prints into a buffer")
        ctypes.CDLL(None).fflush(None)
        subprocess.run(["echo", "a child prints"], check=True)
        print_json({"is_result": True})
        return 0

sys.modules["vitrieve_noisy"] = noisy
cli.COMMANDS["noisy"] = Command("vitrieve_noisy", "for tests")
status = cli.main(["noisy"])
print("afterwards")
sys.exit(status)
"""


def test_what_a_library_prints_goes_to_standard_error() -> None:
    done = subprocess.run([sys.executable, "-c", NOISY], capture_output=True, text=True, check=True)
    result, _, rest = done.stdout.partition("}\n")
    assert json.loads(result + "}") == {"is_result": True}
    assert rest == "afterwards\n"
    assert set(done.stderr.splitlines()) == {
        "a library prints",
        "C code prints",
        "C code prints into a buffer",
        "a child prints",
    }


NOISY_WITHOUT_READER = """
import sys
from vitrieve.cli import main as cli
from vitrieve.cli.main import Command
from vitrieve.cli.console import print_message, print_result

class noisy:
    @staticmethod
    def main(argv, prog):
        for number in range(3):
            print("a library prints", file=sys.stderr, flush=True)
            print("and takes the usual stream")
            sys.stderr.write("without an end")
        print_message("and so do we")
        print_result("done")
        return 0

sys.modules["vitrieve_noisy"] = noisy
cli.COMMANDS["noisy"] = Command("vitrieve_noisy", "for tests")
sys.exit(cli.main(["noisy"]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a pipe breaks in another way there")
def test_a_library_may_tell_what_nobody_reads() -> None:
    reading, broken = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", NOISY_WITHOUT_READER]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=broken, text=True, check=False)
    os.close(broken)
    assert (done.returncode, done.stdout) == (0, "done\n")


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "1>&- 2>&-"])
def test_main_runs_with_closed_descriptors(closed: str) -> None:
    script = f"{sys.executable} -m vitrieve --version {closed}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout == ("" if "1>" in closed else f"vitrieve {__version__}\n")
    assert done.stderr == ""


def test_an_old_name_of_a_command_is_taken_with_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["quantise", "--help"]) == 0
    captured = capsys.readouterr()
    assert "the command quantise is called quantize now." in captured.err
    assert "usage: vitrieve quantize" in captured.out


def test_old_names_of_flags_are_taken_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "missing")
    assert cli.main(["embed", "--encoder", missing, f"--images={missing}", "--out", str(tmp_path / "out")]) == 2
    assert "--images of embed is called --data now." in capsys.readouterr().err
    assert cli.main(["sync", missing, "--index", str(tmp_path / "index")]) == 2
    assert f"the collection is named with --data now: --data {missing}" in capsys.readouterr().err
    assert cli.main(["index", "--verify", "--out", missing]) == 2
    assert f"--verify --index {missing}" in capsys.readouterr().err
    assert cli.main(["data", "check", missing, "--data", missing]) == 2
    assert "name the collection once" in capsys.readouterr().err


@pytest.mark.parametrize("seed", ["-1", "4294967296"])
def test_seeds_that_are_none_are_refused_at_once(
    seed: str, class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--data", str(class_folder)]
    for words in (
        ["map", "--index", "x"],
        ["quantize", "--encoder", "x", *given],
        ["adapt", "--embeddings", "x", *given, "--out", str(tmp_path / "out")],
        ["align", "--encoder", "x", *given, "--text-column", "name", "--out", str(tmp_path / "out")],
    ):
        assert cli.main([*words, "--seed", seed]) == 2
        assert f"the seed is {seed}; expected a whole number" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
