"""``vitrieve weights list``, ``pull``, ``use`` and ``describe``: pre-trained weights by name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated

import tyro

from vitrieve.cli.arguments import Json
from vitrieve.cli.console import print_json, print_result
from vitrieve.errors import WeightsError


@dataclass(frozen=True, kw_only=True)
class ListArguments:
    """List the pre-trained weights that have a name here. Any other timm model name works too, through the hub."""

    json: Json = False


@dataclass(frozen=True, kw_only=True)
class PullArguments:
    """Fetch pre-trained weights into the cache, once, and check them."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """A name of `vitrieve weights list`, any timm model name, or hf:OWNER/NAME, an encoder or ONNX export of the hub,
    whose newest state later commands then take too."""
    json: Json = False


@dataclass(frozen=True, kw_only=True)
class UseArguments:
    """Choose the encoder that `up`, `sync`, `embed`, `duplicates` and `data audit` take where none is named.

    Recipes name their own.
    """

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """A name of `vitrieve weights list`, any timm model name, or hf:OWNER/NAME; it is fetched when it is not here."""
    json: Json = False


@dataclass(frozen=True, kw_only=True)
class DescribeArguments:
    """Tell all that is known of a backbone: cost, license, pooling, published figures. Needs no weights."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """A name of `vitrieve weights list`, or any timm model name."""
    image_size: int | None = None
    """Side of the square input in pixels; None: the name's own."""
    json: Json = False


def run_list(arguments: ListArguments) -> int:
    """Print the table of weights."""
    from vitrieve.config import START_WEIGHTS
    from vitrieve.model.catalog import read_speed_note
    from vitrieve.model.chooser import format_rows, list_weights
    from vitrieve.model.default import get_default_encoder

    rows = list_weights()
    if arguments.json:
        listed = [row.to_json() for row in rows]
        defaults = {"default": get_default_encoder(), "default_of_recipes": START_WEIGHTS}
        print_json({**defaults, "speed_note": read_speed_note(), "weights": listed})
    else:
        print_result(*format_rows(rows))
    return 0


def run_pull(arguments: PullArguments) -> int:
    """Fetch weights or an encoder, and print where they are."""
    from vitrieve.model.chooser import pull_by_name

    described, lines = pull_by_name(arguments.name)
    if arguments.json:
        print_json(described)
    else:
        print_result(*lines)
    return 0


def run_use(arguments: UseArguments) -> int:
    """Keep the choice in the cache."""
    from vitrieve.model.default import use_weights

    name = use_weights(arguments.name)
    if arguments.json:
        print_json({"default": name})
    else:
        print_result(f"{name} is the default encoder here")
    return 0


def run_describe(arguments: DescribeArguments) -> int:
    """Count parameters and operations, and print them with what the table knows."""
    from vitrieve.model.backbone import count_cost, format_cost
    from vitrieve.model.catalog import read_facts
    from vitrieve.model.chooser import build_row
    from vitrieve.model.hub import is_hub_name
    from vitrieve.model.pretrained import find_weights

    if is_hub_name(arguments.name):
        raise WeightsError(
            f"{arguments.name} is an encoder of the hub, of which nothing is known before it is fetched: vitrieve "
            "weights pull tells its license, image size and length of an embedding."
        )
    entry = find_weights(arguments.name)
    row = build_row(entry, read_facts())
    cost = count_cost(entry.name, entry.image_size if arguments.image_size is None else arguments.image_size)
    if arguments.json:
        print_json({**row.to_json(), **dataclasses.asdict(cost)})
        return 0
    print_result(
        f"{entry.name}: {format_cost(cost)}",
        f"{cost.num_tokens} tokens of {cost.width} dimensions, without classifier; pooling: {row.pooling}",
        f"pixels: mean {entry.mean}, standard deviation {entry.std}, {entry.interpolation}",
        f"{entry.source}; license: {entry.license}",
        f"the license asks: {entry.terms or 'unknown, read it'}",
        *(f"published: {figure.metric} {figure.percent} % ({figure.source})" for figure in row.published),
    )
    if entry.note:
        print_result(entry.note)
    return 0
