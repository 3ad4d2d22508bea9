"""The loggers of a training: TensorBoard, Weights & Biases, MLflow and trackio.

Each is a ``Logger`` of ``callbacks.py``. Where its records go is told by its own environment variables; a run that
goes on continues its record, by the identity in ``run.json``.
"""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

from PIL import Image

from vitrieve.errors import ConfigError, unknown_name_message
from vitrieve.training.callbacks import HeldOutFigures, InBackground, Logger, RunEnd, RunStart

TENSORBOARD_NAME = "tensorboard"
PROJECT = "vitrieve"
"""Name of the project or experiment, unless the logger's own variable names one."""
NONE = "none"
EXAMPLES = "holdout/examples"
SEND_EVERY_SECONDS = 5.0
MAX_SENT = 1000
"""Metrics in one request to MLflow, by its own limit."""
MAX_PARAMETER_CHARACTERS = 500
MAX_PARAMETERS_SENT = 100


def name_test_figures(end: RunEnd) -> dict[str, float]:
    """Name the figures of the report: ``test/map_at_r`` of the trained encoder, ``test_before/map_at_r`` of the start.

    Of several sources each has its name: ``test/map_at_r/NAME``.
    """
    datasets = list(dict.fromkeys(result.dataset for result in end.results))
    values: dict[str, float] = {}
    for dataset in datasets:
        pair = [result for result in end.results if result.dataset == dataset]
        suffix = f"/{dataset}" if len(datasets) > 1 else ""
        for prefix, result in zip(("test_before", "test"), pair, strict=True):
            values |= {f"{prefix}/{name}{suffix}": float(value) for name, value in result.metrics.items()}
    return values


def _name_held_out(figures: HeldOutFigures) -> dict[str, float]:
    return {f"holdout_{name}": value for name, value in figures.values.items()}


