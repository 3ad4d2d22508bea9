"""Train a general encoder on collections that anybody may train on, and judge it on those that it never saw.

    python benchmarks/general_encoder.py OUT [--seeds 0 1 2] [--steps 200] [--rule mixed] [--left-out emoji] [--quick]

Leave one collection out: for each of Grocery, emoji and `clothing-small` an encoder is trained on *all* classes of the
other two, and measured on the test classes of the one left out. One more is trained on all three, and measured on the
birds of cub200-subset, on which nothing is ever trained, because its terms forbid it. The frozen start is measured on
the same. What is held out to choose a state are classes of the collections that train. Each encoder is measured twice:
with all its weights, and as the difference of rank 8 from its start, the form in which one ships with the package. Of
several seeds the mean of their weights is one more encoder, measured in both forms, too.

A line of OUT/results.jsonl is a finished run, which is not repeated; a run that was stopped goes on. After each run, or
with --table alone, OUT/general_encoder.json and OUT/general_encoder.md tell the mean and deviation over the seeds. The
encoders stay in OUT/encoders. A seed is four runs, each a training and a measurement, fewer with --left-out; --quick is
one step of one seed.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from collections_here import find_collections
from contest import describe_machine

from vitrieve.config import Config
from vitrieve.data.several import read_sources
from vitrieve.errors import ConfigError
from vitrieve.evaluation.export import export
from vitrieve.evaluation.protocols import DataChoices, read_evaluation_data
from vitrieve.evaluation.run import evaluate
from vitrieve.model.artifact import ENCODER_SUBFOLDER, read_contents, write_contents
from vitrieve.model.encoder import build_encoder
from vitrieve.recipes import find_recipe
from vitrieve.runtime.encoder import Encoder, load_encoder, wrap_encoder
from vitrieve.settings import override_config
from vitrieve.training.run import train

FROZEN = "frozen"
DELTA_RANK = 8
START = "dinov2-vits14"
"""Weights that every run begins with, whatever the start of recipes becomes: the shipped difference is one to these."""


@dataclass(frozen=True, kw_only=True)
class Test:
    """What an encoder is measured on: one collection under one protocol."""

    collection: str
    protocol: str
    classes: str = "test"
    metrics: tuple[str, ...] = ("recall_at_1", "map_at_r")

    @property
    def name(self) -> str:
        """Collection, protocol, and which classes."""
        return f"{self.collection}, {self.protocol}{', all classes' if self.classes == 'all' else ''}"


TRAINING = ("grocery", "emoji", "clothing-small")
"""Collections whose licenses let anybody train on them (MIT, the licenses of the emoji sets, CC0)."""
LICENSES = {"clothing-small": "CC0 1.0 (clothing dataset of A. Grigorev)"}
"""Licenses that a folder does not tell, for the model card."""
JUDGE = "cub200-subset"
"""The collection that only judges: its terms allow research and education."""
TESTS = (
    Test(collection="grocery", protocol="zero_shot"),
    Test(collection="grocery", protocol="phone_to_catalogue", metrics=("recall_at_1", "recall_at_5")),
    Test(collection="emoji", protocol="zero_shot"),
    Test(collection="emoji", protocol="across_houses"),
    Test(collection="clothing-small", protocol="own_classes"),
    # The two test classes of ten say little, and no encoder that is measured here has seen the other eight.
    Test(collection="clothing-small", protocol="own_classes", classes="all"),
    Test(collection=JUDGE, protocol="zero_shot"),
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is trained and measured.

    Attributes:
        sources: Source of each collection, by its name.
        recipe: Name of the recipe.
        overrides: Settings that differ from the recipe's, apart from the seed.
        seeds: Seeds of the runs.
        tests: What is measured.
        chosen: Collections that are left out in turn; all that can be where empty.
        delta_rank: Rank of the difference that is measured, too; None, as where the start has no name: none.
    """

    sources: Mapping[str, str]
    recipe: str = "small"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    seeds: Sequence[int] = (0, 1, 2)
    tests: Sequence[Test] = TESTS
    chosen: Sequence[str] = ()
    delta_rank: int | None = DELTA_RANK

    @property
    def left_out(self) -> list[str]:
        """What is left out in turn: a collection of `TRAINING`, or the judge, for the encoder of all of them."""
        names = (*TRAINING, JUDGE)
        return [name for name in names if name in self.sources and name in (self.chosen or names)]

    def list_trained(self, left_out: str) -> list[str]:
        """List the collections that train where one is left out."""
        return [name for name in TRAINING if name in self.sources and name != left_out]

    @property
    def all_seeds(self) -> list[int | str | None]:
        """None for the frozen start, the seeds, and the average over several, named ``mean of 0, 1, 2``."""
        averages = [f"mean of {', '.join(map(str, self.seeds))}"] if len(self.seeds) > 1 else []
        return [None, *self.seeds, *averages]

    def build_config(self) -> Config:
        """Build the complete settings."""
        return override_config(find_recipe(self.recipe)(), dict(self.overrides))

    def describe(self, left_out: str, seed: int | str | None) -> dict[str, Any]:
        """Describe a run so that another one is told apart.

        The frozen start has no seed and was trained on nothing.
        """
        is_frozen = seed is None
        settings = {name: str(value) for name, value in sorted(self.overrides.items())}
        return {
            "left_out": left_out,
            "seed": seed,
            "trained_on": [] if is_frozen else self.list_trained(left_out),
            "recipe": self.recipe,
            "settings": {name: value for name, value in settings.items() if not is_frozen or name.startswith("model")},
        }


