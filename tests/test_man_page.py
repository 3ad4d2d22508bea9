"""The man page: it is that of the present help texts, and groff renders it without a warning."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from vitrieve.cli.main import COMMANDS

CHECKOUT = Path(__file__).resolve().parents[1]
MAN_PAGE = CHECKOUT / "man" / "vitrieve.1"


def test_the_man_page_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(CHECKOUT / "dev")
    import make_man_page

    text = MAN_PAGE.read_text(encoding="utf-8")
    assert text == make_man_page.build_man_page(), "write it again: python dev/make_man_page.py"


def test_the_man_page_is_installed_with_the_wheel() -> None:
    build = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    assert build["targets"]["wheel"]["shared-data"] == {"man/vitrieve.1": "share/man/man1/vitrieve.1"}
    assert "man" in build["targets"]["sdist"]["include"]


def test_groff_renders_it_without_a_warning() -> None:
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("groff is not installed")
    done = subprocess.run(
        [groff, "-man", "-Tutf8", "-ww", "-P-cbou", str(MAN_PAGE)], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    for name in COMMANDS:
        assert f"vitrieve {name}" in done.stdout
    for words in ("--objective.koleo.weight FLOAT", "EXIT STATUS", "VITRIEVE_QUIET"):
        assert words in done.stdout.replace("\N{HYPHEN}", "-").replace("\N{MINUS SIGN}", "-"), sys.executable
