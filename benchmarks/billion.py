"""How long do N machines that may be taken away need for a billion images? ``python benchmarks/billion.py --help``.

A simulation of ``vitrieve embed --ray``, event by event: every machine writes part after part of 256 images, is lost
after a time drawn from an exponential distribution, and has a successor after ``--replace-minutes``, which loads the
encoder first. The part that a lost machine had at hand is made again. Nothing is embedded: what it prints is computed.

The rate of a machine and its seconds before the first image are read from a file of measurements (``--measured``): of
``ray_actors.py`` (the way with the most images a second; what its command takes beside the encoding), or of
``make bench`` (``vitrieve embed`` on files; a new process until its first embedding). The lives of machines, the time
until a lost one has a successor, and the price are assumptions.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PART_IMAGES = 256
HOUR = 3600.0
MEASURED = Path(__file__).parent / "results" / "bench_2026-11-27.json"
"""DeiT-S at 224 px on two cores that did nothing else, files and start-up included."""


class Outcome(NamedTuple):
    """What a simulation found: hours to the end, hours of machines that are paid, losses, images made twice."""

    hours: float
    machine_hours: float
    num_losses: int
    num_twice: int


class Measured(NamedTuple):
    """What was measured of a machine: images a second, and seconds from the start of a command to its first image."""

    rate: float
    start_seconds: float


def read_measured(path: Path) -> Measured:
    """Read a file of ``ray_actors.py`` or of ``make bench``."""
    content = json.loads(path.read_text())
    if "ways" in content:
        ways = [way for way in content["ways"] if way["way"].startswith("Ray")]
        best = max(ways, key=lambda way: float(way["images_per_second"]))
        return Measured(best["images_per_second"], best["seconds"] - best["encoding_seconds"])
    values = {(line["task"].partition(",")[0], line["side"]): line["value"] for line in content["lines"]}
    return Measured(values["whole command", "vitrieve embed"], values["load_encoder and first embedding", "vitrieve"])


def draw_lives(hours_between_losses: float, seed: int) -> Iterator[float]:
    """Draw the seconds after which one machine after the other is lost."""
    generator = random.Random(seed)
    while True:
        yield generator.expovariate(1 / (hours_between_losses * HOUR))


def simulate(
    num_images: int, num_machines: int, measured: Measured, *, replace_seconds: float, lives: Iterator[float]
) -> Outcome:
    """Simulate until every part is written.

    Args:
        num_images: Images to embed.
        num_machines: Machines at work at a time.
        measured: Rate of a machine, and the time in which a new one loads the encoder; it is paid and makes nothing.
        replace_seconds: Time until another machine takes the place of a lost one; nothing is paid.
        lives: Seconds after which each machine is lost, in the order in which they start.
    """
    num_left, part_seconds = -(-num_images // PART_IMAGES), PART_IMAGES / measured.rate
    end, paid, num_losses, num_twice = 0.0, 0.0, 0, 0

    def bear(born: float) -> tuple[float, float, float]:
        """Return a new machine: when it is free for its first part, when it was begun, and when it will be lost."""
        return born + measured.start_seconds, born, born + next(lives)

    machines = [bear(0.0) for _ in range(num_machines)]
    heapq.heapify(machines)
    while num_left:
        free, born, lost = machines[0]
        if free + part_seconds > lost:
            num_losses += 1
            num_twice += max(0, round((lost - free) * measured.rate))
            paid += lost - born
            heapq.heapreplace(machines, bear(lost + replace_seconds))
            continue
        num_left -= 1
        end = max(end, free + part_seconds)
        heapq.heapreplace(machines, (free + part_seconds, born, lost))
    paid += sum(max(0.0, min(lost, end) - born) for _, born, lost in machines)
    return Outcome(end / HOUR, paid / HOUR, num_losses, num_twice)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-images", type=int, default=1_000_000_000)
    parser.add_argument("--measured", type=Path, default=MEASURED, help=f"file of measurements ({MEASURED.name})")
    parser.add_argument("--rate", type=float, help="images a second of one machine, in place of the measured ones")
    parser.add_argument("--start-seconds", type=float, help="until a new machine embeds, in place of the measured ones")
    parser.add_argument("--machines", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--hours-between-losses", type=float, nargs="+", default=[24.0, 4.0, 1.0])
    parser.add_argument("--replace-minutes", type=float, default=10.0, help="until a lost machine has a successor")
    parser.add_argument("--price", type=float, default=0.05, help="of an hour of one machine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="file of JSON to write")
    arguments = parser.parse_args()
    rate, start_seconds = read_measured(arguments.measured)
    measured = Measured(
        rate if arguments.rate is None else arguments.rate,
        start_seconds if arguments.start_seconds is None else arguments.start_seconds,
    )
    print(
        f"computed: {arguments.num_images:,} images at {measured.rate:.1f} images/s a machine, "
        f"{measured.start_seconds:.1f} s to start (measured: {arguments.measured.name}), seed {arguments.seed}"
    )
    print(f"| machines | mean life | hours | machine hours | cost at {arguments.price:g} | lost | images made twice |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for num_machines in arguments.machines:
        for hours in arguments.hours_between_losses:
            found = simulate(
                arguments.num_images,
                num_machines,
                measured,
                replace_seconds=60 * arguments.replace_minutes,
                lives=draw_lives(hours, arguments.seed),
            )
            cost = found.machine_hours * arguments.price
            rows.append({"machines": num_machines, "mean_life_hours": hours, **found._asdict(), "cost": cost})
            row = f"| {num_machines:,} | {hours:g} h | {found.hours:.1f} | {found.machine_hours:,.0f} | {cost:,.0f} |"
            print(f"{row} {found.num_losses:,} | {found.num_twice / arguments.num_images:.3%} |", flush=True)
    if arguments.results is not None:
        given = {name: value for name, value in vars(arguments).items() if name not in ("results", "measured")}
        content = {**given, **measured._asdict(), "measured": arguments.measured.name, "kind": "computed", "rows": rows}
        arguments.results.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
