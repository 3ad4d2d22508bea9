"""What the figures of a contest say: paired tests, ranks over data sets, and the sentence about the winner.

The first half is functions of arrays; ``summarize`` makes of all results what ``comparison.json`` and the page hold.

Differences are tested twice, because two things vary: another training of the same method (a paired t-test over seeds)
and other classes to search among (a paired bootstrap over test classes). A difference counts only if both say so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata, studentized_range
from scipy.stats import t as student

from vitrieve.comparison.methods import FROZEN
from vitrieve.errors import ArtifactError
from vitrieve.evaluation.metrics import NUM_RESAMPLES, percentile_interval
from vitrieve.recipes import find_recipe
from vitrieve.similarity import FloatArray, IntArray

Array = npt.NDArray[np.float64]

SIGNIFICANCE = 0.05
NUM_PERMUTATIONS = 20_000
"""A p-value of 0.05 then scatters by 0.0015."""
COLLAPSED_COSINE = 0.95
COLLAPSED_RANK = 2.0
"""Embeddings nearer to each other on average, or of a lower effective rank, are one point or a line."""
MAX_CLOSE = 3
"""Methods within the spread that the sentence names; the JSON file has all."""
ROUNDING = 1e-12
MAX_COUNTS = 2**22
"""Counts that are turned into floats at a time: 32 MiB."""


class Figure(NamedTuple):
    """The mean and the standard deviation (with n - 1) of some seeds; None where there is one seed."""

    mean: float
    deviation: float | None


class Difference(NamedTuple):
    """How much one method is above another.

    Attributes:
        value: Mean over seeds and queries.
        low: Lower end of the 95 % interval over classes.
        high: Upper end.
        p_value: Of the paired t-test over seeds, two-sided; None with fewer than two seeds.
    """

    value: float
    low: float
    high: float
    p_value: float | None

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` where the interval leaves out zero and the seeds agree, else ``unclear``."""
        if self.p_value is None or self.p_value >= SIGNIFICANCE or self.low <= 0 <= self.high:
            return "unclear"
        return "better" if self.value > 0 else "worse"


class Ranking(NamedTuple):
    """Methods ranked over data sets.

    Attributes:
        average_ranks: ``(K,)``; 1 is best.
        chi_square: Friedman's statistic, corrected for ties.
        p_value: Its p-value, by permutation.
        critical_difference: Nemenyi's: average ranks closer than this are not told apart.
    """

    average_ranks: Array
    chi_square: float
    p_value: float
    critical_difference: float


