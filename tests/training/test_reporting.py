"""The report of a training on several ranks: all embed, and the figures and vectors are those of one."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs vitrieve[train]")

from tests.evaluation.measured import evaluate_encoder
from tests.ranks import run_ranks
from vitrieve.data.sources import read_source
from vitrieve.embed.collection import embed_images
from vitrieve.embed.embeddings import load_embeddings
from vitrieve.errors import RankLostError, UnfinishedRunError
from vitrieve.evaluation.protocols import select_records
from vitrieve.runtime.encoder import load_encoder
from vitrieve.training import reporting
from vitrieve.training.run import train

NUM_TESTED = 6
PART_SIZE = 2
SETTINGS = {
    "model.backbone": "test_vit",
    "model.image_size": 32,
    "train.batch_size": 6,
    "train.num_steps": 2,
    "train.evaluate_every": 2,
    "train.precision": "fp32",
    "train.num_threads": 1,
    "train.holdout": False,
}


def make_run(folder: Path, weights: Path, out: Path, fault: str = "", is_resume: bool = False) -> Any:
    """Train and report in small parts; return how many images this rank embedded, and what it says where it failed."""
    num_embedded = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitrieve.embed.unfinished.PART_SIZE", PART_SIZE)
        patch.setattr(reporting, "PARTS_IN_ROUND", 1)
        embed_share, rank = reporting._embed_share, int(os.environ.get("RANK", "0"))

        def count(order: Any, encoders: Any, rank: int) -> Any:
            nonlocal num_embedded
            num_embedded += sum(map(len, order.shares[rank]))
            if fault == "fails" and rank == 1:
                raise OSError("the disk of this rank is gone")
            return embed_share(order, encoders, rank)

        patch.setattr(reporting, "_embed_share", count)
        if fault == "differs" and rank == 1:
            patch.setattr(reporting, "_describe", lambda encoder: {"engine": "another"})
        try:
            train(
                f"folder:{folder}",
                "small",
                out,
                resume=is_resume,
                **{**SETTINGS, "model.weights": str(weights)},  # type: ignore[arg-type]
            )
        except (UnfinishedRunError, RankLostError) as error:
            return num_embedded, str(error)
    return num_embedded, ""


def read_results(out: Path) -> tuple[Any, np.ndarray]:
    results = json.loads((out / "report" / "results.json").read_text(encoding="utf-8"))
    return results, np.array(load_embeddings(out / "report" / "test_embeddings").vectors)


def test_all_ranks_embed_the_report_and_its_figures_are_those_of_one(
    photographs: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    ended = run_ranks(2, tmp_path, make_run, photographs, tiny_weights, tmp_path / "two")
    assert [one.status for one in ended] == [0, 0], ended[0].printed
    # Three parts of two pictures with two encoders, or one where the start was kept: 2 of 3 are of the first rank.
    counts = [one.result[0] for one in ended]
    assert counts in ([4, 2], [8, 4])
    # What follows is of the same encoder to the bit: the report of the run is made once more, by one process.
    results, vectors = read_results(tmp_path / "two")
    assert np.array_equal(vectors, embed_again(tmp_path / "two", photographs))
    encoder = load_encoder(tmp_path / "two", num_threads=1, precision="fp32")
    alone = evaluate_encoder(encoder, read_source(f"folder:{photographs}"))
    figures = results["results"][1]
    assert {name: figures[name] for name in alone.metrics} == alone.metrics
    assert f"embed: {NUM_TESTED}/{NUM_TESTED}" in ended[0].printed
    assert ended[1].printed == ""
    assert [one["num_queries"] for one in results["results"]] == [NUM_TESTED] * 2


def embed_again(out: Path, photographs: Path) -> np.ndarray:
    """Embed the test images in this process alone, with the engine of the report."""
    encoder = load_encoder(out, num_threads=1, precision="fp32")
    return np.array(embed_images(encoder, select_records(read_source(f"folder:{photographs}"))).vectors)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("fails", "the report failed: rank 1 of 2 .* could not embed its images: OSError: the disk of this rank"),
        ("differs", "rank 0 embeds the images of the report alone, because of rank 1 of 2 .* its encoders are"),
    ],
)
def test_a_rank_that_cannot_help_is_named(
    fault: str, told: str, photographs: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    ended = run_ranks(2, tmp_path, make_run, photographs, tiny_weights, tmp_path / "run", fault)
    text = ended[0].printed + str(ended[0].result)
    assert re.search(told, text, re.DOTALL), text
    if fault == "differs":
        assert [one.status for one in ended] == [0, 0], text
    else:  # what was embedded is kept, and one process finishes it
        assert make_run(photographs, tiny_weights, tmp_path / "run", is_resume=True) == (0, "")
    results, vectors = read_results(tmp_path / "run")
    assert np.array_equal(vectors, embed_again(tmp_path / "run", photographs))
    assert len(results["results"]) == 2
