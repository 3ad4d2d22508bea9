"""Who watches a training: callbacks of Python, and loggers, which are callbacks that cannot stop it.

``loggers.py`` has the loggers of this package.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from queue import Full, Queue
from typing import Any, Literal

from PIL import Image

from vitrieve.errors import ConfigError
from vitrieve.evaluation.examples import QueryExample, draw_examples
from vitrieve.evaluation.measure import EvaluationResult
from vitrieve.progress import print_message

Status = Literal["finished", "interrupted", "failed"]
MOMENTS = ("on_start", "on_step", "on_evaluation", "on_end")


@dataclass(frozen=True, kw_only=True)
class RunStart:
    """What is known when the steps begin.

    Attributes:
        run_id: Identity of the run, 16 hexadecimal digits; a run that goes on has the same one.
        name: Name of the run's folder.
        folder: Folder that is written.
        settings: Every setting by its dotted name, as plain JSON values.
        facts: What else the run depends on: ``recipe``, ``data``, ``num_images``, ``vitrieve_version``, ``commit``, ….
        step: Steps that are done already; above 0 where a run goes on.
        num_steps: Steps of the whole run.
    """

    run_id: str
    name: str
    folder: Path
    settings: Mapping[str, Any]
    facts: Mapping[str, Any]
    step: int
    num_steps: int


@dataclass(frozen=True, kw_only=True)
class HeldOutFigures:
    """A measurement on the held-out training classes.

    Attributes:
        step: Steps that were done; 0 is the frozen start.
        values: ``recall_at_1`` and ``map_at_r`` in [0, 1]; of several sources their means, and those of each
            (``map_at_r/NAME``).
        is_best: Whether this state is the best so far.
        examples: Some queries with what they find, the same queries every time; empty where there are none.
    """

    step: int
    values: Mapping[str, float]
    is_best: bool
    examples: tuple[QueryExample, ...] = ()

    @cached_property
    def picture(self) -> Image.Image | None:
        """The examples as one picture, drawn when it is first asked for; None without examples."""
        return draw_examples(self.examples) if self.examples else None


@dataclass(frozen=True, kw_only=True)
class RunEnd:
    """How a run ended.

    Attributes:
        status: ``finished``, ``interrupted`` (by Ctrl-C or SIGTERM) or ``failed``.
        folder: Folder of the run.
        step: Steps that are done.
        error: What ended it; None where it is finished.
        results: Figures of the frozen start and of the trained encoder on the test classes; empty without a report.
        report: The report, a web page; None without one.
    """

    status: Status
    folder: Path
    step: int
    error: BaseException | None = None
    results: tuple[EvaluationResult, ...] = ()
    report: Path | None = None


class Callback:
    """Watches a training. Override what you need; an exception that leaves a method stops the run.

    Of several processes the first alone calls callbacks.
    """

    def on_start(self, start: RunStart) -> None:
        """Take note that the steps begin, or go on."""

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        """Take note of a step.

        Args:
            step: Steps that are done, from 1.
            values: What ``metrics.jsonl`` has of it: ``loss``, its terms, ``gradient_norm``, ``images_per_second``, ….
        """

    def on_evaluation(self, figures: HeldOutFigures) -> None:
        """Take note of a measurement on the held-out classes."""

    def on_end(self, end: RunEnd) -> None:
        """Take note of the end, whatever it is; called once if ``on_start`` was, unless the process is killed."""


class Logger(Callback):
    """A callback that only records: an exception that leaves it is told once, and the run goes on without it.

    Attributes:
        name: Name for messages.
    """

    name = "logger"


class InBackground(Logger):
    """A logger that works in a thread, so that a slow or silent server delays no step."""

    def __init__(self, logger: Logger, *, wait_seconds: float = 60.0, max_waiting: int = 10_000) -> None:
        """Wrap a logger.

        Args:
            logger: Who logs.
            wait_seconds: Time that it gets to end, once the run has.
            max_waiting: Moments that may wait for it; if there are more, it counts as failed.
        """
        self.name = logger.name
        self._logger = logger
        self._wait_seconds = wait_seconds
        self._moments: Queue[Callable[[], None] | None] = Queue(max_waiting)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True, name=f"vitrieve-{logger.name}")

    def on_start(self, start: RunStart) -> None:
        """Start the thread."""
        self._thread.start()
        self._hand_over(lambda: self._logger.on_start(start))

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        """Hand a step over."""
        kept = dict(values)
        self._hand_over(lambda: self._logger.on_step(step, kept))

    def on_evaluation(self, figures: HeldOutFigures) -> None:
        """Hand a measurement over."""
        self._hand_over(lambda: self._logger.on_evaluation(figures))

    def on_end(self, end: RunEnd) -> None:
        """Wait until everything is recorded, but not for ever.

        Raises:
            TimeoutError: The logger did not end in time.
        """
        self._hand_over(lambda: self._logger.on_end(end))
        self._hand_over(None)
        self._thread.join(self._wait_seconds)
        self._raise_failure()
        if self._thread.is_alive():
            raise TimeoutError(f"it did not end within {self._wait_seconds:g} s")

    def _work(self) -> None:
        while (moment := self._moments.get()) is not None:
            try:
                moment()
            except BaseException as error:  # SystemExit, too: some libraries exit where they cannot log in
                self._failure = error
                return

    def _hand_over(self, moment: Callable[[], None] | None) -> None:
        self._raise_failure()
        try:
            self._moments.put_nowait(moment)
        except Full:
            raise TimeoutError(f"{self._moments.maxsize:,} moments wait for it") from None

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


@dataclass
class Watchers:
    """The callbacks of a run.

    Attributes:
        callbacks: Who watches.
        say: Tells the user a sentence.
        examples: Examples of the measurement that is going on; the measurement puts them here.
    """

    callbacks: Sequence[Callback] = ()
    say: Callable[[str], None] = print_message
    examples: list[QueryExample] = field(default_factory=list)
    _active: list[Callback] = field(default_factory=list)

    def start(self, start: RunStart) -> None:
        """Tell everyone that the steps begin."""
        for callback in self.callbacks:
            self._active.append(callback)
            self._tell(callback, "on_start", start)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Tell everyone of a step."""
        for callback in tuple(self._active):
            self._tell(callback, "on_step", step, values)

    def evaluation(self, step: int, values: Mapping[str, float], *, is_best: bool) -> None:
        """Tell everyone of a measurement on the held-out classes, with the examples that it left here."""
        figures = HeldOutFigures(step=step, values=dict(values), is_best=is_best, examples=tuple(self.examples))
        self.examples.clear()
        for callback in tuple(self._active):
            self._tell(callback, "on_evaluation", figures)

    def end(self, end: RunEnd) -> None:
        """Tell everyone of the end; a callback that fails keeps none of the others from it.

        Where an error ends the run, what a callback raises is a note on that error.
        """
        active, self._active = tuple(self._active), []
        failure: BaseException | None = None
        for callback in active:
            try:
                self._tell(callback, "on_end", end)
            except BaseException as error:
                failure = failure or error
        if failure is None:
            return
        if end.error is None or not isinstance(failure, Exception):
            raise failure
        end.error.add_note(f"{type(failure).__name__}: {failure} ({' '.join(failure.__notes__)})")

    def _tell(self, callback: Callback, moment: str, *what: Any) -> None:
        try:
            getattr(callback, moment)(*what)
        except (Exception, SystemExit) as error:
            if not isinstance(callback, Logger):
                error.add_note(f"It was raised by {type(callback).__name__}.{moment}, a callback of the training.")
                raise
            if callback in self._active:
                self._active.remove(callback)
            text = " ".join(str(error).split()) or "without a message"
            self.say(f"the logger {callback.name} failed, and the run goes on without it: {_name(error)}{text}")


def _name(error: BaseException) -> str:
    return "" if isinstance(error, ConfigError | TimeoutError) else f"{type(error).__name__}: "


def check_callbacks(callbacks: Iterable[Callback]) -> tuple[Callback, ...]:
    """Refuse what is no callback, and methods that nobody would call.

    Raises:
        ConfigError: The message names the object, or the method.
    """
    checked = tuple(callbacks)
    for callback in checked:
        if not isinstance(callback, Callback):
            raise ConfigError(f"{callback!r} is no callback; derive its class from vitrieve.Callback, and make one.")
        for name in dir(callback):
            if name.startswith("on_") and name not in MOMENTS:
                kind = type(callback).__name__
                raise ConfigError(f"{kind}.{name} would never be called; the moments are {', '.join(MOMENTS)}.")
    return checked
