"""open-metric-learning as a side of ``ranking.py``. It needs numpy below 2, so it runs in an environment of its own.

Imports nothing of vitrieve, which is not installed there; the vectors come as a file.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import numpy as np
from contest import main

SIDE = "open-metric-learning, own environment"
PACKAGES = ("torch==2.14.1", "torchvision==0.29.1", "numpy<2", "open-metric-learning", "omegaconf")
"""The last is missing from its requirements."""


def ensure_environment(folder: Path) -> list[str] | None:
    """Install the library into ``folder``, unless it is there; return how to start this script there.

    Returns:
        None where it cannot be installed: without a network, or on a full disk.
    """
    python = folder / "bin" / "python"
    if not (folder / "finished").exists():
        print(f"installing open-metric-learning into {folder} (torch a second time: gigabytes)", file=sys.stderr)
        try:
            venv.create(folder, with_pip=True, clear=True)
            command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
            subprocess.run(command, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"open-metric-learning is left out: {error}", file=sys.stderr)
            return None
        (folder / "finished").touch()
    return [str(python), __file__]


def build_side(side: str, vectors: str, k: int) -> Callable[[], float]:
    """Return the search for the ``k`` nearest of all vectors of a file; it returns their mean similarity."""
    import torch
    from oml.functional.knn import batched_knn_qg

    rows = torch.from_numpy(np.load(vectors))

    def run() -> float:
        distances, _, _ = batched_knn_qg(rows, rows, top_n=k)
        return float(1 - (torch.stack(list(distances)).double() ** 2).mean() / 2)

    return run


if __name__ == "__main__":
    main(lambda is_quick: [], __doc__, build_side)
