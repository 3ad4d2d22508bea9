"""How long do N machines that may be taken away need for a billion images? ``python benchmarks/billion.py --help``.

A simulation of ``vitrieve embed --ray``, event by event: every machine writes part after part of 256 images at a rate
that was measured elsewhere (``--rate``), is lost after a time drawn from an exponential distribution, and has a
successor after ``--replace-minutes``, which loads the encoder first. The part that a lost machine had at hand is made
again. Nothing is embedded: what it prints is computed.
"""

from __future__ import annotations

import argparse
import heapq
import random
from typing import NamedTuple

PART_IMAGES = 256
HOUR = 3600.0


class Outcome(NamedTuple):
    """What a simulation found: hours to the end, hours of machines that are paid, losses, images made twice."""

    hours: float
    machine_hours: float
    num_losses: int
    num_twice: int


def simulate(
    num_images: int,
    num_machines: int,
    *,
    rate: float,
    hours_between_losses: float,
    start_seconds: float,
    replace_seconds: float,
    seed: int,
) -> Outcome:
    """Simulate until every part is written.

    Args:
        num_images: Images to embed.
        num_machines: Machines at work at a time.
        rate: Images a second of one machine.
        hours_between_losses: Mean life of a machine.
        start_seconds: Time in which a new machine loads the encoder; it is paid and makes nothing.
        replace_seconds: Time until another machine takes the place of a lost one; nothing is paid.
        seed: Seed of the lives.
    """
    generator = random.Random(seed)
    num_left, part_seconds = -(-num_images // PART_IMAGES), PART_IMAGES / rate
    end, paid, num_losses, num_twice = 0.0, 0.0, 0, 0

    def bear(born: float) -> tuple[float, float, float]:
        """Return a new machine: when it is free for its first part, when it was begun, and when it will be lost."""
        return born + start_seconds, born, born + generator.expovariate(1 / (hours_between_losses * HOUR))

    machines = [bear(0.0) for _ in range(num_machines)]
    heapq.heapify(machines)
    while num_left:
        free, born, lost = machines[0]
        if free + part_seconds > lost:
            num_losses += 1
            num_twice += max(0, round((lost - free) * rate))
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
    parser.add_argument("--rate", type=float, default=100.0, help="images a second of one machine, as measured there")
    parser.add_argument("--machines", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--hours-between-losses", type=float, nargs="+", default=[24.0, 4.0, 1.0])
    parser.add_argument("--start-seconds", type=float, default=60.0, help="until a new machine embeds")
    parser.add_argument("--replace-minutes", type=float, default=10.0, help="until a lost machine has a successor")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(f"computed: {arguments.num_images:,} images at {arguments.rate:g} images/s a machine, seed {arguments.seed}")
    print("| machines | mean life | hours | machine hours | machines lost | images made twice |")
    print("|---|---|---|---|---|---|")
    for num_machines in arguments.machines:
        for hours in arguments.hours_between_losses:
            found = simulate(
                arguments.num_images,
                num_machines,
                rate=arguments.rate,
                hours_between_losses=hours,
                start_seconds=arguments.start_seconds,
                replace_seconds=60 * arguments.replace_minutes,
                seed=arguments.seed,
            )
            row = f"| {num_machines:,} | {hours:g} h | {found.hours:.1f} | {found.machine_hours:,.0f} |"
            print(f"{row} {found.num_losses:,} | {found.num_twice:,} ({found.num_twice / arguments.num_images:.3%}) |")


if __name__ == "__main__":
    main()
