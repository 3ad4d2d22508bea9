"""Measure how long `make demo` takes after installation, of one checkout or of several in turn, part by part.

    python benchmarks/demo.py CHECKOUT ... [--repeats 2] [--venv DIR] [--out FILE]

FILE is written after each run. Runs that it has already, of the same commits, are not repeated; other commits need
another FILE. Each run begins without demo/ and with an empty cache but for the weights. A part is timed by the file
that it writes last, so that older states of the project can be measured, too. Of several checkouts each runs once, then
each again, so that other work of the machine falls on all. `--venv` is an environment in which vitrieve is installed;
without it that of the checkout is taken, as `make setup` leaves it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from contest import write_result

from vitrieve.machine import cache_folder

LAST_FILES = {
    "drawing": "cache/emoji-*/drawings.json",
    "training": "demo/run/metrics.jsonl",
    "export": "demo/run/encoder/encoder.onnx",
    "report": "demo/run/report/report.html",
    "embedding": "demo/embeddings/manifest.json",
    "index": "demo/index/manifest.json",
    "search": "demo/search.html",
}
"""Part of the demo -> the file that it writes last, in the checkout or in the cache of the run."""


def run_demo(checkout: Path, venv: Path) -> dict[str, float]:
    """Run the demo from nothing; return the seconds of each part, in the order in which they ended, and of all."""
    shutil.rmtree(checkout / "demo", ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="vitrieve-demo-") as folder:
        cache = Path(folder) / "cache"
        cache.mkdir()
        (cache / "weights").symlink_to(cache_folder() / "weights")
        environment = {**os.environ, "VITRIEVE_CACHE": str(cache), "PYTHONPATH": str(checkout / "src")}
        environment.pop("DISPLAY", None)  # the demo ends with a browser where there is a screen
        environment.pop("WAYLAND_DISPLAY", None)
        start = time.time()
        # The environment counts as installed whatever the age of its stamp.
        command = ["make", "demo", f"VENV={venv}", f"--old-file={venv}/.installed"]
        subprocess.run(command, cwd=checkout, env=environment, check=True, stdout=sys.stderr)
        end = time.time()
        roots = {"cache": Path(folder), "demo": checkout}
        ends = {}
        for part, pattern in LAST_FILES.items():
            (path,) = roots[pattern.partition("/")[0]].glob(pattern)
            ends[part] = path.stat().st_mtime
    seconds, before = {}, start
    for part in sorted(ends, key=ends.__getitem__):
        seconds[part], before = round(ends[part] - before, 1), ends[part]
    return {**seconds, "all": round(end - start, 1)}


def find_commit(checkout: Path) -> str:
    """Return the commit of a checkout, with ``+`` where files differ; empty where git knows none."""
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=checkout, stdout=subprocess.PIPE, text=True, check=False
    )
    return asked.stdout.strip()


def read_runs(path: Path | None, commits: dict[str, str]) -> list[dict[str, Any]]:
    """Read the runs of an earlier call that was stopped, or begin.

    Raises:
        SystemExit: They are of other commits.
    """
    if path is None or not path.is_file():
        return []
    found = json.loads(path.read_text())
    if found["commits"] != commits:
        raise SystemExit(f"the runs of {path} are of the commits {found['commits']}, not {commits}: give another file.")
    return list(found["runs"])


def main() -> None:
    """Run the demos in turn, and print the seconds of each part as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="+", type=Path, metavar="CHECKOUT")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--venv", type=Path)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    commits = {checkout.name: find_commit(checkout) for checkout in arguments.checkouts}
    runs = read_runs(arguments.out, commits)
    for number in range(arguments.repeats):
        for checkout in arguments.checkouts:
            if any((one["checkout"], one["run"]) == (checkout.name, number) for one in runs):
                continue
            venv = (arguments.venv or checkout / ".venv").absolute()
            seconds = run_demo(checkout.resolve(), venv)
            runs.append({"checkout": checkout.name, "run": number, "seconds": seconds})
            told = "  ".join(f"{part} {value:.0f}" for part, value in seconds.items())
            print(f"{checkout.name}, run {number}, seconds: {told}", flush=True)
            if arguments.out is not None:
                write_result(arguments.out, {"commits": commits, "runs": runs})


if __name__ == "__main__":
    main()