def measure(plan: Plan, encoder: Encoder, collection: str) -> dict[str, dict[str, Any]]:
    """Measure an encoder under each test of a collection; by the test's name."""
    found = {}
    for test in plan.tests:
        if test.collection == collection:
            choices = DataChoices(protocols=(test.protocol,), classes=test.classes)  # type: ignore[arg-type]
            data = read_evaluation_data(plan.sources[collection], choices)
            (result,) = evaluate(encoder, data, show_progress=True).results
            found[test.name] = {**dict(result.metrics), "num_queries": result.num_queries}
    return found


def measure_frozen(plan: Plan, left_out: str) -> dict[str, Any]:
    """Measure the start of the training, at its size."""
    start = wrap_encoder(build_encoder(plan.build_config().model), name=FROZEN)
    return {"tests": measure(plan, start, left_out)}


def train_and_measure(plan: Plan, left_out: str, seed: int, out: Path) -> dict[str, Any]:
    """Train on all classes of the other collections, keep the encoder, and measure it on the one left out."""
    trained = plan.list_trained(left_out)
    assert left_out not in trained
    assert JUDGE not in trained
    run = find_run(plan, left_out, seed, out)
    kept = out / "encoders" / run.name
    if not (run / "manifest.json").is_file():  # a stopped run goes on
        datasets = read_sources([plan.sources[name] for name in trained], classes="all")
        named = [
            replace(dataset, name=name, license=dataset.license or LICENSES.get(name, ""))
            for name, dataset in zip(trained, datasets, strict=True)
        ]
        # Runs of several seeds are averaged, so that all keep one image size.
        settings = {"train.try_larger_image": False, **plan.overrides}
        train(named, plan.recipe, run, resume=True, report=False, **settings, seed=seed)
    summary = json.loads((run / "manifest.json").read_text())
    tests = measure_both_forms(plan, run, left_out, kept)
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(run / ENCODER_SUBFOLDER, kept)
    names = ("data", "protocol", "sources", "kept_step", "num_steps", "holdout_map_at_r", "seconds")
    return {**{name: summary[name] for name in names}, "encoder": str(kept.relative_to(out)), **tests}


def measure_both_forms(plan: Plan, encoder: Path, left_out: str, kept: Path) -> dict[str, Any]:
    """Measure an encoder with all its weights, and as a low-rank difference, which stays beside the folder ``kept``."""
    tests = measure(plan, load_encoder(encoder), left_out)
    if plan.delta_rank is None:
        return {"tests": tests}
    try:
        made = export(encoder, kept.with_name(f"{kept.name}-delta"), delta_rank=plan.delta_rank, overwrite=True)
    except ConfigError as error:  # where the frozen start was kept, there is no difference
        print(f"no difference of {encoder}: {error}", file=sys.stderr)
        return {"tests": tests}
    small = measure(plan, load_encoder(made.folder), left_out)
    return {"tests": tests, "small_tests": small, "small_bytes": made.num_bytes}


