"""The one spelling of every image source, ``NAME:PATH``, and the reader behind each name.

``grocery:DIR``, ``emoji``, ``cub200:DIR``, …, ``folder:DIR``, ``table:FILE``, ``shards:DIR``; an existing folder
alone means ``folder:DIR``. A published data set may be named without its folder: it is then looked for in
``VITRIEVE_DATA`` and beside the checkout. ``DESCRIPTIONS`` has what a person must know to get each of them
(``vitrieve data describe NAME``); sizes marked "about" are rounded, and where the authors state none, it says so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from vitrieve.data import cub200, emoji, folder, grocery, huggingface, inshop, revisited, sfm120k, shards, sop, table
from vitrieve.data.layout import DATA_VARIABLE, find_data_folder
from vitrieve.data.records import Dataset
from vitrieve.data.remote import is_remote
from vitrieve.errors import ConfigError, DataError, unknown_name_message
from vitrieve.plugins import describe_plugin_package, list_plugin_names, load_plugin
from vitrieve.systems import DRIVE


@dataclass(frozen=True, kw_only=True)
class Description:
    """One data set, for a person.

    Attributes:
        title: What it holds.
        origin: Address of the data, or how it comes here.
        layout: Its files, one a line, as the reader expects them.
        license: Whose the images are and what they may be used for.
        size: Size on disk, or of the download.
        protocols: What can be measured on it, the default first.
        counts: Expected counts; a mismatch is noted by the reader. Empty where the user's images are read.
        source: What to read about it; empty for the user's own images.
    """

    title: str
    origin: str
    layout: tuple[str, ...]
    license: str
    size: str
    protocols: tuple[str, ...]
    counts: Mapping[str, int] = field(default_factory=dict)
    source: str = ""


_REVISITED_SOURCE = "Radenović et al., CVPR 2018, arXiv:1803.11285; https://github.com/filipradenovic/revisitop"
_FACES = "since June 2022 the download has blurred faces, which may move figures slightly"
_OWN_LICENSE = "your own images: whatever you have agreed for them"
_OWN_SIZE = "any"


def _describe_revisited(name: str, city: str, images: str, size: str) -> Description:
    return Description(
        title=f"revisited {city}: photographs of buildings, 70 queries with easy, hard and junk answers",
        origin=f"{images} ({_FACES}); gnd_{name}.pkl with the code of "
        "https://github.com/filipradenovic/cnnimageretrieval-pytorch",
        layout=(
            f"gnd_{name}.pkl      lists gnd (bbx, easy, hard, junk), imlist, qimlist; read without running anything",
            "jpg/NAME.jpg           gallery and queries, all in one folder without subfolders",
            f"or a folder that holds all this as {name}/",
        ),
        license=revisited.LICENSE,
        size=size,
        protocols=revisited.PROTOCOLS,
        counts=revisited.COUNTS[name],
        source=_REVISITED_SOURCE,
    )


DESCRIPTIONS: Mapping[str, Description] = {
    "grocery": Description(
        title="Grocery Store: phone photographs of products, and one catalogue picture of each",
        origin="https://github.com/marcusklasson/GroceryStoreDataset, its folder 'dataset'",
        layout=(
            "classes.csv, train.txt, val.txt, test.txt",
            "train/, val/, test/    the photographs",
            "iconic/ or iconic-images-and-descriptions/    the catalogue pictures, for phone_to_catalogue",
        ),
        license=grocery.LICENSE,
        size="about 130 MB",
        protocols=grocery.PROTOCOLS,
        counts={"photographs": grocery.NUM_PHOTOGRAPHS, "classes": grocery.NUM_CLASSES},
        source="Klasson, Zhang and Kjellström, WACV 2019, arXiv:1901.00711",
    ),
    "emoji": Description(
        title="the same emoji drawn by several artists is one class",
        origin="fetched by itself with npm when first used, and rasterised into the cache (about two minutes)",
        layout=("kept in the cache folder (VITRIEVE_CACHE); write 'emoji' without a path",),
        license="; ".join(f"{one.name}: {one.license}" for one in emoji.SETS),
        size="29 MB to fetch",
        protocols=emoji.PROTOCOLS,
        source="the icon sets of https://iconify.design",
    ),
    "cub200": Description(
        title="CUB-200-2011: photographs of 200 species of birds; classes 1 to 100 train, 101 to 200 test",
        origin="https://www.vision.caltech.edu/datasets/cub_200_2011/",
        layout=(
            "images.txt                'IMAGE_NUMBER CLASS_FOLDER/NAME.jpg' a line",
            "image_class_labels.txt    'IMAGE_NUMBER CLASS_ID' a line",
            "images/CLASS_FOLDER/NAME.jpg",
            "or a folder that holds all this as CUB_200_2011/; train_test_split.txt is another split and not read",
        ),
        license=cub200.LICENSE,
        size="about 1.1 GB to download",
        protocols=cub200.PROTOCOLS,
        counts=cub200.COUNTS,
        source="Wah, Branson, Welinder, Perona and Belongie, 2011",
    ),
    "sop": Description(
        title="Stanford Online Products: photographs of products sold online",
        origin="https://cvgl.stanford.edu/projects/lifted_struct/",
        layout=(
            "Ebay_train.txt, Ebay_test.txt    'image_id class_id super_class_id path', with this header",
            "CATEGORY_final/NAME.JPG          twelve categories",
            "or a folder that holds all this as Stanford_Online_Products/",
        ),
        license=sop.LICENSE,
        size="about 2.9 GB to download",
        protocols=sop.PROTOCOLS,
        counts=sop.COUNTS,
        source="Oh Song, Xiang, Jegelka and Savarese, CVPR 2016",
    ),
    "inshop": Description(
        title="In-Shop Clothes Retrieval (DeepFashion): photographs of garments in a shop",
        origin="https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html, after signing the agreement",
        layout=(
            "Eval/list_eval_partition.txt    or list_eval_partition.txt: the count, a header, then",
            "                                'image_name item_id evaluation_status' with train, query or gallery",
            "img/ or Img/img/                pictures for the protocol standard",
            "img_highres/ or Img/img_highres/    pictures for the protocol high_resolution",
        ),
        license=inshop.LICENSE,
        size="not stated by its authors; img.zip and img_highres.zip",
        protocols=inshop.PROTOCOLS,
        counts=inshop.COUNTS,
        source="Liu, Luo, Qiu, Wang and Tang, CVPR 2016",
    ),
    "sfm120k": Description(
        title="retrieval-SfM-120k: buildings matched by 3D reconstruction; training and validation, no test",
        origin="http://cmp.felk.cvut.cz/cnnimageretrieval/, fetched by the code of "
        "https://github.com/filipradenovic/cnnimageretrieval-pytorch",
        layout=(
            "retrieval-SfM-120k.pkl    for train and val the lists cids, qidxs, pidxs, cluster, bbxs",
            "ims/YZ/WX/UV/CID          the image CID, whose last six characters are UVWXYZ",
            "or a folder that holds all this as retrieval-SfM-120k/",
        ),
        license=sfm120k.LICENSE,
        size="not stated by its authors",
        protocols=sfm120k.PROTOCOLS,
        counts=sfm120k.COUNTS,
        source="Radenović, Tolias and Chum, TPAMI 2019, arXiv:1711.02512",
    ),
    "roxford5k": _describe_revisited(
        "roxford5k", "Oxford", "images: https://www.robots.ox.ac.uk/~vgg/data/oxbuildings/", "about 2 GB to download"
    ),
    "rparis6k": _describe_revisited(
        "rparis6k", "Paris", "images: https://www.robots.ox.ac.uk/~vgg/data/parisbuildings/", "about 2.5 GB to download"
    ),
    "revisitop1m": Description(
        title="a million photographs in which no query of roxford5k or rparis6k is found: distractors for either",
        origin="http://ptak.felk.cvut.cz/revisitop/revisitop1m/, fetched by the code of "
        "https://github.com/filipradenovic/revisitop",
        layout=(
            "jpg/    images at any depth; files whose name begins with '.' are passed over",
            "or a folder that holds this as revisitop1m/",
        ),
        license=revisited.LICENSE,
        size="not stated by its authors; 100 archives",
        protocols=revisited.DISTRACTOR_PROTOCOLS,
        counts=revisited.COUNTS["revisitop1m"],
        source=_REVISITED_SOURCE,
    ),
    "folder": Description(
        title="your own images, in a folder for each class",
        origin="yours",
        layout=(
            "CLASS/…/NAME.jpg    a folder for each class; every fifth class is for testing",
            "or SPLIT/CLASS/…/NAME.jpg    SPLIT: train, val, test, query or gallery",
            ".vitrieveignore    what to leave out, by the rules of .gitignore",
        ),
        license=_OWN_LICENSE,
        size=_OWN_SIZE,
        protocols=("own_classes",),
    ),
    "table": Description(
        title="your own images, listed in a table",
        origin="yours",
        layout=(
            "a CSV or Parquet file with the columns path and label;",
            "optional: split, is_query, is_gallery, x_1, y_1, x_2, y_2; any other column is metadata",
        ),
        license=_OWN_LICENSE,
        size=_OWN_SIZE,
        protocols=("own_classes",),
    ),
    "shards": Description(
        title="images in tar archives with an index, which are read in any order",
        origin="vitrieve data pack SOURCE --out DIR, or archives of WebDataset",
        layout=(
            "index.parquet, 000000.tar, 000001.tar, …    as vitrieve data pack writes them; also below an address",
            "    s3://BUCKET/…, gs://BUCKET/… or https://HOST/…, with the extra remote",
            "or NAME.tar, at any depth, of samples KEY.jpg (png, webp) with KEY.cls, KEY.json or KEY.txt;",
            "train-NAME.tar, val-NAME.tar or test/NAME.tar say the split. They are indexed when first opened",
        ),
        license="that of the images",
        size=_OWN_SIZE,
        protocols=shards.PROTOCOLS,
    ),
    "hf": Description(
        title="a data set of the library datasets of Hugging Face, in a folder",
        origin="downloaded with huggingface_hub, or written by datasets (to_parquet)",
        layout=(
            "data/train-00000-of-00002.parquet, …    with a column image of bytes, and label",
            "or metadata.csv (metadata.jsonl) with the column file_name, optional label; beside or above the pictures",
            "or class folders, as in folder:DIR",
        ),
        license="that of the data set; its README.md says it",
        size=_OWN_SIZE,
        protocols=huggingface.PROTOCOLS,
    ),
}


def find_description(name: str) -> Description:
    """Find the description of a source.

    Raises:
        DataError: Unknown name; the message lists the valid ones.
    """
    if name in DESCRIPTIONS:
        return DESCRIPTIONS[name]
    if name not in list_sources():
        raise DataError(unknown_name_message("data set", name, list_sources()))
    description = _find_source(name).description
    if description is None:
        raise DataError(f"the package {describe_plugin_package('source', name)} describes nothing of {name!r}.")
    return description


def format_description(name: str, description: Description, *, spelling: str, found: str | None) -> str:
    """Write a description as text for a terminal.

    Args:
        name: Name of the source.
        description: Its description.
        spelling: How a command names the source, for example ``sop:DIR``.
        found: The folder on this machine, where there is one without being told; None otherwise.
    """
    counts = ", ".join(f"{number:,} {what}" for what, number in description.counts.items())
    rows = (
        ("source", description.source),
        ("get it from", description.origin),
        ("license", description.license),
        ("size", description.size),
        ("expected", counts),
        ("protocols", ", ".join(description.protocols)),
        ("write", spelling),
        ("on this machine", found or ""),
    )
    lines = [f"{name}: {description.title}", ""]
    lines += [f"  {title:<16}{text}" for title, text in rows if text]
    lines += ["  layout", *(f"    {line}" for line in description.layout)]
    return "\n".join(lines)


TABLE, FORMER_TABLE = "table:", "manifest:"
"""How a table of images is named, and how it was named before."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A name of the spelling; also what the entry point of another package's source leads to (``plugins.py``).

    Attributes:
        path_kind: What stands after the colon (``DIR`` or ``FILE``); None when nothing does.
        protocols: Names of its protocols, the default first.
        read: Reads the path (empty when there is none) under a protocol.
        folder_names: Names that the data set's folder may have, where it is looked for without being given.
        description: What a person must know to get it; None where ``DESCRIPTIONS`` has it, or nobody says it.
    """

    path_kind: str | None
    protocols: tuple[str, ...]
    read: Callable[[str, str], Dataset]
    folder_names: tuple[str, ...] = ()
    description: Description | None = None


def list_sources() -> tuple[str, ...]:
    """List the names of all sources: those of this package, then those that other packages add."""
    return tuple(dict.fromkeys((*_SOURCES, *list_plugin_names("source"))))


def _find_source(name: str) -> Source:
    """Find a source by its name; one of another package is loaded.

    Raises:
        ConfigError: The other package cannot be loaded, or what it adds is no source.
    """
    if name in _SOURCES:
        return _SOURCES[name]
    found = load_plugin("source", name)
    if not isinstance(found, Source):
        package = describe_plugin_package("source", name)
        raise ConfigError(f"the source {name!r} of the package {package} is {found!r}; expected a Source.")
    return found


def read_source(source: str | Path, *, protocol: str | None = None, exclude: str | Sequence[str] = ()) -> Dataset:
    """Read a data set with labels, splits and roles.

    Args:
        source: ``NAME:PATH``; ``NAME`` for a published data set in the folder that ``VITRIEVE_DATA`` names; or an
            existing folder with one subfolder for each class. A data set's name wins over a folder of that name,
            which a note tells; write ``./emoji`` for the folder.
        protocol: One of ``list_protocols(source)``; None for the first.
        exclude: Patterns of what to leave out of a folder, with the rules of gitignore.

    Raises:
        DataError: Unknown name or protocol, or the source cannot be read.
        ConfigError: A pattern is none, or the source is no folder of the user's.
    """
    source = str(source)
    name, path = _split_source(source)
    _check_exclude(name, exclude)
    chosen = _find_source(name)
    if protocol is not None and protocol not in chosen.protocols:
        raise DataError(unknown_name_message(f"protocol of {name}", protocol, chosen.protocols))
    if name == "folder":
        dataset = folder.read_folder(_path(path), protocol or chosen.protocols[0], exclude=exclude)
        return replace(dataset, source=source)
    dataset = chosen.read(path or _find_path(name), protocol or chosen.protocols[0])
    notes = (*dataset.notes, *_note_folder_of_that_name(source), *_note_former_name(source))
    return replace(dataset, notes=notes, source=source)


def read_collection(source: str | Path, *, protocol: str | None = None, exclude: str | Sequence[str] = ()) -> Dataset:
    """Read what is to be embedded: a source, or any folder of images.

    Args:
        source: Spelling as for ``read_source``; a folder alone is searched at any depth and needs no class folders. Its
            images all get label 0.
        protocol: One of the source's protocols, where those hold different images; None for the first.
        exclude: Patterns of what to leave out of a folder, with the rules of gitignore.

    Raises:
        DataError: Unknown name or protocol, or nothing that can be read.
        ConfigError: A pattern is none, or the source is no folder of the user's.
    """
    source = str(source)
    name, path = _split_source(source)
    if name == "folder" and path == source and protocol is None:
        return replace(folder.read_flat_folder(_path(path), exclude=exclude), source=source)
    return read_source(source, protocol=protocol, exclude=exclude)


def is_folder_source(source: str) -> bool:
    """Say whether a source is a folder of the user's, there or not, from which files can be left out."""
    source = _spell_now(source)
    name = source.partition(":")[0]
    if name in list_sources() and not _is_folder_named_like_a_kind(source):
        return name == "folder"
    return not _path(source).is_file()


