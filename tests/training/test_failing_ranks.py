"""Ranks of one training end together, with one message that names the one that failed, and lose nothing."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch.distributed import TCPStore

from tests.ranks import EndedRank, run_ranks
from vitrieve import Callback, train
from vitrieve.cli.main import main
from vitrieve.config import ModelConfig
from vitrieve.errors import ConfigError, DataError, UnfinishedRunError
from vitrieve.folders import locking_folder
from vitrieve.model.encoder import build_encoder, save_encoder
from vitrieve.objective import objective
from vitrieve.runtime.encoder import load_encoder
from vitrieve.training import finishing, holding_out, liveness, loop, ranks, state
from vitrieve.training.callbacks import HeldOutFigures
from vitrieve.training.compute import divide_batch
from vitrieve.training.liveness import Watch
from vitrieve.training.ranks import Ranks, tell_ranks

IS_LONG = os.environ.get("VITRIEVE_LONG_TESTS") == "1"


@pytest.fixture(autouse=True)
def _exports_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finishing, "export_folder", lambda folder: None)


@pytest.fixture(scope="module")
def photographs(class_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes, so that two are held out."""
    folder = tmp_path_factory.mktemp("photographs") / "of ranks"
    for number in range(2):
        for source in sorted(class_folder.iterdir()):
            shutil.copytree(source, folder / f"{source.name}{number}")
    return folder


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    # Of 48 px, so that the ranks choose between that size and the 32 px of the training, too.
    start = tmp_path_factory.mktemp("start") / "encoder"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_encoder(build_encoder(ModelConfig(backbone="test_vit", image_size=48), is_pretrained=False), start)
    return [
        *("train", "irt_r_small", "--model.backbone", "test_vit", "--model.weights", str(start)),
        *("--image-size", "32", "--num-steps", "6", "--batch-size", "6", "--num-threads", "1", "--no-report"),
        *("--objective.memory-start-step", "1", "--train.evaluate-every", "3", "--train.checkpoint-every", "2"),
        *("--train.precision", "fp32", "--train.num-patience", "9", "--train.try-larger-image"),
    ]


def run_command(words: Sequence[str], fault: str = "", rank: int = 1, place: Path | None = None) -> int:
    """Run ``vitrieve`` without the export; a rank does what the fault says in its fourth step.

    With a place, that folder is the current one, and all that a process keeps for itself is below it.
    """
    finishing.export_folder = lambda folder: None  # type: ignore[assignment]  # a process of its own
    step = loop.train_step
    if place is not None:
        os.chdir(place)
        os.environ.update(HOME=str(place), TMPDIR=str(place), VITRIEVE_CACHE=str(place))

    def fail_in_step_4(state: Any, *given: Any) -> Any:
        if state.step == 3:
            if fault == "stands still":
                liveness.BEAT_SECONDS, liveness.LOST_SECONDS = 0.1, 3.0
            if os.environ["RANK"] == str(rank):
                if fault == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                if fault != "stands still":
                    raise DataError("the disk of this rank is gone.")
                os.kill(os.getpid(), signal.SIGSTOP)
        return step(state, *given)

    if fault:
        loop.train_step = fail_in_step_4
    return main(list(words))


def command(photographs: Path, out: Path, *more: str) -> tuple[str, ...]:
    return ("--data", f"folder:{photographs}", "--out", str(out), *more)


def read_manifest(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "manifest.json").read_text(encoding="utf-8")))


def weights_of(folder: Path) -> bytes:
    return (folder / "encoder" / "model.safetensors").read_bytes()


def count_errors(ended: Sequence[EndedRank]) -> int:
    return sum(one.printed.count("error:") for one in ended)