def average_and_measure(plan: Plan, left_out: str, name: str, out: Path) -> dict[str, Any]:
    """Average the weights of the encoders of all seeds, keep the result as an encoder, and measure it.

    Source:
        Wortsman et al., Model soups, ICML 2022 (arXiv:2203.05482): the uniform soup.
    """
    keys = [plan.describe(left_out, seed) for seed in plan.seeds]
    lines = [line for key in keys for line in read_lines(out) if is_of(line, key)]
    contents = [read_contents(out / line["encoder"]) for line in lines]
    states = {
        name: np.mean([one.states[name] for one in contents], axis=0, dtype=np.float64).astype(array.dtype)
        for name, array in contents[0].states.items()
    }
    kept = out / "encoders" / find_run(plan, left_out, name, out).name
    spec = replace(contents[0].spec, trained_on=f"{contents[0].spec.trained_on}; {name}")
    write_contents(kept, spec, states, f"# {spec.trained_on}\n", {})
    return {"encoder": str(kept.relative_to(out)), **measure_both_forms(plan, kept, left_out, kept)}


def find_run(plan: Plan, left_out: str, seed: int | str, out: Path) -> Path:
    """Find the folder of a training, which settings that differ do not share."""
    described = json.dumps(plan.describe(left_out, seed), sort_keys=True).encode()
    digest = hashlib.blake2b(described, digest_size=4).hexdigest()
    trained = "-".join(plan.list_trained(left_out))
    kind = "average" if isinstance(seed, str) else f"seed{seed}"
    return out / "runs" / f"{trained}-{plan.overrides['loader.sources']}-{kind}-{digest}"


