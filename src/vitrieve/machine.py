"""What this machine has, for numbers that follow it: how many threads, workers and pictures at a time."""

from __future__ import annotations

import os


def count_cores() -> int:
    """Count the processor cores that this process may use, at least one."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1
