"""How much commands tell, to a terminal, a pipe and a notebook; and their exit statuses."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from vitrieve.cli import main as cli
from vitrieve.cli.verbosity import FLAGS

ENTRY = (sys.executable, "-m", "vitrieve")
TALK = """
import sys, time, types, warnings
from vitrieve.cli import main as cli
from vitrieve.cli.console import print_failure, print_message, print_result
from vitrieve.errors import DataError
from vitrieve.progress import track

def talk(argv, prog):
    import os
    from tqdm import tqdm
    print("a library prints")
    os.system("echo a child prints")
    warnings.warn("a library warns")
    print_message("a sentence")
    print_failure("a failure")
    for _ in tqdm(range(3), desc="bar of a library"):
        pass
    for _ in track(range(30), "work", total=30):
        time.sleep(0.01)
    print_result("the result")
    if argv:
        raise DataError(argv[0])
    return 0

module = types.ModuleType("vitrieve_talk")
module.main = talk
sys.modules["vitrieve_talk"] = module
cli.COMMANDS["talk"] = cli.Command("vitrieve_talk", "for tests")
sys.exit(cli.main(sys.argv[1:]))
"""
TALKING = (sys.executable, "-c", TALK, "talk")
WAIT = """
import os, sys
from pathlib import Path
from vitrieve.progress import track
from vitrieve.training.metrics_log import MetricsLog

def wait():
    os.write(1, b"begun\\n")
    sys.stdin.readline()

def embed():
    for number in track(range(3), "work", total=3):
        if number == 1:
            wait()

def train():
    with MetricsLog(Path(sys.argv[2]), start_step=0, num_steps=2) as log:
        log.show(1, {"loss": 1.0})
        wait()
        log.say("a sentence")
        list(log.track(iter(range(3)), "measure", 3))
        log.show(2, {"loss": 0.5})

