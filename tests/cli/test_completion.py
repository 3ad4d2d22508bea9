"""The scripts of ``vitrieve completion``, in the real shells where they are installed."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from vitrieve.cli.main import COMMANDS, main
from vitrieve.recipes import RECIPES

WAIT_SECONDS = 30.0

CASES = (
    ("vitrieve ", {"embed", "data", "weights", "--quiet", "--version"}, {"data check"}),
    ("vitrieve weights ", {"pull", "list", "use", "describe"}, {"embed"}),
    ("vitrieve --quiet data ", {"check", "audit"}, {"list"}),
    ("vitrieve embed --e", {"--encoder", "--exclude", "--engine"}, {"--out"}),
    ("vitrieve embed --encoder x --engine ", {"auto", "openvino", "onnx", "torch"}, {"--engine", "embed"}),
    ("vitrieve data check --nu", {"--num-threads"}, {"--data"}),
    ("vitrieve train ", {"small", "irt_r"}, {"--out"}),
    ("vitrieve train small --objective.k", {"--objective.koleo.weight"}, {"--optimizer.algorithm"}),
    ("vitrieve train small --no-", {"--no-report", "--no-holdout"}, {"--report"}),
    ("vitrieve index --store ", {"lance", "exact", "milvus", "pgvector"}, set()),
    ("vitrieve completion ", {"bash", "zsh", "fish"}, {"embed"}),
)
"""What was typed, what must be offered, and what must not."""


@pytest.fixture(scope="session")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the three scripts."""
    folder = tmp_path_factory.mktemp("completion")
    for shell, name in (("bash", "vitrieve"), ("zsh", "_vitrieve"), ("fish", "vitrieve.fish")):
        with (folder / name).open("w") as file:
            words = [sys.executable, "-m", "vitrieve", "completion", shell]
            subprocess.run(words, stdout=file, check=True)
    return folder


def require(shell: str) -> str:
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"{shell} is not installed")
    return found


def complete_in_bash(script: Path, line: str) -> set[str]:
    """Call the function as bash does, and return COMPREPLY."""
    words = [*shlex.split(line), *([""] if line.endswith(" ") else [])]
    if "=" in words[-1]:  # bash divides a word there
        name, value = words.pop().split("=")
        words += [name, "=", *([value] if value else [])]
    listed = " ".join(map(shlex.quote, words))
    code = f"source {shlex.quote(str(script))}; COMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; _vitrieve"
    code += '; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run([require("bash"), "--norc", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.parametrize(("line", "offered", "other"), CASES)
def test_bash_offers(scripts: Path, line: str, offered: set[str], other: set[str]) -> None:
    found = complete_in_bash(scripts / "vitrieve", line)
    assert offered <= found
    assert not other & found


def test_bash_offers_every_command_recipe_and_flag(scripts: Path) -> None:
    assert complete_in_bash(scripts / "vitrieve", "vitrieve ") >= {name.split()[0] for name in COMMANDS}
    assert complete_in_bash(scripts / "vitrieve", "vitrieve train ") == set(RECIPES)
    assert complete_in_bash(scripts / "vitrieve", "vitrieve embed --engine=") == {"auto", "openvino", "onnx", "torch"}
    assert complete_in_bash(scripts / "vitrieve", "vitrieve embed --engine=o") == {"openvino", "onnx"}
    assert complete_in_bash(scripts / "vitrieve", "vitrieve embed --num-threads ") == set()
    assert complete_in_bash(scripts / "vitrieve", "vitrieve no-such-command ") == set()


@pytest.mark.parametrize(("line", "offered", "other"), CASES)
def test_fish_offers(scripts: Path, tmp_path: Path, line: str, offered: set[str], other: set[str]) -> None:
    code = f"source {shlex.quote(str(scripts / 'vitrieve.fish'))}; complete -C {shlex.quote(line)}"
    if " --" not in line[8:]:  # fish offers flags only where a word begins with a dash
        offered = {word for word in offered if not word.startswith("-")}
    done = subprocess.run(
        [require("fish"), "--no-config", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert done.stderr == ""
    found = {entry.split("\t")[0] for entry in done.stdout.splitlines()}
    assert offered - {"--quiet"} <= found
    assert not other & found


def _strip_codes(text: str) -> str:
    """Leave what a person sees: without codes of the terminal, and without what a backspace took back."""
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]|\x07", "", text)
    while "\x08" in text:
        text = re.sub(r"(?:^|[^\x08])\x08", "", text)
    return text


class Terminal:
    """An interactive shell on a pseudo terminal."""

    def __init__(self, words: Sequence[str], folder: Path) -> None:
        parent, child = pty.openpty()
        environment = {**os.environ, "TERM": "dumb", "HOME": str(folder), "PS1": "> ", "COLUMNS": "200"}
        environment.pop("PROMPT_COMMAND", None)
        self._process = subprocess.Popen(
            words, stdin=child, stdout=child, stderr=child, cwd=folder, env=environment, start_new_session=True
        )
        os.close(child)
        self._parent = parent

    def type(self, text: str, expected: str) -> None:
        """Type, and wait until a text that matches appears."""
        os.write(self._parent, text.encode())
        shown, until = "", time.monotonic() + WAIT_SECONDS
        while not re.search(expected, _strip_codes(shown)):
            assert time.monotonic() < until, shown
            if select.select([self._parent], [], [], 0.1)[0]:
                shown += os.read(self._parent, 65536).decode(errors="replace")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._parent)


def test_a_terminal_with_bash_completes_a_flag_a_value_and_a_file(scripts: Path, tmp_path: Path) -> None:
    (tmp_path / "photographs of mine").mkdir()
    terminal = Terminal([require("bash"), "--norc", "--noprofile", "-i"], tmp_path)
    try:
        terminal.type(f"source {scripts / 'vitrieve'}; echo rea''dy\n", r"ready[^>]*> ")
        terminal.type("vitrieve embed --precision i\t", "--precision int8 ")
        terminal.type("--overw\t", "--overwrite ")
        terminal.type("--data photo\t", r"photographs\\ of\\ mine/")
    finally:
        terminal.close()


def test_a_terminal_with_zsh_completes_a_command_a_flag_a_value_and_a_file(scripts: Path, tmp_path: Path) -> None:
    (tmp_path / "photographs").mkdir()
    terminal = Terminal([require("zsh"), "-f", "-i"], tmp_path)
    try:
        setup = f"unsetopt zle_bracketed_paste; fpath=({scripts} $fpath); autoload -U compinit; compinit -u -D"
        terminal.type(f"{setup}; echo rea''dy\n", r"ready[^>]*> ")
        terminal.type("vitrieve calib\t", "calibrate")
        terminal.type("\x15vitrieve --quiet weights pul\t", "weights pull ")
        terminal.type("\x15vitrieve train irt_r --objective.kol\t", r"--objective\.koleo\.weight")
        terminal.type("\x15vitrieve data check --num-th\t", "--num-threads")
        terminal.type("\x15vitrieve embed --precision i\t", "--precision int8")
        terminal.type("--data photo\t", "photographs/")
    finally:
        terminal.close()


def test_the_script_needs_neither_torch_nor_vitrieve_at_a_key_press(scripts: Path) -> None:
    code = (
        "import sys; from vitrieve.cli.main import main; main(['completion', 'bash']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
    assert "$(vitrieve" not in (scripts / "vitrieve").read_text()


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