@pytest.fixture(scope="module")
def whole(photographs: Path, words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    places = [folder / "first", folder / "second"]
    for place in places:
        place.mkdir()
    ended = run_ranks(2, folder, run_command, (*words, *command(photographs, Path("run"))), "", 0, places)
    assert [one.status for one in ended] == [0, 0], ended[0].printed + ended[1].printed
    assert "held-out classes after step 3" in ended[0].printed
    assert ended[1].printed == ""
    return folder / "first" / "run"


def test_the_other_ranks_write_no_file(whole: Path) -> None:
    """Each rank had a folder of its own for the run, for what is fetched, and for temporary files."""
    assert (whole / "state").is_dir()
    assert list((whole.parents[1] / "second").iterdir()) == []


def test_the_command_on_two_ranks_measures_and_keeps_what_one_does(
    whole: Path, photographs: Path, words: list[str], tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    assert main([*words, *command(photographs, tmp_path / "alone")]) == 0
    torch.set_num_threads(threads)
    expected, found = read_manifest(tmp_path / "alone"), read_manifest(whole)
    assert expected["kept_step"] == found["kept_step"]
    assert found["holdout_map_at_r"] == pytest.approx(expected["holdout_map_at_r"], abs=1e-6)
    assert len(found["holdout_map_at_r"]) == 3
    assert set(found["holdout_map_at_r_by_image_size"]) == {"32", "48"}
    for name in ("image_size", "holdout_map_at_r_by_image_size"):
        assert found[name] == pytest.approx(expected[name], abs=1e-6)
    settings = json.loads((whole / "config.json").read_text(encoding="utf-8"))
    assert settings["machine"]["num_ranks"] == 2


def test_ranks_with_other_settings_or_images_are_refused_by_name(
    photographs: Path, words: list[str], tmp_path: Path
) -> None:
    same = (*words, *command(photographs, tmp_path / "run"))
    ended = run_ranks(2, tmp_path, run_command, [same, (*same, "--seed", "1")])
    assert [one.status for one in ended if one.printed.strip()] == [2]
    assert count_errors(ended) == 1
    assert "rank 1 of 2 (process" in ended[0].printed + ended[1].printed
    assert "train.seed is 1 and on rank 0 0" in ended[0].printed + ended[1].printed
    copy = shutil.copytree(photographs, tmp_path / photographs.name)
    shutil.copy(copy / "class10" / "0.png", copy / "class00" / "0.png")
    ended = run_ranks(2, tmp_path, run_command, [same, (*words, *command(copy, tmp_path / "run"))])
    assert count_errors(ended) == 1
    assert "data.content is" in ended[0].printed + ended[1].printed
    assert not (tmp_path / "run").exists()


def test_trap_a_killed_rank_is_named_and_a_restart_goes_on_to_the_same_bits(
    whole: Path, photographs: Path, words: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    given = (*words, *command(photographs, out))
    ended = run_ranks(2, tmp_path, run_command, given, "killed")
    assert [one.status for one in ended] == [1, -signal.SIGKILL]
    assert count_errors(ended) == 1
    assert "rank 1 of 2 (process" in ended[0].printed
    assert ") died: killed, perhaps for want of memory" in ended[0].printed
    assert "The state after step 3 is saved" in ended[0].printed
    with locking_folder(out):  # as another job would
        refused = run_ranks(2, tmp_path, run_command, (*given, "--resume"))
        assert [one.status for one in refused] == [2, 1]
        assert count_errors(refused) == 1
        assert "is being written by another process" in refused[0].printed
    # torchrun starts all ranks with the same words once more.
    ended = run_ranks(2, tmp_path, run_command, given, environment={"TORCHELASTIC_RESTART_COUNT": "1"})
    assert [one.status for one in ended] == [0, 0], ended[0].printed
    assert weights_of(out) == weights_of(whole)
    assert read_manifest(out)["holdout_map_at_r"] == read_manifest(whole)["holdout_map_at_r"]
    # Killed when all was done, it has nothing left to do.
    ended = run_ranks(2, tmp_path, run_command, given, environment={"TORCHELASTIC_RESTART_COUNT": "2"})
    assert [one.status for one in ended] == [0, 0]
    assert "step 6/6" not in ended[0].printed


def test_a_store_that_is_lost_with_its_host_is_told_in_one_line(
    photographs: Path, words: list[str], tmp_path: Path
) -> None:
    """Without torchrun rank 0 keeps the store; of two hosts the torchrun of the first does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        environment = {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": str(free.getsockname()[1])}
    given = (*words, *command(photographs, tmp_path / "run"))
    ended = run_ranks(2, tmp_path, run_command, given, "killed", 0, environment=environment)
    assert [one.status for one in ended] == [-signal.SIGKILL, 1], ended[1].printed
    assert count_errors(ended) == 1
    assert "the store of the training at 127.0.0.1, port" in ended[1].printed
    assert "Traceback" not in ended[1].printed


def _wait_beside_a_store_that_goes(port: int) -> None:
    """Be a process whose main thread waits for ever, as in a collective operation."""
    liveness.BEAT_SECONDS, liveness.LOST_SECONDS = 0.1, 1.0
    Watch(("127.0.0.1", port), 1, 2, "rank 1")
    print("watching", flush=True)
    time.sleep(120)


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_waits_in_vain_says_that_the_store_is_lost(fault: signal.Signals) -> None:
    """Nothing tells of a host that has lost its power, or stands still, but its silence."""
    keeper = "import sys, time\nfrom torch.distributed import TCPStore\n"
    keeper += "store = TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)\n"
    keeper += "print(store.port, flush=True)\ntime.sleep(120)"
    with subprocess.Popen([sys.executable, "-c", keeper], stdout=subprocess.PIPE, text=True) as kept:
        assert kept.stdout is not None
        port = int(kept.stdout.readline())
        program = f"from tests.training.test_failing_ranks import _wait_beside_a_store_that_goes as wait; wait({port})"
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        waits = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[2], **streams)
        assert waits.stdout is not None
        assert waits.stdout.readline() == "watching\n"
        kept.send_signal(fault)
        try:
            told = waits.communicate(timeout=110)[1]
        finally:
            kept.kill()
    assert waits.returncode == 1
    assert told.count("error:") == 1
    assert f"the store of the training at 127.0.0.1, port {port}, is gone" in told


class _FailsAtTheEnd(Callback):
    def on_evaluation(self, figures: HeldOutFigures) -> None:
        if figures.step == 4:
            raise OSError("nobody answers")


def _train_with_a_callback(photographs: Path, out: Path, weights: Path) -> str:
    finishing.export_folder = lambda folder: None  # type: ignore[assignment]  # a process of its own
    objective.DIVIDED_ABOVE_BYTES = 0
    settings = {"model.backbone": "test_vit", "model.weights": str(weights), "train.num_threads": 1}
    settings |= {"train.evaluate_every": 2, "train.precision": "fp32", "image_size": 32, "num_steps": 4}
    watchers: dict[str, Any] = {"logger": "none", "callbacks": [_FailsAtTheEnd()]}
    try:
        train(f"folder:{photographs}", "irt_r_small", out, report=False, **watchers, batch_size=6, **settings)
    except (UnfinishedRunError, SystemExit) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def test_a_callback_that_fails_at_the_last_measurement_leaves_no_rank_waiting(
    photographs: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    """The ranks divide the memory, so that all save together or none."""
    ended = run_ranks(2, tmp_path, _train_with_a_callback, photographs, tmp_path / "run", tiny_weights)
    assert "the last measurement failed: OSError: nobody answers" in (ended[0].result or ""), ended[0].printed
    assert ended[1].result is not None


def test_a_rank_that_fails_tells_it_itself_and_the_others_keep_quiet(
    photographs: Path, words: list[str], tmp_path: Path
) -> None:
    given = (*words, *command(photographs, tmp_path / "run"))
    ended = run_ranks(2, tmp_path, run_command, given, "fails")
    assert [one.status for one in ended] == [1, 2]
    assert count_errors(ended) == 1
    assert "the disk of this rank is gone. " in ended[1].printed
    assert "(rank 1 of 2 (process" in ended[1].printed


def test_the_command_refuses_a_batch_smaller_than_the_world_and_divides_an_odd_one(
    photographs: Path, words: list[str], tmp_path: Path
) -> None:
    """Two images of a batch are no share for three ranks; seven are divided among two as four and three."""
    given = (*words, *command(photographs, tmp_path / "run"))
    ended = run_ranks(3, tmp_path, run_command, (*given, "--batch-size", "2", "--loader.images-per-class", "2"))
    printed = "".join(one.printed for one in ended)
    assert count_errors(ended) == 1, printed
    assert [one.status for one in ended if "error:" in one.printed] == [2]
    assert "a batch has 2 images, fewer than the 3 ranks that divide it; raise --batch-size" in printed
    assert not (tmp_path / "run").exists()
    ended = run_ranks(2, tmp_path, run_command, (*given, "--batch-size", "7", "--num-steps", "2"))
    assert [one.status for one in ended] == [0, 0], ended[0].printed + ended[1].printed


def test_batches_that_ranks_cannot_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="a batch has 4 images, fewer than the 8 ranks"):
        tell_ranks(Ranks(0, 8), 4, "cpu")
    with pytest.raises(ConfigError, match=r"33 images of a step in pieces of 16.* among 2 ranks"):
        divide_batch(33, Ranks(0, 2), 16)
    assert [len(share) for share in divide_batch(33, Ranks(0, 2), None)] == [16, 17]


def test_a_rank_that_stands_still_is_named_and_says_nothing_when_it_goes_on(
    photographs: Path, words: list[str], tmp_path: Path
) -> None:
    """SIGSTOP: no connection is closed, so that the others wait for it until it has been silent for too long."""
    given = (*words, *command(photographs, tmp_path / "run"))
    ended = run_ranks(2, tmp_path, run_command, given, "stands still", num_awake=1)
    assert [one.status for one in ended] == [1, 1], ended[0].printed + ended[1].printed
    assert count_errors(ended) == 1
    assert ended[1].printed == ""
    assert re.search(r"error: rank 1 of 2 \(process \d+ on .*\) gave no sign of life for 3 s", ended[0].printed)


def test_a_process_that_stood_still_itself_accuses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host is paused with all that runs on it; the clock is elsewhere when it goes on."""
    monkeypatch.setattr(liveness, "BEAT_SECONDS", 0.02)
    judged, ended = threading.Semaphore(0), threading.Event()
    list_silent, clock = Watch._list_silent, time.monotonic
    jump = 0.0

    def note(watch: Watch, seconds: float, until: float) -> list[int]:
        judged.release()
        return list_silent(watch, seconds, until)

    monkeypatch.setattr(Watch, "_list_silent", note)
    monkeypatch.setattr(Watch, "_end", lambda *given, **named: ended.set())
    monkeypatch.setattr(liveness, "time", SimpleNamespace(monotonic=lambda: clock() + jump, sleep=time.sleep))
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    watch = Watch(("127.0.0.1", store.port), 0, 2, "rank 0")
    try:
        assert judged.acquire(timeout=60)
        jump = 10_000.0
        for _ in range(10):
            assert judged.acquire(timeout=60)
        assert not ended.is_set()
        # The silence of the other one while this one runs does count.
        monkeypatch.setattr(liveness, "LOST_SECONDS", 0.1)
        assert ended.wait(60)
    finally:
        watch.close()


PLACES = ("step", "exchange", "state", "measurement", "export")
"""Where a rank may be killed, in the order of a run: before a step, while gradients are summed, in the middle of the
file of a state, between embedding the held-out images and measuring them, and when the graph appears on the disk."""
SEEDS = (0, 4, 6)
OF_THE_FIRST = ("state", "export")
"""Places that the first rank alone comes to."""
NUM_OCCASIONS = {"step": 6, "exchange": 8, "state": 3, "measurement": 3, "export": 1}


class Kill(NamedTuple):
    """A kill in one attempt: where, on which rank, and at which occasion from 0."""

    place: str
    rank: int
    occasion: int


def choose_kills(seed: int) -> list[Kill]:
    """Choose a kill for the first attempt and one for the second, which come to both places whatever was saved."""
    moments = random.Random(seed)
    places = sorted((moments.choice(PLACES) for _ in range(2)), key=PLACES.index)
    return [
        Kill(
            place,
            0 if place in OF_THE_FIRST else moments.randrange(2),
            0 if attempt else moments.randrange(NUM_OCCASIONS[place]),
        )
        for attempt, place in enumerate(places)
    ]


class Killer:
    """Kills its own process at an occasion, and writes it down first."""

    def __init__(self, kill: Kill, record: Path) -> None:
        self.kill, self.record, self.left = kill, record, kill.occasion

    def meet(self, prepare: Callable[[], object] = lambda: None) -> None:
        """Count an occasion; at the chosen one, prepare and die."""
        self.left -= 1
        if self.left < 0:
            prepare()
            with self.record.open("a", encoding="utf-8") as file:
                file.write(f"{self.kill}\n")
            os.kill(os.getpid(), signal.SIGKILL)

    def before(self, function: Any) -> Any:
        def called(*given: Any) -> Any:
            self.meet()
            return function(*given)

        return called

    def after(self, function: Any) -> Any:
        def called(*given: Any, **named: Any) -> Any:
            found = function(*given, **named)
            self.meet()
            return found

        return called

    def half_written(self, save: Any) -> Any:
        def called(tensors: Any, path: Path, **named: Any) -> None:
            save(tensors, path, **named)
            self.meet(lambda: os.truncate(path, Path(path).stat().st_size // 2))

        return called

    def when_a_graph_appears(self, export: Any) -> Any:
        def look(folder: Path) -> None:
            while not list(folder.rglob("*.onnx*")):
                time.sleep(0.001)
            self.meet()

        def called(folder: Path) -> Any:
            threading.Thread(target=look, args=(Path(folder),), daemon=True).start()
            return export(folder)

        return called


def run_until_killed(words: Sequence[str], kills: Sequence[Sequence[Any]], record: Path) -> int:
    """Be a rank of torchrun that kills itself as the attempt's entry of ``kills`` says."""
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    kill = Kill(*kills[attempt]) if attempt < len(kills) else None
    if kill is not None and kill.rank == int(os.environ["RANK"]):
        killer = Killer(kill, record)
        replaced = {
            "step": (loop, "train_step", killer.before),
            "exchange": (ranks, "_start_sum", killer.before),
            "state": (state, "save_file", killer.half_written),
            "measurement": (holding_out, "embed_images", killer.after),
            "export": (finishing, "export_folder", killer.when_a_graph_appears),
        }
        module, name, wrap = replaced[kill.place]
        setattr(module, name, wrap(getattr(module, name)))
    return main(list(words))


@pytest.mark.skipif(not IS_LONG, reason="loads torch eighteen times: VITRIEVE_LONG_TESTS=1 (make test-all)")
@pytest.mark.parametrize("seed", SEEDS)
def test_trap_torchrun_restarts_a_run_that_is_killed_at_a_random_moment(
    whole: Path, photographs: Path, words: list[str], tmp_path: Path, seed: int
) -> None:
    """The real torchrun and the real export; a rank kills itself somewhere, twice, and the result is the same."""
    out, record = tmp_path / "run", tmp_path / "kills"
    kills = choose_kills(seed)
    program = tmp_path / "program.py"
    program.write_text(
        "import pathlib, sys\n"
        "from tests.training.test_failing_ranks import run_until_killed\n"
        f"sys.exit(run_until_killed(sys.argv[1:], {[tuple(kill) for kill in kills]}, pathlib.Path({str(record)!r})))\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "2"]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", str(program)]
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": paths}
    done = subprocess.run(
        [*torchrun, *words, *command(photographs, out)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert record.read_text(encoding="utf-8").splitlines() == [str(kill) for kill in kills]
    assert weights_of(out) == weights_of(whole)
    assert read_manifest(out)["holdout_map_at_r"] == read_manifest(whole)["holdout_map_at_r"]
    assert load_encoder(out, device="cpu").engine != "torch"  # the graph is there and whole


def test_the_kills_of_the_long_test_come_to_every_place() -> None:
    assert {kill.place for seed in SEEDS for kill in choose_kills(seed)} == set(PLACES)


@pytest.fixture
def two_hosts() -> Iterator[list[str]]:
    """Two network namespaces with an address each, joined by a cable: what two hosts see of each other."""
    names = [f"vitrieve-{os.getpid()}-{number}" for number in range(2)]
    ends = [f"vt{os.getpid() % 100_000}-{number}" for number in range(2)]
    lines = [
        *(["netns", "add", name] for name in names),
        ["link", "add", ends[0], "netns", names[0], "type", "veth", "peer", "name", ends[1], "netns", names[1]],
    ]
    for number, (name, end) in enumerate(zip(names, ends, strict=True)):
        inside = ["-n", name]
        lines += [
            [*inside, "link", "set", end, "name", "eth0"],
            [*inside, "address", "add", f"10.99.0.{number + 1}/24", "dev", "eth0"],
            *([*inside, "link", "set", device, "up"] for device in ("lo", "eth0")),
        ]
    try:
        for line in lines:
            done = subprocess.run(["ip", *line], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"no network namespaces here: {done.stderr.strip()}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


@pytest.mark.skipif(not IS_LONG, reason="loads torch four times: VITRIEVE_LONG_TESTS=1 (make test-all)")
@pytest.mark.skipif(shutil.which("ip") is None, reason="needs ip of iproute2")
def test_torchrun_on_two_hosts_gives_what_two_processes_of_one_give(
    whole: Path, photographs: Path, words: list[str], tmp_path: Path, two_hosts: list[str]
) -> None:
    """A torchrun in each network namespace: they meet by c10d, and gloo talks over the cable between them."""
    out, program = tmp_path / "run", tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from vitrieve.training import finishing\n"
        "from vitrieve.cli.main import main\n"
        "finishing.export_folder = lambda folder: None\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id"]
    torchrun += ["hosts", "--rdzv-backend", "c10d", "--rdzv-endpoint", "10.99.0.1:29400"]
    called = [str(program), *words, *command(photographs, out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0"}
    agents = []
    for number, name in enumerate(two_hosts):
        # Both have one name, so torchrun cannot tell by it who holds the rendezvous.
        place = ["--local-addr", f"10.99.0.{number + 1}", "--rdzv-conf", f"is_host={int(number == 0)}"]
        started = ["ip", "netns", "exec", name, *torchrun, *place, *called]
        agents.append(subprocess.Popen(started, env=environment, stderr=subprocess.PIPE, text=True))
    told = [agent.communicate()[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], told
    assert "2 ranks" in told[0]
    assert weights_of(out) == weights_of(whole)