def list_protocols(source: str) -> tuple[str, ...]:
    """Name the protocols of a source, the default first.

    >>> list_protocols("grocery:anywhere")
    ('zero_shot', 'phone_to_catalogue')

    Raises:
        DataError: Unknown name.
    """
    return _find_source(_split_source(source)[0]).protocols


def spell_source(name: str) -> str:
    """Spell how a source is named, for example ``sop:DIR``.

    Args:
        name: One of the sources' names.
    """
    kind = _find_source(name).path_kind
    return f"{name}:{kind}" if kind else name


def find_source_folder(name: str) -> Path | None:
    """Find the folder of a published data set where none is given; None when it is not here, or no such source.

    Args:
        name: One of the sources' names.
    """
    return find_data_folder(_find_source(name).folder_names)


def find_source_path(source: str) -> Path | None:
    """Tell the folder or file that a source names, there or not; None for one that names none, or an address.

    Args:
        source: Spelling as for ``read_collection``.
    """
    name, _, path = _spell_now(source).partition(":")
    if name not in list_sources() or _is_folder_named_like_a_kind(source):
        return _path(source)
    if name == "shards" and is_remote(path):
        return None
    return _path(path) if path else find_source_folder(name)


def resolve_source(source: str) -> str:
    """Spell a source by its kind and the real path of its folder or file, as all spellings of it have in common.

    >>> resolve_source("folder:photos/../photos/") == resolve_source("photos") != resolve_source("hf:photos")
    True

    Args:
        source: Spelling as for ``read_collection``; nothing needs to be there.
    """
    path = find_source_path(source)
    if path is None:  # it takes none, or is an address
        return source.rstrip("/")
    name = _spell_now(source).partition(":")[0]
    is_kind = name in list_sources() and not _is_folder_named_like_a_kind(source)
    return f"{name if is_kind else 'folder'}:{os.path.realpath(path)}"


