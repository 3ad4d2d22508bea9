"""The log of a run: ``metrics.jsonl``, and lines or a bar on standard error."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from vitrieve.progress import NotebookBar, Pace, build_console, choose_display, print_message, track
from vitrieve.quoting import escape_text
from vitrieve.training.watching import RunWatch
from vitrieve.writing import explaining_full_disk, write_bytes_durably

T = TypeVar("T")

METRICS_NAME = "metrics.jsonl"
FULL_DISK_ADVICE = "Make room, then go on with the same command and --resume."
BAR_WIDTH = 16


class MetricsLog:
    """Records scalars by step and shows how far the run is.

    Attributes:
        watch: Who else is told of measurements.
    """

    def __init__(self, folder: Path, *, start_step: int, num_steps: int) -> None:
        """Open the log; what a killed run left of steps that are done again is dropped, and so are damaged lines.

        Args:
            folder: Folder of the run.
            start_step: Step of the state that the run goes on from; 0 is the start, measurement included.
            num_steps: Number of steps of the run.
        """
        self.watch = RunWatch()
        self._path = folder / METRICS_NAME
        note = _take_up(self._path, start_step)
        self._file = self._path.open("a", encoding="utf-8")
        self._display = _open_display(start_step, num_steps)
        if note:
            self.say(note)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._display.close()
        if error is None:
            self._file.close()
            return
        # What is already on its way out says why; a disk that is full cannot be told so twice.
        with suppress(OSError):
            self._file.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record values of a step, number of finished steps.

        Raises:
            DiskFullError: The disk has no room for the line.
        """
        line = json.dumps({"step": step, **values}) + "\n"
        with explaining_full_disk(self._path, num_bytes=len(line), advice=FULL_DISK_ADVICE):
            self._file.write(line)
            self._file.flush()

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Show the progress of training on standard error."""
        self._display.show(step, values)

    def say(self, text: str) -> None:
        """Print a sentence on standard error."""
        self._display.say(text)

    def track(self, items: Iterator[T], description: str, total: int) -> Iterator[T]:
        """Yield items while showing how far the work between two steps is."""
        return self._display.track(items, description, total)


class NoLog(MetricsLog):
    """The log of a process that neither writes nor talks: another one of the same training does."""

    def __init__(self) -> None:
        """Open nothing."""
        self.watch = RunWatch()

    def __exit__(self, *_: object) -> None:
        """Close nothing."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record nothing."""

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Show nothing."""

    def say(self, text: str) -> None:
        """Say nothing."""

    def track(self, items: Iterator[T], description: str, total: int) -> Iterator[T]:
        """Yield the items."""
        return items


def _take_up(path: Path, step: int) -> str:
    """Cut a log after the lines of ``step``; return a sentence for the user, or nothing."""
    if not path.is_file():
        return f"{path} is missing: the figures of the steps before are lost" if step else ""
    kept, num_damaged = _read_until(path, step) if step else ([], 0)
    write_bytes_durably(path, b"".join(kept))
    if not num_damaged:
        return ""
    return f"{path}: {'1 damaged line is' if num_damaged == 1 else f'{num_damaged} damaged lines are'} left out"


def _read_until(path: Path, step: int) -> tuple[list[bytes], int]:
    """List the lines up to a step, and count those before the last that no longer can be read.

    A last line that a kill or a full disk left unfinished is of a step that is done again.
    """
    kept, damaged = [], []
    lines = path.read_bytes().split(b"\n")[:-1]
    for number, line in enumerate(lines):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + b"\n")
        except (ValueError, KeyError, TypeError):
            damaged.append(number)
    return kept, sum(number < len(lines) - 1 for number in damaged)


def _format(values: Mapping[str, float]) -> str:
    names = {
        "mean_positive_similarity": "positive",
        "mean_negative_similarity": "negative",
        "mean_positive_distance": "positive",
        "mean_negative_distance": "negative",
        "hardest_negative_similarity": "hardest",
        "active_negatives_fraction": "active",
        "images_per_second": "images/s",
        "memory_fill": "memory",
    }
    hidden = {"learning_rate_factor", "gradient_norm", "seconds_left"}
    parts = [f"{names.get(name, name)} {value:.3g}" for name, value in values.items() if name not in hidden]
    if "seconds_left" in values:
        parts.append(f"{values['seconds_left']:.0f} s left")
    return "  ".join(parts)


class _LineDisplay:
    """Shows a run as lines: one for the first step, one now and then, and one for the last step."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._pace: Pace | None = None

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Print the values of a step, unless the last line is too young."""
        if self._pace is None or self._pace.is_due() or step == self._num_steps:
            self._pace = self._pace or Pace()
            self.say(f"step {step}/{self._num_steps}  {_format(values)}")

    def say(self, text: str) -> None:
        """Print a sentence."""
        print_message(text)

    def track(self, items: Iterator[T], description: str, total: int) -> Iterator[T]:
        """Yield items, with a line now and then."""
        return track(items, description, total=total)

    def close(self) -> None:
        """End the display, which for lines is nothing."""


class _NotebookDisplay(_LineDisplay):
    """Shows a run as a bar in a notebook, with the figures of the last step beside it."""

    def __init__(self, num_steps: int) -> None:
        super().__init__(num_steps)
        self._bar = NotebookBar(num_steps)

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Move the bar to a step."""
        text = f"step {step}/{self._num_steps}  {_format(values)}"
        self._bar.show(step, text, is_last=step == self._num_steps)


class _BarDisplay:
    """Shows a run as a bar on a terminal, with the figures of the last step beside it."""

    def __init__(self, start_step: int, num_steps: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.table import Column

        # On a narrow terminal the figures take several lines; without widths of their own bar and count would vanish.
        columns = (
            TextColumn("{task.fields[work]}"),
            BarColumn(bar_width=BAR_WIDTH, table_column=Column(min_width=BAR_WIDTH)),
            MofNCompleteColumn(table_column=Column(min_width=2 * len(str(num_steps)) + 1)),
            TextColumn("{task.description}", markup=False, table_column=Column(ratio=1)),
        )
        self._progress = Progress(*columns, console=build_console(), expand=True)
        self._task = self._progress.add_task("", total=num_steps, completed=start_step, work="train")
        self._progress.start()

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Move the bar to a step."""
        self._progress.update(self._task, completed=step, description=_format(values))

    def say(self, text: str) -> None:
        """Print a sentence above the bar."""
        self._progress.console.print(escape_text(text), highlight=False, markup=False)

    def track(self, items: Iterator[T], description: str, total: int) -> Iterator[T]:
        """Yield items, with a second bar of the same display: two displays would draw over each other."""
        task = self._progress.add_task("", total=total, work=description)
        try:
            for item in items:
                yield item
                self._progress.advance(task)
        finally:
            self._progress.remove_task(task)

    def close(self) -> None:
        """End the display; its last state stays on the terminal."""
        self._progress.stop()


def _open_display(start_step: int, num_steps: int) -> _LineDisplay | _BarDisplay:
    kind = choose_display()
    if kind == "bar":
        return _BarDisplay(start_step, num_steps)
    return _NotebookDisplay(num_steps) if kind == "notebook" else _LineDisplay(num_steps)
