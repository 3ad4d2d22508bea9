"""What a command costs in a new process, before and after a change: seconds of the wall and of the processor.

    python benchmarks/new_process.py PHOTOGRAPH INDEX... --before CHECKOUT [--rounds 7] [--json FILE]

`vitrieve --help`, `vitrieve search --help`, a search of each index by the photograph (``service_load.py`` makes an
index of 100,000 images), and the first embedding by the encoder of the first index. The present checkout and an earlier
one take turns, in new processes with the page cache warm; the first round warms up and does not count. Where others use
the machine, the seconds of the processor say more than those of the wall.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from contest import describe_machine
from latency import FIRST_EMBEDDING

from vitrieve.index.store import read_info
from vitrieve.model.pretrained import get_export_folder
from vitrieve.runtime.encoder import find_source_folder


def list_commands(photograph: Path, indexes: list[Path]) -> dict[str, list[str]]:
    """Return the words after ``python`` of each task."""
    info, _ = read_info(indexes[0])
    encoder = find_source_folder(info.encoder_source) or get_export_folder(info.encoder_source, info.image_size)
    vitrieve = ["-m", "vitrieve"]
    search = [*vitrieve, "search", str(photograph), "--index"]
    searches = {f"vitrieve search, store {read_info(index)[0].kind}": [*search, str(index)] for index in indexes}
    return {
        "vitrieve --help": [*vitrieve, "--help"],
        "vitrieve search --help": [*vitrieve, "search", "--help"],
        **searches,
        f"first embedding, {encoder.name}": ["-c", FIRST_EMBEDDING, str(encoder), str(photograph)],
    }


def run_once(words: list[str], checkout: Path) -> tuple[float, float]:
    """Run a command with the package of a checkout; return the seconds of the wall and of the processor."""
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, env=environment, capture_output=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photograph", type=Path)
    parser.add_argument("indexes", type=Path, nargs="+")
    parser.add_argument("--before", type=Path, required=True, help="checkout of an earlier state")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    sides = {"before": arguments.before.resolve(), "after": Path(__file__).resolve().parents[1]}
    machine = describe_machine() if arguments.json else {}
    kept = {name: machine.get(name) for name in ("date", "processor", "instructions", "num_cores", "load_before")}
    lines: list[dict[str, Any]] = []
    for task, words in list_commands(arguments.photograph, arguments.indexes).items():
        rounds: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
        for number in range(arguments.rounds + 1):
            for side, checkout in sides.items():
                measured = run_once(words, checkout)
                if number:
                    rounds[side].append(measured)
        for side, measurements in rounds.items():
            wall, cpu = zip(*measurements, strict=True)
            line = {"task": task, "side": side}
            for name, values in (("wall_s", wall), ("cpu_s", cpu)):
                line |= {name: statistics.median(values), f"{name}_least": min(values), f"{name}_most": max(values)}
            lines.append(line)
            print(
                f"{task:45} {side:7} wall {line['wall_s']:.2f} s ({min(wall):.2f} to {max(wall):.2f}), "
                f"processor {line['cpu_s']:.2f} s ({min(cpu):.2f} to {max(cpu):.2f})",
                flush=True,
            )
        if arguments.json:
            arguments.json.write_text(json.dumps({"machine": kept, "lines": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()
