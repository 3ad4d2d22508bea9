"""Flags from a dataclass, by tyro, with this project's rules for what goes wrong; and flags that commands share."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro

from vitrieve.choices import Device
from vitrieve.cli.console import print_message, writing_results
from vitrieve.cli.flags import NOTHING, Flag, list_types, read_flags
from vitrieve.cli.verbosity import setting_variables
from vitrieve.errors import ConfigError, find_nearest
from vitrieve.progress import has_no_color
from vitrieve.quoting import quote_name
from vitrieve.runtime.engine import EngineChoice, PrecisionChoice

if TYPE_CHECKING:
    from vitrieve.cli.search import Arguments as SearchArguments
    from vitrieve.search.request import Box, Example, SearchRequest
    from vitrieve.serve.settings import ProxySettings

T = TypeVar("T")
D = TypeVar("D", str, Path)
WIDE = 300
"""Characters in a line of help that breaks no flag: ``--objective.normalized-softmax.temperature`` is long."""

Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]
"""A flag that is only ever switched on: ``--json`` without ``--no-json``."""
NEEDED_HINT = "(required)"
"""What the help says of a list that must not be empty; tyro alone would show an empty default."""
MAY_BE_EMPTY = tyro.conf.arg(help_behavior_hint="(optional)")
"""A mark on a list that is empty by default, which the help then calls optional."""
Names = Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction]
"""Several names after one flag, or the flag several times: tyro alone would keep the last one only."""

# Flags that several commands have, each with its help.

Ocr = Annotated[
    Switch,
    tyro.conf.arg(
        help="Read the text in pictures, too, into the column text_in_picture, so that words find it (extra ocr); "
        "later syncs of the index do so as well."
    ),
]
NoOcr = Annotated[Switch, tyro.conf.arg(help="Read no text in pictures from now on; what was read stays.")]
Json = Annotated[Switch, tyro.conf.arg(help="Print one JSON object.")]
Overwrite = Annotated[Switch, tyro.conf.arg(help="Replace what --out holds.")]
Resume = Annotated[Switch, tyro.conf.arg(help="Go on with an unfinished --out.")]
DeviceFlag = Annotated[Device, tyro.conf.arg(help="Where to compute; auto: on a GPU where torch sees one.")]
Engine = Annotated[
    EngineChoice, tyro.conf.arg(help="What computes; auto: the fastest that is installed (vitrieve[fast]).")
]
Precision = Annotated[
    PrecisionChoice,
    tyro.conf.arg(help="Number format of the products; auto: bf16 where engine and processor have it, else fp32."),
]
NumThreads = Annotated[int | None, tyro.conf.arg(help="CPU threads; None: all cores.")]
BatchSize = Annotated[
    int | None,
    tyro.conf.arg(help="Pictures in one forward pass; None: as many as are fastest, 16 on a CPU, 128 on a GPU."),
]
_EXCLUDE_HELP = "Leave out of the folder, like a line of .vitrieveignore: --exclude drafts/ --exclude '*_small.jpg'."
Exclude = Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(help=_EXCLUDE_HELP)]
ExcludeAsBefore = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(help=f"{_EXCLUDE_HELP} None given: what the last sync left out; --exclude '' takes it in again."),
]
ProtocolName = Annotated[str | None, tyro.conf.arg(help="One of the source's protocols; by default its first.")]
StoreName = Annotated[str, tyro.conf.arg(metavar="{lance,exact,milvus,pgvector}")]
"""Also the name of a store that another package adds, which is checked when it is used."""
NewStoreName = Annotated[StoreName, tyro.conf.arg(help="What a new index is: as in vitrieve index.")]
NewStoreUri = Annotated[
    str | None,
    tyro.conf.arg(help="Address of the server of a new index, for milvus and pgvector: as in vitrieve index."),
]
IndexEncoder = Annotated[
    str | None,
    tyro.conf.arg(help="Where the index's encoder is now; None: where it was when the index was made."),
]
IndexImageSize = Annotated[
    int | None,
    tyro.conf.arg(help="Side of the square input in pixels; None: the index's or the encoder's own."),
]
Adopt = Annotated[
    Switch,
    tyro.conf.arg(
        help="Take over an index of another collection, or of this one under another path; an index that no sync has "
        "made is embedded anew."
    ),
]
MapPaths = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(
        help="OLD=NEW: photographs that lay below OLD when the index was made lie below NEW here, as in a container."
    ),
]


def read_data(data: D | None, alone: D | None, *, is_note: bool = True) -> D:
    """Return the collection that ``--data`` names, or the word that stands alone.

    Args:
        data: Value of ``--data``.
        alone: The word without a flag, as the collection was named before.
        is_note: Whether a note tells the present spelling.

    Raises:
        ConfigError: Neither or both are given.
    """
    if (data is None) == (alone is None):
        raise ConfigError("name the collection once: --data SOURCE.")
    if data is not None:
        return data
    assert alone is not None
    if is_note:
        print_message(f"the collection is named with --data now: --data {alone}")
    return alone


def spell_command(command: str, arguments: Any) -> str:
    """Spell the command line that has these arguments, for a message; defaults are left out."""
    repeated = {flag.name for flag in read_flags(type(arguments)) if flag.is_repeatable and not flag.is_list}
    words = ["vitrieve", command]
    for field in fields(arguments):
        value = getattr(arguments, field.name)
        if value == field.default:
            continue
        name = "--" + field.name.replace("_", "-")
        values = [] if value is True else list(map(str, value if isinstance(value, tuple) else [value]))
        words += [word for one in values for word in (name, one)] if name in repeated else [name, *values]
    return shlex.join(words)


def parse_arguments(arguments_class: type[T], argv: Sequence[str], prog: str, default: T | None = None) -> T:
    """Read a command's flags into its dataclass.

    Args:
        arguments_class: The dataclass; its field names with hyphens are the flags, nested dataclasses dotted.
        argv: The words after the command.
        prog: How the command is called, for the help text.
        default: Where the values of flags that are not given come from; None: the fields' defaults.

    Raises:
        ConfigError: An unknown flag (the message names the nearest valid ones), one that is missing, or a value that
            does not fit.
        SystemExit: After ``--help`` (status 0).
    """
    argv = _put_fixed_last(arguments_class, argv, prog)
    complaint = io.StringIO()
    try:
        with (
            writing_results() as results,
            contextlib.redirect_stderr(complaint),
            contextlib.redirect_stdout(results),  # help is a result
            setting_variables({"TERM": "dumb"} if has_no_color() else {}),  # tyro does not know NO_COLOR
        ):
            return _call_tyro(arguments_class, argv, prog, default)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        _raise_unknown_flag(argv, list_flags(arguments_class, prog, default), prog)
        raise ConfigError(f"{_unbox(complaint.getvalue())} See: {prog} --help") from None


def _put_fixed_last(arguments_class: type, argv: Sequence[str], prog: str) -> list[str]:
    """Put flags with a fixed number of values behind the other words: tyro would give them the words that follow, too.

    Raises:
        ConfigError: One has fewer values, or another value than a number where it takes numbers.
    """
    flags = {name: flag for flag in read_flags(arguments_class) if flag.num_values for name in flag.spellings}
    end = argv.index("--") if "--" in argv else len(argv)
    words, moved = list(argv[:end]), []
    while (place := next((at for at, word in enumerate(words) if word.split("=", 1)[0] in flags), None)) is not None:
        name, *first = words[place].split("=", 1)
        following = [*first, *words[place + 1 :]]
        values = following[: 1 if following[:1] == [NOTHING] else flags[name].num_values]
        if values != ["None"]:
            _check_fixed(name, flags[name], values, prog)
        moved += [name, *values]
        words = [*words[:place], *following[len(values) :]]
    return [*words, *moved, *argv[end:]]


def _check_fixed(name: str, flag: Flag, values: Sequence[str], prog: str) -> None:
    """Refuse values of a flag with a fixed number of them, where they are too few, or no numbers."""
    are_numbers = bool({int, float} & set(list_types(flag.hint)))
    if len(values) != flag.num_values or (are_numbers and not all(map(_is_number, values))):
        expected = f"{flag.num_values} {'numbers' if are_numbers else 'values'}"
        given = f"not {' '.join(map(quote_name, values))}" if values else "and none is given"
        raise ConfigError(f"{name} takes {expected} after one another, {given}. See: {prog} --help")


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def list_flags(arguments_class: type[T], prog: str, default: T | None = None) -> tuple[str, ...]:
    """List the long flags of a command, read from its help text: tyro has no public list of them."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit), setting_variables({"COLUMNS": str(WIDE)}):
        _call_tyro(arguments_class, ["--help"], prog, default)
    return tuple(dict.fromkeys(re.findall(r"(?<![\w-])--[a-z][\w.-]*", text.getvalue())))