def describe_seeds(values: Sequence[float]) -> Figure:
    """Compute mean and standard deviation over seeds.

    >>> describe_seeds([1.0, 3.0])
    Figure(mean=2.0, deviation=1.4142135623730951)
    """
    return Figure(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


def rank_methods(values: npt.ArrayLike) -> Array:
    """Rank methods on each data set.

    Args:
        values: ``(N, K)`` figures of K methods on N data sets, higher is better; minus infinity: the method failed.

    Returns:
        ``(N, K)`` ranks from 1, the best; ties share the mean of their ranks.

    >>> rank_methods([[0.5, 0.9, 0.5]]).tolist()
    [[2.5, 1.0, 2.5]]
    """
    return np.asarray(rankdata(-np.asarray(values, dtype=np.float64), axis=1))


def compare_ranks(values: npt.ArrayLike, *, seed: int = 0) -> Ranking | None:
    """Test whether methods differ over data sets: Friedman's test, and Nemenyi's critical difference.

    The p-value is that of the permutation test: the share of ``NUM_PERMUTATIONS`` random orders of the methods on each
    data set that have a statistic as large. The usual chi-square approximation is far off for fewer than ten data sets.

    Args:
        values: ``(N, K)`` figures, higher is better; minus infinity: the method failed.
        seed: Seed of the generator of the permutations.

    Returns:
        The ranking; None for fewer than two data sets or methods.

    Source: Demšar, "Statistical Comparisons of Classifiers over Multiple Data Sets" (JMLR 7, 2006), section 3.2.2.
    """
    ranks = rank_methods(values)
    num_sets, num_methods = ranks.shape
    if num_sets < 2 or num_methods < 2:
        return None
    statistic = friedman_statistic(ranks[None])[0]
    generator = np.random.default_rng(seed)
    shuffled = generator.permuted(np.broadcast_to(ranks, (NUM_PERMUTATIONS, *ranks.shape)), axis=2)
    num_reached = np.count_nonzero(friedman_statistic(shuffled) >= statistic - 1e-9)
    return Ranking(
        average_ranks=ranks.mean(axis=0),
        chi_square=float(statistic),
        p_value=(1 + int(num_reached)) / (1 + NUM_PERMUTATIONS),
        critical_difference=critical_difference(num_methods, num_sets),
    )


def friedman_statistic(ranks: Array) -> Array:
    """Compute Friedman's chi-square, corrected for ties.

    Args:
        ranks: ``(B, N, K)`` ranks of K methods on N data sets, B times.

    Returns:
        ``(B,)``; zero where all methods are tied everywhere.
    """
    _, num_sets, num_methods = ranks.shape
    middle = (num_methods + 1) / 2
    between = num_sets * ((ranks.mean(axis=1) - middle) ** 2).sum(axis=1) * num_sets
    within = ((ranks - middle) ** 2).sum(axis=(1, 2)) / (num_methods - 1)
    return np.asarray(np.divide(between, within, out=np.zeros(len(ranks)), where=within > 0))


def critical_difference(num_methods: int, num_sets: int, significance: float = SIGNIFICANCE) -> float:
    """Compute the difference of average ranks beyond which two methods differ, by the Nemenyi test.

    Args:
        num_methods: K, at least 2.
        num_sets: N data sets.
        significance: Level of the test over all pairs.

    Source: Demšar 2006, section 3.2.2: q · √(K (K + 1) / 6 N), where q is the Studentized range over √2.

    >>> round(critical_difference(4, 14), 2)
    1.25
    """
    quantile = studentized_range.ppf(1 - significance, num_methods, np.inf) / math.sqrt(2)
    return float(quantile * math.sqrt(num_methods * (num_methods + 1) / (6 * num_sets)))


def find_cliques(average_ranks: Sequence[float], difference: float) -> list[tuple[int, int]]:
    """Find the largest groups of methods whose average ranks differ by less than a critical difference.

    Args:
        average_ranks: Average ranks, rising.
        difference: The critical difference.

    Returns:
        First and last position of each group of two or more that is not part of another one.

    >>> find_cliques([1.0, 2.0, 3.0, 5.0], 2.5)
    [(0, 2), (2, 3)]
    """
    cliques: list[tuple[int, int]] = []
    for first, rank in enumerate(average_ranks):
        last = max(other for other, value in enumerate(average_ranks) if other == first or value - rank < difference)
        if last > first and (not cliques or last > cliques[-1][1]):
            cliques.append((first, last))
    return cliques


def seeds_p_value(differences: npt.ArrayLike) -> float | None:
    """Compute the p-value of a paired t-test over seeds, two-sided.

    Args:
        differences: ``(S,)`` difference of the two methods in each seed.

    Returns:
        The p-value; None for fewer than two seeds. Differences that are all equal (rounding aside) have a p-value of 0,
        and of 1 where they are zero.
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2:
        return None
    mean, deviation = values.mean(), values.std(ddof=1)
    if deviation <= ROUNDING:
        return 1.0 if abs(mean) <= ROUNDING else 0.0
    return float(2 * student.sf(abs(mean) / (deviation / math.sqrt(len(values))), len(values) - 1))


class PairedQueries(NamedTuple):
    """The values of two methods on the same queries of one test.

    Attributes:
        groups: ``(Q,)`` class of each query.
        before: ``(S, Q)`` values of the one method, a row for each seed.
        after: ``(S, Q)`` values of the other.
    """

    groups: IntArray
    before: Array
    after: Array


def compare_pairs(sources: Sequence[Sequence[PairedQueries]]) -> Difference:
    """Test the difference of two methods over one or more tests.

    The mean over the tests of a data set is taken first, then over data sets. Tests of one data set share the drawn
    classes, where they have the same.

    Args:
        sources: For each data set its tests, each with the same number of seeds.
    """
    seeds = np.mean(
        [np.mean([(one.after - one.before).mean(axis=1) for one in tests], axis=0) for tests in sources], axis=0
    )
    draws = np.mean(
        [np.mean([_resample(one, number) for one in tests], axis=0) for number, tests in enumerate(sources)],
        axis=0,
    )
    return Difference(float(seeds.mean()), *percentile_interval(draws), seeds_p_value(seeds))


def _resample(queries: PairedQueries, seed: int) -> Array:
    """Recompute the mean difference on draws of whole classes, those of ``evaluation.metrics.bootstrap_means``."""
    differences = (queries.after - queries.before).mean(axis=0)
    _, rows = np.unique(queries.groups, return_inverse=True)
    num_groups = int(rows.max()) + 1
    sums = np.stack([np.bincount(rows, column, num_groups) for column in (differences, np.ones(len(rows)))], axis=1)
    counts = _draw_groups(num_groups, seed)
    parts = np.array_split(counts, -(-counts.size // MAX_COUNTS))
    totals = np.concatenate([part.astype(np.float64) @ sums for part in parts])
    return np.asarray(totals[:, 0] / totals[:, 1])


@lru_cache(maxsize=16)
def _draw_groups(num_groups: int, seed: int) -> npt.NDArray[np.uint16]:
    """Draw as many groups as there are, with replacement; return how often each is drawn, ``(NUM_RESAMPLES, G)``.

    All methods on a test see the same draws, and drawing takes most of the time.
    """
    generator = np.random.default_rng(seed)
    draws = (generator.integers(num_groups, size=num_groups) for _ in range(NUM_RESAMPLES))
    return np.stack([np.bincount(draw, minlength=num_groups).astype(np.uint16) for draw in draws])


def effective_rank(vectors: FloatArray) -> float:
    """Compute the effective rank of embeddings: the exponential of the entropy of their singular values.

    Args:
        vectors: ``(N, E)`` embeddings, not centered.

    Returns:
        A number from 1 (all lie on a line) to the smaller of N and E.

    Source: Roy and Vetterli, "The effective rank" (EUSIPCO 2007).

    >>> effective_rank(np.eye(4, dtype=np.float32))
    4.0
    """
    products = vectors.T.astype(np.float64) @ vectors.astype(np.float64)
    singular = np.sqrt(np.maximum(np.linalg.eigvalsh(products), 0))
    shares = singular[singular > 0] / singular.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def mean_cosine(vectors: FloatArray) -> float:
    """Compute the mean cosine of all pairs of different rows.

    Args:
        vectors: ``(N, E)`` embeddings of unit length.

    Returns:
        A number in [-1, 1]; 1 for fewer than two rows.

    >>> mean_cosine(np.eye(2, dtype=np.float32))
    0.0
    """
    num_rows = len(vectors)
    if num_rows < 2:
        return 1.0
    total = vectors.sum(axis=0, dtype=np.float64)
    own = (vectors.astype(np.float64) ** 2).sum()
    return float((total @ total - own) / (num_rows * (num_rows - 1)))


# What a contest has found


METRICS = ("map_at_r", "recall_at_1")
"""The first decides: Recall@1 is full on small collections long before the space is in order."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one method on one data set with one seed.

    Attributes:
        data: Spelling of the source.
        method: Name of the method.
        seed: Seed of the training; of the frozen backbone 0.
        contents: The result as JSON (``cells.py`` says what is in it).
        queries: For each protocol the class of each scored query, and its value of each metric.
    """

    data: str
    method: str
    seed: int
    contents: Mapping[str, Any]
    queries: Mapping[str, Mapping[str, Array]]

    @property
    def is_failed(self) -> bool:
        """Whether there is a reason instead of figures."""
        return self.contents["reason"] is not None

    def mean(self, protocol: str, metric: str) -> float:
        """Return a figure, in [0, 1]."""
        return float(self.queries[protocol][metric].mean())


Outcomes = Mapping[tuple[str, str, int], Outcome]
"""By data set, method and seed."""


@dataclass(frozen=True, kw_only=True)
class Contest:
    """A contest as far as it has come.

    Attributes:
        methods: Names of the trained methods, the reference first.
        protocols: For each data set its protocols.
        num_seeds: Seeds that are asked for.
        outcomes: What is done.
    """

    methods: tuple[str, ...]
    protocols: Mapping[str, tuple[str, ...]]
    num_seeds: int
    outcomes: Outcomes

    @property
    def names(self) -> tuple[str, ...]:
        """The frozen backbone and the methods."""
        return (FROZEN, *self.methods)

    @cached_property
    def rounds(self) -> dict[str, list[int]]:
        """For each data set the seeds that every method is done with, failed ones included."""
        return {
            data: [seed for seed in range(self.num_seeds) if all(self.find(data, name, seed) for name in self.names)]
            for data in self.protocols
        }

    @property
    def ranked(self) -> list[str]:
        """The data sets of which one round at least is whole."""
        return [data for data, seeds in self.rounds.items() if seeds]

    def find(self, data: str, name: str, seed: int) -> Outcome | None:
        """Find an outcome; the frozen backbone's is the same for each seed."""
        return self.outcomes.get((data, name, 0 if name == FROZEN else seed))

    def list_finished(self, data: str, name: str) -> list[Outcome]:
        """List the outcomes with figures that count: of whole rounds, or where there is none, all."""
        seeds = [0] if name == FROZEN else self.rounds[data] or range(self.num_seeds)
        found = [self.find(data, name, seed) for seed in seeds]
        return [one for one in found if one is not None and not one.is_failed]

    def has_failed(self, data: str, name: str) -> bool:
        """Say whether a run of a whole round has failed."""
        return any(one.is_failed for seed in self.rounds[data] if (one := self.find(data, name, seed)))

    def score(self, data: str, name: str, metric: str) -> float:
        """Return the mean over protocols and seeds, in [0, 1]; minus infinity where a run has failed."""
        if self.has_failed(data, name):
            return -math.inf
        finished = self.list_finished(data, name)
        return float(np.mean([one.mean(protocol, metric) for one in finished for protocol in self.protocols[data]]))

    def pair(
        self, data: str, protocol: str, metric: str, names: tuple[str, str], seeds: Sequence[int]
    ) -> PairedQueries:
        """Lay the values of two methods on the same queries beside each other, a row for each seed.

        Raises:
            ArtifactError: The classes of their queries differ, so that the queries do.
        """
        rows = [[self.outcomes[data, name, 0 if name == FROZEN else seed] for seed in seeds] for name in names]
        groups = rows[0][0].queries[protocol]["groups"]
        for name, row in zip(names, rows, strict=True):
            if any(not np.array_equal(one.queries[protocol]["groups"], groups) for one in row):
                raise ArtifactError(
                    f"the results of {names[0]} and {name} on {data} are of different pictures: one could be read for "
                    "the one and not for the other. Repair the pictures, remove these results of that data set in the "
                    "contest's folder results, and go on with --resume."
                )
        before, after = (np.stack([one.queries[protocol][metric] for one in row]) for row in rows)
        return PairedQueries(groups.astype(np.int64), before, after)

    def list_common_seeds(self, data: str, names: tuple[str, str]) -> list[int]:
        """List the seeds that both methods have figures of, in whole rounds."""
        pairs = {seed: [self.find(data, name, seed) for name in names] for seed in self.rounds[data]}
        return [seed for seed, pair in pairs.items() if not any(one is None or one.is_failed for one in pair)]


def summarize(contest: Contest) -> dict[str, Any]:
    """Compute everything that the page says, as plain JSON values."""
    rankings = {metric: _rank(contest, metric) for metric in METRICS}
    return {
        "rounds": contest.rounds,
        "order": _order(contest),
        "figures": list(_list_figures(contest)),
        "ranks": rankings,
        "verdict": _judge(contest, rankings[METRICS[0]]),
        "problems": list(_list_problems(contest)),
        "costs": list(_list_costs(contest)),
        "curves": list(_list_curves(contest)),
    }


def _order(contest: Contest) -> list[str]:
    """Order the methods by average rank, equals by their mean; as they were named where nothing is ranked."""
    if not contest.ranked:
        return list(contest.names)
    values = np.array([[contest.score(data, name, METRICS[0]) for name in contest.names] for data in contest.ranked])
    ranks, means = rank_methods(values).mean(axis=0), values.mean(axis=0)
    return [contest.names[number] for number in sorted(range(len(ranks)), key=lambda one: (ranks[one], -means[one]))]


def _rank(contest: Contest, metric: str) -> dict[str, Any] | None:
    values = [[contest.score(data, name, metric) for name in contest.names] for data in contest.ranked]
    ranking = compare_ranks(values) if values else None
    if ranking is None:
        return None
    order = np.argsort(ranking.average_ranks, kind="stable")
    rising = ranking.average_ranks[order].tolist()
    names = [contest.names[number] for number in order]
    cliques = find_cliques(rising, ranking.critical_difference)
    return {
        "average_ranks": dict(zip(names, rising, strict=True)),
        "num_data_sets": len(values),
        "chi_square": ranking.chi_square,
        "p_value": ranking.p_value,
        "critical_difference": ranking.critical_difference,
        "groups": [names[first : last + 1] for first, last in cliques],
    }


def _list_figures(contest: Contest) -> Iterator[dict[str, Any]]:
    """Yield the figures of every method on every test, with the difference to the reference."""
    for data, protocols in contest.protocols.items():
        for protocol in protocols:
            for name in contest.names:
                finished = contest.list_finished(data, name)
                entry: dict[str, Any] = {"method": name, "data": data, "protocol": protocol}
                entry |= {"num_seeds": len(finished), "has_failed": contest.has_failed(data, name)}
                for metric in METRICS:
                    values = [one.mean(protocol, metric) for one in finished]
                    figure = describe_seeds(values)._asdict() if values else {"mean": None, "deviation": None}
                    difference = _compare_with_reference(contest, data, protocol, metric, name)
                    entry[metric] = {**figure, "values": values, "difference": difference}
                yield entry


def _compare_with_reference(
    contest: Contest, data: str, protocol: str, metric: str, name: str
) -> dict[str, Any] | None:
    names = (contest.methods[0], name)
    seeds = contest.list_common_seeds(data, names)
    if name == names[0] or not seeds:
        return None
    return _spell_difference(compare_pairs([[contest.pair(data, protocol, metric, names, seeds)]]))


def _spell_difference(difference: Difference) -> dict[str, Any]:
    return {**difference._asdict(), "verdict": difference.verdict}


def _judge(contest: Contest, ranks: Mapping[str, Any] | None) -> dict[str, Any]:
    """Say which method won over all data sets, and by how much, or that none did."""
    leader = _order(contest)[0]
    failed = [data for data in contest.ranked if contest.has_failed(data, leader)]
    if failed or not contest.ranked:
        text = "No method is done with a data set yet."
        if failed:
            text = f"Nothing won: {leader} has the best average rank, but a run of it failed on {', '.join(failed)}."
        return {"winner": None, "leader": None, "differences": {}, "text": text}
    differences = {}
    for name in _order(contest)[1:]:
        seeds = _list_seeds_of_all(contest, (name, leader))
        if not any(contest.has_failed(data, name) for data in contest.ranked) and seeds:
            pairs = [
                [
                    contest.pair(data, protocol, METRICS[0], (name, leader), seeds)
                    for protocol in contest.protocols[data]
                ]
                for data in contest.ranked
            ]
            differences[name] = compare_pairs(pairs)
    close = [name for name, one in differences.items() if one.verdict != "better"]
    text = _spell_verdict(leader, close, differences, len(contest.ranked), ranks)
    spelled = {name: _spell_difference(one) for name, one in differences.items()}
    return {"winner": None if close else leader, "leader": leader, "differences": spelled, "text": text}


def _list_seeds_of_all(contest: Contest, names: tuple[str, str]) -> list[int]:
    """List the seeds that two methods have figures of on every ranked data set."""
    common = [set(contest.list_common_seeds(data, names)) for data in contest.ranked]
    return sorted(set.intersection(*common))


def _spell_verdict(
    leader: str,
    close: Sequence[str],
    differences: Mapping[str, Difference],
    num_sets: int,
    ranks: Mapping[str, Any] | None,
) -> str:
    over = "on one data set" if num_sets == 1 else f"over {num_sets} data sets"
    rank = "" if ranks is None else f" with an average rank of {ranks['average_ranks'][leader]:.1f}"
    if close:
        listed = "; ".join(f"over {name}, {_spell_points(differences[name])}" for name in close[:MAX_CLOSE])
        listed += f"; and over {len(close) - MAX_CLOSE} more" if len(close) > MAX_CLOSE else ""
        text = f"Nothing won: {leader} leads {over}{rank}, but within the spread: {listed}."
    elif differences:
        second = next(iter(differences))
        text = f"{leader} won {over}{rank}: over {second}, the next, {_spell_points(differences[second])}."
    else:
        text = f"{leader} won {over}: every other method has failed."
    if ranks is None:
        return text
    told = "differ" if ranks["p_value"] < SIGNIFICANCE else "cannot be told apart"
    return (
        f"{text} By their ranks alone the methods {told} (Friedman, p {spell_p(ranks['p_value'])}), and two of them "
        f"differ where their average ranks are {ranks['critical_difference']:.2f} apart (Nemenyi, 5 %)."
    )


def _spell_points(difference: Difference) -> str:
    value, low, high = (f"{100 * one:+.1f}" for one in difference[:3])
    seeds = "one seed" if difference.p_value is None else f"p {spell_p(difference.p_value)} over seeds"
    return f"{value} points of MAP@R (95 % interval over classes {low} to {high}; {seeds})"


def spell_p(value: float) -> str:
    """Spell what comes after p.

    >>> spell_p(0.0312), spell_p(0.00001)
    ('= 0.031', '< 0.001')
    """
    return "< 0.001" if value < 0.001 else f"= {value:.2g}"


def _list_problems(contest: Contest) -> Iterator[dict[str, Any]]:
    """Yield every run that failed, collapsed, or kept the frozen start, with the reason."""
    for (data, name, seed), outcome in contest.outcomes.items():
        if name == FROZEN:
            continue
        for kind, reason in _find_problems(contest, outcome):
            yield {"method": name, "data": data, "seed": seed, "kind": kind, "reason": reason}


def _find_problems(contest: Contest, outcome: Outcome) -> Iterator[tuple[str, str]]:
    contents = outcome.contents
    for trial in contents["trials"]:
        if trial["reason"] is not None and not outcome.is_failed:
            yield "trial failed", f"{trial['name']}: {trial['reason']}"
    if outcome.is_failed:
        yield "failed", contents["reason"]
        return
    if contents["kept_step"] == 0:
        held_out = {int(step): value for step, value in contents["holdout_map_at_r"].items()}
        best = max((value for step, value in held_out.items() if step), default=held_out[0])
        yield (
            "kept frozen",
            f"no state was better on the held-out classes: MAP@R {100 * best:.1f} at best, frozen "
            f"{100 * held_out[0]:.1f}; what was measured is the frozen start",
        )
    for test in contents["tests"]:
        yield from (("collapsed", f"{test['protocol']}: {reason}") for reason in _find_collapse(contest, outcome, test))


def _find_collapse(contest: Contest, outcome: Outcome, test: Mapping[str, Any]) -> Iterator[str]:
    """Yield the reasons why a run counts as collapsed under a protocol.

    A run has none that is better than the frozen backbone by more than the interval of the difference.
    """
    protocol, metric = test["protocol"], METRICS[0]
    frozen = contest.find(outcome.data, FROZEN, 0)
    if frozen is not None:
        pair = contest.pair(outcome.data, protocol, metric, (FROZEN, outcome.method), [outcome.seed])
        difference = compare_pairs([[pair]])
        if difference.low > 0:
            return
    if test["mean_cosine"] >= COLLAPSED_COSINE:
        yield f"the mean cosine of two embeddings is {test['mean_cosine']:.3f}, {COLLAPSED_COSINE} or more"
    if test["effective_rank"] <= COLLAPSED_RANK:
        yield f"the effective rank of the embeddings is {test['effective_rank']:.2f}, {COLLAPSED_RANK} or less"
    if frozen is not None and difference.high < 0:
        low, high = (f"{100 * end:+.1f}" for end in difference[1:3])
        yield (
            f"below frozen by more than the interval: MAP@R {100 * outcome.mean(protocol, metric):.1f}, frozen "
            f"{100 * frozen.mean(protocol, metric):.1f} (difference {low} to {high})"
        )


def _list_costs(contest: Contest) -> Iterator[dict[str, Any]]:
    """Yield what each method took: means over its finished runs, and the most memory."""
    for name in _order(contest):
        runs = [one.contents for key, one in contest.outcomes.items() if key[1] == name and not one.is_failed]
        if name == FROZEN or not runs:
            continue
        peaks = [run["peak_bytes"] for run in runs if run["peak_bytes"] is not None]
        yield {
            "method": name,
            "num_runs": len(runs),
            "training_seconds": describe_seeds([run["training_seconds"] for run in runs])._asdict(),
            "num_images": describe_seeds([run["num_images"] for run in runs])._asdict(),
            "peak_bytes": max(peaks, default=None),
            "chosen": {data: _find_chosen(contest, data, name) for data in contest.protocols},
        }


def _find_chosen(contest: Contest, data: str, name: str) -> str | None:
    outcome = contest.find(data, name, 0)
    return None if outcome is None or outcome.is_failed else outcome.contents["chosen"]


def _list_curves(contest: Contest) -> Iterator[dict[str, Any]]:
    """Yield the held-out MAP@R of each method by the share of its steps, the mean over seeds."""
    for data in contest.protocols:
        for name in contest.methods:
            runs = [one.contents for one in contest.list_finished(data, name)]
            values = list(zip(*(run["holdout_map_at_r"].values() for run in runs), strict=False))  # some stop early
            if values:
                shares = [int(step) / _count_planned_steps(runs[0]) for step in runs[0]["holdout_map_at_r"]]
                means = [float(np.mean(of_all)) for of_all in values]
                yield {"data": data, "method": name, "shares": shares[: len(means)], "map_at_r": means}


def _count_planned_steps(run: Mapping[str, Any]) -> int:
    """Return the steps that a run would take if it did not stop early; a setting of its recipe is not listed."""
    planned: int = run["changes"].get("train.num_steps", find_recipe(run["recipe"])().train.num_steps)
    return planned
