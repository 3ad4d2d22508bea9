"""Print the lowest allowed version of every direct dependency as constraints for pip: ``NAME==VERSION``, one a line.

``make test-lowest`` installs by them. What those packages need in turn is not constrained: their own bounds say it.
Packages without a lower bound, and extras that are not named, are left out.

    python .ci/lowest.py serve test
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

BOUND = re.compile(r"(?P<name>[\w.-]+)(\[[\w,]+\])?(?:>=|==)(?P<version>[\w.]+)")
ROOT = Path(__file__).resolve().parent.parent


def list_lowest(project: dict[str, object], extras: list[str]) -> list[str]:
    """List the lowest versions that a project allows.

    Args:
        project: The table ``project`` of a ``pyproject.toml``.
        extras: Names of its optional dependencies.

    Raises:
        KeyError: An extra is unknown.
        ValueError: Two lists of dependencies bound one package differently.
    """
    optional = project["optional-dependencies"]
    assert isinstance(optional, dict)
    requirements = [*project["dependencies"], *(one for extra in extras for one in optional[extra])]  # type: ignore[misc]
    lowest: dict[str, str] = {}
    for requirement in requirements:
        match = BOUND.match(requirement)
        if match is None:
            continue
        name, version = match["name"], match["version"]
        if lowest.setdefault(name, version) != version:
            raise ValueError(f"{name} is bounded by {lowest[name]} and by {version}; give one bound.")
    return [f"{name}=={version}" for name, version in sorted(lowest.items())]


if __name__ == "__main__":
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    print("\n".join(list_lowest(table, sys.argv[1:])))
