"""Write ``man/vitrieve.1`` from the help texts: ``python dev/make_man_page.py``.

The wheel puts it into ``share/man/man1``, where ``man vitrieve`` finds it beside the installed command.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from vitrieve import __version__
from vitrieve.cli.help_text import Entry, read_entry, read_help, run_help
from vitrieve.cli.main import COMMANDS
from vitrieve.cli.verbosity import FLAGS

MAN_PAGE = Path(__file__).resolve().parents[1] / "man" / "vitrieve.1"
EXAMPLE_RECIPE = "small"
STATUSES = {
    "0": "The work is done.",
    "1": "The checked thing is not fine, or a part of the work failed.",
    "2": "Wrong use, wrong input, a full disk, or something that is not installed.",
    "3": "A fault of vitrieve.",
    "130": "Interrupted by Ctrl-C.",
    "143": "Stopped by SIGTERM. A service ends with 0 after both.",
}
FILES = {
    "~/.config/vitrieve/config.toml": "Kept defaults of the user (vitrieve config).",
    "./vitrieve.toml": "Kept defaults of a project, which count more.",
}
VARIABLES = {
    "VITRIEVE_CACHE": "Folder for fetched weights, made graphs, and the indexes of vitrieve up with their feedback; "
    "without it vitrieve in the user's cache folder.",
    "VITRIEVE_DATA": "Folder in which published data sets are looked for.",
    "VITRIEVE_TOKEN": "The token of vitrieve serve and vitrieve up.",
    "VITRIEVE_WRITE_TOKEN": "The token of vitrieve serve for changes of the index.",
    "VITRIEVE_CONFIG": "The user's file of kept defaults; off: no file is read.",
    **{variable: f"As {flag}, with any value but 0." for flag, (variable, _) in FLAGS.items()},
    "NO_COLOR": "With any value, terminals get no codes.",
}


def build_man_page() -> str:
    """Build the text of the page, in roff."""
    return "\n".join(_build_lines()) + "\n"


def _build_lines() -> Iterator[str]:
    yield '.\\" Written by dev/make_man_page.py; do not edit.'
    yield f'.TH VITRIEVE 1 "" "vitrieve {__version__}" "User Commands"'
    yield ".ad l"  # neither hyphens nor wide gaps in names of flags
    yield ".nh"
    yield ".SH NAME"
    yield "vitrieve \\- train a vision transformer for image retrieval, and search pictures with it"
    yield ".SH SYNOPSIS"
    yield ".B vitrieve"
    yield ".I COMMAND"
    yield "[FLAGS]"
    yield ".SH DESCRIPTION"
    yield _escape("Results go to standard output, messages and progress to standard error.")
    yield _escape("vitrieve COMMAND --help prints what this page says of a command.")
    yield ".SH OPTIONS OF EVERY COMMAND"
    for flag, (_, does) in FLAGS.items():
        yield from _tag(flag, f"{does[0].upper()}{does[1:]}.")
    yield from _tag("--help", "Tell the flags of a command.")
    yield ".SH COMMANDS"
    for name, command in COMMANDS.items():
        yield f".SS vitrieve {_escape(name)}"
        yield _escape(f"{command.summary[0].upper()}{command.summary[1:].removesuffix('?')}.")
        yield from _describe_flags(name)
    yield ".SH EXIT STATUS"
    for status, meaning in STATUSES.items():
        yield from _tag(status, meaning)
    yield ".SH FILES"
    for place, meaning in FILES.items():
        yield from _tag(place, meaning)
    yield ".SH ENVIRONMENT"
    for variable, meaning in VARIABLES.items():
        yield from _tag(variable, meaning)


def _describe_flags(name: str) -> Iterator[str]:
    words = name.split() + ([EXAMPLE_RECIPE] if name == "train" else [])
    if name == "train":
        yield _escape(f"The recipe is the first word; the defaults are those of the recipe {EXAMPLE_RECIPE}.")
    _, _, boxes = read_help(run_help(words))
    for entry in (read_entry(lines) for box in boxes for lines in box.flags):
        if not entry.spelling.startswith("-h"):
            yield from _tag(entry.spelling.replace("{None}|", ""), _finish(entry))


def _finish(entry: Entry) -> str:
    default = entry.default.strip("`")
    told = {"": "", "none": "", "False": "", "None": "", "required": " Required.", "optional": " Optional."}
    told_default = told.get(default, f" Default: {default}.")
    return f"{entry.meaning}{' Repeatable.' if default == 'repeatable' else told_default}".strip() or "No value."


def _tag(term: str, text: str) -> Iterator[str]:
    yield ".TP"
    yield f".B {_escape(term)}".replace(",", ",\\:")  # a list of values may be broken there
    yield _escape(text)


def _escape(text: str) -> str:
    r"""Spell a text in roff, a line: hyphens stay hyphens of commands, and no line is a request.

    >>> _escape("--out DIR\\x"), _escape(".x"), _escape("5 ≥ 4")
    ('\\-\\-out DIR\\ex', '\\&.x', '5 \\[u2265] 4')
    """
    text = (
        text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga").replace("^", "\\(ha")
    )
    text = text.replace("~", "\\(ti").replace('"', "\\(dq")
    text = re.sub(r"[^\x00-\x7f]", lambda found: f"\\[u{ord(found[0]):04X}]", text)
    return f"\\&{text}" if text[:1] == "." else text


if __name__ == "__main__":
    MAN_PAGE.write_text(build_man_page(), encoding="utf-8")
