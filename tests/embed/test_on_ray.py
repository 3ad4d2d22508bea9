"""Embedding on Ray. What starts Ray takes half a minute and runs with VITRIEVE_LONG_TESTS=1 (make test-all)."""

from __future__ import annotations

import contextlib
import json
import os
import random
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
from vitrieve.data.records import ImageRecord
from vitrieve.data.sources import read_collection
from vitrieve.embed.collection import EmbedSettings, embed_collection
from vitrieve.embed.on_ray import (
    OBJECT_STORE_BYTES,
    RaySettings,
    _connected,
    _Crew,
    _cut_tasks,
    _cut_window,
    embed_on_ray,
)
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
NUM_PARTS = 10
ALLOWED = ("--max-bad-fraction", "0.5")
PROGRAM = """
import json, sys
from pathlib import Path
from vitrieve.cli.main import main
from vitrieve.embed import on_ray

finish_parts = on_ray.finish_parts

def tell(folder, *given):
    status = Path("/proc/self/status").read_text()
    told = {"peak_kib": int(status.partition("VmHWM:")[2].split()[0])}
    told["parts"] = {path.name: path.stat().st_mtime_ns for path in (folder / "parts").glob("*.npz")}
    Path(sys.argv[1]).write_text(json.dumps(told))
    finish_parts(folder, *given)

on_ray.finish_parts = tell
sys.exit(main(sys.argv[2:]))
"""
"""The command, which before it joins the parts tells when each was written, and its most memory."""
MAX_GROWTH_KIB = 24 * 1024
"""Of the memory of a process when there are four times the pictures: 7,000 decoded ones would be 82 MiB."""


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


def test_a_window_goes_up_from_where_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "far" / "a.png").touch()
    (tmp_path / "link").symlink_to("far/deep")
    record = ImageRecord(image_id="a.png", path=tmp_path / "link" / ".." / "a.png", label=0, split="test")
    assert [record.path for record in _cut_window([record], range(1)).records] == [tmp_path / "far" / "a.png"]


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


def start(words: list[Any], environment: dict[str, str], told: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(told), "embed", *map(str, words), *ALLOWED]
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def read_parts(out: Path) -> dict[str, int]:
    """Read when each finished part was written."""
    found = {}
    for path in out.glob("parts/*.npz"):
        with contextlib.suppress(FileNotFoundError):  # joined and removed just now
            found[path.name] = path.stat().st_mtime_ns
    return found


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


def wait_for_victims(process: subprocess.Popen[str], word: str) -> list[int]:
    """Wait until descendants have a word in their command line; none where the process has ended before."""
    while process.poll() is None:
        found = find_below(process.pid, word)
        if found:
            return sorted(found)
        time.sleep(0.01)
    return []


def end_tree(process: subprocess.Popen[str]) -> None:
    """Kill a process and what it has started."""
    victims = [*find_below(process.pid, ""), process.pid]
    for victim in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    process.communicate()


@pytest.fixture
def words(tiny_encoder_folder: Path, pictures: Path, tmp_path: Path) -> list[Any]:
    return ["--encoder", tiny_encoder_folder, "--data", pictures, "--out", tmp_path / "out", "--engine", "onnx"]


@pytest.mark.parametrize("num_actors", [1, 3])
class TestOnRay:
    pytestmark = starts_ray

    def test_actors_make_what_one_process_makes(
        self, words: list[Any], whole: Path, tmp_path: Path, environment: dict[str, str], num_actors: int
    ) -> None:
        process = start([*words, "--ray", "--ray-actors", num_actors], environment, tmp_path / "told")
        printed, _ = process.communicate()
        assert process.returncode == 0, printed
        assert f"on up to {num_actors} actors of Ray" in printed
        assert f"embed: {NUM_IMAGES}/{NUM_IMAGES}" in printed
        assert "not embedded: 00777.png: the file is empty" in printed
        assert_same_files(tmp_path / "out", whole)

    @pytest.mark.parametrize("what", ["ray::_Worker", "raylet/raylet", "driver"])
    def test_kills_lose_nothing_and_no_finished_part_is_made_twice(
        self, what: str, words: list[Any], whole: Path, tmp_path: Path, environment: dict[str, str], num_actors: int
    ) -> None:
        chance = random.Random(f"{what} {num_actors}")
        given, out = [*words, "--ray", "--ray-actors", num_actors, "--resume"], tmp_path / "out"
        process = start(given, environment, tmp_path / "told")
        kept: dict[str, int] = {}
        num_kills = 0
        for num_expected in sorted(chance.choices(range(NUM_PARTS - 1), k=3)):
            if not wait_for_parts(out, num_expected, process):
                break
            victims = [process.pid] if what == "driver" else wait_for_victims(process, what)
            kept |= read_parts(out)
            if victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(chance.choice(victims), signal.SIGKILL)
                    num_kills += 1
            if what != "ray::_Worker":  # with the driver, or the agent of the only node, the work ends
                printed, _ = process.communicate()
                if process.returncode == 0:
                    break  # the agent was not needed any more
                assert "Traceback" not in printed
                process = start(given, environment, tmp_path / "told")
        if process.stdout is not None and not process.stdout.closed:
            printed, _ = process.communicate()
        assert process.returncode == 0, printed
        assert "Traceback" not in printed
        assert num_kills > 0
        parts = json.loads((tmp_path / "told").read_text())["parts"]
        assert len(parts) == NUM_PARTS
        assert kept.items() <= parts.items()  # no finished part was made twice
        assert_same_files(out, whole)

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
        process = start([*wrong, "--ray", "--ray-actors", num_actors], environment, tmp_path / "told")
        printed, _ = process.communicate()
        assert (process.returncode, "Traceback" in printed) == (2, False), printed
        assert str(tmp_path / "none") in printed
        assert not (tmp_path / "out").exists()


