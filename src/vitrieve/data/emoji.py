"""The ``emoji`` source: the same emoji drawn by several artists is one class.

A zero-shot benchmark of the shape of SOP (many classes, few images each) that any machine with npm can
build in about two minutes: ten npm packages of SVG drawings, rasterised at 256 px on white into the cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import multiprocessing
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrieve.data.records import Dataset, ImageRecord, Split
from vitrieve.errors import DataError
from vitrieve.machine import cache_folder, count_cores
from vitrieve.progress import print_message, track
from vitrieve.writing import explaining_full_disk, write_text_durably

PROTOCOLS = ("zero_shot", "across_houses")
NUM_SETS_MIN = 4
"""A name is a class when at least this many sets draw it."""
IMAGE_SIZE = 256
CACHE_NAME = "emoji-v2"
"""Changes whenever the selection or the drawing changes, so that old caches are not mistaken for new ones."""


@dataclass(frozen=True)
class EmojiSet:
    """One npm package of drawings; ``house`` is shared by sets of one design studio."""

    name: str
    version: str
    house: str
    license: str


SETS = (
    EmojiSet("noto", "1.2.9", "google", "Apache-2.0, Google Inc"),
    EmojiSet("noto-v1", "1.2.5", "google", "Apache-2.0, Google Inc"),
    EmojiSet("twemoji", "1.2.5", "twitter", "CC-BY-4.0, Twitter"),
    EmojiSet("openmoji", "1.2.29", "openmoji", "CC-BY-SA-4.0, OpenMoji"),
    EmojiSet("fluent-emoji", "1.2.7", "microsoft", "MIT, Microsoft Corporation"),
    EmojiSet("fluent-emoji-flat", "1.2.6", "microsoft", "MIT, Microsoft Corporation"),
    EmojiSet("emojione", "1.2.3", "emojione", "CC-BY-4.0, Emoji One"),
    EmojiSet("emojione-v1", "1.2.3", "emojione", "CC-BY-SA-4.0, Emoji One"),
    EmojiSet("fxemoji", "1.2.2", "mozilla", "Apache-2.0, Mozilla"),
    EmojiSet("streamline-emojis", "1.2.4", "streamline", "CC-BY-4.0, Streamline"),
)

NPM_PATIENCE = ("--prefer-offline", "--fetch-retries=1", "--fetch-retry-mintimeout=2000")
"""Seconds instead of minutes until npm says that there is no network; versions are exact, so its cache may answer."""

_SKIN_TONE = re.compile(r"skin-tone|-tone\d|(^|-)(medium-light|medium-dark)($|-)")
_WHO = re.compile(r"^(?:(?:man|woman|person|men|women|people|boy|girl|male|female)-)+")


def read_emoji(protocol: str = "zero_shot", *, show_progress: bool = True) -> Dataset:
    """Read the emoji data set; the first call fetches and rasterises it into the cache.

    Classes are split by stem: stems sorted, every second one for testing, so that ``man-cook`` and
    ``woman-cook`` stay on one side.

    Args:
        protocol: ``zero_shot`` (every test drawing asks all the others), or ``across_houses`` (drawings of
            the query's own house are junk, because such pairs often share a composition).
        show_progress: Report the first call's work on standard error.

    Raises:
        DataError: npm or resvg-py is missing, or npm cannot fetch a package.
    """
    folder = ensure_emoji(show_progress=show_progress)
    drawings: list[dict[str, str]] = json.loads((folder / "drawings.json").read_text(encoding="utf-8"))
    names = sorted({drawing["name"] for drawing in drawings})
    labels = {name: label for label, name in enumerate(names)}
    test_stems = set(sorted({stem(name) for name in names})[1::2])
    houses = {emoji_set.name: emoji_set.house for emoji_set in SETS}

    def to_record(drawing: Mapping[str, str]) -> ImageRecord:
        split: Split = "test" if stem(drawing["name"]) in test_stems else "train"
        image_id = f"{drawing['set']}/{drawing['name']}.png"
        return ImageRecord(
            image_id=image_id,
            path=folder / image_id,
            label=labels[drawing["name"]],
            split=split,
            metadata={"name": drawing["name"], "set": drawing["set"], "house": houses[drawing["set"]]},
        )

    return Dataset(
        name="emoji",
        protocol=protocol,
        records=tuple(to_record(drawing) for drawing in drawings),
        label_names=tuple(names),
        junk_key="house" if protocol == "across_houses" else None,
        license="Emoji drawings: " + "; ".join(f"{one.name} ({one.license})" for one in SETS) + ".",
    )


def stem(name: str) -> str:
    """Drop leading words that only say who: ``woman-cook`` and ``cook`` have one stem.

    >>> stem("woman-cook")
    'cook'
    """
    return _WHO.sub("", name) or name


def ensure_emoji(*, show_progress: bool = True) -> Path:
    """Return the folder of rasterised drawings, building it when it is not in the cache.

    Raises:
        DataError: As ``read_emoji``.
    """
    folder = cache_folder() / CACHE_NAME
    if (folder / "drawings.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        candidates = find_candidates(_fetch_packages(Path(scratch), show_progress))
    digests = _rasterise_all(candidates, folder, show_progress)
    listing = [{"name": drawing.name, "set": drawing.set_name} for drawing in drop_duplicates(candidates, digests)]
    write_text_durably(folder / "drawings.json", json.dumps(listing))
    return folder


@dataclass(frozen=True)
class Drawing:
    """One drawing of a class by one set, as a complete SVG document."""

    name: str
    set_name: str
    svg: str


def find_candidates(packages: Mapping[str, Mapping[str, Any]]) -> list[Drawing]:
    """Find the drawings of all names that enough sets draw.

    Aliases count, hidden icons do not, skin-tone variants are left out.

    Args:
        packages: ``icons.json`` of each set, by the set's name.

    Returns:
        Drawings sorted by name, then in the order of ``packages``.
    """
    classes: dict[str, list[Drawing]] = defaultdict(list)
    for set_name, package in packages.items():
        for name, svg in _visible_drawings(package):
            if not _SKIN_TONE.search(name):
                classes[name].append(Drawing(name, set_name, svg))
    return [drawing for name in sorted(classes) if len(classes[name]) >= NUM_SETS_MIN for drawing in classes[name]]


def drop_duplicates(drawings: Sequence[Drawing], digests: Sequence[str]) -> list[Drawing]:
    """Keep every picture once, then the names that still have enough drawings.

    A picture that comes again under another name would be a wrong answer to itself, or a test image seen in
    training. It stays under the name that most sets draw (then the first in order, then the first set).

    Args:
        drawings: Candidates.
        digests: Same length; equal for equal pictures.

    Returns:
        The kept drawings, in order.
    """
    num_sets = Counter(drawing.name for drawing in drawings)
    order = sorted(range(len(drawings)), key=lambda row: (-num_sets[drawings[row].name], drawings[row].name))
    keeper = {digests[row]: row for row in reversed(order)}
    kept = [drawing for row, drawing in enumerate(drawings) if keeper[digests[row]] == row]
    num_kept = Counter(drawing.name for drawing in kept)
    return [drawing for drawing in kept if num_kept[drawing.name] >= NUM_SETS_MIN]


def _visible_drawings(package: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    icons, aliases = package["icons"], package.get("aliases", {})
    for name in [*icons, *aliases]:
        chain = [name]
        while chain[-1] in aliases and chain[-1] not in icons:
            chain.append(aliases[chain[-1]]["parent"])
        icon = icons[chain[-1]]
        links = [aliases[link] for link in chain[:-1]]
        if not any(part.get("hidden", False) for part in [icon, *links]):
            yield name, _build_svg(icon, links, package)


def _build_svg(icon: Mapping[str, Any], links: Iterable[Mapping[str, Any]], package: Mapping[str, Any]) -> str:
    """Draw ``icon`` with the mirrorings and quarter turns of its chain of aliases."""
    left, top = icon.get("left", 0), icon.get("top", 0)
    width = icon.get("width", package.get("width", 16))
    height = icon.get("height", package.get("height", 16))
    center_x, center_y = left + width / 2, top + height / 2
    body = icon["body"]
    for link in links:
        turn = 90 * int(link.get("rotate", 0))
        mirror = f"{-1 if link.get('hFlip') else 1} {-1 if link.get('vFlip') else 1}"
        if turn or mirror != "1 1":
            transform = (
                f"translate({center_x} {center_y}) rotate({turn}) scale({mirror}) translate({-center_x} {-center_y})"
            )
            body = f'<g transform="{transform}">{body}</g>'
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{body}</svg>'
    )


def _fetch_packages(scratch: Path, show_progress: bool) -> dict[str, Any]:
    """Fetch the npm packages and read their ``icons.json``, by set name in the order of ``SETS``."""
    npm = shutil.which("npm")
    if npm is None:
        raise DataError(
            "the emoji data set comes from npm packages, but no npm command was found; install Node.js with npm, "
            "or use another source (grocery:DIR, folder:DIR, table:FILE)."
        )
    if show_progress:
        print_message(f"emoji: fetching {len(SETS)} packages of drawings with npm")
    names = [f"@iconify-json/{one.name}@{one.version}" for one in SETS]
    command = [npm, "pack", "--loglevel=error", *NPM_PATIENCE, *names]
    done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DataError(
            f"npm could not fetch {names[0]} and {len(names) - 1} more packages: {_find_reason(done.stderr)}. The "
            "emoji data set needs the npm registry once; check the network, or use another source (grocery:DIR, "
            "folder:DIR, table:FILE)."
        )
    packages = {}
    for emoji_set, archive_name in zip(SETS, done.stdout.split(), strict=True):
        with tarfile.open(scratch / archive_name) as archive:
            file = archive.extractfile("package/icons.json")
            assert file is not None
            packages[emoji_set.name] = json.load(file)
    return packages


def _find_reason(text: str) -> str:
    r"""Find the sentence among the lines that npm prints about an error.

    >>> _find_reason("npm error code ETARGET\nnpm error notarget No matching version found for noto@9.\n")
    'notarget No matching version found for noto@9'
    """
    lines = [re.sub(r"^npm (error|ERR!) ?", "", line) for line in text.strip().splitlines()]
    told = [line for line in lines if not re.match(r"(code|syscall|errno|path)\b", line)]
    return next(iter(told or lines), "it gives no reason").rstrip(".")


def _rasterise_all(drawings: Sequence[Drawing], folder: Path, show_progress: bool) -> list[str]:
    """Write the picture of every drawing; return the digests of the files."""
    if importlib.util.find_spec("resvg_py") is None:
        raise DataError(
            "the emoji data set is drawn with resvg-py, which is not installed; run `pip install resvg-py`."
        )
    for emoji_set in SETS:
        (folder / emoji_set.name).mkdir(exist_ok=True)
    # Processes, because resvg-py holds the interpreter lock while it draws.
    with ProcessPoolExecutor(count_cores(), mp_context=multiprocessing.get_context("spawn")) as pool:
        done = pool.map(_rasterise, drawings, itertools.repeat(folder), chunksize=32)
        return list(track(done, "emoji: draw", total=len(drawings), is_shown=show_progress))


def _rasterise(drawing: Drawing, folder: Path) -> str:
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=drawing.svg, width=IMAGE_SIZE, height=IMAGE_SIZE, background="white"))
    path = folder / drawing.set_name / f"{drawing.name}.png"
    with explaining_full_disk(path, num_bytes=len(png)):
        path.write_bytes(png)
    return hashlib.sha256(png).hexdigest()
