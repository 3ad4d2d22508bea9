"""Compare settings of a recipe on training classes only, as the settings of `small` were chosen.

    python benchmarks/choose_small.py OUT --data grocery:../shared/datasets/grocery-store emoji \
        --settings "four=" "eight=loader.images_per_class=8" --seeds 0 1 2

A setting is NAME=FIELD=VALUE,FIELD=VALUE,... on top of --recipe. Training classes are sorted and every fourth one is
held out, from another one for each seed; a run trains on the others and is measured on the held-out ones, blended with
several shares of the frozen weights. No test image is read. Results go to OUT/results.jsonl, a line a run as soon as it
is done; a run that is there is not repeated.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from vitrieve.config import Config, check_config
from vitrieve.data.records import Dataset
from vitrieve.data.sources import read_source
from vitrieve.model.encoder import build_encoder
from vitrieve.recipes import find_recipe
from vitrieve.settings import override_config
from vitrieve.training.loop import fit_encoder
from vitrieve.training.optimizer import blend
from vitrieve.training.run import build_evaluate

FROZEN_SHARES = (0.0, 0.15, 0.25, 0.35, 0.5)


def build_config(recipe: str, changes: str, seed: int) -> Config:
    overrides: dict[str, Any] = {}
    everything = f"train.seed={seed},train.holdout=false,train.frozen_share=0,train.checkpoint_every=100000,{changes}"
    for change in everything.strip(",").split(","):
        name, text = change.split("=")
        try:
            overrides[name] = json.loads(text)
        except json.JSONDecodeError:
            overrides[name] = text
    config = override_config(find_recipe(recipe)(), overrides)
    check_config(config)
    return config


def hold_out(dataset: Dataset, every: int, first: int) -> tuple[Dataset, Dataset]:
    """Part the training classes: of the sorted ones, every so many-th from ``first`` is held out."""
    records = dataset.split("train", "validation")
    held_labels = set(sorted({record.label for record in records})[first % every :: every])
    fit = [record for record in records if record.label not in held_labels]
    held = [
        dataclasses.replace(record, split="test", is_query=True, is_gallery=True)
        for record in records
        if record.label in held_labels
    ]
    return dataclasses.replace(dataset, records=tuple(fit)), dataclasses.replace(dataset, records=tuple(held))


def run_cell(source: str, config: Config, every: int, out: Path) -> dict[str, Any]:
    """Train on a part of the training classes and measure on the others."""
    fit, held = hold_out(read_source(source), every, config.train.seed)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    evaluate = build_evaluate(held, config)
    start = time.monotonic()
    encoder = fit_encoder(config, build_encoder(config.model), fit.records, out).encoder
    seconds = time.monotonic() - start
    frozen = {name: parameter.detach() for name, parameter in build_encoder(config.model).named_parameters()}
    by_share = {str(share): evaluate(blend(encoder, frozen, share)) for share in FROZEN_SHARES}
    return {"seconds": round(seconds, 1), "num_fit": len(fit.records), "num_held": len(held.records), **by_share}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", nargs="+", required=True, metavar="SOURCE")
    parser.add_argument("--recipe", default="small")
    parser.add_argument("--settings", nargs="+", default=["as_is="], metavar="NAME=CHANGES")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--held-every", type=int, default=4, help="hold every so many-th class out, from the seed-th")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "results.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    done = {(line["data"], line["setting"], line["seed"], line["held_every"]) for line in lines}
    for seed in arguments.seeds:
        for setting in arguments.settings:
            for source in arguments.data:
                name, changes = setting.split("=", 1)
                if (source, name, seed, arguments.held_every) in done:
                    continue
                config = build_config(arguments.recipe, changes, seed)
                cell = run_cell(source, config, arguments.held_every, arguments.out / "run")
                settings = {"setting": name, "changes": changes, "seed": seed, "held_every": arguments.held_every}
                line = {"data": source, **settings, **cell}
                with path.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                figures = "  ".join(
                    f"{share}: {100 * cell[share]['recall_at_1']:.1f}/{100 * cell[share]['map_at_r']:.1f}"
                    for share in map(str, FROZEN_SHARES)
                )
                print(f"{source} {name} seed {seed}  {figures}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