class Nodes:
    """A cluster as ``ray start`` starts it: a head that runs no actor, and nodes for one actor each."""

    def __init__(self, environment: dict[str, str], num_nodes: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self._environment = environment
        self._processes: list[subprocess.Popen[str]] = []
        try:
            port = self.address.rpartition(":")[2]
            self._start("--head", "--port", port, "--num-cpus", "0", "--include-dashboard", "false")
            self.nodes = [self._start("--address", self.address, "--num-cpus", "1") for _ in range(num_nodes)]
        except BaseException:
            self.close()
            raise

    def _start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--node-ip-address", "127.0.0.1"]
        command += ["--object-store-memory", str(OBJECT_STORE_BYTES), "--disable-usage-stats", *words]
        process = subprocess.Popen(
            command,
            env=self._environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._processes.append(process)
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "Ray runtime started" in line:
                return process
        raise AssertionError("".join(lines))

    def close(self) -> None:
        for process in reversed(self._processes):
            end_tree(process)


@pytest.fixture
def cluster(environment: dict[str, str]) -> Iterator[Nodes]:
    """A cluster that asks for a token, which ``environment`` then has."""
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5" * 64}
    nodes = Nodes(environment, 2)
    yield nodes
    nodes.close()


class TestOnACluster:
    pytestmark = starts_ray

    def test_a_cluster_that_runs_is_used_and_loses_a_node(
        self, cluster: Nodes, words: list[Any], whole: Path, tmp_path: Path, environment: dict[str, str]
    ) -> None:
        """Both nodes have their actor when one of them is killed, agent first; the work goes on and ends."""
        process = start([*words, "--ray", cluster.address, "--ray-actors", 2], environment, tmp_path / "told")
        for node in cluster.nodes:
            assert wait_for_victims(node, "ray::_Worker")
        assert wait_for_parts(tmp_path / "out", 2, process)
        kept = read_parts(tmp_path / "out")
        for word in ("raylet/raylet", ""):
            for victim in find_below(cluster.nodes[0].pid, word):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
        printed, _ = process.communicate()
        assert process.returncode == 0, printed
        assert kept.items() <= json.loads((tmp_path / "told").read_text())["parts"].items()
        assert_same_files(tmp_path / "out", whole)
        assert cluster.nodes[1].poll() is None  # the cluster is left running

    def test_a_wrong_token_is_told(
        self, cluster: Nodes, words: list[Any], tmp_path: Path, environment: dict[str, str]
    ) -> None:
        other = environment | {"RAY_AUTH_TOKEN": "6" * 64}
        process = start([*words, "--ray", cluster.address], other, tmp_path / "told")
        printed, _ = process.communicate()
        (message,) = [line for line in printed.splitlines() if line.startswith("error: ")]
        assert process.returncode == 1
        assert f"Ray cannot be reached at {cluster.address}: " in message
        assert "RAY_AUTH_TOKEN" in message
        assert "Traceback" not in printed

    def test_memory_does_not_grow_with_the_pictures(
        self, cluster: Nodes, words: list[Any], pictures: Path, tmp_path: Path, environment: dict[str, str]
    ) -> None:
        peaks = []
        for turn in range(2):
            for number in range(NUM_IMAGES, 4 * NUM_IMAGES if turn else 0):
                os.link(pictures / f"{number % 12:02}.png", pictures / f"{number:05}.png")
            given = [*words, "--overwrite", "--ray", cluster.address, "--ray-actors", 1]
            process = start(given, environment, tmp_path / "told")
            actor_kib = 0
            while process.poll() is None:
                for node in cluster.nodes:
                    for actor in find_below(node.pid, "ray::_Worker"):
                        with contextlib.suppress(OSError, IndexError):
                            status = Path(f"/proc/{actor}/status").read_text()
                            actor_kib = max(actor_kib, int(status.partition("VmHWM:")[2].split()[0]))
                time.sleep(0.1)
            printed, _ = process.communicate()
            assert process.returncode == 0, printed
            assert f"embed: {(4 if turn else 1) * NUM_IMAGES}/" in printed
            peaks.append((json.loads((tmp_path / "told").read_text())["peak_kib"], actor_kib))
        print("peaks of driver and actor, KiB:", peaks)
        for before, after in zip(*peaks, strict=True):
            assert 0 < after < before + MAX_GROWTH_KIB