def _split_source(source: str) -> tuple[str, str]:
    """Split ``NAME:PATH``; a bare folder is ``folder`` with the whole source as its path."""
    source = _spell_now(source)
    name, colon, path = source.partition(":")
    if _is_folder_named_like_a_kind(source):
        return "folder", source
    if name in list_sources():
        kind = _find_source(name).path_kind
        if kind and not path and not _find_source(name).folder_names:
            raise DataError(f"{source!r} lacks a path; write {name}:{kind}.")
        if colon and not kind:
            raise DataError(f"{source!r}: {name} takes no path; write {name}.")
        return name, path
    is_path = source != "" and (_path(source).exists() or "/" in source or DRIVE.match(source))
    if is_path and _path(source).is_dir():
        return "folder", source
    if is_path and (not colon or DRIVE.match(source)):
        if _path(source).suffix.lower() in table.TABLE_SUFFIXES and _path(source).is_file():
            raise DataError(f"{source} is a table; write table:{source}.")
        raise DataError(f"{source} is not a folder that exists. Give one, or write {_spellings()}.")
    unknown = unknown_name_message("source", name, list_sources())
    raise DataError(f"{unknown} Write {_spellings()}, or an existing folder.")


def _spell_now(source: str) -> str:
    """Replace the former name of a source by the present one."""
    return TABLE + source.removeprefix(FORMER_TABLE) if source.startswith(FORMER_TABLE) else source


