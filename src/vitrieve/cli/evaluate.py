"""``vitrieve evaluate``: measure encoders on the test split of a data set, with a report. Next: ``export.py``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vitrieve.cli.arguments import Exclude, Switch
from vitrieve.cli.console import print_json, print_message, print_result
from vitrieve.quoting import quote_name

if TYPE_CHECKING:
    from vitrieve.data.records import Dataset
    from vitrieve.evaluation.run import EvaluationResult
    from vitrieve.runtime.encoder import Encoder

Names = Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction]
"""Several names after one flag, or the flag several times: tyro alone would keep the last one only."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure encoders on the test split of a data set, each figure with its interval.

    Recall@K, R-precision and MAP@R; on revisited Oxford and Paris mAP and mP@k.
    """

    encoder: str
    """A run, an encoder folder or a weights name (vitrieve weights list): the reference, "before"."""
    compare: Names = ()
    """Further encoders, compared with the reference: "after"."""
    data: str
    """What to measure on: grocery:DIR, emoji, roxford5k:DIR, folder:DIR, manifest:FILE, …"""
    out: Path
    """Folder to write: results.json and report.html."""
    protocol: Names = ()
    """Protocols of the data set; none given: its first, and of roxford5k and rparis6k all three."""
    classes: Literal["test", "all"] = "test"
    """test: the classes (or images) that the data set keeps for testing; of a folder without splits every fifth class.
    all: every class, also those that training may have seen."""
    ks: tuple[int, ...] = ()
    """Cut-offs K of Recall@K (mP@K): 1 5 10. None given: those that the field reports on the data set."""
    distractors: str | None = None
    """Images to add to the gallery, wrong for every query: revisitop1m:DIR, or any source of images."""
    whole_queries: Switch = False
    """Do not crop the queries of roxford5k and rparis6k to their boxes; such figures are not comparable."""
    exclude: Exclude = ()
    """Leave out of the folder, like a line of .vitrieveignore: --exclude drafts/ --exclude '*_small.jpg'."""
    image_size: int | None = None
    """Side of the square input in pixels; None: each encoder's own."""
    scales: tuple[float, ...] = ()
    """Shares of that side whose embeddings are combined, for convnets: 1 0.7071 0.5. None given: each encoder's own."""
    batch_size: int = 32
    """Pictures in one forward pass."""
    num_threads: int | None = None
    """CPU threads; None: all cores."""
    max_bad_fraction: float = 0.05
    """Largest share of pictures that may be unreadable."""
    report: bool = True
    """Write the report, which reads some pictures again."""
    overwrite: Switch = False
    """Replace what --out holds."""
    resume: Switch = False
    """Go on with an unfinished --out."""
    json: Switch = False
    """Print one JSON object."""


def run(arguments: Arguments) -> int:
    """Measure every encoder under every protocol; print the figures."""
    from vitrieve.artifacts import prepare_folder, write_manifest
    from vitrieve.embed.collection import EmbedSettings
    from vitrieve.evaluation.run import REPORT_NAME, choose_names, run_comparison
    from vitrieve.runtime.encoder import load_encoder

    settings = EmbedSettings(
        batch_size=arguments.batch_size,
        num_threads=arguments.num_threads,
        max_bad_fraction=arguments.max_bad_fraction,
    )
    datasets = _read_datasets(arguments)
    # Whatever may be refused comes before the folder is begun: a wrong flag must not leave an unfinished one.
    encoders = [
        load_encoder(
            source,
            image_size=arguments.image_size,
            scales=arguments.scales or None,
            num_threads=arguments.num_threads,
        )
        for source in (arguments.encoder, *chain(*arguments.compare))
    ]
    names = choose_names(encoders)
    prepare_folder(arguments.out, is_overwrite=arguments.overwrite, is_resume=arguments.resume)
    results = run_comparison(
        encoders,
        datasets,
        arguments.out,
        names=names,
        settings=settings,
        is_report=arguments.report,
        show_progress=True,
    )
    description = _describe(arguments.data, datasets, encoders)
    choices = {name: getattr(arguments, name) for name in ("distractors", "whole_queries", "classes")}
    write_manifest(arguments.out, "evaluation", {**description, **choices, "ks": list(datasets[0].ks)})
    report = arguments.out / REPORT_NAME if arguments.report else None
    if arguments.json:
        print_json({"results": [result.to_json() for result in results], "report": report and str(report)})
    else:
        print_result(*format_results(results).split("\n"))
        print_message(f"report: {report}" if report else f"figures: {arguments.out}/results.json")
    return 0


