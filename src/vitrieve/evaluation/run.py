"""``evaluate`` measures encoders on a data set in one call, as ``vitrieve evaluate`` does.

``run_comparison`` embeds, measures, and writes ``results.json`` and the report.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vitrieve.artifacts import MANIFEST_NAME, replacing_folder, require_outside, write_manifest
from vitrieve.choices import Device
from vitrieve.data.records import Dataset, ImageRecord, choose_records
from vitrieve.data.sources import find_source_path
from vitrieve.embed.collection import EmbedSettings, embed_collection, embed_images
from vitrieve.embed.embeddings import (
    Embeddings,
    find_other_region,
    load_embeddings,
    tell_changed_files,
    tell_other_files,
)
from vitrieve.errors import ConfigError, DataError
from vitrieve.evaluation.measure import EvaluationResult, Measurement, format_results, match_records, measure
from vitrieve.evaluation.protocols import EvaluationData, read_evaluation_data, select_records
from vitrieve.evaluation.reranking import RerankingReport, parse_rerankings, report_rerankings
from vitrieve.model.artifact import require_made_by
from vitrieve.model.seen import describe_seen
from vitrieve.progress import print_message
from vitrieve.quoting import quote_name
from vitrieve.rerank.names import AUTO
from vitrieve.runtime.encoder import Encoder, load_encoder
from vitrieve.writing import write_text_durably

RESULTS_NAME = "results.json"
REPORT_NAME = "report.html"
EMBEDDINGS_FOLDER = "embeddings"
"""Inside an unfinished evaluation: what a resumed one need not embed again."""
Source = Encoder | str | Path
"""An encoder, or what ``load_encoder`` loads it from."""
Embed = Callable[[Encoder, Dataset, Path, EmbedSettings], Embeddings]
"""Embeds a data set into a folder, and goes on with what is there."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation found; printed, it is a table.

    Attributes:
        results: One for each encoder and protocol: all of the first encoder, then of the next.
        folder: Folder with ``results.json``; None where nothing was written.
        report: The report, a web page; None where there is none.
        rerankings: What re-ranking adds, where that was asked for: for each encoder and protocol the choice on held-out
            classes, and the figures on the test split.
    """

    results: tuple[EvaluationResult, ...]
    folder: Path | None = None
    report: Path | None = None
    rerankings: tuple[RerankingReport, ...] = ()

    def __str__(self) -> str:
        return "\n\n".join([format_results(self.results), *map(str, self.rerankings)])

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON values: the content of ``results.json``."""
        return _to_json(self.results, self.rerankings)


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(EmbedSettings):
    """How encoders are measured."""

    rerank: str | Sequence[str] = ()
    """Re-ranking to measure: auto, or names of ``rerank/reranker.py``; commas separate several in one text."""
    embeddings: str | Path | None = None
    """Folder of embeddings of all images that are measured, or more, by the one encoder; None: they are embedded."""
    num_queries: int | None = None
    """Number of queries that are drawn at random where a protocol has more; None: all are asked."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        if self.num_queries is not None and self.num_queries < 1:
            raise ConfigError(f"num_queries is {self.num_queries}; it must be 1 or more.")


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
        device: Device of encoders that are loaded here; ``auto``: on a GPU where torch sees one.
        settings: Fields of ``EvaluationSettings``: ``batch_size``, ``num_threads``, ``max_bad_fraction``,
            ``show_progress``; ``embeddings`` and ``num_queries``; ``rerank``: ``auto`` measures every re-ranking on
            held-out training classes and keeps one or none; names measure these on the test split.

    Returns:
        The figures.

    Raises:
        InputError: An encoder or the data cannot be used, or ``out`` is not free.
    """
    evaluation_settings = EvaluationSettings(**settings)
    rerankings = parse_rerankings(evaluation_settings.rerank)
    if isinstance(data, (str, Path)):
        data = read_evaluation_data(str(data))
    elif isinstance(data, Dataset):
        data = EvaluationData(datasets=(data,))
    if AUTO in rerankings and data.classes == "all":
        raise ConfigError(
            "--rerank auto chooses on training classes, which --classes all measures on as well; leave one of them out."
        )
    # Whatever may be refused comes before the folder is begun: a wrong setting must not leave an unfinished one.
    for note in dict.fromkeys(note for dataset in data.datasets for note in dataset.notes):
        print_message(note)
    for dataset in data.datasets:
        select_records(dataset)
    sources = [encoder] if isinstance(encoder, (Encoder, str, Path)) else list(encoder)
    encoders = [one if isinstance(one, Encoder) else load_encoder(one, device=device) for one in sources]
    names = choose_names(encoders)
    stored = evaluation_settings.embeddings
    if out is not None:
        named = [Path(one) for one in sources if not isinstance(one, Encoder)]
        spelled = [find_source_path(one) for one in (data.datasets[0].source, data.distractors) if one]
        require_outside(Path(out), [*named, *spelled, None if stored is None else Path(stored)])
    embed = _embed_here if stored is None else _reading(Path(stored), encoders, data.datasets)
    for one in encoders:
        print_message(*describe_seen(one.name, one.backbone, data.datasets))
    with _folder_for(out, is_overwrite=overwrite, is_resume=resume) as folder:
        measurements = _measure_all(
            encoders, data.datasets, folder, names, evaluation_settings, embed, evaluation_settings.num_queries
        )
        # All protocols of the first encoder, then of the next: as the measurements stand.
        owners = [encoder for encoder in encoders for _ in data.datasets]
        reranked = [
            report_rerankings(measurement, owner, rerankings, evaluation_settings)
            for measurement, owner in zip(measurements, owners, strict=True)
        ]
        _write(measurements, reranked, folder, is_report=report and out is not None)
        shutil.rmtree(folder / EMBEDDINGS_FOLDER, ignore_errors=stored is not None)
        results = tuple(measurement.result for measurement in measurements)
        if out is None:
            return Evaluation(results=results, rerankings=tuple(chain.from_iterable(reranked)))
        about = _describe(data, encoders)
        write_manifest(folder, "evaluation", {**about, "num_queries": evaluation_settings.num_queries})
    report_path = Path(out) / REPORT_NAME if report else None
    return Evaluation(
        results=results, folder=Path(out), report=report_path, rerankings=tuple(chain.from_iterable(reranked))
    )


