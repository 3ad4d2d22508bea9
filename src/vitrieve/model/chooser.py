"""The rows of ``vitrieve weights list``, what each name is, costs, asks and is known to do; and what was fetched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vitrieve.config import START_WEIGHTS
from vitrieve.model.catalog import FAMILIES, Facts, Published, read_facts, read_speed_note
from vitrieve.model.default import get_default_encoder
from vitrieve.model.hub import is_hub_name
from vitrieve.model.pretrained import WEIGHTS, WeightsEntry, find_pulled, find_weights, pull_weights, verify_pulled
from vitrieve.model.published import pull_encoder

OXFORD = "revisited Oxford"
PACKAGE_INDEX = "Without a model hub"


@dataclass(frozen=True, kw_only=True)
class WeightsRow:
    """One name of the table.

    Attributes:
        entry: What the name stands for.
        family: Title of its family.
        pooling: Pooling when the weights are used as they are.
        facts: What it costs; None for a name outside the table.
        published: Published figures of these weights.
        is_present: The weights are here.
        is_default: ``up``, ``sync`` and ``embed`` take them where none are named.
    """

    entry: WeightsEntry
    family: str
    pooling: str
    facts: Facts | None
    published: tuple[Published, ...]
    is_present: bool
    is_default: bool

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON values."""
        entry = self.entry
        facts = {} if self.facts is None else asdict(self.facts)
        return {
            **{name: value for name, value in facts.items() if name != "license"},
            "name": entry.name,
            "family": self.family,
            "backbone": entry.architecture,
            "source": entry.source,
            "license": entry.license,
            "asks_of_derived_weights": entry.terms,
            "num_bytes": entry.num_bytes,
            "image_size": entry.image_size,
            "pooling": self.pooling,
            "mean": list(entry.mean),
            "std": list(entry.std),
            "interpolation": entry.interpolation,
            "published": [asdict(figure) for figure in self.published],
            "is_present": self.is_present,
            "is_default": self.is_default,
            "note": entry.note,
        }


def list_weights() -> list[WeightsRow]:
    """List every name of the table, family by family; those that need no model hub first."""
    facts = read_facts()
    return [build_row(entry, facts) for entry in WEIGHTS.values()]


def build_row(entry: WeightsEntry, facts: dict[str, Facts]) -> WeightsRow:
    """Collect what is known of an entry."""
    family = next((family for family in FAMILIES if entry.name in family.names), None)
    outside = PACKAGE_INDEX if entry.wheel or entry.delta else "Other models of timm"
    known = facts.get(entry.name)
    own = "cls" if entry.architecture.startswith("vit_") else "average"
    return WeightsRow(
        entry=entry,
        family=family.title if family else outside,
        pooling=entry.pooling or (family.pooling if family else own if known else "the model's own"),
        facts=known,
        published=tuple(figure for name, figure in family.published if name == entry.name) if family else (),
        is_present=find_pulled(entry.name) is not None,
        is_default=entry.name == get_default_encoder(),
    )


def format_rows(rows: Sequence[WeightsRow]) -> list[str]:
    """Lay the table out as lines of at most 110 columns, under the title and the license of each family."""
    width = max(len(row.entry.name) for row in rows)
    has_speeds = any(row.facts and row.facts.images_per_second for row in rows)
    head = f"{'':{width + 2}}{'px':>4}{'numbers':>8}{'GFLOPs':>8}{'images/s':>9}{'pooling':>9}{'ROxf-H':>8}{'size':>9}"
    lines = [head if has_speeds else head.replace(f"{'images/s':>9}", "")]
    family = None
    for row in rows:
        if row.family != family:
            family = row.family
            lines.append(f"{family} ({row.entry.license}): {row.entry.terms}" if family != PACKAGE_INDEX else family)
        lines.append(_format_row(row, width, has_speeds))
    lines += [
        f"* {get_default_encoder()} is the default of up, sync and embed; small starts from {START_WEIGHTS}.",
        "numbers: length of an embedding. GFLOPs: for one image of that many px.",
        "ROxf-H: published mAP in % on revisited Oxford, hard; empty: none is known to us.",
        "vitrieve weights describe NAME has the published figures of this table, with their sources.",
    ]
    if has_speeds:
        lines.append(f"images/s: of {read_speed_note()}; other engines are faster or slower.")
    return lines


def _format_row(row: WeightsRow, width: int, has_speeds: bool) -> str:
    entry, facts = row.entry, row.facts
    oxford = next((f"{figure.percent:.1f}" for figure in row.published if OXFORD in figure.metric), "")
    state = "here" if row.is_present else f"{entry.num_bytes / 1e6:.0f} MB"
    mark = "*" if row.is_default else " "
    speed = f"{facts.images_per_second or '':>9}" if facts and has_speeds else " " * 9 * has_speeds
    numbers, gflops = (facts.dimensions, f"{facts.gflops:.1f}") if facts else ("", "")
    return (
        f"{mark} {entry.name:<{width}}{entry.image_size:>4}{numbers:>8}{gflops:>8}{speed}{row.pooling:>9}"
        f"{oxford:>8}{state:>9}"
    )


def pull_by_name(name: str) -> tuple[dict[str, Any], list[str]]:
    """Fetch weights, or the newest state of an encoder of the hub, unless it is here, and check it.

    Args:
        name: A weights name, or ``hf:OWNER/NAME``.

    Returns:
        What was fetched, as plain JSON values and as lines.

    Raises:
        WeightsError: As ``pull_weights`` and ``pull_encoder``.
    """
    if is_hub_name(name):
        pulled = pull_encoder(name, is_asked_anew=True)
        return pulled.to_json(), pulled.describe()
    entry = find_weights(name)
    was_present = find_pulled(entry.name) is not None
    path = pull_weights(entry.name)
    checksum = verify_pulled(entry.name)
    described = {
        "name": entry.name,
        "path": str(path),
        "sha256": checksum and checksum.sha256,
        "is_checked": checksum and checksum.is_checked,
        "num_bytes": path.stat().st_size,
        "was_present": was_present,
        "license": entry.license,
        "note": entry.note,
    }
    state = "already here" if was_present else "fetched"
    checked = "checksum right" if checksum and checksum.is_checked else "no checksum is noted to check it by"
    lines = [
        f"{entry.name}: {state}, {path.stat().st_size / 1e6:.1f} MB, {checked}",
        str(path),
        f"license: {entry.license}",
    ]
    return described, [*lines, *([entry.note] if entry.note else [])]
