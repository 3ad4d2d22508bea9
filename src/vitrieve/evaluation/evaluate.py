"""``evaluate``: measure encoders on a data set, in one call. ``vitrieve evaluate`` calls the same function."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vitrieve.artifacts import replacing_folder, write_manifest
from vitrieve.config import Device
from vitrieve.data.records import Dataset
from vitrieve.embed.collection import EmbedSettings
from vitrieve.evaluation.data import EvaluationData, read_evaluation_data, require_measurable
from vitrieve.evaluation.run import REPORT_NAME, EvaluationResult, choose_names, run_comparison
from vitrieve.evaluation.table import format_results
from vitrieve.progress import print_message
from vitrieve.runtime.encoder import Encoder, load_encoder

Source = Encoder | str | Path
"""An encoder, or what ``load_encoder`` loads it from."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation found; printed, it is a table.

    Attributes:
        results: One for each encoder and protocol: all of the first encoder, then of the next.
        folder: Folder with ``results.json``; None where nothing was written.
        report: The report, a web page; None where there is none.
    """

    results: tuple[EvaluationResult, ...]
    folder: Path | None = None
    report: Path | None = None

    def __str__(self) -> str:
        return format_results(self.results)


def evaluate(
    encoder: Source | Sequence[Source],
    data: EvaluationData | Dataset | str | Path,
    out: str | Path | None = None,
    *,
    report: bool = True,
    resume: bool = False,
    overwrite: bool = False,
    device: Device = "auto",
    **settings: Any,
) -> Evaluation:
    """Measure encoders on the test split of a data set, each figure with its interval.

    ``evaluate("run", "folder:photos")`` measures in memory; with ``out`` it leaves the folder of ``vitrieve evaluate``.

    Args:
        encoder: An encoder, a run, an encoder's folder or a weights name; or several, the first of which is the
            reference ("before") that the report compares the others with.
        data: A source as ``read_source`` takes it, a data set, or what ``read_evaluation_data`` made of a source.
        out: Folder to write; None: nothing is written, and there is no report.
        report: Write the report, which reads some pictures again.
        resume: Go on with an unfinished evaluation in ``out``.
        overwrite: Replace what ``out`` holds.
        device: Where encoders that are loaded here compute; ``auto``: on a GPU where torch sees one.
        settings: Fields of ``EmbedSettings``: ``batch_size``, ``num_threads``, ``max_bad_fraction``,
            ``show_progress``.

    Returns:
        The figures.

    Raises:
        InputError: An encoder or the data cannot be used, or ``out`` is not free.
    """
    embed_settings = EmbedSettings(**settings)
    if isinstance(data, (str, Path)):
        data = read_evaluation_data(str(data))
    elif isinstance(data, Dataset):
        data = EvaluationData(datasets=(data,))
    # Whatever may be refused comes before the folder is begun: a wrong setting must not leave an unfinished one.
    for note in dict.fromkeys(note for dataset in data.datasets for note in dataset.notes):
        print_message(note)
    require_measurable(data.datasets)
    sources = [encoder] if isinstance(encoder, (Encoder, str, Path)) else list(encoder)
    encoders = [one if isinstance(one, Encoder) else load_encoder(one, device=device) for one in sources]
    names = choose_names(encoders)
    with _folder_for(out, is_overwrite=overwrite, is_resume=resume) as folder:
        results = run_comparison(
            encoders,
            data.datasets,
            folder,
            names=names,
            settings=embed_settings,
            is_report=report and out is not None,
            show_progress=embed_settings.show_progress,
        )
        if out is None:
            return Evaluation(results=tuple(results))
        write_manifest(folder, "evaluation", _describe(data, encoders))
    place = Path(out)
    return Evaluation(results=tuple(results), folder=place, report=place / REPORT_NAME if report else None)


@contextmanager
def _folder_for(out: str | Path | None, *, is_overwrite: bool, is_resume: bool) -> Iterator[Path]:
    """Prepare the folder of an evaluation, or one that vanishes with the block."""
    if out is None:
        with TemporaryDirectory(prefix="vitrieve-") as temporary:
            yield Path(temporary)
        return
    with replacing_folder(Path(out), is_overwrite=is_overwrite, is_resume=is_resume) as folder:
        yield folder


def _describe(data: EvaluationData, encoders: Sequence[Encoder]) -> dict[str, object]:
    """Collect what the figures depend on, for the manifest."""
    first = data.datasets[0]
    return {
        "data": first.source or first.name,
        "protocols": [dataset.protocol for dataset in data.datasets],
        "encoders": [
            {
                "name": encoder.name,
                "source": str(encoder.source),
                "fingerprint": encoder.fingerprint,
                "image_size": encoder.preprocessing.image_size,
                "scales": list(encoder.scales),
                "engine": encoder.engine,
                "precision": encoder.precision,
            }
            for encoder in encoders
        ],
        "distractors": data.distractors,
        "whole_queries": data.whole_queries,
        "classes": data.classes,
        "ks": list(first.ks),
    }
