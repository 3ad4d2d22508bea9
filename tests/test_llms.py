"""``docs/llms.txt``, the page for programs: what it names is there."""

from __future__ import annotations

import re
from pathlib import Path

from vitrieve.cli import failures
from vitrieve.cli.main import COMMANDS

DOCS = Path(__file__).resolve().parents[1] / "docs"
TEXT = (DOCS / "llms.txt").read_text(encoding="utf-8")


def test_its_links_lead_to_pages() -> None:
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert len(links) > 10
    assert [link for link in links if not (DOCS / link).is_file()] == []


def test_its_commands_and_statuses_are_those_of_the_command_line() -> None:
    (line,) = [line for line in TEXT.splitlines() if line.startswith("- The way of work")]
    assert set(re.findall(r"`([^`]+)`", line)) <= set(COMMANDS)
    (line,) = [line for line in TEXT.splitlines() if line.startswith("- Exit status")]
    told = {int(number) for number in re.findall(r"\b\d+\b", line)}
    assert told == {int(value) for name, value in vars(failures).items() if name.startswith("STATUS_")}