@contextmanager
def _folder_for(out: str | Path | None, *, is_overwrite: bool, is_resume: bool) -> Iterator[Path]:
    """Prepare the folder of an evaluation, or one that vanishes with the block."""
    if out is None:
        with TemporaryDirectory(prefix="vitrieve-") as temporary:
            yield Path(temporary)
        return
    with replacing_folder(Path(out), kind="evaluation", is_overwrite=is_overwrite, is_resume=is_resume) as folder:
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


def measure_protocols(
    encoder: Encoder,
    datasets: Sequence[Dataset],
    name: str,
    *,
    settings: EmbedSettings | None = None,
    has_intervals: bool = False,
) -> list[Measurement]:
    """Measure one encoder under protocols, in memory; protocols of one source share their embeddings.

    Args:
        encoder: Turns pictures into embeddings.
        datasets: Data sets, or one source under several protocols; their test splits are measured on.
        name: Name of the encoder in the results.
        settings: Settings of the embedding; None: the defaults.
        has_intervals: Whether the results have intervals.

    Returns:
        One measurement for each protocol, with the scores of every query.

    Raises:
        DataError: Nothing to measure on, or too many unreadable images.
    """
    settings = settings or EmbedSettings()
    sources, numbers = _group_by_source(datasets)
    embedded = [
        embed_images(
            encoder,
            source.records,
            batch_size=settings.batch_size,
            num_threads=settings.num_threads,
            max_bad_fraction=settings.max_bad_fraction,
            show_progress=settings.show_progress,
        )
        for source in sources
    ]
    pairs = zip(datasets, numbers, strict=True)
    return [measure(dataset, embedded[number], name, has_intervals=has_intervals) for dataset, number in pairs]


