"""The parts of the documentation site that come from the code, as a hook of MkDocs (``mkdocs.yml`` names this file).

Three pages of the reference are generated when the site is built: the public names of Python, every command with its
flags (read from the help text that a user sees), and every recipe (read from its docstring). Equations become MathML,
which browsers show without a script.
"""

from __future__ import annotations

import html
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import vitrieve
from vitrieve.cli.help_text import read_entry, read_help, run_help
from vitrieve.cli.main import COMMANDS
from vitrieve.recipes import RECIPE_GROUPS

REMOTE_SCRIPT = "https://unpkg.com/iframe-worker/shim"
"""What the theme links for the search of a site that is opened from a folder."""
LOCAL_SCRIPT = "javascripts/iframe-worker.js"
FETCHED = re.compile(r"""<(?:script|img|iframe|link rel="(?:stylesheet|preconnect|icon)")[^>]*?["'](https?://[^"']+)""")
"""What a browser loads by itself, on another machine."""

NONE_OR = "{None}|"
"""How tyro spells that a value may be left out; the column of defaults says so as well."""
EXAMPLE_RECIPE = "small"
"""The recipe whose values stand as defaults in the flags of ``vitrieve train``."""

TITLES = {
    "train": "Training",
    "training": "Training",
    "recipes": "Training",
    "config": "Training",
    "objective": "Losses",
    "data": "Data",
    "runtime": "Encoders",
    "model": "Encoders",
    "embed": "Embedding",
    "evaluate": "Evaluating",
    "evaluation": "Evaluating",
    "comparison": "Evaluating",
    "index": "Indexing",
    "sync": "Indexing",
    "syncing": "Indexing",
    "search": "Searching",
    "mapping": "Maps",
    "curation": "Duplicates and labels",
    "rerank": "Searching",
    "serve": "Serving",
    "doctor": "This machine",
    "errors": "Errors",
}
"""Folder or file of the package that holds a public name -> heading on the page, in the order of the page."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for name, content in (
        ("python", build_python_page()),
        ("commands", build_commands_page()),
        ("recipes", build_recipes_page()),
    ):
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    return files


def on_page_content(content: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the equations of a page into MathML: blocks marked ``math``, and ``$`…`$`` inside a sentence."""
    content = re.sub(r'<div class="math">(.*?)</div>', lambda found: _to_mathml(found[1], "block"), content, flags=re.S)
    return re.sub(r"\$<code>(.*?)</code>\$", lambda found: _to_mathml(found[1], "inline"), content, flags=re.S)


def on_post_build(*, config: MkDocsConfig) -> None:
    """Keep the built site free of requests to other machines: the one script that the theme links becomes a copy.

    Raises:
        PluginError: Something else is fetched from elsewhere.
    """
    site = Path(config.site_dir)
    for path in site.rglob("*.html"):
        folders = len(path.relative_to(site).parts) - 1
        text = path.read_text(encoding="utf-8").replace(REMOTE_SCRIPT, "../" * folders + LOCAL_SCRIPT)
        path.write_text(text, encoding="utf-8")
        if fetched := re.findall(FETCHED, text):
            raise PluginError(
                f"{path.relative_to(site)} fetches {', '.join(fetched)}; the site works without a network."
            )


def _to_mathml(escaped: str, display: str) -> str:
    return convert(html.unescape(escaped).strip(), display=display)


# The public names of Python


def build_python_page() -> str:
    """Build the page of the public names, each with its docstring, under the headings of ``TITLES``.

    Raises:
        KeyError: A public name comes from a part of the package that ``TITLES`` does not know.
    """
    names: dict[str, list[str]] = {title: [] for title in dict.fromkeys(TITLES.values())}
    for name in vitrieve.__all__:
        module = getattr(getattr(vitrieve, name), "__module__", None)
        if module is not None:  # a module, as ``recipes``, and a text, as ``__version__``, have none
            names[TITLES[module.split(".")[1]]].append(name)
    lines = [
        "# Python",
        "",
        "These are the public names of the package: `from vitrieve import NAME`. Everything else may change without",
        "notice. Importing `vitrieve` is quick, because each name is loaded when it is first used. `vitrieve.recipes`",
        "holds the [recipes](recipes.md).",
    ]
    for title, members in names.items():
        if members:
            lines += ["", f"## {title}", "", *(f"::: vitrieve.{name}" for name in members)]
    return "\n".join(lines) + "\n"


# The commands


def build_commands_page() -> str:
    """Build the page of all commands from their help texts."""
    lines = [
        "# Commands",
        "",
        "`vitrieve COMMAND --help` prints what this page says. What all commands have in common, such as exit",
        "statuses, `--quiet` and `--debug`, is on the page [The command line](command-line.md).",
        "",
        "| command | what it does |",
        "|---|---|",
        *(f"| [`{name}`](#{_anchor(name)}) | {_escape(command.summary)} |" for name, command in COMMANDS.items()),
    ]
    for name in COMMANDS:
        lines += _describe_command(name)
    return "\n".join(lines) + "\n"


def _anchor(name: str) -> str:
    return "vitrieve-" + name.replace(" ", "-")


def _describe_command(name: str) -> list[str]:
    words = name.split() + ([EXAMPLE_RECIPE] if name == "train" else [])
    usage, introduction, boxes = read_help(run_help(words))
    usage = usage.replace(f"train {EXAMPLE_RECIPE}", "train RECIPE")
    lines = ["", f"## vitrieve {name} {{ #{_anchor(name)} }}", "", *introduction, "", "```text", usage, "```"]
    if name == "train":
        lines += [
            "",
            f"The defaults below are those of the recipe `{EXAMPLE_RECIPE}`. Every [recipe](recipes.md) has the same",
            "flags with its own values.",
        ]
    for box in boxes:
        flags = [read_entry(one) for one in box.flags]
        rows = [
            f"| `{one.spelling.replace(NONE_OR, '')}` | {_escape(one.default)} | {_escape(one.meaning)} |"
            for one in flags
            if not one.spelling.startswith("-h")
        ]
        if not rows:
            continue
        if box.title not in ("options", "positional arguments"):
            lines += ["", f"**{box.title.removesuffix(' options')}**: {' '.join(box.description)}"]
        lines += ["", "| flag | default | meaning |", "|---|---|---|", *rows]
    return lines


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


# The recipes


def build_recipes_page() -> str:
    """Build the page of all recipes from their docstrings."""
    lines = [
        "# Recipes",
        "",
        "A recipe is a function that returns the complete settings of a run. `vitrieve train RECIPE --help` shows its",
        "values, and each of them can be changed by a flag. [Training](../guides/training.md) says which recipe to",
        "choose.",
    ]
    for title, recipes in RECIPE_GROUPS.items():
        lines += ["", f"## {title[0].upper()}{title[1:]}"]
        for name, recipe in recipes.items():
            lines += ["", f"### {name}", "", *_read_docstring(inspect.getdoc(recipe) or "")]
    return "\n".join(lines) + "\n"


def _read_docstring(text: str) -> Iterator[str]:
    """Turn a docstring into Markdown; each of its labelled parts (``Source:``) becomes a paragraph of its own."""
    for line in text.splitlines():
        label = re.match(r"(Source|Command|Time|Published|Result): ", line)
        if label:
            yield ""
            line = f"**{label[1]}:** {line[label.end() :]}"
        yield line.replace("``", "`")
