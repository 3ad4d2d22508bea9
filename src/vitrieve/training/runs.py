"""``list_runs``: the training runs below a folder, side by side. ``vitrieve runs`` calls it; it needs no torch.

``templates/runs.html.j2`` is the page.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from jinja2 import PackageLoader

from vitrieve import __version__
from vitrieve.artifacts import MANIFEST_NAME, read_manifest
from vitrieve.errors import ArtifactError, DataError, describe_error
from vitrieve.evaluation.charts import NUM_COLORS, Line, draw_lines
from vitrieve.evaluation.report import render_page
from vitrieve.quoting import quote_name
from vitrieve.writing import write_text_durably

RUN_NAMES = ("config.json", "run.json", "metrics.jsonl")
"""A folder with two of these is a run, finished or not."""
RESULTS = Path("report", "results.json")
METRICS = {"recall_at_1": "Recall@1", "map_at_r": "MAP@R"}
MAX_BYTES = 2**24
"""A JSON file of a run is far smaller."""
NOTHING = "-"
"""Stands in the table for what a run does not have."""

RunStatus = Literal["finished", "failed", "interrupted", "unfinished"]


@dataclass(frozen=True, kw_only=True)
class ListedRun:
    """A run as its files describe it.

    Attributes:
        name: Its folder, relative to the one that was searched; ``.`` is that folder itself.
        status: ``finished``, ``failed``, ``interrupted``, or ``unfinished``: it goes on, or was killed.
        reason: Why it failed or was interrupted; empty otherwise.
        settings: Its settings by dotted name, with ``recipe`` and ``data``.
        before: ``recall_at_1`` and ``map_at_r`` of the frozen start on the test classes, in [0, 1], the mean over
            the tests where there are several; empty without a report.
        after: The same of the trained encoder.
        held_out: MAP@R on the held-out classes in [0, 1], by step; step 0 is the frozen start.
        seconds: Time of the attempts whose end is recorded, in seconds; None: no end is.
    """

    name: str
    status: RunStatus
    reason: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    held_out: Mapping[int, float] = field(default_factory=dict)
    seconds: float | None = None

    @property
    def best(self) -> float | None:
        """The best MAP@R on the held-out classes; None where nothing was measured."""
        return max(self.held_out.values(), default=None)


@dataclass(frozen=True, kw_only=True)
class ListedRuns:
    """The runs below a folder; as text, a table.

    Attributes:
        folder: The folder that was searched.
        runs: Its runs, by name.
        damaged: Folders that cannot be read, with the reason.
    """

    folder: Path
    runs: tuple[ListedRun, ...]
    damaged: Mapping[str, str]

    @property
    def differing(self) -> tuple[str, ...]:
        """The settings that are not the same in all runs, a setting that some lack included."""
        names = dict.fromkeys(name for run in self.runs for name in run.settings)
        return tuple(name for name in names if len({_spell_setting(run, name) for run in self.runs}) > 1)

    def __str__(self) -> str:
        rows = list_rows(self)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        reasons = [f"{quote_name(run.name)}: {run.status}: {quote_name(run.reason)}" for run in self.runs if run.reason]
        damaged = [f"{quote_name(name)}: damaged: {quote_name(reason)}" for name, reason in self.damaged.items()]
        return "\n".join([*table, *reasons, *damaged])

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON values, all settings included."""
        runs = [{**asdict(run), "best_held_out_map_at_r": run.best} for run in self.runs]
        return {
            "folder": str(self.folder),
            "differing": list(self.differing),
            "runs": runs,
            "damaged": dict(self.damaged),
        }

    def write_page(self, path: str | Path) -> None:
        """Write the table and the held-out curves as a page in one file that needs no other."""
        measured = [run for run in self.runs if run.held_out]
        charts = []
        for start in range(0, len(measured), NUM_COLORS):
            chosen = measured[start : start + NUM_COLORS]
            chart = draw_lines([_draw_curve(run) for run in chosen], "step", "Held-out MAP@R, in percent,")
            charts.append((chart, [run.name for run in chosen]))
        heading, *rows = list_rows(self)
        page = render_page(
            "runs.html.j2",
            PackageLoader("vitrieve.training"),
            folder=str(self.folder),
            heading=heading,
            rows=rows,
            reasons=[(run.name, run.status, run.reason) for run in self.runs if run.reason],
            damaged=list(self.damaged.items()),
            charts=charts,
            num_colors=NUM_COLORS,
            version=__version__,
        )
        Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)
        write_text_durably(Path(path), page)


