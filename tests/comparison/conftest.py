"""Made-up results of a contest, on known levels."""

from __future__ import annotations

import numpy as np

from vitrieve.comparison.methods import FROZEN
from vitrieve.comparison.statistics import Contest, Outcome

GROUPS = np.repeat(np.arange(20), 4)


def make_outcome(
    name: str, data: str, seed: int, level: float, *, reason: str | None = None, cosine: float = 0.3, kept: int = 4
) -> Outcome:
    generator = np.random.default_rng([seed, len(data)])
    values = np.clip(level + generator.normal(size=len(GROUPS)) * 0.02, 0, 1)
    test = {"protocol": "p", "effective_rank": 30.0, "mean_cosine": cosine}
    contents = {
        "reason": reason,
        "trials": [],
        "chosen": "as it is",
        "recipe": "small",
        "changes": {"train.num_steps": 5},
        "kept_step": kept,
        "holdout_map_at_r": {"0": 0.3, "2": level, "4": level},
        "tests": [test],
        "training_seconds": 2.0,
        "num_images": 100,
        "peak_bytes": None,
    }
    if reason is not None:
        return Outcome(data=data, method=name, seed=seed, contents=contents, queries={})
    queries = {"p": {"groups": GROUPS.astype(float), "map_at_r": values, "recall_at_1": values}}
    return Outcome(data=data, method=name, seed=seed, contents=contents, queries=queries)


def make_contest(
    levels: dict[str, float], *changed: Outcome, without: tuple[tuple[str, str, int], ...] = ()
) -> Contest:
    """Three data sets, three seeds; every method on its level."""
    outcomes = {}
    for data in ("a", "bb", "ccc"):
        outcomes[data, FROZEN, 0] = make_outcome(FROZEN, data, 0, 0.3)
        for name, level in levels.items():
            for seed in range(3):
                outcomes[data, name, seed] = make_outcome(name, data, seed, level + 0.001 * seed)
    outcomes |= {(one.data, one.method, one.seed): one for one in changed}
    for key in without:
        del outcomes[key]
    protocols = {data: ("p",) for data in ("a", "bb", "ccc")}
    return Contest(methods=tuple(levels), protocols=protocols, num_seeds=3, outcomes=outcomes)