def run_comparison(  # noqa: PLR0913  # as many as the order for a report has
    encoders: Sequence[Encoder],
    datasets: Sequence[Dataset],
    out: Path,
    *,
    names: Sequence[str] | None = None,
    settings: EmbedSettings | None = None,
    is_report: bool = True,
    kept: Path | None = None,
    embed: Embed | None = None,
) -> list[EvaluationResult]:
    """Measure encoders under protocols, and write ``results.json`` and ``report.html``.

    Every encoder sees every image once, however many protocols use it. Embeddings are kept in ``out`` until all
    is written, so that the same call after an interruption goes on; the manifest is the caller's.

    Args:
        encoders: The first is the reference ("before") that the report compares the others with.
        datasets: Protocols; those with the same data set name are protocols of one source, in which an image_id
            means the same file, and the same embedding too unless the protocols crop it differently.
        out: Folder for the files; made when missing.
        names: Names for the encoders, all different; None: their own names, or where those repeat, their sources.
        settings: Settings of the embedding; None: the defaults.
        is_report: Write the report, not only the results.
        kept: Folder that the last encoder's embeddings of the first source's test images are moved to; None: no
            embeddings stay.
        embed: Function that embeds a data set into a folder and goes on with what is there; None: this process does.

    Returns:
        One result for each encoder and protocol: all of the first encoder, then of the next.

    Raises:
        DataError: Nothing to measure on, or too many unreadable images.
        ConfigError: No encoder, no data set, or names that do not tell the encoders apart.
    """
    names = choose_names(encoders, names)
    measurements = _measure_all(encoders, datasets, out, names, settings or EmbedSettings(), embed or _embed_here)
    _write(measurements, [[] for _ in measurements], out, is_report=is_report)
    if kept is not None:
        shutil.rmtree(kept, ignore_errors=True)
        _embeddings_folder(out, encoders[-1], 0).rename(kept)
    shutil.rmtree(out / EMBEDDINGS_FOLDER)
    return [measurement.result for measurement in measurements]


def _reading(folder: Path, encoders: Sequence[Encoder], datasets: Sequence[Dataset]) -> Embed:
    """Return what reads finished embeddings instead of embedding, after a check that they are the right ones."""
    if len(encoders) != 1:
        raise ConfigError(
            f"embeddings are of one encoder, and {len(encoders)} are to be measured; give one of the two."
        )
    found = load_embeddings(folder)
    require_made_by(
        f"{folder} was",
        found.fingerprint,
        encoders[0].name,
        encoders[0].fingerprint,
        advice="Give the one that made it, with the same settings.",
    )
    for dataset in datasets:
        wanted = select_records(dataset)
        places, rows, failures = match_records(wanted, found)
        if len(places) + len(failures) < len(wanted):
            raise DataError(
                f"{folder} has no embeddings of {len(wanted) - len(places) - len(failures):,} of the {len(wanted):,} "
                f"images that {dataset.name} is measured on; embed the same --data again, or leave --embeddings out."
            )
        other = find_other_region(found, rows, choose_records(wanted, places))
        if other is not None:
            raise DataError(
                f"{folder} and {dataset.name} look at different regions of {quote_name(other)}; embed the same --data "
                "again, or leave --embeddings out."
            )
        if dataset is datasets[0]:  # the other protocols are of the same pictures
            tell_other_files(found, rows, choose_records(wanted, places))
            tell_changed_files(folder, choose_records(wanted, places))
    return lambda encoder, dataset, folder, settings: found


def _embed_here(encoder: Encoder, dataset: Dataset, folder: Path, settings: EmbedSettings) -> Embeddings:
    return embed_collection(encoder, dataset, folder, settings=settings, is_resume=True)


def _measure_all(
    encoders: Sequence[Encoder],
    datasets: Sequence[Dataset],
    out: Path,
    names: Sequence[str],
    settings: EmbedSettings,
    embed: Embed = _embed_here,
    num_queries: int | None = None,
) -> list[Measurement]:
    """Measure every encoder under every protocol; the embeddings stay in ``out``."""
    if not datasets:
        raise ConfigError("there is no data set to measure on; give at least one.")
    measurements: list[Measurement] = []
    for encoder, name in zip(encoders, names, strict=True):
        embedded = _embed_sources(encoder, datasets, out, settings, embed)
        measurements += [
            measure(dataset, found, name, num_queries=num_queries)
            for dataset, found in zip(datasets, embedded, strict=True)
        ]
    return measurements


def _write(
    measurements: Sequence[Measurement],
    rerankings: Sequence[Sequence[RerankingReport]],
    out: Path,
    *,
    is_report: bool,
) -> None:
    """Write the results and the report; the embeddings stay. The re-rankings are those of each measurement."""
    out.mkdir(parents=True, exist_ok=True)
    content = _to_json([measurement.result for measurement in measurements], list(chain.from_iterable(rerankings)))
    write_text_durably(out / RESULTS_NAME, json.dumps(content, indent=2) + "\n")
    if is_report:
        from vitrieve.evaluation.report import write_report

        write_report(measurements, out / REPORT_NAME, rerankings=rerankings)


