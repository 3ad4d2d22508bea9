"""``vitrieve doctor`` prints what ``doctor.py`` of the package finds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from vitrieve.cli.arguments import Json
from vitrieve.cli.console import print_json, print_result
from vitrieve.doctor import Diagnosis, diagnose, format_bytes


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Show versions, processor, memory, disk, weights and data sets; exit status 1 when something is not fine."""

    json: Json = False


def run(arguments: Arguments) -> int:
    """Print the diagnosis; return 1 when there is a problem."""
    diagnosis = diagnose()
    if arguments.json:
        print_json({"is_fine": not diagnosis.problems, **dataclasses.asdict(diagnosis)})
    else:
        print_result(*_format_diagnosis(diagnosis))
    return 1 if diagnosis.problems else 0


def _format_diagnosis(diagnosis: Diagnosis) -> Iterable[str]:
    yield "versions"
    for name, version in diagnosis.versions.items():
        yield _format_line(name, version or "not installed")
    pair = {True: "yes", False: "NO", None: "-"}[diagnosis.is_torch_pair]
    yield _format_line("torch pair matches", pair)
    yield "processor"
    for name, value in diagnosis.cpu.items():
        yield _format_line(name, {True: "yes", False: "no", None: "unknown"}.get(value, value))
    yield "memory and disk"
    yield _format_line(
        "memory",
        f"{format_bytes(diagnosis.memory['available_bytes'])} free of {format_bytes(diagnosis.memory['total_bytes'])}",
    )
    yield _format_line("cache", f"{diagnosis.disk['cache']}, {format_bytes(diagnosis.disk['free_bytes'])} free")
    yield "weights (fetch with: vitrieve weights pull NAME)"
    for name, is_here in diagnosis.weights.items():
        yield _format_line(name, "here" if is_here else "-")
    yield "data sets"
    yield _format_line("grocery", diagnosis.data["grocery"] or "- (name its parent folder with VITRIEVE_DATA)")
    yield _format_line("emoji", diagnosis.data["emoji"] or "- (fetched when first used; needs npm)")
    yield "added by other packages"
    for one in diagnosis.plugins:
        yield _format_line(f"{one.kind} {one.name}", f"{one.package}{' (cannot be used)' if one.problem else ''}")
    if not diagnosis.plugins:
        yield _format_line("-", "")
    yield ""
    yield from (f"problem: {problem}" for problem in diagnosis.problems)
    if not diagnosis.problems:
        yield "everything that is required is here."


def _format_line(name: str, value: object) -> str:
    return f"  {name:<46} {value}"
