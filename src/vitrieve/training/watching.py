"""Everything that watches one run: its record, and its callbacks with what they are told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitrieve.evaluation.measure import EvaluationResult
from vitrieve.progress import print_message
from vitrieve.training.callbacks import Callback, RunEnd, RunStart, Status, Watchers
from vitrieve.training.record import begin_record, end_record


class RunWatch:
    """Who watches a run, from its beginning in a folder to its end; without callbacks nobody does."""

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self.watchers = Watchers(callbacks)
        self._folder: Path | None = None
        self._name = ""
        self._record: dict[str, Any] = {}
        self._settings: Mapping[str, Any] = {}
        self._last_step = 0

    def open(self, folder: Path, name: str, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Write that the run begins, or goes on.

        Args:
            folder: Folder that is written.
            name: Name of the run.
            settings: Every setting by its dotted name.
            facts: What else the run depends on.
        """
        self._folder, self._name, self._settings = folder, name, settings
        self._record = begin_record(folder, facts)

    def begin(self, step: int, num_steps: int, say: Callable[[str], None]) -> None:
        """Tell the callbacks that the steps begin; ``say`` tells the user while they go on."""
        self._last_step = step
        self.watchers.say = say
        if self._folder is None:
            return
        facts = {name: value for name, value in self._record.items() if name not in ("id", "attempts")}
        facts["commit"] = self._record["attempts"][-1]["commit"]
        self.watchers.start(
            RunStart(
                run_id=self._record["id"],
                name=self._name,
                folder=self._folder,
                settings=self._settings,
                facts=facts,
                step=step,
                num_steps=num_steps,
            )
        )

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Tell the callbacks of a step."""
        self._last_step = step
        self.watchers.step(step, values)

    def evaluation(self, step: int, values: Mapping[str, float], *, is_best: bool) -> None:
        """Tell the callbacks of a measurement on the held-out classes."""
        self.watchers.evaluation(step, values, is_best=is_best)

    def finish(self) -> None:
        """Write that the run is finished; before the manifest, which is written last."""
        assert self._folder is not None
        end_record(self._folder, self._record, "finished")

    def end(
        self,
        folder: Path,
        error: BaseException | None = None,
        results: Sequence[EvaluationResult] = (),
        report: Path | None = None,
    ) -> None:
        """Tell the callbacks of the end, and write why, where it is an error that ends the run."""
        self.watchers.say = print_message
        status: Status = "finished"
        if error is not None:
            status = "failed" if isinstance(error, Exception) else "interrupted"
            if self._folder is not None and self._folder.is_dir():
                end_record(self._folder, self._record, status, error)
        self.watchers.end(
            RunEnd(
                status=status, folder=folder, step=self._last_step, error=error, results=tuple(results), report=report
            )
        )