def _call_tyro(arguments_class: type[T], argv: Sequence[str], prog: str, default: T | None) -> T:
    if default is None:
        return tyro.cli(arguments_class, args=list(argv), prog=prog)
    return tyro.cli(arguments_class, args=list(argv), prog=prog, default=default)


def _raise_unknown_flag(argv: Sequence[str], flags: Sequence[str], prog: str) -> None:
    for word in argv:
        name = word.split("=", 1)[0].replace("_", "-")
        if name.startswith("--") and name not in flags:
            nearest = ", ".join(find_nearest(name, flags))
            raise ConfigError(f"unknown flag {name!r}; the nearest valid ones: {nearest}. See: {prog} --help")


def _unbox(text: str) -> str:
    r"""Take what is wrong out of tyro's frame, which is drawn in ASCII where the terminal knows nothing else.

    >>> _unbox("╭─ Value error ─╮\n│ Error parsing │\n│ --k: 'x'  │\n│ ───── │\n│ For full helptext, … │\n╰───╯")
    "Error parsing --k: 'x'."
    """
    _title, *lines = (line.strip("│ ") for line in text.splitlines())
    sections = re.split(r"^[─-]{3,}$", "\n".join(lines), flags=re.MULTILINE)  # between rules
    first = next(section for section in sections if section.strip())
    message = " ".join(first.split())
    return message if message.endswith(".") else f"{message}."


