"""Embedding on Ray. What starts Ray takes half a minute and runs with VITRIEVE_LONG_TESTS=1 (make test-all)."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.embed.test_job_array import assert_same_files
from vitrieve.cli.main import main
from vitrieve.data.sources import read_collection
from vitrieve.embed.collection import EmbedSettings, embed_collection
from vitrieve.embed.on_ray import RaySettings, _connected, _Crew, _cut_tasks, _cut_window, embed_on_ray
from vitrieve.embed.unfinished import num_parts, records_of_part
from vitrieve.errors import ClusterError, ConfigError
from vitrieve.runtime.encoder import Encoder, load_encoder

IS_LONG = os.environ.get("VITRIEVE_LONG_TESTS") == "1"
starts_ray = [
    pytest.mark.slow,
    pytest.mark.skipif(not IS_LONG, reason="starts Ray: VITRIEVE_LONG_TESTS=1 (make test-all)"),
    pytest.mark.skipif(find_spec("ray") is None, reason="needs vitrieve[ray]"),
]
NUM_IMAGES = 9 * 256 + 12
ALLOWED = ("--max-bad-fraction", "0.5")


# Without Ray


def test_a_window_stands_for_the_records_of_its_parts(picture_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitrieve.embed.unfinished.PART_SIZE", 5)
    records = read_collection(str(picture_folder)).records
    for task in _cut_tasks(range(num_parts(len(records))), 2):
        window = _cut_window(records, task)
        assert len(window) == 12
        for number in task:
            assert tuple(records_of_part(window, number)) == records_of_part(records, number)
        assert window[task.start * 5] == records[task.start * 5]
        assert len(window.records) == len(records[task.start * 5 : task.stop * 5])


def test_without_ray_the_message_says_how_to_install_it(
    picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'vitrieve\[ray\]'"):
        embed_on_ray(lambda: None, read_collection(str(picture_folder)), tmp_path / "out")  # type: ignore[arg-type,return-value]
    assert not (tmp_path / "out").exists()


def test_the_command_without_ray_tells_it_and_begins_nothing(
    tiny_encoder_folder: Path,
    picture_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ["embed", "--encoder", tiny_encoder_folder, "--data", picture_folder, "--out", tmp_path / "out", "--ray"]
    assert main(list(map(str, words))) == 2
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "pip install 'vitrieve[ray]'" in message
    assert sorted(path.name for path in tmp_path.iterdir() if "out" in path.name) == []


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "[::1]:{port}", "127.0.0.1:99999"])
def test_trap_an_address_where_nothing_listens_is_told_at_once(address: str) -> None:
    """Ray itself tries such an address for a quarter of an hour."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # and does not listen
        given = address.format(port=listener.getsockname()[1])
        ray = SimpleNamespace(is_initialized=lambda: False, init=lambda *_, **__: pytest.fail("Ray was asked"))
        with (
            pytest.raises(ClusterError, match=rf"Ray cannot be reached at {re.escape(given)}: "),
            _connected(ray, RaySettings(address=given)),
        ):
            pass


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--ray", "--shard", "1/2"], "leave out --shard"),
        (["--ray", "--reuse", "x"], "leave out --shard, --join and --reuse"),
        (["--ray", "a:1", "b:2"], "one address or none"),
        (["--ray-actors", "2"], "give --ray too"),
        (["--ray", "--ray-actors", "0"], "num_actors is 0"),
    ],
)
def test_flags_that_do_not_belong_together(
    words: list[str], reason: str, picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--encoder", "x", "--data", picture_folder, "--out", tmp_path / "out", *words]
    assert main(["embed", *map(str, given)]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


class FullCluster:
    """A Ray on which no actor ever starts."""

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    available_resources = cluster_resources

    def remote(self, **resources: float) -> Any:
        assert resources == {"num_cpus": 3, "num_gpus": 0}
        never = SimpleNamespace(remote=object)
        return lambda worker: SimpleNamespace(remote=lambda *given: SimpleNamespace(start=never))

    def wait(self, pending: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        return [], pending


def test_a_cluster_without_room_ends_with_what_is_needed_and_what_is_free() -> None:
    settings = RaySettings(num_cpus=3, patience_seconds=0)
    crew = _Crew(FullCluster(), lambda: None, settings, EmbedSettings())  # type: ignore[arg-type,return-value]
    message = r"no progress for 0 s: 0 of 1 actors have started, each of which needs 3 CPUs; 2 of 2 CPUs are free"
    with pytest.raises(ClusterError, match=message):
        crew.start()


# On Ray


@pytest.fixture
def pictures(picture_folder: Path) -> Path:
    """As many pictures as ten parts have, two of which cannot be read."""
    for number in range(12, NUM_IMAGES):
        os.link(picture_folder / f"{number % 12:02}.png", picture_folder / f"{number:05}.png")
    for name in ("00500.png", "00777.png"):
        (picture_folder / name).unlink()
        (picture_folder / name).write_bytes(b"")
    return picture_folder


@pytest.fixture
def whole(tiny_encoder_folder: Path, pictures: Path, tmp_path: Path) -> Path:
    """What one process makes of them."""
    encoder: Encoder = load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)
    settings = EmbedSettings(num_threads=1, max_bad_fraction=0.5)
    embed_collection(encoder, read_collection(str(pictures)), tmp_path / "whole", settings=settings)
    return tmp_path / "whole"


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """Ray's own files in a folder with a short name: the paths of its sockets must not be long."""
    folder = tempfile.mkdtemp(prefix="ray")
    yield {**os.environ, "RAY_TMPDIR": folder}
    shutil.rmtree(folder, ignore_errors=True)


def start(words: list[Any], environment: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vitrieve", "embed", *map(str, words), *ALLOWED]
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def find_below(process_id: int, word: str) -> list[int]:
    """Find the descendants of a process that have a word in their command line."""
    parents: dict[int, int] = {}
    words: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            words[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace")

    def is_below(one: int) -> bool:
        while one in parents and one != process_id:
            one = parents[one]
        return one == process_id

    return [one for one, text in words.items() if word in text and one != process_id and is_below(one)]


def wait_for_parts(out: Path, num_expected: int, process: subprocess.Popen[str]) -> bool:
    """Wait until some parts are there; False where the process has ended before."""
    while len(list(out.glob("parts/*.npz"))) < num_expected:
        if process.poll() is not None:
            return False
        time.sleep(0.002)
    return True


@pytest.fixture
def words(tiny_encoder_folder: Path, pictures: Path, tmp_path: Path) -> list[Any]:
    return ["--encoder", tiny_encoder_folder, "--data", pictures, "--out", tmp_path / "out", "--engine", "onnx"]


@pytest.mark.parametrize("num_actors", [1, 3])
class TestOnRay:
    pytestmark = starts_ray

    def test_actors_make_what_one_process_makes(
        self, words: list[Any], whole: Path, tmp_path: Path, environment: dict[str, str], num_actors: int
    ) -> None:
        process = start([*words, "--ray", "--ray-actors", num_actors], environment)
        printed, _ = process.communicate()
        assert process.returncode == 0, printed
        assert f"on up to {num_actors} actors of Ray" in printed
        assert f"embed: {NUM_IMAGES}/{NUM_IMAGES}" in printed
        assert "not embedded: 00777.png: the file is empty" in printed
        assert_same_files(tmp_path / "out", whole)

    @pytest.mark.parametrize("what", ["ray::_Worker", "raylet/raylet", "driver"])
    def test_kills_lose_nothing(
        self, what: str, words: list[Any], whole: Path, tmp_path: Path, environment: dict[str, str], num_actors: int
    ) -> None:
        given = [*words, "--ray", "--ray-actors", num_actors, "--resume"]
        process = start(given, environment)
        kept: dict[Path, int] = {}
        for num_expected in (1, 4, 7):
            if not wait_for_parts(tmp_path / "out", num_expected, process):
                break  # with the agent of the only node the work ends
            kept |= {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "parts").glob("*.npz")}
            victims = [process.pid] if what == "driver" else find_below(process.pid, what)
            for victim in victims[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
            if what == "driver":
                process.communicate()
                process = start(given, environment)
        printed, _ = process.communicate()
        if what == "raylet/raylet" and process.returncode != 0:
            there = {path: path.stat().st_mtime_ns for path in kept if path.is_file()}
            assert there == kept  # no finished part was made twice
            process = start(given, environment)
            printed, _ = process.communicate()
        assert process.returncode == 0, printed
        assert_same_files(tmp_path / "out", whole)

    def test_actors_that_die_over_their_encoder_end_the_work(
        self, pictures: Path, tmp_path: Path, environment: dict[str, str], num_actors: int
    ) -> None:
        program = (
            "import os, sys\n"
            "from vitrieve.data.sources import read_collection\n"
            "from vitrieve.embed.on_ray import RaySettings, embed_on_ray\n"
            "def load():\n"
            "    os._exit(1)\n"
            "embed_on_ray(load, read_collection(sys.argv[1]), sys.argv[2],"
            f" cluster=RaySettings(num_actors={num_actors}))\n"
        )
        command = [sys.executable, "-c", program, str(pictures), str(tmp_path / "out")]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert "ClusterError: 5 actors in a row died while they loaded the encoder" in ended.stderr
        assert not (tmp_path / "out").exists()

    def test_a_wrong_encoder_is_told(
        self, words: list[Any], tmp_path: Path, environment: dict[str, str], num_actors: int
    ) -> None:
        wrong = ["--encoder", tmp_path / "none", *words[2:]]
        process = start([*wrong, "--ray", "--ray-actors", num_actors], environment)
        printed, _ = process.communicate()
        assert (process.returncode, "Traceback" in printed) == (2, False), printed
        assert str(tmp_path / "none") in printed
        assert not (tmp_path / "out").exists()
