"""``vitrieve evaluate`` reads the flags and prints the figures; ``evaluation/run.py`` measures."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

from vitrieve.cli.arguments import (
    MAY_BE_EMPTY,
    BatchSize,
    DeviceFlag,
    Exclude,
    Json,
    Names,
    NumThreads,
    Overwrite,
    Resume,
    Switch,
)
from vitrieve.cli.console import print_json, print_message, print_result


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure encoders on the test split of a data set, each figure with its interval.

    Recall@K, R-precision and MAP@R; on revisited Oxford and Paris mAP and mP@k.
    """

    encoder: str
    """A run, an encoder folder, a weights name (vitrieve weights list) or hf:OWNER/NAME: the reference, "before"."""
    compare: Names = ()
    """Further encoders, compared with the reference: "after"."""
    data: str
    """What to measure on: grocery:DIR, emoji, roxford5k:DIR, folder:DIR, table:FILE, …"""
    out: Path
    """Folder to write: results.json and report.html."""
    protocol: Names = ()
    """Protocols of the data set; none given: its first, and of roxford5k and rparis6k all three."""
    classes: Literal["test", "all"] = "test"
    """test: the classes (or images) that the data set keeps for testing; of a folder without splits every fifth class.
    all: every class, also those that training may have seen."""
    ks: Annotated[tuple[int, ...], MAY_BE_EMPTY] = ()
    """Cut-offs K of Recall@K (mP@K): 1 5 10. None given: those that the field reports on the data set."""
    distractors: str | None = None
    """Images to add to the gallery, wrong for every query: revisitop1m:DIR, or any source of images."""
    whole_queries: Switch = False
    """Do not crop the queries of roxford5k and rparis6k to their boxes; such figures are not comparable."""
    exclude: Exclude = ()
    """Leave out of a folder (--data, --distractors), like a line of .vitrieveignore: --exclude drafts/
    --exclude '*_small.jpg'."""
    num_queries: int | None = None
    """Queries to draw at random where the data set has more; all images stay in the gallery. None: all are asked."""
    embeddings: Path | None = None
    """Folder written by vitrieve embed with this encoder and data: nothing is embedded again."""
    image_size: int | None = None
    """Side of the square input in pixels; None: each encoder's own."""
    scales: Annotated[tuple[float, ...], MAY_BE_EMPTY] = ()
    """Shares of that side whose embeddings are combined, for convnets: 1 0.7071 0.5. None given: each encoder's own."""
    rerank: str = ""
    """auto: measure every re-ranking on held-out training classes, and keep one or none (of fewer than 25 training
    classes none); or names, separated by commas, to measure on the test split: average_query_expansion,
    alpha_query_expansion, k_reciprocal, superglobal, chamfer, optimal_transport, query_tiles, image_tiles, tiles, elvis
    (learned on training classes). Empty: none."""
    index: Path | None = None
    """With --rerank auto: index of this encoder that remembers what was kept, for vitrieve search and the service."""
    batch_size: BatchSize = None
    device: DeviceFlag = "auto"
    num_threads: NumThreads = None
    max_bad_fraction: float = 0.05
    """Largest share of pictures that may be unreadable."""
    report: bool = True
    """Write the report, which reads some pictures again."""
    overwrite: Overwrite = False
    resume: Resume = False
    json: Json = False


def run(arguments: Arguments) -> int:
    """Measure every encoder under every protocol; print the figures."""
    from vitrieve.evaluation.protocols import DataChoices, read_evaluation_data
    from vitrieve.evaluation.run import evaluate
    from vitrieve.runtime.encoder import load_encoder
    from vitrieve.search.part_store import check_remembers, keep_reranking

    choices = DataChoices(
        protocols=tuple(chain(*arguments.protocol)),
        classes=arguments.classes,
        ks=arguments.ks,
        distractors=arguments.distractors,
        whole_queries=arguments.whole_queries,
        exclude=arguments.exclude,
    )
    data = read_evaluation_data(arguments.data, choices)
    encoders = [
        load_encoder(
            source,
            image_size=arguments.image_size,
            scales=arguments.scales or None,
            num_threads=arguments.num_threads,
            device=arguments.device,
        )
        for source in (arguments.encoder, *chain(*arguments.compare))
    ]
    if arguments.index is not None:
        check_remembers(arguments.index, encoders, data, arguments.rerank)
    evaluation = evaluate(
        encoders,
        data,
        arguments.out,
        report=arguments.report,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
        batch_size=arguments.batch_size,
        num_threads=arguments.num_threads,
        max_bad_fraction=arguments.max_bad_fraction,
        rerank=arguments.rerank,
        num_queries=arguments.num_queries,
        embeddings=arguments.embeddings,
        show_progress=True,
    )
    if arguments.index is not None:
        kept = keep_reranking(evaluation, arguments.index, encoders[0], show_progress=True)
        print_message(f"{arguments.index} remembers the re-ranking {kept.name}")
    report = evaluation.report
    if arguments.json:
        print_json({**evaluation.to_json(), "report": report and str(report)})
    else:
        print_result(*str(evaluation).split("\n"))
        print_message(f"report: {report}" if report else f"figures: {arguments.out}/results.json")
    return 0