@dataclass(frozen=True, kw_only=True)
class ProxyArguments:
    """What a service must know of a proxy in front of it."""

    public_url: str | None = None
    """What browsers open when a proxy stands in front, such as https://example.org/photos: allows the name, says the
    prefix, and lets cookies travel by TLS alone."""
    root_path: str | None = None
    """Prefix of every path at the proxy, such as /photos; it may take it off or leave it on."""
    allowed_host: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A further name by which browsers reach the service through a proxy; repeatable."""
    proxy_headers: Switch = False
    """Believe the proxy's X-Forwarded-Proto, so that cookies travel by TLS alone where the browser came by TLS."""


def read_ocr(*, is_on: bool, is_off: bool) -> bool | None:
    """Read what ``--ocr`` and ``--no-ocr`` say; None: as before.

    Raises:
        ConfigError: Both are given.
    """
    if is_on and is_off:
        raise ConfigError("--ocr and --no-ocr contradict each other; give one.")
    return True if is_on else False if is_off else None


def read_proxy(arguments: ProxyArguments) -> ProxySettings:
    """Read where a proxy shows the service.

    Raises:
        ConfigError: As ``build_proxy_settings`` says.
    """
    from vitrieve.serve.settings import build_proxy_settings

    return build_proxy_settings(
        public_url=arguments.public_url,
        root_path=arguments.root_path,
        allowed_hosts=arguments.allowed_host,
        has_proxy_headers=arguments.proxy_headers,
    )


ID_PREFIX = "id:"
TEXT_PREFIX = "text:"
"""A file whose name begins so is written ``./id:…``, and ``./text:…``."""


def read_example_word(word: str, box: Box | None = None) -> Example:
    """Make an example of a word.

    Args:
        word: ``PICTURE``, ``id:IMAGE_ID`` or ``text:WORDS``.
        box: The region of the picture to look at.

    Raises:
        ConfigError: A box on an image of the index or on a text, no box, or a text that cannot be searched for.
    """
    from vitrieve.search.request import Example

    if word.startswith(ID_PREFIX):
        return Example(image_id=word.removeprefix(ID_PREFIX), box=box)
    if word.startswith(TEXT_PREFIX):
        return Example(text=word.removeprefix(TEXT_PREFIX), box=box)
    return Example(picture=Path(word), box=box)


def build_requests(arguments: SearchArguments) -> list[tuple[str, SearchRequest]]:
    """Make the requests, each with what to call it.

    Raises:
        ConfigError: No query, or flags that do not belong together.
    """
    from vitrieve.search.request import SearchRequest

    if arguments.json and arguments.ids:
        raise ConfigError("--json and --ids are two ways of printing; give one.")
    if arguments.null and not arguments.ids:
        raise ConfigError("--null (-0) separates the names that --ids prints; give both.")
    words = [*arguments.images, *(ID_PREFIX + image_id for image_id in arguments.id)]
    words += [TEXT_PREFIX + text for text in arguments.text]
    if not words and not arguments.plus:
        raise ConfigError(
            "no query: name one or more pictures, as in vitrieve search --index INDEX PICTURE, or say it in words with "
            "--text."
        )
    if arguments.box is not None and len(words) != 1:
        raise ConfigError(f"--box is a region of one picture, and {len(words)} are searched for; search for one.")
    plus, minus = (tuple(map(read_example_word, some)) for some in (arguments.plus, arguments.minus))
    queries = [(word, (read_example_word(word, arguments.box), *plus)) for word in words]
    return [
        (
            name,
            SearchRequest(
                plus=examples,
                minus=minus,
                k=arguments.k,
                offset=arguments.offset,
                filter=arguments.filter,
                group_by=arguments.group_by,
                is_near_duplicate_grouped=arguments.near_duplicates,
                reranking=arguments.rerank,
            ),
        )
        for name, examples in queries or [(" + ".join(arguments.plus), plus)]
    ]