def list_runs(folder: str | Path) -> ListedRuns:
    """List the training runs below a folder, finished or not, with their figures and settings.

    Hidden folders are searched too, as a run that replaces another stands in one; links to folders are not followed.

    Args:
        folder: Folder of runs, or a run.

    Returns:
        The runs; ``print`` shows a table with the settings that differ, and ``write_page`` writes a page.

    Raises:
        DataError: The folder does not exist.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist; expected a folder with runs of vitrieve train.")
    runs: list[ListedRun] = []
    damaged: dict[str, str] = {}
    for path in _find_runs(folder, damaged):
        name = path.relative_to(folder).as_posix()
        try:
            runs.append(_read_run(path, name))
        except (ArtifactError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            damaged[name] = describe_error(error)
    return ListedRuns(folder=folder, runs=tuple(runs), damaged=damaged)


def list_rows(listed: ListedRuns) -> list[list[str]]:
    """Lay the runs out as rows of text, the heading first; figures are in percent, before → after."""
    rows = [["run", "status", *METRICS.values(), "held-out MAP@R", "time", *map(quote_name, listed.differing)]]
    for run in listed.runs:
        figures = [_spell_change(run.before.get(metric), run.after.get(metric)) for metric in METRICS]
        best = NOTHING if run.best is None else f"{100 * run.best:.1f}"
        settings = [quote_name(_spell_setting(run, name)) for name in listed.differing]
        rows.append([quote_name(run.name), run.status, *figures, best, _spell_seconds(run.seconds), *settings])
    return rows


def _find_runs(folder: Path, damaged: dict[str, str]) -> Iterator[Path]:
    """Yield folders that are runs, in order; what is inside a run is not searched."""

    def note(error: OSError) -> None:
        damaged[Path(os.path.relpath(error.filename or folder, folder)).as_posix()] = str(error)

    for place, folders, files in os.walk(folder, onerror=note):
        folders.sort()
        if _is_run(Path(place), files):
            folders.clear()
            yield Path(place)


def _is_run(path: Path, files: list[str]) -> bool:
    if sum(name in files for name in RUN_NAMES) > 1:
        return True
    try:
        return MANIFEST_NAME in files and _read_json(path / MANIFEST_NAME).get("kind") == "run"
    except (OSError, ValueError, TypeError, RecursionError):  # a manifest of somebody else
        return False


def _read_run(path: Path, name: str) -> ListedRun:
    manifest = read_manifest(path, "run") if (path / MANIFEST_NAME).exists() else None
    config = _read_json(path / "config.json")
    record = _read_json(path / "run.json") if (path / "run.json").exists() else {}  # earlier versions wrote none
    known = {**(manifest or {}), **record}  # the record names data alike whether a run is finished or not
    settings: dict[str, Any] = {one: _spell(known[one]) for one in ("recipe", "data") if one in known}
    last = record["attempts"][-1] if record else {}
    status: RunStatus = "unfinished"  # without a manifest, which is written last, "finished" is not so
    if manifest is not None:
        status = "finished"
    elif last.get("status") in ("failed", "interrupted"):
        status = last["status"]
    before, after = _read_figures(path / RESULTS)
    return ListedRun(
        name=name,
        status=status,
        reason="" if status in ("finished", "unfinished") else str(last.get("reason", "")).removesuffix(": "),
        settings=settings | dict(_flatten({one: config[one] for one in config if one not in ("recipe", "data")})),
        before=before,
        after=after,
        held_out=_read_held_out(path / "metrics.jsonl"),
        seconds=_sum_seconds(record, manifest),
    )


def _read_json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path.name} has more than {MAX_BYTES >> 20} MiB")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None
    if not isinstance(content, dict):
        raise TypeError(f"{path.name} holds no object")
    return content


def _read_figures(path: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Read the figures before and after: the results of the frozen start come first, then as many of the encoder."""
    if not path.exists():
        return {}, {}
    results = list(_read_json(path)["results"])
    half = len(results) // 2
    if not half or len(results) % 2:
        raise ValueError(f"{path.name} has {len(results)} results; expected those before and as many after")
    before, after = (
        {name: sum(float(one[name]) for one in part) / half for name in METRICS if all(name in one for one in results)}
        for part in (results[:half], results[half:])
    )
    return before, after


def _read_held_out(path: Path) -> dict[int, float]:
    """Read the measurements from a log that may be long; a last line that is not whole is being written."""
    values: dict[int, float] = {}
    if not path.exists():
        return values
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if '"holdout_map_at_r"' in line and line.endswith("\n"):
                one = json.loads(line)
                values[int(one["step"])] = float(one["holdout_map_at_r"])
    return values


def _sum_seconds(record: Mapping[str, Any], manifest: Mapping[str, Any] | None) -> float | None:
    spans = [
        (datetime.fromisoformat(one["ended"]) - datetime.fromisoformat(one["began"])).total_seconds()
        for one in record.get("attempts", ())
        if "ended" in one
    ]
    if len(spans) < 2 and manifest is not None:
        return float(manifest["seconds"])  # of one attempt, more exact
    return sum(spans) if spans else None


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _draw_curve(run: ListedRun) -> Line:
    steps = sorted(run.held_out)
    return Line(name=run.name, xs=steps, ys=[100 * run.held_out[step] for step in steps])


def _spell_setting(run: ListedRun, name: str) -> str:
    return _spell(run.settings[name]) if name in run.settings else NOTHING


def _spell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _spell_change(before: float | None, after: float | None) -> str:
    return NOTHING if before is None or after is None else f"{100 * before:.1f} → {100 * after:.1f}"


def _spell_seconds(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