def _is_folder_named_like_a_kind(source: str) -> bool:
    """Say whether a folder here is called ``folder`` or ``table``: alone, such a name means nothing else."""
    named = _find_source(source) if source in list_sources() else None
    return named is not None and bool(named.path_kind) and not named.folder_names and _path(source).is_dir()


def _note_folder_of_that_name(source: str) -> tuple[str, ...]:
    """Tell who names a data set that a folder here is called so too: the name has won."""
    if source not in list_sources() or not _path(source).is_dir():
        return ()
    return (f"{source} is the data set of that name; for the folder here write ./{source} or folder:{source}.",)


def _note_former_name(source: str) -> tuple[str, ...]:
    """Tell who writes ``manifest:FILE`` that it is called ``table:FILE`` now."""
    return (f"{source} is spelled {_spell_now(source)} now.",) if source.startswith(FORMER_TABLE) else ()


def _check_exclude(name: str, exclude: str | Sequence[str]) -> None:
    """Refuse patterns without effect: what a published data set or a table holds is listed in it."""
    if exclude and name != "folder":
        raise ConfigError(
            f"--exclude leaves files out of a folder, and {name} lists its images itself; leave it out, or "
            "give a folder."
        )


def _find_path(name: str) -> str:
    """Find the path of a source that was named alone; empty for one that takes none."""
    names = _find_source(name).folder_names
    if not names:
        return ""
    found = find_data_folder(names)
    if found is None:
        named = os.environ.get(DATA_VARIABLE)
        looked = f"{named} has none of the folders {', '.join(names)}" if named else f"{DATA_VARIABLE} is not set"
        raise DataError(
            f"{name} is named without a folder, and {looked}; write {spell_source(name)}, or name with {DATA_VARIABLE} "
            f"the folder, such as ~/datasets, that holds {' or '.join(names)}. "
            f"`vitrieve data describe {name}` tells where to get it."
        )
    return str(found)


