"""What a person must know to get a data set: ``vitrieve data describe NAME``.

Sizes marked "about" are rounded; where the authors state none, it says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vitrieve.data import cub200, emoji, grocery, inshop, revisited, sfm120k, sop
from vitrieve.errors import DataError, unknown_name_message


@dataclass(frozen=True, kw_only=True)
class Description:
    """One data set, for a person.

    Attributes:
        title: What it holds.
        origin: Where to get it.
        layout: Its files, one a line, as the reader expects them.
        license: Whose the images are and what they may be used for.
        size: On disk, or to download.
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


def _describe_revisited(name: str, place: str, images: str, size: str) -> Description:
    return Description(
        title=f"revisited {place}: photographs of buildings, 70 queries with easy, hard and junk answers",
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
}


def find_description(name: str) -> Description:
    """Find the description of a source.

    Raises:
        DataError: Unknown name; the message lists the valid ones.
    """
    if name not in DESCRIPTIONS:
        raise DataError(unknown_name_message("data set", name, DESCRIPTIONS))
    return DESCRIPTIONS[name]


def format_description(name: str, description: Description, *, spelling: str, found: str | None) -> str:
    """Write a description as text for a terminal.

    Args:
        name: Of the source.
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
