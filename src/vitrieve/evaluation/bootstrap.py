"""95 % intervals by resampling classes, or queries where every query is a group of its own.

Images of a class are not independent trials: an encoder knows a class or does not. Resampling images would
make intervals too narrow, so whole classes are drawn, with replacement. The intervals answer: how far might
the figure be off, had other classes of this kind been collected? They say nothing about training seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vitrieve.evaluation.metrics import DEFAULT_KS, Scores

NUM_RESAMPLES = 2000
"""For a normal distribution the ends of an interval then scatter by 1.5 % of its width."""
INTERVAL_QUANTILES = (0.025, 0.975)


def bootstrap_means(
    scores: Scores,
    ks: Sequence[int] = DEFAULT_KS,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, npt.NDArray[np.float64]]:
    """Recompute every metric on random draws of the groups (``Scores.groups``): classes, or single queries.

    Two encoders scored on the same queries see the same draws under the same seed, so the difference of
    their results is a paired bootstrap of the difference.

    Args:
        scores: Of at least one query with something relevant.
        ks: Cut-offs.
        num_resamples: Draws; each takes as many groups as there are, with replacement.
        seed: Of the generator of the draws.

    Returns:
        Metric name -> ``(num_resamples,)`` means over the queries of the drawn groups.

    Raises:
        InputError: A cut-off below 1.

    Source: Efron, "Bootstrap methods: another look at the jackknife" (1979); Field and Welsh, "Bootstrapping
        clustered data" (2007), the cluster bootstrap.
    """
    values = scores.values(ks)
    _, group_rows = np.unique(scores.groups[scores.is_scored], return_inverse=True)
    num_groups = int(group_rows.max()) + 1
    columns = [np.ones(scores.num_scored), *values.values()]
    group_sums = np.stack([np.bincount(group_rows, column, num_groups) for column in columns], axis=1)
    generator = np.random.default_rng(seed)
    # How often each group is drawn, times its sum: 100,000 groups are summed without copying a row for each draw.
    totals = np.stack(
        [
            np.bincount(generator.integers(num_groups, size=num_groups), minlength=num_groups) @ group_sums
            for _ in range(num_resamples)
        ]
    )
    return dict(zip(values, (totals[:, 1:] / totals[:, :1]).T, strict=True))


def bootstrap_intervals(
    scores: Scores, ks: Sequence[int] = DEFAULT_KS, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Compute the 95 % percentile interval of every metric over the groups of its queries.

    Args:
        scores: Of at least one query with something relevant. One group alone gives an interval of no width.
        ks: Cut-offs.
        num_resamples: Draws of the groups.
        seed: Of the generator of the draws.

    Returns:
        Metric name -> (low, high), in [0, 1].
    """
    means = bootstrap_means(scores, ks, num_resamples=num_resamples, seed=seed)
    return {name: percentile_interval(draws) for name, draws in means.items()}


def percentile_interval(draws: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Cut the interval that holds the middle 95 % of the draws.

    >>> percentile_interval(np.linspace(0, 1000, 1001))
    (25.0, 975.0)
    """
    low, high = np.quantile(draws, INTERVAL_QUANTILES)
    return float(low), float(high)
