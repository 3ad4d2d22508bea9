"""The script behind ``make test-lowest``, and the bounds that docs/security.md argues for."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / ".ci" / "lowest.py"
specification = importlib.util.spec_from_file_location("lowest", SCRIPT)
assert specification is not None
assert specification.loader is not None
lowest = importlib.util.module_from_spec(specification)
specification.loader.exec_module(lowest)


def test_list_lowest_takes_the_extras_that_are_named() -> None:
    project = {
        "dependencies": ["numpy>=2.0", "rich"],
        "optional-dependencies": {
            "serve": ["uvicorn[standard]>=0.42", "uvloop>=0.19; sys_platform != 'win32'"],
            "train": ["torch==2.14.1", "numpy>=2.0"],
        },
    }
    assert lowest.list_lowest(project, []) == ["numpy==2.0"]
    assert lowest.list_lowest(project, ["serve", "train"]) == [
        "numpy==2.0",
        "torch==2.14.1",
        "uvicorn==0.42",
        "uvloop==0.19",
    ]
    with pytest.raises(KeyError):
        lowest.list_lowest(project, ["sevre"])


def test_list_lowest_refuses_two_bounds_of_one_package() -> None:
    project = {"dependencies": ["numpy>=2.0"], "optional-dependencies": {"train": ["numpy>=2.1"]}}
    with pytest.raises(ValueError, match=r"numpy is bounded by 2\.0 and by 2\.1"):
        lowest.list_lowest(project, ["train"])


def test_script_prints_every_package_of_an_extra_with_a_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = list(project["optional-dependencies"])
    printed = subprocess.run([sys.executable, SCRIPT, *extras], capture_output=True, text=True, check=True).stdout
    names = {line.split("==")[0] for line in printed.split()}
    requirements = [
        *project["dependencies"],
        *(one for extra in extras for one in project["optional-dependencies"][extra]),
    ]
    assert {re.match(r"[\w.-]+", one)[0] for one in requirements} - names == {"torchvision"}  # type: ignore[index]


def test_bounds_are_those_that_the_documentation_argues_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = dict(one.split("==") for one in lowest.list_lowest(project, list(project["optional-dependencies"])))
    rows = re.findall(r"^\| ([\w-]+) \| (\d[\d.]*) \|", (ROOT / "docs" / "security.md").read_text(), re.MULTILINE)
    assert {"starlette", "fastapi", "uvicorn", "python-multipart", "h11", "pillow"} <= {name for name, _ in rows}
    assert {name: bounds[name] for name, _ in rows} == dict(rows)


def test_the_lock_file_has_a_version_of_everything_that_is_installed_with_it() -> None:
    """``make setup LOCKED=1`` installs these extras; a constraint that is missing or does not fit would tell nobody."""
    packaging = pytest.importorskip("packaging.requirements", reason="needs packaging")
    text = (ROOT / "requirements-dev.lock").read_text(encoding="utf-8")
    assert "@" not in text  # no place that something came from, as pip freeze would write
    assert "://" not in text
    lines = [line.split("==") for line in text.splitlines() if not line.startswith("#")]
    locked = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in lines}
    assert len(locked) == len(lines)
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (extras,) = re.findall(r"\$\(CONSTRAINT\) --editable '\.\[([a-z,]+)\]'", makefile)
    optional = table["optional-dependencies"]
    for text in (*table["dependencies"], *(one for extra in extras.split(",") for one in optional[extra])):
        wanted = packaging.Requirement(text)
        if wanted.marker is None or wanted.marker.evaluate({"python_version": "3.11", "sys_platform": "linux"}):
            name = re.sub(r"[-_.]+", "-", wanted.name).lower()
            assert wanted.specifier.contains(locked[name], prereleases=True), text
    (pair,) = re.findall(r"\$\(CONSTRAINT\) (torch==\S+) (torchvision==\S+)", makefile)
    assert [f"torch=={locked['torch']}", f"torchvision=={locked['torchvision']}"] == [*pair]