def _spellings() -> str:
    return ", ".join((*map(spell_source, _SOURCES), *(f"{name}:PATH" for name in list_plugin_names("source"))))


def _path(text: str) -> Path:
    # The shell expands ~ only at the start of a word, not after "folder:". Path.expanduser raises for an unknown user.
    return Path(os.path.expanduser(text))


def _read_folder_with(read: Callable[[Path, str], Dataset], path: str, protocol: str) -> Dataset:
    return read(_path(path), protocol)


def _published(
    read: Callable[[Path, str], Dataset], protocols: tuple[str, ...], folder_names: tuple[str, ...]
) -> Source:
    return Source(
        path_kind="DIR", protocols=protocols, read=partial(_read_folder_with, read), folder_names=folder_names
    )


_SOURCES = {
    "grocery": _published(grocery.read_grocery, grocery.PROTOCOLS, grocery.FOLDER_NAMES),
    "emoji": Source(path_kind=None, protocols=emoji.PROTOCOLS, read=lambda _, protocol: emoji.read_emoji(protocol)),
    "cub200": _published(cub200.read_cub200, cub200.PROTOCOLS, cub200.FOLDER_NAMES),
    "sop": _published(sop.read_sop, sop.PROTOCOLS, sop.FOLDER_NAMES),
    "inshop": _published(inshop.read_inshop, inshop.PROTOCOLS, inshop.FOLDER_NAMES),
    "sfm120k": _published(sfm120k.read_sfm120k, sfm120k.PROTOCOLS, sfm120k.FOLDER_NAMES),
    **{
        name: _published(partial(revisited.read_revisited, name), revisited.PROTOCOLS, (name,))
        for name in ("roxford5k", "rparis6k")
    },
    "revisitop1m": _published(revisited.read_distractors, revisited.DISTRACTOR_PROTOCOLS, (revisited.DISTRACTORS,)),
    "folder": Source(
        path_kind="DIR",
        protocols=folder.PROTOCOLS,
        read=lambda path, protocol: folder.read_folder(_path(path), protocol),
    ),
    "table": Source(
        path_kind="FILE",
        protocols=table.PROTOCOLS,
        read=lambda path, protocol: table.read_table(_path(path), protocol),
    ),
    "shards": Source(
        path_kind="DIR",
        protocols=shards.PROTOCOLS,
        read=lambda path, protocol: (
            shards.read_remote_shards(path, protocol) if is_remote(path) else shards.read_shards(_path(path), protocol)
        ),
    ),
    "hf": Source(
        path_kind="DIR",
        protocols=huggingface.PROTOCOLS,
        read=lambda path, protocol: huggingface.read_huggingface(_path(path), protocol),
    ),
}
