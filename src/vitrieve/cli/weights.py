"""``vitrieve weights list``, ``pull`` and ``describe``: pre-trained weights by name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from vitrieve.cli.arguments import Json
from vitrieve.cli.console import print_json, print_result


@dataclass(frozen=True, kw_only=True)
class ListArguments:
    """List the pre-trained weights that have a name here. Any other timm model name works too, through the hub."""

    json: Json = False


@dataclass(frozen=True, kw_only=True)
class PullArguments:
    """Fetch pre-trained weights into the cache, once, and check them."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """A name of `vitrieve weights list`, or any timm model name."""
    json: Json = False


@dataclass(frozen=True, kw_only=True)
class DescribeArguments:
    """Tell what a backbone costs: parameters, and FLOPs for an image. Needs no weights."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """A name of `vitrieve weights list`, or any timm model name."""
    image_size: int | None = None
    """Side of the square input in pixels; None: the name's own."""
    json: Json = False


def run_list(arguments: ListArguments) -> int:
    """Print the table of weights."""
    from vitrieve.config import DEFAULT_WEIGHTS
    from vitrieve.model.pretrained import WEIGHTS, find_pulled

    rows: list[dict[str, Any]] = [
        {
            "name": entry.name,
            "backbone": entry.architecture,
            "source": entry.source,
            "license": entry.license,
            "num_bytes": entry.num_bytes,
            "is_present": find_pulled(entry.name) is not None,
            "is_default": entry.name == DEFAULT_WEIGHTS,
            "note": entry.note,
        }
        for entry in WEIGHTS.values()
    ]
    if arguments.json:
        print_json({"default": DEFAULT_WEIGHTS, "weights": rows})
        return 0
    width = max(len(entry.name) for entry in WEIGHTS.values())
    for row in rows:
        state = "here" if row["is_present"] else f"{row['num_bytes'] / 1e6:.0f} MB"
        print_result(f"{row['name']:<{width}}  {state:>6}  {row['source']}; {row['license']}")
    return 0


def run_pull(arguments: PullArguments) -> int:
    """Fetch weights, and print where they are."""
    from vitrieve.model.pretrained import find_pulled, find_weights, pull_weights, verify_pulled

    entry = find_weights(arguments.name)
    was_present = find_pulled(entry.name) is not None
    path = pull_weights(entry.name)
    checksum = verify_pulled(entry.name)
    num_bytes = path.stat().st_size
    if arguments.json:
        print_json(
            {
                "name": entry.name,
                "path": str(path),
                "sha256": checksum,
                "num_bytes": num_bytes,
                "was_present": was_present,
                "license": entry.license,
                "note": entry.note,
            }
        )
        return 0
    state = "already here" if was_present else "fetched"
    print_result(
        f"{entry.name}: {state}, {num_bytes / 1e6:.1f} MB, checksum right", str(path), f"license: {entry.license}"
    )
    if entry.note:
        print_result(entry.note)
    return 0


def run_describe(arguments: DescribeArguments) -> int:
    """Count parameters and operations, and print them."""
    from vitrieve.model.backbone import count_cost, format_cost
    from vitrieve.model.pretrained import find_weights

    entry = find_weights(arguments.name)
    cost = count_cost(entry.name, entry.image_size if arguments.image_size is None else arguments.image_size)
    if arguments.json:
        described = {"name": entry.name, "backbone": entry.architecture, "source": entry.source}
        print_json({**described, "license": entry.license, "note": entry.note, **dataclasses.asdict(cost)})
        return 0
    print_result(
        f"{entry.name}: {format_cost(cost)}",
        f"{cost.num_tokens} tokens of {cost.width} dimensions, without classifier",
        f"{entry.source}; license: {entry.license}",
    )
    if entry.note:
        print_result(entry.note)
    return 0