def _to_json(results: Sequence[EvaluationResult], rerankings: Sequence[RerankingReport]) -> dict[str, Any]:
    content: dict[str, Any] = {"results": [result.to_json() for result in results]}
    return {**content, "rerankings": [report.to_json() for report in rerankings]} if rerankings else content


def _embed_sources(
    encoder: Encoder, datasets: Sequence[Dataset], out: Path, settings: EmbedSettings, embed: Embed
) -> list[Embeddings]:
    """Embed the images of each source once, and return for each data set the embeddings that hold its images."""
    sources, numbers = _group_by_source(datasets)
    embedded = [
        _embed_once(encoder, source, _embeddings_folder(out, encoder, number), settings, embed)
        for number, source in enumerate(sources)
    ]
    return [embedded[number] for number in numbers]


def _embeddings_folder(out: Path, encoder: Encoder, number: int) -> Path:
    return out / EMBEDDINGS_FOLDER / f"{encoder.fingerprint[:16]}-{number}"


def _group_by_source(datasets: Sequence[Dataset]) -> tuple[list[Dataset], list[int]]:
    """Join the test images of data sets that share them; return the joined ones, and the number of each one's."""
    if len(datasets) == 1:
        return [dataclasses.replace(datasets[0], records=select_records(datasets[0]))], [0]
    sources: list[tuple[Dataset, dict[str, ImageRecord]]] = []
    numbers = []
    for dataset in datasets:
        records = {record.image_id: record for record in select_records(dataset)}
        numbers.append(_find_source(sources, dataset, records))
        if numbers[-1] == len(sources):
            sources.append((dataset, {}))
        sources[numbers[-1]][1].update(records)
    return [dataclasses.replace(dataset, records=tuple(records.values())) for dataset, records in sources], numbers


def _find_source(
    sources: Sequence[tuple[Dataset, Mapping[str, ImageRecord]]], dataset: Dataset, records: Mapping[str, ImageRecord]
) -> int:
    """Find the source with the data set's name that crops every shared image alike; else the number of a new one."""
    for number, (source, others) in enumerate(sources):
        shared = others.keys() & records.keys()
        if source.name == dataset.name and all(others[one].box == records[one].box for one in shared):
            return number
    return len(sources)


def _embed_once(encoder: Encoder, dataset: Dataset, folder: Path, settings: EmbedSettings, embed: Embed) -> Embeddings:
    """Embed the records of ``dataset``, or take up what an interrupted evaluation has already embedded."""
    if (folder / MANIFEST_NAME).is_file():
        found = load_embeddings(folder)
        failed = {image_id for image_id, _ in found.failures}
        wanted = ((record.image_id, record.box) for record in dataset.records if record.image_id not in failed)
        embedded = ((record.image_id, record.box) for record in found.records)
        is_same = all(one == other for one, other in zip_longest(wanted, embedded))
        if is_same and found.fingerprint == encoder.fingerprint:
            return found
        shutil.rmtree(folder)
    return embed(encoder, dataset, folder, settings)


def choose_names(encoders: Sequence[Encoder], names: Sequence[str] | None = None) -> tuple[str, ...]:
    """Choose the names of the encoders.

    Args:
        encoders: Encoders, at least one.
        names: Names, all different; None: their own names, or where those repeat, their sources.

    Raises:
        ConfigError: No encoder, or names that do not tell them apart.
    """
    chosen = tuple(names) if names is not None else name_encoders(encoders)
    if not encoders or len(chosen) != len(encoders) or len(set(chosen)) != len(chosen):
        raise ConfigError(
            f"{len(encoders)} encoders are called {', '.join(map(repr, chosen)) or 'nothing'}; "
            "expected at least one encoder, each with a name of its own."
        )
    return chosen


def name_encoders(encoders: Sequence[Encoder]) -> tuple[str, ...]:
    """Name encoders after themselves, or where two share a name, after where they came from."""
    counts = Counter(encoder.name for encoder in encoders)
    return tuple(encoder.name if counts[encoder.name] == 1 else os.fspath(encoder.source) for encoder in encoders)
