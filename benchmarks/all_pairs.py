"""All pairs of a million vectors that are nearly the same: seconds, and memory beside the vectors.

    python benchmarks/all_pairs.py [--num-rows 1000000] [--num-dims 64] [--num-copies 10000]

The vectors are random directions, and the last ``--num-copies`` are copies of the first with noise, at a cosine of
about 0.95: these are all that reach the threshold of 0.9. `vitrieve duplicates` finds its pairs by the same function.
The process compares a tenth as many vectors first, so that the growth shows. Prints and writes
benchmarks/results/all_pairs_DATE.json; ends with status 1 where a pair is missed or one too many is found.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from datetime import date
from typing import Any

import numpy as np
from contest import RESULTS, pin_threads, write_result

THRESHOLD, NOISE = 0.9, 0.33
MIB = 1024**2


def make_vectors(num_rows: int, num_dims: int, num_copies: int) -> np.ndarray:
    """Return ``(num_rows, num_dims)`` unit vectors, the last of them copies of the first with noise."""
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((num_rows, num_dims), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    noise = generator.standard_normal((num_copies, num_dims), dtype=np.float32)
    noise *= NOISE / np.linalg.norm(noise, axis=1, keepdims=True)
    vectors[-num_copies:] = vectors[:num_copies] + noise
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def measure(num_rows: int, num_dims: int, num_copies: int) -> dict[str, Any]:
    """Find the pairs, and compare them with those that were planted."""
    from vitrieve.similarity.pairs import pairs_above

    vectors = make_vectors(num_rows, num_dims, num_copies)
    planted = np.einsum("ij,ij->i", vectors[:num_copies], vectors[-num_copies:]) >= THRESHOLD
    before, started, cpu = peak_mib(), time.perf_counter(), time.process_time()
    found = pairs_above(vectors, THRESHOLD)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    is_planted = found.second - found.first == num_rows - num_copies
    return {
        "num_rows": num_rows,
        "num_dims": num_dims,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "vectors_mib": vectors.nbytes / MIB,
        "peak_mib_before": before,
        "peak_mib": peak_mib(),
        "num_planted": int(planted.sum()),
        "num_found": int(is_planted.sum()),
        "num_others": int((~is_planted).sum()),
    }


def peak_mib() -> float:
    """Return the most memory that this process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-rows", type=int, default=1_000_000)
    parser.add_argument("--num-dims", type=int, default=64)
    parser.add_argument("--num-copies", type=int, default=10_000)
    given = parser.parse_args()
    pin_threads()
    rows = []
    for parts in (10, 1):
        rows.append(measure(given.num_rows // parts, given.num_dims, given.num_copies // parts))
        print(rows[-1], flush=True)
    write_result(RESULTS / f"all_pairs_{date.today()}.json", {"threshold": THRESHOLD, "rows": rows})
    return int(any(row["num_others"] or row["num_found"] != row["num_planted"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
