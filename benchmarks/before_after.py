"""Times tasks of the suite with the package of an earlier checkout and with that of this one, in turn.

    python benchmarks/before_after.py --before CHECKOUT [--tasks NAME ...] [--rounds 5]

A training step, the engine, `vitrieve embed`, `vitrieve up` and a report, the ten nearest of small and larger
collections, Recall@1 and MAP@R, and the loss against a memory. Both sides of a task run the same script of this folder,
each in a process of its own with its package in front, and take turns; the first round warms up. The engine, the two
commands and the report get an encoder that was exported by the package of their side. `vitrieve embed`, `vitrieve up`
and the report have 1,000 photographs; their third side is the bare engine, to which their goals refer. The report is
what follows a training: embedding, ranking and the page, in a process that has its encoder. New processes and the
service have scripts of their own that take --before, ``new_process.py`` and ``service_load.py``. Prints a table, and
writes benchmarks/results/before_after_DATE.json beside what an earlier call of the day wrote there of other tasks.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import loss
import ranking
import training
from collections_here import find_grocery, read_photographs
from contest import RESULTS, SIDE_FLAG, alternate_processes, describe_machine, main, pin_threads
from embedding import AUTO
from lines import Line, time_lines

HERE = Path(__file__).parent
AFTER, BEFORE, ENGINE = "vitrieve, after", "vitrieve, before", "vitrieve, bare engine"
NUM_PICTURES, NUM_ENGINE = 1_000, 256
EXPORT = """
import sys
from pathlib import Path
from embedding import SMALL_ARCHITECTURE, SMALL_IMAGE_SIZE, ensure_encoder
ensure_encoder(Path(sys.argv[1]), SMALL_ARCHITECTURE, SMALL_IMAGE_SIZE)
"""
SMALL_STEP = {"image_size": training.SMALL_IMAGE_SIZE, "architecture": training.SMALL_ARCHITECTURE}


class Task(NamedTuple):
    """What one task of the suite asks of ``build_side``.

    Attributes:
        script: Script of this folder.
        given: What its ``build_side`` takes.
        num_rounds: Rounds that count; 0: as many as the command line says.
    """

    script: str
    given: dict[str, Any]
    num_rounds: int = 0


def rank_itself(task: str, num_rows: int) -> Task:
    """Return a task of ranking a collection against itself."""
    given = {"side": ranking.OURS, "task": task, "num_rows": num_rows, "num_queries": 0, "num_dims": ranking.NUM_DIMS}
    return Task("ranking.py", given, 9 if num_rows < 20_000 else 0)


TASKS: dict[str, Task] = {
    "training step of 64, DINOv2 ViT-S, 126 px": Task("training.py", {"side": training.OURS, **SMALL_STEP}),
    "training step of 64, DeiT-S, 224 px": Task("training.py", {"side": training.OURS, "image_size": 224}, 3),
    "engine, 256 pictures of 126 px": Task("embedding.py", {"side": AUTO, "num_images": NUM_ENGINE}),
    f"vitrieve embed, {NUM_PICTURES:,} photographs, 126 px": Task("before_after.py", {"side": "embed"}, 3),
    f"vitrieve up, {NUM_PICTURES:,} photographs, 126 px": Task("before_after.py", {"side": "up"}, 3),
    f"a report, {NUM_PICTURES:,} photographs, 126 px": Task("before_after.py", {"side": "report"}, 3),
    "ten nearest, 1,000 against itself": rank_itself(ranking.TOP_K, 1_000),
    "ten nearest, 3,000 against itself": rank_itself(ranking.TOP_K, 3_000),
    "ten nearest, 10,000 against itself": rank_itself(ranking.TOP_K, 10_000),
    "Recall@1 and MAP@R, 10,000 against itself": rank_itself(ranking.SCORES, 10_000),
    "loss and gradient, 64 anchors, 59,551 rows": Task(
        "loss.py", {"side": loss.OURS, "num_rows": 59_551, "margin": 0.5}, 15
    ),
}


def build_side(side: str, encoder: str, pictures: str) -> Callable[[], object]:
    """Return what runs one of the two commands from nothing to its end, or writes a report."""
    out = Path(encoder).parent / f"{side}-out"
    if side == "report":
        return build_report(encoder, out)
    words = [sys.executable, "-m", "vitrieve", side, "--encoder", encoder, "--data", pictures]

    def embed() -> None:
        shutil.rmtree(out, ignore_errors=True)
        subprocess.run([*words, "--out", str(out)], check=True, capture_output=True)

    def serve() -> None:
        """Wait for the address: then the page answers."""
        shutil.rmtree(out, ignore_errors=True)
        command = [*words, "--index", str(out), "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            address = process.stdout.readline()
            process.send_signal(signal.SIGINT)
        assert address.startswith("http"), address

    return {"embed": embed, "up": serve}[side]


def build_report(encoder: str, out: Path) -> Callable[[], object]:
    """Return what measures an encoder on the pictures of a collection's test classes, and writes the report."""
    from vitrieve.data.sources import read_source
    from vitrieve.evaluation.run import run_comparison
    from vitrieve.runtime.encoder import load_encoder

    folder = find_grocery()
    dataset = read_source("emoji" if folder is None else f"grocery:{folder}")
    tested = [record for record in dataset.records if record.split == "test"][:NUM_PICTURES]
    dataset = replace(dataset, records=tuple(tested))
    loaded = load_encoder(encoder)

    def report() -> None:
        shutil.rmtree(out, ignore_errors=True)
        run_comparison([loaded], [dataset], out)

    return report


