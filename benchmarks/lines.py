"""What the suite writes down: a line for each side of a task, and how many times better ours is than each other one.

``contest.py`` measures them, and ``page.py`` draws them.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True, kw_only=True)
class Line:
    """One side of one task.

    Attributes:
        section: Part of the suite.
        task: What was done; lines of one task are comparable.
        side: Who did it; those that start with ``vitrieve`` are ours.
        value: Median of the rounds, in ``unit``.
        low: Least of the rounds.
        high: Most of the rounds.
        unit: ``s`` and ``ms`` are better when less, everything else when more.
        size: Of the input, where the task is one point of a curve.
        gflop: Billions of operations (multiplications and additions of the matrix products) a unit, or a call.
        ceiling: The task of the section ``ceilings`` that bounds it; with ``gflop`` None, in the same unit.
        peak_mib: Largest memory, where it was measured; of the process, or above what it held before, as the part says.
        note: For a reader of the page.
        num_rounds: Of which ``value`` is the median; 0: not told.
        rounds: Their values, in the order of the turns, which the sides of a task share; empty: not told.
    """

    section: str
    task: str
    side: str
    value: float
    low: float
    high: float
    unit: str
    size: float | None = None
    gflop: float | None = None
    ceiling: str | None = None
    peak_mib: float | None = None
    note: str = ""
    num_rounds: int = 0
    rounds: Sequence[float] = ()

    @property
    def is_ours(self) -> bool:
        """Return whether this is our side."""
        return self.side.startswith("vitrieve")

    @property
    def is_less_better(self) -> bool:
        """Return whether a smaller value is better."""
        return self.unit in ("s", "ms")

    def times_better_than(self, other: Line) -> float:
        """Return how many times better this side is than another of its task."""
        ratio = self.value / other.value
        return 1 / ratio if self.is_less_better else ratio

    def compare(self, other: Line) -> Ratio:
        """Return how many times better this side is than another of its task, with the spread of the rounds.

        Rounds of the same turn are compared with each other. Where the sides have not equally many, any round may
        belong beside any other, so the spread is from the one's worst beside the other's best to the reverse.
        """
        num_rounds = (len(self.rounds), len(other.rounds))
        pairs = [(self.low, other.high), (self.high, other.low)]
        if self.rounds and len(self.rounds) == len(other.rounds):
            pairs = list(zip(self.rounds, other.rounds, strict=True))
        ratios = [theirs / own if self.is_less_better else own / theirs for own, theirs in pairs]
        return Ratio(self.times_better_than(other), min(ratios), max(ratios), num_rounds)

    def share_of(self, ceiling: Line) -> float:
        """Return the part of a ceiling that was reached: of its operations a second, or of its own unit."""
        if self.gflop is None:
            return self.value / ceiling.value
        seconds = self.value / (1000 if self.unit == "ms" else 1)
        return (self.gflop / seconds if self.is_less_better else self.gflop * self.value) / ceiling.value


class Ratio(NamedTuple):
    """How many times better one side is than another.

    Attributes:
        value: Ratio of the medians.
        low: Least of the rounds, each beside the other's round of the same turn; where the sides have not equally many,
            the worst beside the other's best.
        high: Most of them.
        num_rounds: Of the one side and of the other, warm-up not counted; 0: not told.
    """

    value: float
    low: float
    high: float
    num_rounds: tuple[int, int]

    @property
    def doubt(self) -> str:
        """Say why the rounds do not carry the ratio; empty where one side was better in every turn of several.

        >>> Ratio(2, 2, 2, (1, 1)).doubt, Ratio(1.5, 0.8, 2, (2, 12)).doubt, Ratio(1.5, 1.4, 1.7, (3, 3)).doubt
        ('one round: no spread', 'rounds: 2 beside 12; not told apart', '')
        """
        own, other = self.num_rounds
        reasons = []
        if not own or not other:
            reasons.append("rounds not told")
        elif own != other:
            reasons.append(f"rounds: {own} beside {other}")
        elif own == 1:
            return "one round: no spread"
        if self.low <= 1 <= self.high:
            reasons.append("not told apart")
        return "; ".join(reasons)

    @property
    def remark(self) -> str:
        """Say the spread, where there is one, and the doubt."""
        spread = "" if self.low == self.high else f"{self.low:.2f} to {self.high:.2f}"
        return "; ".join(part for part in (spread, self.doubt) if part)

    def describe(self) -> str:
        """Say it with its spread and its doubt.

        >>> Ratio(1.5, 1.4, 1.7, (3, 3)).describe(), Ratio(1.1, 0.9, 1.2, (3, 3)).describe()
        ('1.50 x (1.40 to 1.70)', '1.10 x (0.90 to 1.20; not told apart)')
        """
        return f"{self.value:.2f} x" + (f" ({self.remark})" if self.remark else "")


def find_ours(line: Line, lines: Sequence[Line]) -> Line | None:
    """Return our first side of the same task and size, to be compared with a line; None: there is none, or it is it."""
    task = (line.section, line.task, line.size)
    ours = next((one for one in lines if one.is_ours and (one.section, one.task, one.size) == task), line)
    return None if ours is line else ours


def list_ratios(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Return, for JSON, how many times better our first side of each task is than every other one, and the doubt."""
    ratios = []
    for line in lines:
        ours = find_ours(line, lines)
        if ours is not None:
            names = {
                "section": line.section,
                "task": line.task,
                "size": line.size,
                "ours": ours.side,
                "side": line.side,
            }
            ratio = ours.compare(line)
            ratios.append({**names, **ratio._asdict(), "doubt": ratio.doubt})
    return ratios


def rate_lines(
    section: str, task: str, seconds: Mapping[str, list[float]], num_units: float, unit: str, **more: Any
) -> list[Line]:
    """Make lines of units a second out of seconds a call."""
    return [
        Line(
            section=section,
            task=task,
            side=side,
            value=num_units / statistics.median(rounds),
            low=num_units / max(rounds),
            high=num_units / min(rounds),
            unit=unit,
            num_rounds=len(rounds),
            rounds=[num_units / one for one in rounds],
            **more,
        )
        for side, rounds in seconds.items()
    ]


def time_lines(section: str, task: str, seconds: Mapping[str, list[float]], unit: str = "s", **more: Any) -> list[Line]:
    """Make lines of seconds (or milliseconds) a call."""
    factor = 1000 if unit == "ms" else 1
    return [
        Line(
            section=section,
            task=task,
            side=side,
            value=factor * statistics.median(rounds),
            low=factor * min(rounds),
            high=factor * max(rounds),
            unit=unit,
            num_rounds=len(rounds),
            rounds=[factor * one for one in rounds],
            **more,
        )
        for side, rounds in seconds.items()
    ]
