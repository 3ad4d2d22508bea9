"""Example pictures of a measurement: some queries with what they find first, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageOps

from vitrieve.data.decode import read_image
from vitrieve.data.records import ImageRecord
from vitrieve.errors import DecodeError, UnreachableError
from vitrieve.evaluation.analysis import find_neighbors, pick_random
from vitrieve.evaluation.measure import Measurement

NUM_QUERIES = 6
NUM_NEIGHBORS = 5
TILE_PX, FRAME_PX, GAP_PX = 96, 4, 4
COLORS = {"right": (27, 140, 80), "wrong": (200, 50, 45), "junk": (150, 150, 150)}
PAPER = (255, 255, 255)


@dataclass(frozen=True, kw_only=True)
class QueryExample:
    """A query with what it finds first.

    Attributes:
        query: The image that is searched for.
        found: Images in the order of their similarity, at most five.
        verdicts: ``right``, ``wrong`` or ``junk`` of each.
    """

    query: ImageRecord
    found: tuple[ImageRecord, ...]
    verdicts: tuple[str, ...]


def list_examples(measurement: Measurement, num_queries: int = NUM_QUERIES) -> list[QueryExample]:
    """List queries, the same for every measurement of one data set, with what they find.

    Args:
        measurement: Measurement of an encoder.
        num_queries: Queries at most; they are drawn by chance, not by result.
    """
    task = measurement.task
    queries = pick_random(measurement.scores, num_queries)
    return [
        QueryExample(
            query=task.records[task.query_rows[query]],
            found=tuple(task.records[neighbor.row] for neighbor in neighbors),
            verdicts=tuple(neighbor.verdict for neighbor in neighbors),
        )
        for query, neighbors in zip(queries, find_neighbors(measurement, queries, NUM_NEIGHBORS), strict=True)
    ]


def draw_examples(examples: Sequence[QueryExample]) -> Image.Image:
    """Draw a line of pictures for each query: itself, then what it finds, framed green if right and red if wrong.

    Args:
        examples: One query or more. A picture that can no longer be read stays empty.

    Returns:
        An RGB picture.
    """
    step = TILE_PX + GAP_PX
    width = step * (1 + max(len(example.found) for example in examples)) + GAP_PX
    sheet = Image.new("RGB", (width + GAP_PX, step * len(examples) + GAP_PX), PAPER)
    for line, example in enumerate(examples):
        y = GAP_PX + step * line
        sheet.paste(_draw_tile(example.query, None), (GAP_PX, y))
        for place, (record, verdict) in enumerate(zip(example.found, example.verdicts, strict=True), start=1):
            sheet.paste(_draw_tile(record, COLORS[verdict]), (2 * GAP_PX + step * place, y))
    return sheet


def _draw_tile(record: ImageRecord, color: tuple[int, int, int] | None) -> Image.Image:
    border = FRAME_PX if color is not None else 0
    size = TILE_PX - 2 * border
    try:
        picture = ImageOps.fit(read_image(record).convert("RGB"), (size, size))
    except (DecodeError, UnreachableError, MemoryError):
        picture = Image.new("RGB", (size, size), PAPER)
    return ImageOps.expand(picture, border, color) if color is not None else picture
