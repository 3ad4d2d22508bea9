"""Run one target for a number of inputs or seconds: ``python -m tests.fuzz.harness TARGET --seconds 60``.

A fault prints the traceback, and keeps the input in a file. Put the input into ``regressions/TARGET/`` when the fault
is mended: the test runs those first. The inputs follow from the number of the seed alone.
"""

from __future__ import annotations

import argparse
import faulthandler
import itertools
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterable
from pathlib import Path

from tests.fuzz.mutate import mutate
from tests.fuzz.targets import Target, build_targets, find_real_pictures

REGRESSIONS = Path(__file__).parent / "regressions"
SECONDS_OF_ONE_INPUT = 60
"""A generous watchdog: inputs take milliseconds."""
MEMORY_BYTES = 8 << 30
"""Address space of a process that fuzzes; libraries reserve 2 GiB of it without use."""


def run_inputs(target: Target, inputs: Iterable[bytes], folder: Path) -> int:
    """Run inputs one by one; whatever is not documented comes out, with the input in ``folder/current``.

    Returns:
        The number of inputs.
    """
    num_inputs = 0
    work = folder / "work"
    work.mkdir(exist_ok=True)
    for data in inputs:
        (folder / "current").write_bytes(data)
        faulthandler.dump_traceback_later(SECONDS_OF_ONE_INPUT, exit=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # libraries warn of odd files
            target.run(data, work)
        num_inputs += 1
    faulthandler.cancel_dump_traceback_later()
    return num_inputs


def draw_inputs(seeds: tuple[bytes, ...], seed: int) -> Iterable[bytes]:
    """Draw mutated inputs without end, the seeds themselves first."""
    rng = random.Random(seed)
    return itertools.chain(seeds, (mutate(seeds, rng) for _ in itertools.count()))


def read_regressions(name: str) -> list[bytes]:
    """Read the inputs that once failed."""
    return [path.read_bytes() for path in sorted((REGRESSIONS / name).glob("*"))]


def main() -> int:
    """Fuzz for some seconds; exit status 1 after a fault."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    with tempfile.TemporaryDirectory() as folder:
        target = build_targets(Path(folder))[arguments.target]
    seeds = target.seeds + (find_real_pictures() if arguments.target == "decode" else ())
    end = time.monotonic() + arguments.seconds
    counted = itertools.takewhile(lambda _: time.monotonic() < end, draw_inputs(seeds, arguments.seed))
    try:
        num_inputs = run_inputs(target, counted, arguments.folder)
    except Exception:
        traceback.print_exc()
        return 1
    print(f"{arguments.target}: {num_inputs:,} inputs, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