def run_plan(plan: Plan, out: Path) -> None:
    """Make every run that is not in OUT/results.jsonl."""
    out.mkdir(parents=True, exist_ok=True)
    for seed in plan.all_seeds:
        for left_out in plan.left_out:
            key = plan.describe(left_out, seed)
            if any(is_of(line, key) for line in read_lines(out)):
                continue
            machine = find_machine()  # first, so that a run is noted as soon as it is measured
            print(f"{describe_seed(seed)}, judged on {left_out}", file=sys.stderr, flush=True)
            if seed is None:
                found = measure_frozen(plan, left_out)
            elif isinstance(seed, str):
                found = average_and_measure(plan, left_out, seed, out)
            else:
                found = train_and_measure(plan, left_out, seed, out)
            line = {**key, **found, "date": time.strftime("%Y-%m-%d"), "machine": machine}
            with (out / "results.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            if isinstance(seed, int):  # only now: a script that is stopped before measures again what it has trained
                shutil.rmtree(find_run(plan, left_out, seed, out))  # its states are six times as large as the encoder
            write_results(plan, out)


def describe_seed(seed: int | str | None) -> str:
    """Name a run for the progress."""
    if seed is None:
        return FROZEN
    return f"seed {seed}" if isinstance(seed, int) else f"{seed} (weights)"


def write_results(plan: Plan, out: Path) -> str:
    """Write the JSON and the table of the runs of this plan that are there; return the table."""
    keys = [plan.describe(left_out, seed) for seed in plan.all_seeds for left_out in plan.left_out]
    lines = [line for key in keys for line in read_lines(out) if is_of(line, key)]
    table = format_table(plan, lines)
    contents = {"rows": summarize(plan, lines), "runs": lines}
    (out / "general_encoder.json").write_text(json.dumps(contents, indent=1) + "\n")
    (out / "general_encoder.md").write_text(table + "\n")
    return table


@functools.cache
def find_machine() -> dict[str, Any]:
    """Describe the machine, once: a process is started for that."""
    return describe_machine()


def read_lines(out: Path) -> list[dict[str, Any]]:
    path = out / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def is_of(line: Mapping[str, Any], key: Mapping[str, Any]) -> bool:
    return all(line[name] == value for name, value in key.items())


def summarize(plan: Plan, lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Collect each metric of each test: of the frozen start, over the seeds, and of their average."""
    rows = []
    for test in plan.tests:
        own = [line for line in lines if line["left_out"] == test.collection]
        tuned = [line for line in own if isinstance(line["seed"], int)]
        frozen = next((line["tests"][test.name] for line in own if line["seed"] is None), None)
        average = next((line for line in own if isinstance(line["seed"], str)), {})
        for metric in test.metrics if tuned else ():
            values = [line["tests"][test.name][metric] for line in tuned]
            small = [line["small_tests"][test.name][metric] for line in tuned if "small_tests" in line]
            rows.append(
                {
                    **asdict(test),
                    "metric": metric,
                    "frozen": None if frozen is None else frozen[metric],
                    "mean": statistics.mean(values),
                    "deviation": statistics.stdev(values) if len(values) > 1 else None,
                    "values": values,
                    "mean_small": statistics.mean(small) if small else None,
                    "deviation_small": statistics.stdev(small) if len(small) > 1 else None,
                    "average": average["tests"][test.name][metric] if average else None,
                    "average_small": average["small_tests"][test.name][metric] if "small_tests" in average else None,
                    "trained_on": {one["name"]: one for one in tuned[0]["sources"]},
                    "mean_seconds": statistics.mean(line["seconds"] for line in tuned),
                }
            )
    return rows


def format_table(plan: Plan, lines: Sequence[dict[str, Any]]) -> str:
    """Write a row for each test, its metrics in percent, frozen and tuned."""
    summary = summarize(plan, lines)
    rank = f"its rank {plan.delta_rank}"
    names = ["measured on, never trained on", "trained on all classes of", "metric, %", FROZEN]
    names += ["trained", rank, "mean of the weights", rank, "seconds"]
    rows = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in summary:
        test = Test(**{name: row[name] for name in ("collection", "protocol", "classes")})
        trained = ", ".join(
            f"{name} ({one['num_images']:,} images of {one['num_classes']:,} classes, "
            f"{one['num_held_out_classes']:,} more held out)"
            for name, one in row["trained_on"].items()
        )
        figures = [
            format_percent(row["frozen"]),
            f"{format_percent(row['mean'], row['deviation'])} (n={len(row['values'])})",
            format_percent(row["mean_small"], row["deviation_small"]),
            format_percent(row["average"]),
            format_percent(row["average_small"]),
        ]
        figures.append(f"{row['mean_seconds']:.0f}")
        rows.append(f"| {test.name} | {trained} | {row['metric']} | {' | '.join(figures)} |")
    machines = {f"{line['date']}, {line['machine']['processor']}" for line in lines}
    settings = [f"{name} {value}" for name, value in plan.describe(JUDGE, plan.seeds[0])["settings"].items()]
    return "\n".join([f"{', '.join([f'recipe {plan.recipe}', *settings])}; {'; '.join(sorted(machines))}.", "", *rows])


def format_percent(value: float | None, deviation: float | None = None) -> str:
    """Write a share in percent, with its deviation where there is one; nothing where it was not measured."""
    if value is None:
        return ""
    return f"{100 * value:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rule", default="mixed", choices=["mixed", "one", "together"])
    parser.add_argument("--left-out", nargs="+", default=[], choices=[*TRAINING, JUDGE], help="only these in turn")
    parser.add_argument("--recipe", default="small")
    parser.add_argument("--set", nargs="+", default=[], metavar="SETTING=VALUE", help="further settings, as in Python")
    parser.add_argument("--quick", action="store_true", help="one step, one seed")
    parser.add_argument("--table", action="store_true", help="only write the table of what is there")
    arguments = parser.parse_args()
    changes = dict(pair.split("=", 1) for pair in arguments.set)
    plan = Plan(
        sources=find_collections(),
        recipe=arguments.recipe,
        overrides={
            "num_steps": 1 if arguments.quick else arguments.steps,
            "loader.sources": arguments.rule,
            "model.backbone": START,
            **{name: read_setting(text) for name, text in changes.items()},
        },
        seeds=arguments.seeds[:1] if arguments.quick else arguments.seeds,
        chosen=arguments.left_out,
    )
    if not arguments.table:
        run_plan(plan, arguments.out)
    print(write_results(plan, arguments.out))


def read_setting(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


if __name__ == "__main__":
    main()