class TensorBoardLogger(Logger):
    """Writes ``tensorboard/`` in the run's folder, each record handed to the system at once.

    TensorBoard's own writer has a thread, which prints a traceback when the disk is full, and tells its caller nothing.
    """

    name = "tensorboard"

    def on_start(self, start: RunStart) -> None:
        """Open a file; what a killed run left of steps that are done again is dropped by TensorBoard."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder = start.folder / TENSORBOARD_NAME
        folder.mkdir(exist_ok=True)
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        # TensorBoard reads the files of a folder in the order of their names.
        name = f"events.out.tfevents.{seconds:010d}.{socket.gethostname()}.{os.getpid()}.{nanoseconds:09d}"
        self._file = (folder / name).open("xb")
        self._records = RecordWriter(self._file)
        self._step = start.step
        self._write(Event(step=start.step + 1, file_version="brain.Event:2"))
        self._write(Event(step=start.step + 1, session_log=SessionLog(status=SessionLog.START)))
        known = {name: value for name, value in start.settings.items() if isinstance(value, str | bool | int | float)}
        self._write(Event(summary=hparams_pb(known, trial_id=start.run_id)))

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        """Record a step."""
        self._step = step
        self._write_scalars(step, values)

    def on_evaluation(self, figures: HeldOutFigures) -> None:
        """Record the figures, and the examples as a picture."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._write_scalars(figures.step, _name_held_out(figures))
        if figures.picture is not None:
            width, height = figures.picture.size
            image = Summary.Image(
                width=width, height=height, colorspace=3, encoded_image_string=_encode_png(figures.picture)
            )
            self._write(Event(step=figures.step, summary=Summary(value=[Summary.Value(tag=EXAMPLES, image=image)])))

    def on_end(self, end: RunEnd) -> None:
        """Record the figures on the test classes, and close the file."""
        with self._file:
            self._write_scalars(end.step, name_test_figures(end))

    def _write_scalars(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._write(Event(step=step, summary=summary))

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        try:
            self._records.write(event.SerializeToString())
            self._file.flush()
        except OSError:  # the last call: a logger that fails is left out
            with suppress(OSError):
                self._file.close()
            raise


def _encode_png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


class WandbLogger(Logger):
    """Records a run at Weights & Biases; ``WANDB_MODE=offline`` keeps it on this machine, for ``wandb sync``."""

    name = "wandb"

    def on_start(self, start: RunStart) -> None:
        """Begin the record, or continue it.

        Raises:
            ConfigError: Nobody is logged in.
        """
        import wandb

        # Without a key wandb would ask for one on the terminal, in the middle of the training.
        if os.environ.get("WANDB_MODE", "online") == "online" and not wandb.api.api_key:
            raise ConfigError("nobody is logged in; run `wandb login`, or set WANDB_API_KEY or WANDB_MODE=offline")
        self._run = wandb.init(
            id=start.run_id,
            resume="allow",
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=start.name,
            dir=os.environ.get("WANDB_DIR", str(start.folder)),
            config={**start.settings, **start.facts},
            settings=wandb.Settings(console="off"),
        )
        # Steps since the last state are done again when a run goes on; wandb's own counter would refuse them.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        """Record a step."""
        self._run.log({"step": step, **values})

    def on_evaluation(self, figures: HeldOutFigures) -> None:
        """Record the figures, and the examples as a picture."""
        import wandb

        picture = {} if figures.picture is None else {EXAMPLES: wandb.Image(figures.picture)}
        self._run.log({"step": figures.step, **_name_held_out(figures), **picture})

    def on_end(self, end: RunEnd) -> None:
        """Record the figures on the test classes and the report, and close the record."""
        import wandb

        self._run.summary.update(name_test_figures(end))
        if end.report is not None:
            self._run.log(
                {"step": end.step, "report": wandb.Html(end.report.read_text(encoding="utf-8"), inject=False)}
            )
        self._run.finish(exit_code=0 if end.status == "finished" else 1)


class MlflowLogger(Logger):
    """Records a run where MLflow's variables say: ``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME``."""

    name = "mlflow"

    def on_start(self, start: RunStart) -> None:
        """Begin the record, or continue it."""
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        self._waiting: list[Any] = []
        self._sent = time.monotonic()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        found = self._client.search_runs([number], f"tags.`vitrieve.run_id` = '{start.run_id}'", max_results=1)
        if found:
            self._run_id = found[0].info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
            return
        facts = {f"vitrieve.{name}": str(value)[:MAX_PARAMETER_CHARACTERS] for name, value in start.facts.items()}
        tags = {"vitrieve.run_id": start.run_id, **facts}
        self._run_id = self._client.create_run(number, tags=tags, run_name=start.name).info.run_id
        parameters = [Param(name, str(value)[:MAX_PARAMETER_CHARACTERS]) for name, value in start.settings.items()]
        for first in range(0, len(parameters), MAX_PARAMETERS_SENT):
            self._client.log_batch(self._run_id, params=parameters[first : first + MAX_PARAMETERS_SENT])

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        """Record a step; several travel together."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._waiting += [Metric(_spell(name), value, now, step) for name, value in values.items()]
        if time.monotonic() - self._sent > SEND_EVERY_SECONDS or len(self._waiting) >= MAX_SENT:
            self._send()

    def on_evaluation(self, figures: HeldOutFigures) -> None:
        """Record the figures, and the examples as a picture."""
        self.on_step(figures.step, _name_held_out(figures))
        self._send()
        if figures.picture is not None:
            self._client.log_image(self._run_id, figures.picture, f"{EXAMPLES}_{figures.step:06d}.png")

    def on_end(self, end: RunEnd) -> None:
        """Record the figures on the test classes and the report, and close the record."""
        self.on_step(end.step, name_test_figures(end))
        self._send()
        if end.report is not None:
            self._client.log_artifact(self._run_id, str(end.report), "report")
        statuses = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
        self._client.set_terminated(self._run_id, statuses[end.status])

    def _send(self) -> None:
        for first in range(0, len(self._waiting), MAX_SENT):
            self._client.log_batch(self._run_id, metrics=self._waiting[first : first + MAX_SENT])
        self._waiting, self._sent = [], time.monotonic()


def _spell(name: str) -> str:
    """Spell a metric's name with the characters that MLflow takes."""
    return "".join(sign if sign.isalnum() or sign in "_-./ " else "_" for sign in name)


class TrackioLogger(Logger):
    """Records a run with trackio, on this machine: in ``TRACKIO_DIR``, or in the cache of the hub's client."""

    name = "trackio"

    def on_start(self, start: RunStart) -> None:
        """Begin the record, or continue it."""
        import trackio

        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{start.name}-{start.run_id[:6]}",
            resume="allow",
            config={**start.settings, **start.facts},
            embed=False,
        )

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        """Record a step."""
        self._run.log(dict(values), step=step)

    def on_evaluation(self, figures: HeldOutFigures) -> None:
        """Record the figures, and the examples as a picture."""
        import trackio

        picture = {} if figures.picture is None else {EXAMPLES: trackio.Image(figures.picture)}
        self._run.log({**_name_held_out(figures), **picture}, step=figures.step)

    def on_end(self, end: RunEnd) -> None:
        """Record the figures on the test classes and the report, and close the record."""
        import trackio

        report = {} if end.report is None else {"report": trackio.Html(end.report.read_text(encoding="utf-8"))}
        if values := {**name_test_figures(end), **report}:
            self._run.log(values, step=end.step)
        self._run.finish()


LOGGERS: dict[str, Callable[[], Logger]] = {
    "tensorboard": TensorBoardLogger,
    "wandb": lambda: InBackground(WandbLogger()),
    "mlflow": lambda: InBackground(MlflowLogger()),
    "trackio": lambda: InBackground(TrackioLogger()),
}
INSTALLED_BY = {"tensorboard": "'vitrieve[train]'", "wandb": "'vitrieve[wandb]'", "mlflow": "'vitrieve[mlflow]'"}


def build_loggers(names: str | Sequence[str]) -> tuple[Logger, ...]:
    """Build loggers by name, each once.

    Args:
        names: ``tensorboard``, ``wandb``, ``mlflow``, ``trackio``, or ``none``.

    Raises:
        ConfigError: A name is unknown, or its package is not installed.
    """
    wanted = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    if NONE in wanted and len(wanted) > 1:
        raise ConfigError(f"the logger {NONE} stands alone; {', '.join(wanted)} are given.")
    for name in wanted:
        if name not in (*LOGGERS, NONE):
            raise ConfigError(unknown_name_message("logger", name, [*LOGGERS, NONE]))
        if name != NONE and find_spec(name) is None:
            raise ConfigError(
                f"the logger {name} needs the package {name!r}, which is not installed: "
                f"pip install {INSTALLED_BY.get(name, name)}."
            )
    return tuple(LOGGERS[name]() for name in wanted if name != NONE)