def _read_datasets(arguments: Arguments) -> list[Dataset]:
    """Read the data set under each protocol, add distractors, and tell what a user must know about it."""
    from vitrieve.data.revisited import use_whole_queries
    from vitrieve.data.sources import read_collection
    from vitrieve.errors import ConfigError
    from vitrieve.evaluation.metrics import check_cut_offs
    from vitrieve.evaluation.protocols import add_distractors, select_records, take_all_classes

    ks = tuple(sorted(set(check_cut_offs(arguments.ks))))
    datasets = _read_protocols(arguments.data, tuple(chain(*arguments.protocol)), arguments.exclude)
    if arguments.classes == "all":
        datasets = [take_all_classes(dataset) for dataset in datasets]
    if ks:
        datasets = [replace(dataset, ks=ks) for dataset in datasets]
    if arguments.whole_queries:
        if datasets[0].ground_truth is None:
            raise ConfigError(
                f"--whole-queries is for roxford5k and rparis6k, not for {datasets[0].name}; leave it out."
            )
        datasets = [use_whole_queries(dataset) for dataset in datasets]
    if arguments.distractors is not None:
        added = read_collection(arguments.distractors)
        datasets = [add_distractors(dataset, added) for dataset in datasets]
    for note in dict.fromkeys(note for dataset in datasets for note in dataset.notes):
        print_message(note)
    for dataset in datasets:
        select_records(dataset)
    return datasets


def _read_protocols(source: str, protocols: Sequence[str], exclude: Sequence[str]) -> list[Dataset]:
    """Read the data set under each protocol that is asked for, or that is measured without asking."""
    from vitrieve.data.sources import list_protocols, read_source
    from vitrieve.evaluation.revisited import REVISITED_ROLES

    chosen = tuple(dict.fromkeys(protocols))  # a protocol given twice is one
    datasets = [read_source(source, protocol=protocol, exclude=exclude) for protocol in chosen or (None,)]
    if not chosen and datasets[0].ground_truth is not None:
        # Easy, medium and hard differ in what counts, not in images, and are published together.
        offered = list_protocols(source)
        datasets = [read_source(source, protocol=protocol) for protocol in REVISITED_ROLES if protocol in offered]
    return datasets


def _describe(source: str, datasets: Sequence[Dataset], encoders: Sequence[Encoder]) -> dict[str, object]:
    """Collect what the figures depend on, for the manifest."""
    return {
        "data": source,
        "protocols": [dataset.protocol for dataset in datasets],
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
    }


def format_results(results: Sequence[EvaluationResult]) -> str:
    """Lay results out as plain text: a table for each protocol, percentages with their intervals below."""
    groups: dict[tuple[str, str], list[EvaluationResult]] = {}
    for result in results:
        groups.setdefault((result.dataset, result.protocol), []).append(result)
    return "\n\n".join(_format_group(group) for group in groups.values())


def _format_group(group: Sequence[EvaluationResult]) -> str:
    first = group[0]
    whole = {f"recall_at_{k}" for k in first.whole_cut_offs}
    rows = [["", *(_spell(name) + ("*" if name in whole else "") for name in first.metrics)]]
    for result in group:
        rows.append([quote_name(result.encoder), *(f"{value * 100:.1f}" for value in result.metrics.values())])
        ends = (result.intervals[name] for name in result.metrics)
        rows.append(["  95 % interval", *(f"{low * 100:.1f}-{high * 100:.1f}" for low, high in ends)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return "\n".join([_format_setting(group), *lines])


def _format_setting(group: Sequence[EvaluationResult]) -> str:
    result = group[0]
    sizes = " and ".join(str(size) for size in sorted({one.image_size for one in group}))
    text = (
        f"{quote_name(result.dataset)}, {result.protocol}: {result.num_queries:,} queries, "
        f"{result.num_gallery:,} gallery images, {sizes} px; figures in %"
    )
    if result.num_skipped_queries:
        text += f"\nqueries left out, as nothing relevant is in the gallery: {result.num_skipped_queries:,}"
    if result.num_unreadable:
        text += f"\nimages left out, as they cannot be read: {result.num_unreadable:,}"
    if result.whole_cut_offs:
        text += "\n* K is as large as the gallery: this is 100 % whatever the encoder does"
    return text


def _spell(metric: str) -> str:
    names = {"r_precision": "R-prec", "map_at_r": "MAP@R", "mean_average_precision": "mAP"}
    return names.get(metric) or metric.replace("recall_at_", "R@").replace("mp_at_", "mP@")