def compare(name: str, checkouts: dict[str, Path], work: Path, num_rounds: int) -> list[Line]:
    """Measure one task of every checkout in turn, and the bare engine beside a command."""
    task = TASKS[name]
    sides: dict[str, tuple[list[str], dict[str, Any]]] = {}
    for side, checkout in checkouts.items():
        given = dict(task.given)
        if task.script in ("embedding.py", "before_after.py"):
            given["encoder"] = str(export(side, checkout, work))
        if task.script == "before_after.py":
            given["pictures"] = str(copy_pictures(work))
        sides[side] = (front(checkout, HERE / task.script), given)
    scale = dict.fromkeys(sides, 1.0)
    if task.script == "before_after.py":
        encoder = str(export(AFTER, checkouts[AFTER], work))
        given = {"side": AUTO, "num_images": NUM_ENGINE, "encoder": encoder}
        sides[ENGINE] = (front(checkouts[AFTER], HERE / "embedding.py"), given)
        scale[ENGINE] = NUM_PICTURES / NUM_ENGINE
    found = alternate_processes(__file__, [], task.num_rounds or num_rounds, 600, others=sides)
    lines: list[Line] = []
    for side, rounds in found.items():
        seconds = [one * scale[side] for one in rounds.seconds]
        lines += time_lines("before and after", name, {side: seconds}, peak_mib=rounds.process_mib)
    return lines


def front(checkout: Path, script: Path) -> list[str]:
    """Return the command of a script with the package of a checkout."""
    return ["env", f"PYTHONPATH={checkout / 'src'}", "VITRIEVE_CONFIG=off", sys.executable, str(script)]


def export(side: str, checkout: Path, work: Path) -> Path:
    """Let the package of a checkout export the small encoder with random weights, once."""
    folder = work / side.rpartition(" ")[2] / "encoder"
    environment = {**os.environ, "PYTHONPATH": f"{checkout / 'src'}{os.pathsep}{HERE}", "VITRIEVE_CONFIG": "off"}
    subprocess.run([sys.executable, "-c", EXPORT, str(folder)], check=True, env=environment, capture_output=True)
    return folder


def copy_pictures(work: Path) -> Path:
    """Make a folder of photographs, once."""
    folder = work / "pictures"
    if not folder.is_dir():
        folder.mkdir()
        for number, record in enumerate(read_photographs()[1][:NUM_PICTURES]):
            shutil.copyfile(record.path, folder / f"{number:04d}{record.path.suffix}")
    return folder


def find_commit(checkout: Path) -> str:
    """Return the commit of a checkout."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def run() -> None:
    """Measure the tasks that the command line names, and write after each what is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="checkout of an earlier state")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    pin_threads()
    checkouts = {BEFORE: arguments.before.resolve(), AFTER: HERE.parent.resolve()}
    machine = describe_machine()
    path = RESULTS / f"before_after_{machine['date']}.json"
    commits = {side: find_commit(checkout) for side, checkout in checkouts.items()}
    kept = json.loads(path.read_text()) if path.is_file() else {"commits": commits, "lines": []}
    if kept["commits"] != commits:
        raise SystemExit(f"{path.name} compares {kept['commits']}, not {commits}: move it away.")
    earlier = kept["lines"]
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.tasks:
            lines = compare(name, checkouts, Path(folder), arguments.rounds)
            earlier = [one for one in earlier if one["task"] != name] + [asdict(line) for line in lines]
            path.write_text(json.dumps({"machine": machine, "commits": commits, "lines": earlier}, indent=1) + "\n")
            after = next(line for line in lines if line.side == AFTER)
            for line in lines:
                ratio = "" if line is after else f"after is {after.compare(line).describe()}"
                print(f"{name:50} {line.side:24} {line.value:.4g} s ({line.low:.4g} to {line.high:.4g}) {ratio}")


if __name__ == "__main__":
    if sys.argv[1:2] == [SIDE_FLAG]:
        main(lambda _: [], __doc__, build_side)
    else:
        run()
