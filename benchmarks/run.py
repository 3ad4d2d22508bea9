"""`make bench`: how fast is what vitrieve does, beside the way others do it, and how far from what the machine can do?

    python benchmarks/run.py [--quick] [--parts NAME ...] [--out FOLDER] [--into BENCH.json]

Runs the parts of the suite one after the other, each in a process of its own, with as many threads as there are cores.
In a part the sides alternate after a warm-up; figures are medians with the least and the most, and what counts is the
ratio, because machines are shared and drift. A ratio says its spread over the turns, and whether they tell the sides
apart. Writes bench_DATE.json and bench_DATE.html (quick ones: bench_quick_DATE) into benchmarks/results. About 40
minutes on two cores, three to seven with --quick; some 50 with AVX2 alone, where some inputs are smaller, so that there
is time for three rounds. Weights are random and vectors are real: this measures speed only. Both files are written
after each part. With --into the parts named by --parts are measured, and replace those of an earlier run, or complete
one that was stopped; its page tells which.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from contest import RESULTS, describe_machine, pin_threads
from lines import Line, list_ratios
from page import write_page

PARTS = ("ceilings", "training", "embedding", "int8", "ranking", "loss", "latency")


def run_part(part: str, is_quick: bool) -> list[Line]:
    """Run one part; its tables and progress go to standard error."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "lines.json"
        command = [sys.executable, str(Path(__file__).with_name(f"{part}.py")), "--json", str(out)]
        environment = {**os.environ, "VITRIEVE_CONFIG": "off"}  # figures do not depend on what the user keeps
        subprocess.run([*command, *(["--quick"] if is_quick else [])], check=True, stdout=sys.stderr, env=environment)
        return [Line(**one) for one in json.loads(out.read_text())["lines"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller inputs and fewer rounds")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="all; with --quick all but int8")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--into", type=Path, help="JSON of an earlier run")
    arguments = parser.parse_args()
    parts = arguments.parts or [part for part in PARTS if not (arguments.quick and part == "int8")]
    pin_threads()
    machine = describe_machine()
    is_quick = arguments.quick
    stem = arguments.out / f"bench_{'quick_' if is_quick else ''}{machine['date']}"
    earlier: dict[str, Any] = {}
    if arguments.into:
        stem = arguments.into.with_suffix("")
        earlier = json.loads(arguments.into.read_text())
        require_same_machine(earlier["machine"], machine)
        is_quick = earlier["is_quick"]
    stem.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    lines: list[Line] = []
    for number, part in enumerate(parts, 1):
        minutes = (time.monotonic() - start) / 60
        print(f"[{number}/{len(parts)}] {part}, after {minutes:.1f} min", file=sys.stderr, flush=True)
        lines += run_part(part, is_quick)
        machine["minutes"] = round((time.monotonic() - start) / 60, 1)
        write_run(stem, *(replace_parts(earlier, lines, machine) if earlier else (machine, lines)), is_quick=is_quick)
    print(f"{stem.with_suffix('.json')}\n{stem.with_suffix('.html')}")


def write_run(stem: Path, machine: dict[str, Any], lines: Sequence[Line], *, is_quick: bool) -> None:
    """Write the JSON and the page of what is measured so far."""
    written = [asdict(line) for line in lines]
    contents = {"machine": machine, "is_quick": is_quick, "lines": written, "ratios": list_ratios(lines)}
    stem.with_suffix(".json").write_text(json.dumps(contents, indent=1) + "\n")
    write_page(machine, lines, stem.with_suffix(".html"), is_quick=is_quick)


def require_same_machine(earlier: dict[str, Any], machine: dict[str, Any]) -> None:
    """Refuse to mix figures of two machines: the ceilings of one are not the other's.

    Raises:
        SystemExit: Another processor, other instructions or other settings.
    """
    for name in ("processor", "instructions", "settings"):
        if earlier[name] != machine[name]:
            raise SystemExit(f"that run was made with other {name}: {earlier[name]}, not {machine[name]}.")


def replace_parts(
    contents: dict[str, Any], lines: Sequence[Line], machine: dict[str, Any]
) -> tuple[dict[str, Any], list[Line]]:
    """Return a finished run's machine and lines, with the parts that were measured again in place of the old ones."""
    earlier = [Line(**one) for one in contents["lines"]]
    again = {line.section for line in lines}
    merged: list[Line] = []
    for section in dict.fromkeys(line.section for line in [*earlier, *lines]):
        merged += [line for line in (lines if section in again else earlier) if line.section == section]
    note = dict.fromkeys(sorted(again), f"{machine['date']} {time.strftime('%H:%M')}")
    machine = contents["machine"] | {"measured_again": contents["machine"].get("measured_again", {}) | note}
    return machine, merged


if __name__ == "__main__":
    main()
