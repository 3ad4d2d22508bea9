"""Which state of a run the measurements on the held-out images choose."""

from __future__ import annotations

from dataclasses import dataclass, field

SELECTION_METRIC = "map_at_r"
"""The metric is MAP@R and not Recall@1, which on small collections is full long before the space is in order."""


@dataclass(kw_only=True)
class Selection:
    """The measurements of a run so far, and the step that they choose.

    Attributes:
        values: The metric by step; step 0 is the frozen start.
        best_step: Step of the best value; earlier steps win ties, so the frozen start wins them all.
        num_worse: Measurements in a row below the frozen start.
    """

    values: dict[int, float] = field(default_factory=dict)
    best_step: int = 0
    num_worse: int = 0

    def add(self, step: int, value: float) -> bool:
        """Record a measurement; return whether it is the best so far."""
        is_best = not self.values or value > self.values[self.best_step]
        self.values[step] = value
        self.num_worse = self.num_worse + 1 if value < self.values[0] else 0
        if is_best:
            self.best_step = step
        return is_best

    def describe(self) -> str:
        """Say which state is kept, and by how much it is better, in one sentence."""
        frozen, best = self.values[0], self.values[self.best_step]
        if self.best_step == 0:
            tried = max((value for step, value in self.values.items() if step), default=frozen)
            return (
                f"kept the frozen start: no state was better on the held-out classes "
                f"(MAP@R {100 * frozen:.1f}, best of training {100 * tried:.1f})"
            )
        return (
            f"kept step {self.best_step}: MAP@R on the held-out classes {100 * best:.1f}, "
            f"{100 * (best - frozen):+.1f} points from the frozen {100 * frozen:.1f}"
        )