globals()[sys.argv[1]]()
os.write(1, b"the result\\n")
"""
CONTROL = re.compile(r"\x1b|\r(?!\n)|\x08")


def plain_environment(**variables: str) -> dict[str, str]:
    """The environment of this process without what decides how output looks."""
    names = ("NO_COLOR", "FORCE_COLOR", "CI", "TERM", "COLUMNS", "TQDM_DISABLE", *(name for name, _ in FLAGS.values()))
    return {name: value for name, value in os.environ.items() if name not in names} | {"TERM": "xterm"} | variables


def run_on_terminal(words: Sequence[str], variables: Mapping[str, str] | None = None) -> str:
    """Run a program on a pseudo terminal, and return all that it shows there."""
    parent, child = pty.openpty()
    with subprocess.Popen(words, stdin=child, stdout=child, stderr=child, env=plain_environment(**(variables or {}))):
        os.close(child)
        shown = b""
        while True:
            try:
                part = os.read(parent, 65536)
            except OSError:  # on Linux the end of a terminal is an error
                break
            if not part:
                break
            shown += part
    os.close(parent)
    return shown.decode().replace("\r\n", "\n")


def run_in_pipe(words: Sequence[str], **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, check=False, env=plain_environment(**variables))


def test_a_terminal_gets_colors_and_bars() -> None:
    assert "\x1b[" in run_on_terminal([*ENTRY, "doctor", "--help"])
    shown = run_on_terminal(TALKING)
    assert "\x1b[" in shown
    assert "30/30" in shown


def test_no_color_leaves_no_code_on_a_terminal() -> None:
    assert not CONTROL.search(run_on_terminal([*ENTRY, "doctor", "--help"], {"NO_COLOR": "1"}))
    shown = run_on_terminal(TALKING, {"NO_COLOR": "1"})
    assert "\x1b" not in shown
    assert "\rwork: 30/30" in shown  # a bar all the same


@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"CI": "true"}])
def test_a_dumb_terminal_and_a_job_of_ci_get_lines(variables: Mapping[str, str]) -> None:
    shown = run_on_terminal(TALKING, variables)
    assert not CONTROL.search(shown)
    assert "work: 30/30, " in shown


@pytest.mark.parametrize("variables", [{}, {"FORCE_COLOR": "1"}, {"CI": "true"}])
def test_a_pipe_gets_lines_without_codes(variables: dict[str, str]) -> None:
    done = run_in_pipe(TALKING, **variables)
    assert done.stdout == "the result\n"
    assert not CONTROL.search(done.stderr)
    assert done.stderr.splitlines()[-1].startswith("work: 30/30, ")
    assert not CONTROL.search(run_in_pipe([*ENTRY, "train", "small", "--help"], **variables).stdout)


def test_a_log_that_cannot_be_written_does_not_end_the_work() -> None:
    reading, broken = os.pipe()
    os.close(reading)
    full = os.open("/dev/full", os.O_WRONLY)
    words = [sys.executable, "-c", TALK.replace('print("a library prints")', ""), "talk"]
    for log in (broken, full):
        done = subprocess.run(
            words, stdout=subprocess.PIPE, stderr=log, text=True, check=False, env=plain_environment()
        )
        os.close(log)
        assert (done.returncode, done.stdout) == (0, "the result\n")


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}])
@pytest.mark.parametrize("work", ["embed", "train"])
def test_a_terminal_that_goes_does_not_end_the_work(work: str, variables: dict[str, str], tmp_path: Path) -> None:
    parent, child = pty.openpty()
    words, environment = [sys.executable, "-c", WAIT, work, str(tmp_path)], plain_environment(**variables)
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=child, env=environment
    ) as process:
        os.close(child)
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        os.close(parent)
        assert process.communicate(b"\n", timeout=60)[0] == b"the result\n"
    assert process.returncode == 0


def test_quiet_leaves_results_and_failures() -> None:
    for done in (
        run_in_pipe([*TALKING, "--quiet"]),
        run_in_pipe([*TALKING[:-1], "--quiet", "talk"]),
        run_in_pipe(TALKING, VITRIEVE_QUIET="1"),
    ):
        assert done.returncode == 0
        assert done.stdout == "the result\n"
        assert done.stderr == "a failure\n"
    assert run_on_terminal([*TALKING, "--quiet"]) == "a failure\nthe result\n"
    done = run_in_pipe([*TALKING, "nothing is here.", "--quiet"])
    assert (done.returncode, done.stderr) == (2, "a failure\nerror: nothing is here.\n")
    assert "Traceback" in run_in_pipe([*TALKING, "nothing is here.", "--quiet", "--debug"]).stderr


def test_verbose_stamps_messages_and_ends_with_time_and_memory() -> None:
    for done in (run_in_pipe([*TALKING, "--verbose"]), run_in_pipe(TALKING, VITRIEVE_VERBOSE="1")):
        assert done.stdout == "the result\n"
        lines = done.stderr.splitlines()
        assert re.fullmatch(r"\[ +\d+\.\d s\] vitrieve \S+, Python 3\.\S+ on \S+, \d+ cores", lines[0])
        assert any(re.fullmatch(r"\[ +\d+\.\d s\] a sentence", line) for line in lines)
        assert re.match(r"\[ +\d+\.\d s\] took \d+\.\d s", lines[-1])
    assert "took" in run_in_pipe([*TALKING, "--verbose"], VITRIEVE_QUIET="1").stderr


def test_quiet_and_verbose_contradict_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--quiet", "--verbose"]) == 2
    assert capsys.readouterr().err == "error: --quiet and --verbose contradict each other; give one.\n"


def test_flags_of_every_command_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, _ in FLAGS.values():
        monkeypatch.delenv(variable, raising=False)
    before = dict(os.environ)
    assert cli.main(["--version", "--quiet", "--debug"]) == 0
    assert dict(os.environ) == before


def test_exit_statuses(tmp_path: Path) -> None:
    """Those of the page that explains them; test_main.py has the interrupted ones."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "broken.jpg").write_bytes(b"no picture")
    assert run_in_pipe([*ENTRY, "--version"]).returncode == 0
    assert run_in_pipe([*ENTRY, "data", "check", "--data", str(tmp_path)]).returncode == 1
    assert run_in_pipe([*ENTRY, "data", "check", "--data", str(tmp_path / "none")]).returncode == 2
    assert run_in_pipe([*ENTRY]).returncode == 2


NOTEBOOK = """
from vitrieve.progress import track
for _ in track(range(3), "embed <b>", total=3):
    pass
"""


def test_a_notebook_gets_a_bar_that_is_updated() -> None:
    manager = pytest.importorskip("jupyter_client.manager", reason="needs ipykernel")
    pytest.importorskip("ipykernel", reason="needs ipykernel")
    kernel, client = manager.start_new_kernel(kernel_name="python3")
    try:
        messages: list[tuple[str, dict[str, object]]] = []
        client.execute_interactive(
            NOTEBOOK, timeout=60, output_hook=lambda message: messages.append((message["msg_type"], message["content"]))
        )
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
    shown = [content["data"]["text/html"] for kind, content in messages if kind.endswith("display_data")]  # type: ignore[index]
    assert [kind for kind, _ in messages if kind == "stream"] == []
    assert '<progress value="3" max="3"></progress> embed &lt;b&gt;: 3/3' in shown[-1]
    assert len({content["transient"]["display_id"] for _, content in messages if "transient" in content}) == 1  # type: ignore[index]
